# SPDX-License-Identifier: Apache-2.0
"""Every collective against a NumPy reference, on 1 to 5 ranks, over each transport."""

from __future__ import annotations

from typing import Any

import pytest
import rank_programs as on_ranks
from hypothesis import given, settings
from hypothesis import strategies as st

import hccomm

REDUCTIONS = ["all_reduce", "reduce", "reduce_scatter"]
COPIES = ["broadcast", "all_gather", "gather", "scatter", "all_to_all"]


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("name", REDUCTIONS)
def test_reduction_of_every_type_and_operation_equals_numpy(
    ranks: Any, size: int, name: str
) -> None:
    for wrong in ranks(size).run(on_ranks.wrong_reductions, name, [0, 1, 7, 300]):
        assert wrong == []


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("name", COPIES)
def test_copy_of_every_type_equals_numpy(ranks: Any, size: int, name: str) -> None:
    for wrong in ranks(size).run(on_ranks.wrong_copies, name, [0, 1, 7, 300]):
        assert wrong == []


@pytest.mark.parametrize(("size", "hosts"), [(2, 2), (3, 2), (4, 2), (5, 3)])
def test_ranks_on_several_hosts_reduce_and_copy_alike(ranks: Any, size: int, hosts: int) -> None:
    group = ranks(size, hosts=hosts)
    for name in ("all_reduce", "reduce_scatter"):
        for wrong in group.run(on_ranks.wrong_reductions, name, [5, 4000]):
            assert wrong == []
    for name in COPIES:
        for wrong in group.run(on_ranks.wrong_copies, name, [5, 4000]):
            assert wrong == []


@pytest.mark.parametrize("transports", ["tcp", "shm"])
def test_one_transport_alone_carries_everything(ranks: Any, transports: str) -> None:
    group = ranks(3, HCCOMM_TRANSPORTS=transports)
    for name in ("all_reduce", "reduce_scatter"):
        for wrong in group.run(on_ranks.wrong_reductions, name, [3, 20_000]):
            assert wrong == []
    for name in COPIES:
        for wrong in group.run(on_ranks.wrong_copies, name, [3, 20_000]):
            assert wrong == []
    for found in group.run(on_ranks.describe):
        assert {peer["transport"] for peer in found["peers"]} == {transports}


def test_pairs_of_one_host_use_shm_and_others_tcp(ranks: Any) -> None:
    for rank, found in enumerate(ranks(4, hosts=2).run(on_ranks.describe)):
        carried = {peer["rank"]: peer["transport"] for peer in found["peers"]}

        assert found["hosts"] == 2
        assert carried == {
            peer: "shm" if peer // 2 == rank // 2 else "tcp" for peer in range(4) if peer != rank
        }


@pytest.mark.parametrize("counts", [[3, 1, 2], [0, 5, 0], [0, 0, 0], [2000, 1, 0]])
@pytest.mark.parametrize("gap", [0, 3])
def test_v_forms_put_every_part_in_its_place(ranks: Any, counts: list[int], gap: int) -> None:
    assert ranks(3).run(on_ranks.wrong_v_forms, counts, gap) == [[], [], []]


def test_v_forms_of_one_rank_copy(ranks: Any) -> None:
    assert ranks(1).run(on_ranks.wrong_v_forms, [4], 2) == [[]]


@pytest.mark.parametrize("megabytes", [1, 9])
def test_large_messages_arrive_whole(ranks: Any, megabytes: int) -> None:
    count = megabytes << 18
    for name in ("all_reduce", "broadcast", "all_gather", "all_to_all"):
        case = {"name": name, "kind": "f32", "op": "sum", "count": count, "in_place": False}

        assert all(ranks(3).run(on_ranks.one_random_case, case))


@pytest.mark.parametrize("kind", ["f32", "bf16", "f16", "f64"])
@pytest.mark.parametrize("count", [100, 100_000])
def test_every_rank_and_every_run_gets_the_same_bits(ranks: Any, kind: str, count: int) -> None:
    found = ranks(4).run(on_ranks.bits, kind, count)

    assert len({bits for pair in found for bits in pair}) == 1


CASES = st.fixed_dictionaries(
    {
        "name": st.sampled_from(REDUCTIONS + COPIES),
        "kind": st.sampled_from(sorted(on_ranks.TYPES)),
        "op": st.sampled_from(hccomm.OPS),
        "count": st.integers(0, 5000),
        "in_place": st.booleans(),
    }
).filter(lambda case: on_ranks.defined(case["kind"], case["op"]))


@given(size=st.integers(1, 4), case=CASES)
@settings(max_examples=120)
def test_any_collective_of_any_shape_equals_numpy(
    ranks: Any, size: int, case: dict[str, Any]
) -> None:
    assert all(ranks(size).run(on_ranks.one_random_case, case))


@given(counts=st.lists(st.integers(0, 400), min_size=3, max_size=3), gap=st.integers(0, 4))
def test_v_forms_of_any_counts_equal_numpy(ranks: Any, counts: list[int], gap: int) -> None:
    assert ranks(3).run(on_ranks.wrong_v_forms, counts, gap) == [[], [], []]


@pytest.mark.slow
def test_a_count_above_32_bits_arrives(ranks: Any) -> None:
    assert all(ranks.fresh(2).run(on_ranks.large_count, (1 << 31) + 5, timeout=170.0))

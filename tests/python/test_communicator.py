# SPDX-License-Identifier: Apache-2.0
"""Allocation, other arrays, asynchronous work, messages, groups."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import rank_programs as on_ranks

import hccomm


def test_results_are_allocated_in_the_shape_that_the_docs_say(ranks: Any) -> None:
    found = ranks(3).run(on_ranks.allocated_results)

    for rank, result in enumerate(found):
        assert result["all_gather"].shape == (3, 2, 3)
        assert (result["all_gather"][2] == 2).all()
        assert (result["gather"] is None) == (rank != 0)
        assert result["reduce_scatter"].shape == (2, 2)
        assert result["reduce_scatter"].dtype == np.float64
        assert result["scatter"].tolist() == [
            [4 * rank, 4 * rank + 1],
            [4 * rank + 2, 4 * rank + 3],
        ]
        assert result["all_to_all"].shape == (6, 2)
        assert result["all_gather_v"].shape == (6,)


def test_bytearrays_arrays_and_memoryviews_are_reduced(ranks: Any) -> None:
    for found in ranks(2).run(on_ranks.other_arrays):
        assert found == {"bytearray": [3] * 4, "array": [3.0, 5.0], "memoryview": [2] * 3}


def test_torch_tensors_are_reduced_through_dlpack(ranks: Any) -> None:
    pytest.importorskip("torch")

    for found in ranks(2).run(on_ranks.torch_tensors):
        assert found["bf16"] == [[3.0, 3.0], [3.0, 3.0]]
        assert found["gathered"] == [[0], [1]]
        assert found["type"] == "Tensor"


def test_parts_whose_offsets_are_null_lie_back_to_back(ranks: Any) -> None:
    for rank, found in enumerate(ranks(3).run(on_ranks.parts_without_offsets)):
        assert found == [10.0 * peer + rank for peer in range(3) for _ in range(rank + 1)]


def test_many_operations_are_in_flight_at_once(ranks: Any) -> None:
    assert all(ranks(3).run(on_ranks.many_in_flight, 100))


def test_a_work_tells_its_state_and_keeps_its_result(ranks: Any) -> None:
    for found in ranks(2).run(on_ranks.work_states):
        assert found["same"]
        assert found["done"]
        assert found["later"]
        assert found["again"]
        assert "all_reduce" in found["text"]
        assert "done" in found["text"]


def test_a_forgotten_work_keeps_its_buffers(ranks: Any) -> None:
    assert all(ranks(2).run(on_ranks.forgotten_work))


def test_wait_with_a_short_timeout_leaves_the_operation_running(ranks: Any) -> None:
    assert ranks(2).run(on_ranks.wait_with_timeout) == [("Timeout", True), ("Timeout", True)]


@pytest.mark.parametrize("count", [1, 1000, 3_000_000])
def test_everyone_may_send_before_anyone_receives(ranks: Any, count: int) -> None:
    assert all(ranks(3).run(on_ranks.exchange, count))


@pytest.mark.parametrize("count", [1, 400_000])
def test_an_exchange_is_one_call(ranks: Any, count: int) -> None:
    for dest, source, out in ranks(3).run(on_ranks.sendrecv, count):
        assert "dest is 3; the ranks of this group are 0 to 2" in dest
        assert "source is -1" in source
        assert "read-only" in out


def test_messages_from_any_source_name_their_sender(ranks: Any) -> None:
    assert sorted(ranks(4).run(on_ranks.any_source)[0]) == [1, 2, 3]


def test_messages_are_received_by_tag(ranks: Any) -> None:
    assert ranks(2).run(on_ranks.tags)[1] == [3, 1, 2]


def test_a_batch_is_done_when_its_block_ends(ranks: Any) -> None:
    assert all(ranks(3).run(on_ranks.coalesced))


def test_a_batch_has_no_other_methods() -> None:
    with hccomm.init() as comm, pytest.raises(AttributeError, match="all_reduce"):
        comm.coalesce().close()


def test_groups_and_splits_have_the_ranks_that_were_asked_for(ranks: Any) -> None:
    found = ranks(4).run(on_ranks.groups)

    assert found[0]["group"] == (1, 2)
    assert found[2]["group"] == (0, 2)
    assert found[0]["sum"] == found[2]["sum"] == 2
    assert found[0]["split"] == (1, 2, [2, 0])
    assert found[3]["split"] == (0, 2, [3, 1])
    assert [each["none"] for each in found] == [True, False, False, False]


def test_ctrl_c_ends_a_blocking_call(ranks: Any) -> None:
    assert all(ranks.fresh(2).run(on_ranks.interrupted))


def test_a_group_of_one_needs_no_launcher() -> None:
    with hccomm.init() as comm:
        assert (comm.rank, comm.size) == (0, 1)
        assert comm.all_reduce(np.arange(3)).tolist() == [0, 1, 2]
        assert comm.all_gather(np.arange(3)).tolist() == [[0, 1, 2]]
        assert comm.describe()["size"] == 1


def test_run_local_returns_results_by_rank() -> None:
    found = hccomm.run_local(on_ranks.still_works, 2)

    assert found == [True, True]


def test_run_local_reports_what_a_rank_raised() -> None:
    with pytest.raises(RuntimeError, match=r"rank 0: KeyError") as caught:
        hccomm.run_local(on_ranks.wrong_call, 1, "no such call")

    assert "wrong_call" in str(caught.value)

# SPDX-License-Identifier: Apache-2.0
"""Arrays on devices: any mix of vendors and the host in one group, over fake runtimes."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import device_programs as programs
import pytest
from fake_arrays import VENDORS, example_plugin, library, stale_plugin


@pytest.fixture(scope="session")
def vendors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Fake runtimes as settings: HCCOMM_CUDA_LIB and so on."""
    folder: Path = tmp_path_factory.mktemp("fakes")
    try:
        return {f"HCCOMM_{kind.upper()}_LIB": str(library(kind, folder)) for kind in VENDORS}
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("count", [1, 1000, 300_000])
def test_vendors_and_host_reduce_and_gather_together(
    ranks: Any, vendors: dict[str, str], count: int
) -> None:
    outcome = ranks(4, **vendors).run(programs.reduce_and_gather, count)
    assert all(reduced == [4.0 * i + 6.0 for i in range(count)] for reduced, _ in outcome)
    assert all(gathered == [r for r in range(4) for _ in range(3)] for _, gathered in outcome)


@pytest.mark.parametrize("count", [1, 100_000])
def test_messages_pass_between_vendors(ranks: Any, vendors: dict[str, str], count: int) -> None:
    assert ranks(3, **vendors).run(programs.send_round, count) == [2.0, 0.0, 1.0]


@pytest.mark.parametrize("integrity", ["off", "crc32c"])
def test_between_vendors_of_one_machine_a_byte_is_copied_once_on_each_side(
    ranks: Any, vendors: dict[str, str], integrity: str
) -> None:
    """What one runtime copied to the host the other copies from there, by whatever call."""
    two = ranks.fresh(2, HCCOMM_INTEGRITY=integrity, **vendors)
    for right, seen in two.run(programs.between_devices, 300_000):
        assert right
        assert all(before < after for before, after in itertools.pairwise([0, *seen])), seen


def test_without_single_copies_vendors_meet_in_the_ring(
    ranks: Any, vendors: dict[str, str]
) -> None:
    for right, seen in ranks.fresh(2, HCCOMM_CMA="off", **vendors).run(
        programs.between_devices, 300_000
    ):
        assert right
        assert not any(seen), seen


def test_describe_says_by_what_a_rank_is_staged(ranks: Any, vendors: dict[str, str]) -> None:
    cuda, musa, host = ranks.fresh(3, **vendors).run(programs.described)
    assert [each["device"] for each in cuda] == ["cuda:1"]
    assert cuda[0]["how"] == f"staged by cuda ({vendors['HCCOMM_CUDA_LIB']})"
    assert musa[0]["device"] == "musa:0"
    assert [each["path"]["how"] for each in musa[0]["peers"]] == [
        "staged by musa here, over shm"
    ] * 2
    assert musa[0]["figures"].endswith("sums on the host: this adapter has no reduction")
    assert host == []


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("way", ["host", "device", "auto"])
def test_sums_have_the_same_bits_wherever_they_are_made(
    ranks: Any, tmp_path: Path, way: str, size: int
) -> None:
    settings = {"HCCOMM_PLUGINS": str(example_plugin(tmp_path)), "HCCOMM_STAGING_SUMS": way}
    ring = {"HCCOMM_ALGO": "reduce_scatter:ring"}
    for differ, where in ranks.fresh(size, **settings, **ring).run(programs.reductions):
        assert differ == []
        if way == "host":
            assert "HCCOMM_STAGING_SUMS=host" in where
        if way == "device":
            assert int(where.split(" pieces summed there")[0].rsplit(" ", 1)[1]) > 0


def test_an_array_on_a_device_is_registered_where_a_card_reaches_it_and_staged_elsewhere(
    ranks: Any, vendors: dict[str, str]
) -> None:
    assert ranks.fresh(2, **vendors).run(programs.registered) == [(False, 3.0)] * 2


# ---- what is refused ------------------------------------------------------------------------


def test_an_absent_runtime_fails_all_ranks_with_the_reason(ranks: Any) -> None:
    for said in ranks.fresh(3).run(programs.reduce_on, "cnrt", 0):
        assert said.startswith("Unavailable: "), said
        assert "rank 1" in said, said
        assert "libcnrt" in said, said


def test_a_device_that_is_not_there_is_refused(ranks: Any, vendors: dict[str, str]) -> None:
    said = ranks.fresh(2, **vendors).run(programs.reduce_on, "musa", 7)[1]
    assert said.startswith("InvalidArgument: ")
    assert "musa:7 is outside 0..1" in said


def test_an_unknown_kind_is_refused(ranks: Any) -> None:
    said = ranks.fresh(2).run(programs.reduce_on, "abacus", 0)[1]
    assert said.startswith("InvalidArgument: ")
    assert "abacus" in said


def test_a_plugin_of_another_version_is_named_with_the_kind_it_would_have_brought(
    ranks: Any, tmp_path: Path
) -> None:
    """The rank that wants it hears why; the others, whom it does not join, that it is missing."""
    stale = str(stale_plugin(tmp_path))
    other, said = ranks.fresh(2, HCCOMM_PLUGINS=stale).run(programs.reduce_on, "stalechip", 0)
    assert said.startswith("InvalidArgument: "), said
    assert "'stalechip'" in said, said
    assert "version 99" in said, said
    assert other.startswith("Timeout: "), other
    assert "rank 1" in other, other


@pytest.mark.parametrize("count", [10, 100_000])
def test_a_stream_that_was_destroyed_fails_all_ranks_and_is_named(
    ranks: Any, vendors: dict[str, str], count: int
) -> None:
    for said in ranks.fresh(3, **vendors).run(programs.stream_is_gone, count):
        assert said.startswith("System 0: "), said
        assert "cuda" in said, said


def test_a_lost_device_fails_all_ranks_and_is_named(ranks: Any, vendors: dict[str, str]) -> None:
    for said in ranks.fresh(3, HCCOMM_STAGING_SEGMENT="64K", **vendors).run(programs.lose):
        assert said.startswith("System 1: "), said
        assert "musa" in said, said


@pytest.mark.parametrize("messages", [False, True], ids=["collective", "message"])
@pytest.mark.parametrize(("way", "hop"), [("out", "{} to the host"), ("in", "the host to {}")])
@pytest.mark.parametrize("kind", ["cuda", "ascend"])
def test_a_copy_that_changes_a_bit_is_named(
    ranks: Any, vendors: dict[str, str], kind: str, way: str, hop: str, messages: bool
) -> None:
    """Others may be done before that device has its last bytes."""
    checked = {"HCCOMM_INTEGRITY": "crc32c", "HCCOMM_STAGING_SEGMENT": "64K", **vendors}
    other, mine = ranks.fresh(2, **checked).run(programs.flip, kind, way, messages)
    for said in [mine] if way == "in" else [mine, other]:
        assert said.startswith("Integrity 1: "), said
        assert f"copy from {hop.format(f'{kind}:0')}, bytes " in said, said


def test_copies_that_are_checked_give_the_same(ranks: Any, vendors: dict[str, str]) -> None:
    checked = {"HCCOMM_INTEGRITY": "crc32c", **vendors}
    outcome = ranks.fresh(4, **checked).run(programs.reduce_and_gather, 300_000)
    assert all(reduced == [4.0 * i + 6.0 for i in range(300_000)] for reduced, _ in outcome)

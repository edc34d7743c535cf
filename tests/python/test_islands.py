# SPDX-License-Identifier: Apache-2.0
"""Collectives over islands: fake vendors with fake libraries of theirs, and the host."""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import Any

import island_programs as programs
import pytest
from fake_arrays import VENDORS, ccl_library, library


@pytest.fixture(scope="session")
def islands(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Fake runtimes and libraries as settings: HCCOMM_CUDA_LIB, HCCOMM_CCL_CUDA_LIB and so on."""
    folder: Path = tmp_path_factory.mktemp("fakes")
    settings = {"HCCOMM_TEST_FAKE": "devices=3"}
    try:
        for kind in VENDORS:
            settings[f"HCCOMM_{kind.upper()}_LIB"] = str(library(kind, folder))
            settings[f"HCCOMM_CCL_{kind.upper()}_LIB"] = str(ccl_library(kind, folder))
    except FileNotFoundError as error:
        pytest.skip(str(error))
    return settings


def shape(told: dict[str, Any]) -> list[tuple[str, list[int]]]:
    return [(one["kind"], one["ranks"]) for one in told["islands"]["islands"]]


@pytest.fixture
def six(ranks: Any, islands: dict[str, str]) -> Any:
    """Six ranks for all tests, each of which makes its own group of them: islands are a group's."""
    return ranks(6, **islands)


def test_islands_of_any_sizes_work_as_one_group(six: Any) -> None:
    """Three, two and one rank, found by themselves: sizes around a block, none that divides."""
    told = six.run(programs.everything, list(range(6)), programs.MIXED, [16384, 20_001])
    for each in told:
        assert shape(each) == [("cuda", [0, 2, 5]), ("musa", [1, 4]), ("host", [3])]
        assert each["islands"]["calls"]["allreduce"].startswith("the libraries inside islands")
        assert "one receiver" in each["islands"]["calls"]["alltoall"]
    paths = {each["rank"]: each["path"] for each in told[0]["peers"]}
    assert paths[2]["how"] == "native, by nccl 2.21.5"
    assert "share no library" in paths[1]["why_not_better"]
    assert "staged by cuda here, host memory there" in paths[3]["how"]


def test_one_island_of_all_ranks_uses_its_library(six: Any) -> None:
    told = six.run(programs.everything, [4, 0, 3], programs.ALONE, [5, 20_001])
    for rank in (0, 3, 4):
        assert shape(told[rank]) == [("cuda", [0, 1, 2])]
        assert told[rank]["islands"]["calls"]["alltoall"] == "by the island's library"


def test_an_id_of_4108_bytes_and_a_library_without_mean(six: Any) -> None:
    """HCCL: two of its ranks and one of the host."""
    told = six.run(programs.everything, [1, 2, 5], programs.ASCEND, [20_001])
    shapes = [shape(told[rank]) for rank in (1, 2, 5)]
    assert shapes == [[("ascend", [0, 1]), ("host", [2])]] * 3


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("auto", [("cuda", [0, 1]), ("cuda", [2, 3])]),
        ("off", []),
        ("0,3;1", [("cuda", [0, 3]), ("cuda", [1]), ("cuda", [2])]),
    ],
)
def test_an_island_ends_at_its_host_unless_told(
    ranks: Any, islands: dict[str, str], setting: str, expected: Any
) -> None:
    two_hosts = ranks.fresh(4, hosts=2, HCCOMM_ISLAND=setting, **islands)
    told = two_hosts.run(programs.everything, list(range(4)), programs.HOSTS, [20_001])
    assert shape(told[0]) == expected


def test_lists_of_islands_that_differ_between_ranks_do_no_harm(
    ranks: Any, islands: dict[str, str]
) -> None:
    """Each rank tells its own place in its list, and all see the same islands then."""
    told = ranks.fresh(4, **islands).run(programs.lists_differ)
    assert all(shape(each) == shape(told[0]) for each in told)


def test_calls_of_all_ways_are_in_flight_together(six: Any) -> None:
    assert six.run(programs.many_at_once) == ["on"] * 6


def test_arrays_that_lie_elsewhere_are_taken_too(six: Any) -> None:
    assert six.run(programs.elsewhere) == ["on"] * 6


def test_a_call_that_is_refused_counts_nowhere(six: Any) -> None:
    """Ranks count calls to agree upon islands: one that was refused may be made again, right."""
    told = six.run(programs.refused_first)
    assert [len(each) for each in told] == [0, 0, 2, 0, 0, 0]
    assert all("cuda:7 is outside 0..2" in each for each in told[2])


def test_use_islands_waits_no_longer_than_a_call(six: Any) -> None:
    """A call in flight that others have still to join holds it up: until the group's deadline."""
    said = six.run(programs.use_behind_a_call)
    assert "earlier calls have not ended" in said.pop(0)
    assert said == ["nothing was raised"] * 5


def test_ranks_agree_upon_where_the_call_lies_not_the_next_one(six: Any) -> None:
    told = six.run(programs.moves_on)[:3]
    assert [shape(each) for each in told] == [[("cuda", [0, 1, 2])]] * 3, told


def test_memory_whose_copies_do_not_end_is_kept(six: Any) -> None:
    """Freed under a running copy it would count as a misuse of the runtime."""
    said = six.run(programs.slow_copies)
    assert all(words.startswith("Timeout: ") for words, _ in said), said
    assert [misuses for _, misuses in said] == [0] * 6


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("all close", [("on", 1)] * 3 + [("on", 0)] + [("on", 1)] * 2),
        ("aborts", [("aborted", 0)] * 2 + [("on", 0)] + [("aborted", 0)] * 3),
        ("cannot join", [("off", 0)] * 6),
    ],
)
def test_a_library_is_destroyed_where_all_leave_together_else_aborted(
    six: Any, how: str, expected: Any
) -> None:
    """To destroy its communicator a library may wait for all ranks to do so."""
    assert six.run(programs.destroyed, how) == expected


def test_a_rank_that_aborts_ends_the_call_on_all(six: Any) -> None:
    said = six.run(programs.leaves)
    assert said.pop(2) == "left"
    assert all(each.startswith("Aborted: ") and "enough" in each for each in said), said


def test_ranks_of_one_island_that_disagree_are_named(six: Any) -> None:
    said = six.run(programs.disagrees, [0, 2, 4])
    for rank in (0, 2, 4):
        assert said[rank].startswith("Mismatch: "), said
        assert "max" in said[rank], said


JOINING, ALL_REDUCE, REDUCE_SCATTER, ALL_GATHER, MESSAGES = (
    0,
    1,
    2,
    3,
    6,
)  # as tests/fakes/ccl.h numbers them


@pytest.mark.parametrize(
    ("setting", "kind", "turn", "expected"),
    [
        ("auto", JOINING, 1, "off: a collective library failed, rank 0: nccl: ncclCommInitRank"),
        ("fail", JOINING, 1, "System: rank 0: nccl: ncclCommInitRank failed"),
        ("auto", REDUCE_SCATTER, 2, "System: rank 0: nccl: ncclReduceScatter failed"),
        ("fallback", REDUCE_SCATTER, 2, "off: a collective library failed, rank 0: nccl: ncclRed"),
    ],
)
def test_a_library_that_fails_ends_the_call_or_is_left(
    six: Any, setting: str, kind: int, turn: int, expected: str
) -> None:
    """As HCCOMM_ISLAND_FAILURE says: alike on all ranks, with the library and the call in it."""
    said = six.run(programs.library_fails, setting, kind, turn)
    assert all(expected in each for each in said), said


@pytest.mark.parametrize(
    ("setting", "expected"),
    [("auto", "System: rank 0: nccl: ncclRed"), ("fallback", "off: a collective library failed, ")],
)
def test_a_library_that_fails_at_work_on_copies_is_waited_for(
    six: Any, setting: str, expected: str
) -> None:
    """The copies of arrays that lie elsewhere end after the library's work on them."""
    said = six.run(programs.library_fails, setting, REDUCE_SCATTER, 2, True)
    assert all(each.startswith(expected) for each in said), said


@pytest.mark.parametrize("elsewhere", [False, True], ids=["at home", "elsewhere"])
@pytest.mark.parametrize(
    ("way", "hop"), [("out", "cuda:0 to the host"), ("in", "the host to cuda:0")]
)
def test_a_copy_that_changes_a_bit_between_islands_is_named(
    ranks: Any, islands: dict[str, str], way: str, hop: str, elsewhere: bool
) -> None:
    """Between islands, and where an array lies elsewhere than the library works.

    Others may be done before that device has its last bytes.
    """
    six = ranks.fresh(6, **{**islands, "HCCOMM_INTEGRITY": "crc32c"})
    all_said = six.run(programs.flips, way, elsewhere)
    for said in all_said[:1] if way == "in" else all_said:
        assert said.startswith("Integrity: "), said
        assert f"copy from {hop}, bytes " in said, said


@pytest.mark.parametrize(
    ("places", "kind", "turn", "by", "setting", "left"),
    [
        (programs.PAIRS, REDUCE_SCATTER, 30, signal.SIGKILL, "auto", [[0, 1], [2]]),
        (programs.PAIRS, ALL_GATHER, 30, signal.SIGSTOP, "auto", [[0, 1], [2]]),
        (programs.PAIRS, JOINING, 1, signal.SIGKILL, "fallback", [[0, 1], [2]]),
        (programs.PAIRS, JOINING, 1, signal.SIGSTOP, "auto", [[0, 1], [2]]),
        (programs.ALONE, ALL_REDUCE, 9, signal.SIGSTOP, "fallback", [[0, 1]]),
        (programs.ALONE, MESSAGES, 1, signal.SIGKILL, "auto", [[0, 1]]),
        (programs.ASCEND, REDUCE_SCATTER, 30, signal.SIGSTOP, "auto", []),
    ],
)
def test_a_rank_that_ends_in_its_library_is_lost(
    ranks: Any,
    islands: dict[str, str],
    places: Any,
    kind: int,
    turn: int,
    by: int,
    setting: str,
    left: Any,
) -> None:
    """The library of the others would wait for it: they are told, go on, and leave nothing."""
    before = set(Path("/dev/shm").iterdir())  # other programs' files may bear any number
    # A rank that a busy machine does not let run for 3 s is not the one that is meant.
    group = ranks.fresh(len(places), HCCOMM_SILENCE="6", **islands)
    survivors = [rank for rank in range(len(places)) if rank != 1]
    group.start(programs.perishes, places, kind, turn, by, setting)
    told = group.collect(ranks=survivors)
    group.processes[1].kill()
    pids = [str(each.pid) for each in group.processes]
    group.close()

    for each in told:
        assert each["said"].startswith("PeerLost 1: "), told
        assert "rank 1" in each["said"], told
        assert each["islands"] == left, told
    new = set(Path("/dev/shm").iterdir()) - before
    lying = [each for each in new if set(re.findall(r"\d+", each.name)) & set(pids)]
    meetings = [each for each in lying if each.name.startswith("fake-ccl") and kind == JOINING]
    for each in meetings:  # the library's own: nobody is left who could end what did not begin
        each.unlink()
    assert not set(lying) - set(meetings)

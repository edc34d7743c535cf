# SPDX-License-Identifier: Apache-2.0
"""Wrong calls: each a clear error on every rank that names argument, value and remedy."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import Any

import pytest
import rank_programs as on_ranks

import hccomm

# what -> the words that its error must hold
WRONG_CALLS = {
    "op": ["all_reduce", "op='plus'", "use one of sum"],
    "dtype and op": ["reduce", "band", "f32"],
    "avg of integers": ["reduce", "avg", "i32"],
    "root": ["broadcast", "root", "5", "0..1"],
    "negative root": ["reduce", "root", "-2", "0..1"],
    "dest": ["send", "99", "0..1"],
    "negative count": ["all_gather", "counts[0] is -1", "0 or more"],
    "counts of another size": ["all_gather", "counts has 1", "2 ranks"],
    "overlapping counts": ["gather", "overlap"],
    "counts beyond out": ["gather", "8", "16"],
    "small out": ["gather", "3", "16"],
    "dtype of out": ["all_reduce", "out is of f64", "buffer of f32", "give both"],
    "uneven": ["reduce_scatter", "5 elements", "2 ranks", "pad"],
    "strided": ["all_reduce", "not C-contiguous", "numpy.ascontiguousarray"],
    "no array": ["all_reduce", "list is no array", "buffer protocol"],
    "strings": ["all_reduce", "<U1", "use one of bool"],
    "foreign bytes": ["all_reduce", ">f4", "newbyteorder"],
    "read-only": ["all_reduce", "read-only", "writable"],
    "timeout": ["barrier", "timeout is -1.0", "above 0"],
    "scatter without out": ["scatter"],
    "group of strangers": ["group", "2"],
    "group with a rank twice": ["group", "twice"],
}


@pytest.mark.parametrize("which", WRONG_CALLS)
def test_a_wrong_call_is_refused_on_every_rank_with_a_remedy(ranks: Any, which: str) -> None:
    found = ranks(2).run(on_ranks.wrong_call, which)

    for name, text in found:
        assert name == "InvalidArgument", text
        for word in WRONG_CALLS[which]:
            assert word in text
    assert all(ranks(2).run(on_ranks.still_works))


@pytest.mark.parametrize("how", ["count", "dtype", "op", "root", "collective"])
def test_ranks_that_disagree_are_told_so_on_every_rank(ranks: Any, how: str) -> None:
    for name, text in ranks.fresh(3).run(on_ranks.disagree, how):
        assert name == "Mismatch", text
        assert "rank" in text


def test_a_missing_rank_is_a_timeout_that_names_it(ranks: Any) -> None:
    found = ranks.fresh(3).run(on_ranks.one_is_missing)

    for name, text in found[:2]:
        assert name == "Timeout", text
        assert "rank 2" in text


def test_a_killed_rank_is_peer_lost_on_all_others(ranks: Any) -> None:
    group = ranks.fresh(3)
    group.start(on_ranks.one_dies)

    for name, text in group.collect(ranks=[0, 1]):
        assert name == "PeerLost", text
        assert "rank 2" in text


def test_abort_reaches_every_rank_with_its_reason(ranks: Any) -> None:
    for name, text in ranks.fresh(3).run(on_ranks.one_aborts):
        assert name == "Aborted", text
        assert "the test says so" in text


def test_a_closed_communicator_says_so(ranks: Any) -> None:
    for errors in ranks(2).run(on_ranks.closed):
        for name, text in errors:
            assert name == "Aborted"
            assert "closed" in text
            assert "hccomm.init()" in text


def test_a_forked_child_is_told_to_make_its_own(ranks: Any) -> None:
    for name, text in ranks.fresh(2).run(on_ranks.forked):
        assert name == "InvalidArgument", text
        assert "forked" in text
        assert "hccomm.init()" in text


def test_arrays_on_devices_that_say_too_little_are_refused() -> None:
    class OnVulkan:
        def __dlpack_device__(self) -> tuple[int, int]:
            return 7, 1

        def __dlpack__(self) -> Any:
            raise AssertionError("must not be asked for")

    class Cuda:
        __cuda_array_interface__: dict[str, Any] = {}  # noqa: RUF012

    with hccomm.init() as comm:
        with pytest.raises(hccomm.InvalidArgument, match=r"vulkan.*host copy"):
            comm.all_reduce(OnVulkan())
        with pytest.raises(hccomm.InvalidArgument, match="__cuda_array_interface__"):
            comm.all_reduce(Cuda())


def test_an_error_is_also_the_nearest_built_in() -> None:
    pairs = {
        hccomm.InvalidArgument: ValueError, hccomm.Timeout: TimeoutError,
        hccomm.PeerLost: ConnectionError, hccomm.System: OSError, hccomm.Integrity: OSError,
        hccomm.Unavailable: NotImplementedError, hccomm.Aborted: RuntimeError,
    }  # fmt: skip
    for ours, theirs in pairs.items():
        error = ours("what: why; what next", 3)

        assert isinstance(error, theirs)
        assert isinstance(error, hccomm.Error)
        assert (str(error), error.rank) == ("what: why; what next", 3)


# ---- before there is a communicator --------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"rank": 0}, ["rank and size come together"]),
        ({"rank": 3, "size": 2, "rendezvous": "tcp://localhost:1"}, ["rank 3", "0..1"]),
        ({"rank": 0, "size": 0}, ["size is 0"]),
        ({"rank": 0, "size": 2}, ["no place to meet", "HCCOMM_RENDEZVOUS"]),
        ({"rank": 0, "size": 2, "rendezvous": "carrier pigeon"}, ["carrier pigeon", "tcp://"]),
        ({"timeout": 0}, ["timeout is 0", "above 0"]),
    ],
)
def test_init_refuses_arguments_that_contradict(
    arguments: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(hccomm.InvalidArgument) as caught:
        hccomm.init(**arguments)

    for word in words:
        assert word in str(caught.value)


def _in_a_process(code: str, **environ: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environ, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("HCCOMM_TIMEOUT", "soon", ["HCCOMM_TIMEOUT", "soon", "seconds"]),
        ("HCCOMM_LOG", "loud", ["HCCOMM_LOG", "loud", "warn"]),
        ("HCCOMM_TRANSPROTS", "tcp", ["HCCOMM_TRANSPROTS", "hccomm info --config"]),
        ("HCCOMM_SHM_BYTES", "1Q", ["HCCOMM_SHM_BYTES", "1Q", "64K"]),
        ("HCCOMM_TRANSPORTS", "pigeon", ["HCCOMM_TRANSPORTS", "pigeon"]),
        ("HCCOMM_ALGO", "allreduce:fastest", ["HCCOMM_ALGO", "fastest"]),
        ("HCCOMM_STAGING_SUMS", "chip", ["HCCOMM_STAGING_SUMS", "auto|host|device"]),
        ("HCCOMM_PY_LIBRARY", "/nowhere.so", ["HCCOMM_PY_LIBRARY", "/nowhere.so", "unset"]),
        ("HCCOMM_ISLAND", "on", ['HCCOMM_ISLAND="on"', "auto"]),
        ("HCCOMM_ISLAND", "0-3;2,5", ["HCCOMM_ISLAND", "0-3;2,5", "rank 2 twice", "0-3;4,5"]),
        ("HCCOMM_ISLAND_FAILURE", "never", ["HCCOMM_ISLAND_FAILURE", "never", "fallback"]),
        ("RANK", "first", ["RANK", "first"]),
    ],
)
def test_a_bad_setting_names_variable_and_value(name: str, value: str, words: list[str]) -> None:
    code = "import hccomm\ntry: hccomm.init()\nexcept hccomm.Error as e: print('ERROR', e)"

    said = _in_a_process(code, **{"WORLD_SIZE": "1", name: value})

    assert "ERROR" in said
    for word in words:
        assert word in said


def test_ranks_that_never_arrive_are_named_at_the_deadline(tmp_path: Any) -> None:
    with pytest.raises(hccomm.Timeout, match="1"):
        hccomm.init(rank=0, size=2, rendezvous=f"file://{tmp_path}/store", timeout=1.0)


@pytest.mark.parametrize(
    ("places", "words"),
    [([(0, 2), (1, 3)], "size"), ([(0, 3), (1, 3), (1, 3)], "rank 1")],
    ids=["sizes differ", "a rank twice"],
)
def test_ranks_that_contradict_each_other_fail_to_meet(
    tmp_path: Any, places: list[tuple[int, int]], words: str
) -> None:
    code = (
        "import hccomm, sys\ntry: hccomm.init(rank={}, size={}, rendezvous='file://{}/s',"
        " timeout=6.0)\nexcept hccomm.Error as e: print(type(e).__name__, e)"
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code.format(rank, size, tmp_path)],
            stdout=subprocess.PIPE, text=True,
        )
        for rank, size in places
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=60)[0] for process in started]
    finally:
        for process in started:
            process.kill()

    assert any(words in each for each in said), said
    assert all(each.split(" ")[0] in ("Mismatch", "InvalidArgument", "Timeout") for each in said)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("store", ["file", "tcp"])
@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("HCCOMM_EAGER", "1Q", "InvalidArgument"),  # refused before the store is opened
        ("HCCOMM_OFI_LIB", "/nowhere.so", "Unavailable"),  # when the job is known
    ],
)
def test_all_ranks_hear_at_once_what_one_of_them_lacks(
    tmp_path: Any, store: str, rank: int, name: str, value: str, kind: str
) -> None:
    # The timeout is longer than this test may take: whoever waits for it fails the test.
    code = (
        "import hccomm, sys\ntry: hccomm.init(rank=int(sys.argv[1]), size=3,"
        " rendezvous=sys.argv[2], timeout=300.0)\n"
        "except hccomm.Error as e: print(type(e).__name__, e.rank, e)"
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
        place = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    if store == "file":
        place = f"file://{tmp_path}/store"
    good = os.environ | {"HCCOMM_TRANSPORTS": "tcp"}
    bad = os.environ | {"HCCOMM_TRANSPORTS": "ofi" if kind == "Unavailable" else "tcp", name: value}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(each), place],
            stdout=subprocess.PIPE, text=True, env=bad if each == rank else good,
        )
        for each in range(3)
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=60)[0] for process in started]
    finally:
        for process in started:
            process.kill()

    for each, text in enumerate(said):
        assert text.startswith(kind), said
        assert value in text, said
        if each != rank:
            assert f"{kind} {rank} rendezvous: rank {rank} could not join: " in text, said

# SPDX-License-Identifier: Apache-2.0
"""Wrong calls and failing worlds: every rank is told what to mend, and nothing hangs."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import RankError, Ranks


def refused(call: Callable[[], Any], *words: str) -> None:
    with pytest.raises((RuntimeError, ValueError)) as caught:
        call()
    for word in words:
        assert re.search(word, str(caught.value)), f"{word!r} is not in {caught.value}"


def wrong_calls() -> None:
    size = dist.get_world_size()
    pair, pg = torch.ones(2), dist.group.WORLD
    root = dist.BroadcastOptions()
    root.rootRank = 7
    backend = pg._get_backend(torch.device("cpu"))
    refused(lambda: pg.broadcast([pair], root), "broadcast: invalid root rank: 7", "0..1")
    refused(lambda: pg.allreduce([pair, pair]), "all_reduce: requires a single-element tensor list")
    refused(
        lambda: dist.all_gather([torch.ones(2)] * (size + 1), pair),
        r"all_gather: invalid output tensor list at index 0 \(expected length 2, got 3\)",
    )
    refused(
        lambda: pg.allgather([[pair, torch.ones(3)]], [torch.ones(5)]),
        "invalid tensor size at index 0",
    )
    refused(
        lambda: dist.all_gather_into_tensor(torch.ones(5), pair),
        "all_gather_into_tensor: output tensor size must be equal to world_size times input",
        "output has 5",
    )
    refused(
        lambda: dist.reduce_scatter_tensor(pair, torch.ones(5)),
        "reduce_scatter_tensor: input tensor must be the same size as output size times world size",
    )
    refused(
        lambda: dist.all_to_all_single(torch.ones(4), torch.ones(4), [1, 2], [2, 2]),
        "all_to_all_single: Split sizes doesn't match total dim 0 size",
        "add up to 3",
    )
    refused(
        lambda: dist.all_to_all_single(torch.ones(5), torch.ones(5)),
        "does not divide equally across group size",
    )
    refused(lambda: dist.all_reduce(pair, op=dist.ReduceOp.BAND), "ReduceOp.BAND with non-integral")
    refused(
        lambda: dist.all_reduce(torch.ones(2, dtype=torch.complex64), op=dist.ReduceOp.MAX),
        "MAX|max",
    )
    odd = torch.ones(2).to(torch.float8_e4m3fnuz)
    refused(lambda: dist.all_reduce(odd), "Invalid scalar type Float8_e4m3fnuz")
    refused(lambda: backend.send([pair], 9, 0), "send: invalid rank: 9")
    refused(lambda: dist.isend(pair, 1 - dist.get_rank(), tag=-1), "Tag must be nonnegative")
    refused(lambda: dist.all_gather([pair, torch.ones(2).int()], pair), "all_gather|dtypes")
    refused(
        lambda: pg.allgather([[pair, torch.ones(2, dtype=torch.int32)]], [pair]),
        "all_gather: invalid tensor type at index 1",
    )
    tensor = torch.ones(1)
    dist.all_reduce(tensor)
    assert tensor.item() == size


def test_wrong_calls_are_refused_before_a_byte_moves(two: Ranks) -> None:
    two.run(wrong_calls)


def disagree(what: str) -> str:
    rank = dist.get_rank()
    first = rank == 0
    calls: dict[str, Callable[[], Any]] = {
        "count": lambda: dist.all_reduce(torch.ones(2 + rank)),
        "dtype": lambda: dist.all_reduce(
            torch.ones(2, dtype=torch.int32 if first else torch.float32)
        ),
        "op": lambda: dist.all_reduce(
            torch.ones(2), op=dist.ReduceOp.SUM if first else dist.ReduceOp.MAX
        ),
        "root": lambda: dist.broadcast(torch.ones(2), src=rank),
        "senders": lambda: (
            dist.reduce(torch.ones(2), 1) if first else dist.broadcast(torch.ones(2), src=1)
        ),
        "collective": lambda: (
            dist.all_reduce(torch.ones(2)) if first else dist.broadcast(torch.ones(2), src=0)
        ),
    }

    def call_and_meet() -> None:
        calls[what]()
        dist.barrier()  # a root whose peer comes late does not wait for it, and hears here

    with pytest.raises(dist.DistBackendError) as caught:
        call_and_meet()
    return str(caught.value)


@pytest.mark.parametrize("what", ["count", "dtype", "op", "collective", "root", "senders"])
def test_ranks_that_disagree_are_told_so(what: str) -> None:
    with Ranks(2, timeout=20.0) as ranks:
        texts = ranks.run(disagree, what)

    assert all("Mismatch" in text for text in texts), texts


def late() -> str:
    if dist.get_rank() == 1:
        time.sleep(4)
        return ""
    options = dist.BarrierOptions()
    options.timeout = timedelta(seconds=1)  # barrier(timeout=) came with torch 2.12
    with pytest.raises(dist.DistBackendError) as caught:
        dist.group.WORLD.barrier(options).wait()
    return str(caught.value)


def test_a_rank_that_does_not_come_is_a_timeout() -> None:
    with Ranks(2) as ranks:
        text = ranks.run(late)[0]

    assert "Timeout" in text
    assert " Timed out waiting 1000ms" in text


def dies() -> str:
    dist.all_reduce(torch.ones(4))
    if dist.get_rank() == 1:
        os._exit(3)
    with pytest.raises(dist.DistBackendError) as caught:
        go_on()
    return str(caught.value)


def go_on() -> None:
    for _ in range(100):
        dist.all_reduce(torch.ones(4))
        time.sleep(0.05)


def test_a_rank_that_dies_is_named() -> None:
    with Ranks(2, timeout=20.0) as ranks, pytest.raises(RankError) as caught:
        ranks.run(dies)

    assert caught.value.kinds == {1: "Exit"}
    assert "PeerLost" in caught.value.values[0]
    assert "rank 1" in caught.value.values[0]


def after_destroy() -> None:
    group = dist.group.WORLD
    backend = group._get_backend(torch.device("cpu"))
    dist.destroy_process_group()
    with pytest.raises(RuntimeError, match="has been destroyed"):
        backend.allreduce([torch.ones(1)])


def test_a_destroyed_group_says_so() -> None:
    with Ranks(1) as ranks:
        ranks.run(after_destroy)


def aborted() -> str:
    import threading

    backend = dist.group.WORLD._get_backend(torch.device("cpu"))
    if dist.get_rank() == 0:
        threading.Timer(1.0, backend.abort).start()
    got = torch.empty(1)
    with pytest.raises(dist.DistBackendError) as caught:
        dist.recv(got, 1 - dist.get_rank())  # nobody sends
    return str(caught.value)


def test_abort_ends_what_is_pending_on_all_ranks() -> None:
    with Ranks(2, timeout=30.0) as ranks:
        texts = ranks.run(aborted)

    assert all("Aborted" in text for text in texts), texts


def monitored(missing: list[int], everybody: bool) -> str:
    backend = dist.group.WORLD._get_backend(torch.device("cpu"))
    if dist.get_rank() in missing:
        time.sleep(3)
        return ""
    try:
        backend.monitored_barrier(timedelta(seconds=1 if missing else 30), wait_all_ranks=everybody)
    except RuntimeError as error:
        return str(error)
    return "passed"


def test_the_monitored_barrier_passes(three: Ranks) -> None:
    assert three.run(monitored, [], False) == ["passed"] * 3


def test_the_monitored_barrier_names_who_is_missing() -> None:
    with Ranks(3) as ranks:
        texts = ranks.run(monitored, [1, 2], True)

    assert "Ranks 1, 2 failed to pass monitoredBarrier in 1000 ms" in texts[0]


def test_the_others_of_a_monitored_barrier_point_to_rank_0() -> None:
    with Ranks(3) as ranks:
        texts = ranks.run(monitored, [1], False)

    assert "Rank 1 failed to pass monitoredBarrier" in texts[0]
    assert "Rank 2 successfully reached monitoredBarrier" in texts[2]

# SPDX-License-Identifier: Apache-2.0
"""What test_memory.py runs on ranks: arrays of hccomm.empty in calls, and what is left of them."""

from __future__ import annotations

import gc
import os
import time
from typing import Any

import numpy as np

import hccomm


def reduce_shared(comm: hccomm.Communicator) -> tuple[bool, dict[str, Any]]:
    """Reduce an array of hccomm.empty; what describe() says of it."""
    values = hccomm.empty(1 << 18, "f4")
    values[:] = comm.rank + 1
    comm.all_reduce(values)
    return bool((values == sum(range(1, comm.size + 1))).all()), comm.describe()["memory"]


def collect_private_and_shared(comm: hccomm.Communicator, count: int) -> tuple[bytes, bytes]:
    """Call every collective on private arrays and on shared ones; all that came."""

    def collect(make: Any) -> bytes:
        def filled(size: int) -> Any:
            made = make(size, "f4")
            made[:] = np.random.default_rng(comm.rank).random(size, "f4")
            return made

        found = []
        whole, many = filled(count), filled(count * comm.size)
        for into, call in (
            (make(count, "f4"), lambda into: comm.all_reduce(whole, out=into)),
            (filled(count), comm.all_reduce),
            (filled(count), lambda into: comm.broadcast(into, 1)),
            (make(count * comm.size, "f4"), lambda into: comm.all_gather(whole, out=into)),
            (make(count, "f4"), lambda into: comm.reduce_scatter(many, out=into)),
            (make(count * comm.size, "f4"), lambda into: comm.all_to_all(many, out=into)),
        ):
            call(into)
            found.append(into.tobytes())
        into = make(count, "f4")
        comm.sendrecv(whole, (comm.rank + 1) % comm.size, into, (comm.rank - 1) % comm.size)
        return b"".join([*found, into.tobytes()])

    return collect(np.empty), collect(hccomm.empty)


def settled(held: Any) -> tuple[int, int]:
    """Return what is held once it has not changed for half a second: links may be made twice."""
    found, since = held(), time.monotonic()
    until = since + 20
    while time.monotonic() < min(since + 0.5, until):
        time.sleep(0.05)
        if held() != found:
            found, since = held(), time.monotonic()
    return found


def map_and_forget(comm: hccomm.Communicator) -> tuple[tuple[int, int], tuple[int, int]]:
    """Count descriptors and mappings before and after the use of many arrays of hccomm.empty."""

    def held() -> tuple[int, int]:
        with open("/proc/self/maps", encoding="ascii") as maps:
            mapped = sum("memfd:hccomm" in line for line in maps)
        return len(os.listdir("/proc/self/fd")), mapped

    keeps = hccomm.empty(1 << 17)  # while it is there, so is the block that small ones come from
    comm.all_gather(keeps)
    before = settled(held)
    for size in (1 << 16, 1 << 20, 5 << 20, 1 << 18):
        values = [hccomm.empty(size) for _ in range(3)]
        for each in values:
            each[:] = 1
            comm.all_reduce(each)
    del values, each
    gc.collect()
    comm.barrier()
    deadline = time.monotonic() + 20
    while held() != before and time.monotonic() < deadline:
        time.sleep(0.1)  # peers look once a second
    comm.barrier()
    assert keeps.size == 1 << 17
    return before, held()

# SPDX-License-Identifier: Apache-2.0
"""What test_islands.py runs on ranks: vendors' devices and host memory in any order."""

from __future__ import annotations

import ctypes
import os
import time
from typing import Any

import numpy as np
from device_programs import PretendedArray
from fake_arrays import CudaArray, FakeArray

import hccomm

# (kind, index of the device) by rank: three NVIDIA, two Moore Threads and one host, interleaved
MIXED = (("cuda", 0), ("musa", 0), ("cuda", 1), ("host", 0), ("musa", 1), ("cuda", 2))
ALONE = (("cuda", 0), ("cuda", 1), ("cuda", 2))
ASCEND = (("ascend", 0), ("ascend", 1), ("host", 0))
PAIRS = (("cuda", 0), ("musa", 0), ("cuda", 1), ("musa", 1))
HOSTS = (("cuda", 0), ("cuda", 1), ("cuda", 0), ("cuda", 1))


def place(comm: hccomm.Communicator, values: Any, places: Any = MIXED) -> Any:
    kind, index = places[comm.rank]
    if kind == "cuda":
        return CudaArray(values, index=index)
    return values if kind == "host" else FakeArray(kind, values, index=index)


def settle(comm: hccomm.Communicator, places: Any = MIXED) -> None:
    """Make as many calls as it takes: the host's rank may have a library, and shows no device."""
    for _ in range(4):
        comm.all_reduce(place(comm, np.ones(8, np.float32), places))


def back(array: Any) -> Any:
    return array.numpy() if isinstance(array, FakeArray) else array


def reductions(group: hccomm.Communicator, count: int, places: Any) -> None:
    """Every operation and type, those that no vendor's library has included."""
    size, rank = group.size, group.rank
    ramp = np.arange(count) % 8
    for dtype in (np.float32, np.float16, np.int64, np.uint8, np.int16, np.complex64):
        data = place(group, (ramp * (rank + 1)).astype(dtype), places)
        group.all_reduce(data)
        total = size * (size + 1) // 2
        assert np.array_equal(back(data), (ramp * total).astype(dtype)), (dtype, count)
    mean = place(group, np.full(count, rank, np.float32), places)
    group.all_reduce(mean, op="avg")
    assert np.all(back(mean) == (size - 1) / 2), count
    product = place(group, np.full(count, 2.0, np.float64), places)
    group.all_reduce(product, op="prod")
    assert np.all(back(product) == 2.0**size), count
    bits = place(group, np.full(count, 1 << rank, np.int32), places)
    out = place(group, np.zeros(count, np.int32), places)
    group.all_reduce(bits, out=out, op="bor")
    assert np.all(back(out) == (1 << size) - 1), count
    assert np.all(back(bits) == 1 << rank), count
    for dtype in (np.float32, np.float16):
        scaled = place(group, np.full(count, rank + 1, dtype), places)
        group.all_reduce(scaled, op="premul_sum", factor=0.5)
        assert np.all(back(scaled) == size * (size + 1) / 4), (dtype, count)


def moves(group: hccomm.Communicator, count: int, places: Any) -> None:
    """Check the other collectives, in place and not."""
    size, rank = group.size, group.rank
    for root in (0, size - 1):
        data = place(group, np.full(count, rank * 10, np.int32), places)
        group.broadcast(data, root=root)
        assert np.all(back(data) == root * 10), (root, count)
        mine = place(group, np.arange(count, dtype=np.float32) % 32 * (rank + 1), places)
        out = place(group, np.zeros(count, np.float32), places)
        group.reduce(mine, root=root, out=out if rank == root else None)
        if rank == root:
            expected = np.arange(count, dtype=np.float32) % 32 * (size * (size + 1) // 2)
            assert np.array_equal(back(out), expected), (root, count)
    own = place(group, np.arange(count, dtype=np.int64) + rank, places)
    all_of_them = place(group, np.zeros((size, count), np.int64), places)
    group.all_gather(own, out=all_of_them)
    expected = np.arange(count)[None, :] + np.arange(size)[:, None]
    assert np.array_equal(back(all_of_them), expected), count
    parts = np.arange(size * count, dtype=np.float32).reshape(size, count) % 128 + rank
    out = place(group, np.zeros(count, np.float32), places)
    group.reduce_scatter(place(group, parts, places), out=out)
    base = np.arange(size * count).reshape(size, count)[rank] % 128
    assert np.array_equal(back(out), base * size + size * (size - 1) // 2), count
    sent = place(group, np.arange(size * count, dtype=np.int32) + 1000 * rank, places)
    got = place(group, np.zeros(size * count, np.int32), places)
    group.all_to_all(sent, out=got)
    expected = np.concatenate(
        [np.arange(rank * count, (rank + 1) * count) + 1000 * peer for peer in range(size)]
    )
    assert np.array_equal(back(got), expected), count


def everything(comm: hccomm.Communicator, members: list[int], places: Any, counts: Any) -> Any:
    """Every collective, in a group, without a word about islands; returns what describe() says."""
    if comm.rank not in members:
        return None
    with comm.group(members) as group:
        settle(group, places)
        for count in counts:
            reductions(group, count, places)
            moves(group, count, places)
        group.barrier()
        large = place(group, np.full(600_003, group.rank, np.float32), places)  # several blocks
        group.all_reduce(large)
        assert np.all(back(large) == group.size * (group.size - 1) / 2)
        mine = place(group, np.zeros(1), places)
        if isinstance(mine, FakeArray):
            assert mine.count("misuses") == 0
        return group.describe()


def lists_differ(comm: hccomm.Communicator) -> Any:
    """Do everything while each half of the ranks has another list of islands."""
    os.environ["HCCOMM_ISLAND"] = "0,2;1,3" if comm.rank < 2 else "0;2,1;3"
    try:
        return everything(comm, list(range(comm.size)), PAIRS, [20_001])
    finally:
        del os.environ["HCCOMM_ISLAND"]


def many_at_once(comm: hccomm.Communicator) -> str:
    """Keep calls of all ways in flight together: each ends with what belongs to it."""
    works, arrays = [], []
    with comm.group(range(comm.size)) as group:
        for turn in range(12):
            count = (100, 70_000)[turn % 2]
            arrays.append(place(group, np.full(count, group.rank + turn, np.float32)))
            works.append(group.all_reduce(arrays[-1], async_op=True))
            works.append(group.barrier(async_op=True))
        for work in works:
            work.wait(60)
        for turn, array in enumerate(arrays):
            assert np.all(back(array) == 15 + 6 * turn), turn
        return str(group.describe()["islands"]["state"])


def elsewhere(comm: hccomm.Communicator) -> str:
    """Once islands are settled, ranks pass arrays that lie elsewhere: right all the same."""
    with comm.group(range(comm.size)) as group:
        settle(group)
        for dtype in (np.float32, np.int64):
            data = np.full(100_000, group.rank, dtype)
            group.all_reduce(data)
            assert np.all(data == 15)
        other = CudaArray(np.full(100_000, group.rank, np.float32), index=0)
        out = np.zeros(100_000, np.float32)
        group.all_reduce(other, out=out)
        assert np.all(out == 15)
        parts = np.ones((group.size, 50_000), np.float32)
        group.reduce_scatter(parts, out=parts[group.rank])
        assert np.all(parts[group.rank] == group.size)
        return str(group.describe()["islands"]["state"])


def refused_first(comm: hccomm.Communicator) -> list[str]:
    """Rank 2 twice names a device that is not there; then all make the call."""
    said = []
    with comm.group(range(comm.size)) as group:
        for _ in range(2 if comm.rank == 2 else 0):
            try:
                group.all_reduce(PretendedArray("cuda", 7))
            except hccomm.InvalidArgument as error:
                said.append(str(error))
        data = place(group, np.ones(20_001, np.float32))
        group.all_reduce(data, timeout=20.0)
        assert np.all(back(data) == comm.size)
    return said


def use_behind_a_call(comm: hccomm.Communicator) -> str:
    """Rank 0 has a call in flight that the others join only after it has asked for islands."""
    said = "nothing was raised"
    with comm.group(range(comm.size), timeout=1.0) as group:
        data = place(group, np.ones(20_001, np.float32))
        if group.rank == 0:
            work = group.all_reduce(data, timeout=60.0, async_op=True)
            try:
                group.use_islands(data)
            except hccomm.Timeout as error:
                said = str(error)
        comm.barrier()
        if group.rank == 0:
            work.wait(60.0)
        else:
            group.all_reduce(data, timeout=60.0)
        assert np.all(back(data) == comm.size)
    return said


def moves_on(comm: hccomm.Communicator) -> dict[str, Any] | None:
    """While ranks agree upon islands, rank 0's next call is queued: on rank 1's device."""
    if comm.rank >= len(ALONE):
        return None
    with comm.group(range(len(ALONE))) as group:
        data = [place(group, np.full(20_001, each, np.float32), ALONE) for each in (1, 2)]
        if group.rank == 0:
            data[1] = CudaArray(np.full(20_001, 2, np.float32), index=ALONE[1][1])
            works = [group.all_reduce(data[0], async_op=True)]
            time.sleep(0.3)  # agreeing has begun, and waits for the others
            works.append(group.all_reduce(data[1], async_op=True))
            for peer in range(1, group.size):
                comm.send(np.zeros(1), peer)
        else:
            comm.recv(np.zeros(1), 0)
            works = [group.all_reduce(each, async_op=True) for each in data]
        for work in works:
            work.wait(60.0)
        assert [float(back(each)[-1]) for each in data] == [3.0, 6.0]
        return group.describe()


def slow_copies(comm: hccomm.Communicator) -> tuple[str, int]:
    """Rank 0's array is on another device: its copy outlasts the call and who waits for it."""
    said = "nothing was raised"
    runtime = ctypes.CDLL(os.environ["HCCOMM_CUDA_LIB"])
    runtime.fake_count.restype = ctypes.c_int64
    with comm.group(range(comm.size)) as group:
        settle(group)
        values = np.ones(20_001, np.float32)
        data = CudaArray(values, index=1) if group.rank == 0 else place(group, values)
        before = runtime.fake_count(b"misuses")
        copies = runtime.fake_count(b"copies")
        if group.rank == 0:
            runtime.fake_set(b"latency_us=6000000")
        try:
            group.all_reduce(data, timeout=0.5)
        except hccomm.Error as error:
            said = f"{type(error).__name__}: {error}"
    runtime.fake_set(b"latency_us=5")
    deadline = time.monotonic() + 30.0
    while group.rank == 0 and runtime.fake_count(b"copies") == copies:
        assert time.monotonic() < deadline, "the slow copy never ended"
        time.sleep(0.01)  # the next test finds nothing of it
    return said, runtime.fake_count(b"misuses") - before


def destroyed(comm: hccomm.Communicator, how: str) -> tuple[str, int]:
    """Close a group whose islands work: all, without rank 2, or where rank 0 cannot join."""
    kind = "MUSA" if MIXED[comm.rank][0] == "musa" else "CUDA"
    library = ctypes.CDLL(os.environ[f"HCCOMM_CCL_{kind}_LIB"])
    before = library.fake_ccl_destroyed()
    with comm.group(range(comm.size)) as group:
        if how == "cannot join" and group.rank == 0:
            library.fake_ccl_fail(JOINING, 1)
        settle(group)
        state = str(group.describe()["islands"]["state"])
        comm.barrier()
        if how == "aborts" and group.rank == 2:
            group.abort("enough")
        elif how == "aborts":
            try:
                group.barrier(timeout=20.0)
            except hccomm.Aborted:
                state = "aborted"
    return state, library.fake_ccl_destroyed() - before


def leaves(comm: hccomm.Communicator) -> str:
    """Rank 2 aborts while the others are in the call."""
    with comm.group(range(comm.size)) as group:
        settle(group)
        data = place(group, np.ones(1_000_000, np.float32))
        try:
            group.barrier()
            if group.rank == 2:
                group.abort("enough")
                return "left"
            group.all_reduce(data)
        except hccomm.Aborted as error:
            return f"Aborted: {error}"
    return "nothing was raised"


def disagrees(comm: hccomm.Communicator, members: list[int]) -> str:
    """One rank of an island reduces by another operation."""
    if comm.rank not in members:
        return "not there"
    with comm.group(members) as group:
        settle(group, ALONE)
        data = place(group, np.ones(100_000, np.float32), ALONE)
        try:
            group.all_reduce(data, op="max" if group.rank == 1 else "sum", timeout=20)
        except hccomm.Error as error:
            return f"{type(error).__name__}: {error}"
    return "nothing was raised"


def library_fails(
    comm: hccomm.Communicator, setting: str, kind: int, turn: int, elsewhere: bool = False
) -> str:
    """Let the library of rank 0 fail in the turn-th call of a kind (tests/fakes/ccl.h).

    ``elsewhere``: once islands are settled, all arrays are the host's, so that it works on copies.
    """
    os.environ["HCCOMM_ISLAND_FAILURE"] = setting
    try:
        with comm.group(range(comm.size)) as group:
            if group.rank == 0:
                ctypes.CDLL(os.environ["HCCOMM_CCL_CUDA_LIB"]).fake_ccl_fail(kind, turn)
            return _sums(group, elsewhere)
    finally:
        del os.environ["HCCOMM_ISLAND_FAILURE"]


def flips(comm: hccomm.Communicator, way: str, elsewhere: bool) -> str:
    """Once islands are settled a copy of rank 0, to its device or from it, changes a bit.

    The first one from it may be what was copied to it, read again. Who is still settling when rank
    0 fails hears of it there.
    """
    with comm.group(range(comm.size)) as group:
        values, count = np.full(50_000, group.rank, np.float32), 1 if way == "in" else 2
        data = values if elsewhere else place(group, values)
        try:
            settle(group)
            if group.rank == 0:
                ctypes.CDLL(os.environ["HCCOMM_CUDA_LIB"]).fake_set(f"flip_{way}={count}".encode())
            group.all_reduce(data, timeout=30)
        except hccomm.Error as error:
            return f"{type(error).__name__}: {error}"
    return "no error" if np.all(back(data) == 15) else "wrong result"


def _sums(group: hccomm.Communicator, elsewhere: bool) -> str:
    for turn in range(7):
        values = np.full(50_000, group.rank + turn, np.float32)
        data = values if elsewhere and turn >= 4 else place(group, values)
        try:
            group.all_reduce(data, timeout=30)
        except hccomm.Error as error:
            return f"{type(error).__name__}: {error}"
        assert np.all(back(data) == 15 + 6 * turn), turn
    told = group.describe()["islands"]
    return f"{told['state']}: {told['reason']}"


def perishes(
    comm: hccomm.Communicator, places: Any, kind: int, turn: int, by: int, setting: str
) -> dict[str, Any]:
    """Let rank 1 end by a signal while its vendor's library works (tests/fakes/ccl.h).

    Returns what the others saw, and the islands of those who are left, which work.
    """
    os.environ["HCCOMM_ISLAND_FAILURE"] = setting
    group = comm.group(range(comm.size))
    if kind != JOINING:
        settle(group, places)
    if group.rank == 1:
        vendor = places[1][0].upper()
        ctypes.CDLL(os.environ[f"HCCOMM_CCL_{vendor}_LIB"]).fake_ccl_end(kind, turn, by)
    said = _until_it_fails(group, places, messages=kind == MESSAGES)
    group.close()
    with comm.shrink() as left:
        rest = tuple(each for rank, each in enumerate(places) if rank != 1)
        settle(left, rest)
        data = place(left, np.full(100_003, left.rank + 1, np.float32), rest)
        left.all_reduce(data)
        assert np.all(back(data) == left.size * (left.size + 1) // 2)
        islands = [one["ranks"] for one in left.describe()["islands"]["islands"]]
    return {"said": said, "islands": islands}


JOINING, MESSAGES = 0, 6  # as tests/fakes/ccl.h numbers them


def _until_it_fails(group: hccomm.Communicator, places: Any, messages: bool) -> str:
    """Keep several calls in flight."""
    count = 300_000 // group.size * group.size
    data = [place(group, np.ones(count, np.float32), places) for _ in range(4)]
    try:
        for _ in range(10):
            if messages:
                group.all_to_all(data[0], out=data[1], timeout=50)
            works = [group.all_reduce(each, op="max", async_op=True) for each in data]
            for work in works:
                work.wait(50)
    except hccomm.Error as error:
        return f"{type(error).__name__} {error.rank}: {error}"
    return "nothing was raised"

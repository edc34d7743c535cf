# SPDX-License-Identifier: Apache-2.0
"""What the tests run on ranks. Each function takes the communicator first; results are pickled.

Inputs are small whole numbers: every type holds every sum exactly, and ``==`` compares results.
"""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import ml_dtypes
import numpy as np

import hccomm
from hccomm import requests, tune
from hccomm.local import Ranks  # noqa: F401  # importing it here proves that ranks can

TYPES: dict[str, Any] = {
    "bool": np.dtype("?"), "i8": np.dtype("i1"), "i16": np.dtype("i2"), "i32": np.dtype("i4"),
    "i64": np.dtype("i8"), "u8": np.dtype("u1"), "u16": np.dtype("u2"), "u32": np.dtype("u4"),
    "u64": np.dtype("u8"), "f16": np.dtype("f2"), "bf16": np.dtype(ml_dtypes.bfloat16),
    "f8e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn), "f8e5m2": np.dtype(ml_dtypes.float8_e5m2),
    "f32": np.dtype("f4"), "f64": np.dtype("f8"), "c64": np.dtype("c8"), "c128": np.dtype("c16"),
}  # fmt: skip


def defined(kind: str, op: str) -> bool:
    """Whether ``op`` has a meaning for the type, as csrc/dtype/dtype.hpp says."""
    if kind == "bool":
        return op not in ("avg", "premul_sum")
    if kind[0] in "iu":
        return op not in ("avg", "premul_sum")
    if kind[0] == "c":
        return op in ("sum", "avg", "prod", "premul_sum")
    return op not in ("band", "bor", "bxor")


def values(kind: str, op: str, rank: int, size: int, count: int) -> Any:
    """Return the input of a rank: exact under ``op`` for any number of ranks up to eight."""
    index = np.arange(count)
    if kind == "bool":
        return (index + rank) % 3 == 0
    if op == "prod":
        numbers = np.where((index + rank) % 4 == 0, 2, 1)
    elif op == "avg":
        numbers = index % 2 + (2 * rank - (size - 1))  # the average is index % 2
    elif kind.startswith("f8"):
        numbers = (index + rank) % 2
    else:
        numbers = (index + 3 * rank) % 7
    if kind[0] == "c":
        return (numbers + 1j * (numbers % 2) * (op != "prod")).astype(TYPES[kind])
    return numbers.astype(TYPES[kind])


def reduced(kind: str, op: str, size: int, count: int) -> Any:
    """Return the reference: what all ranks' ``values`` reduce to."""
    rows = [values(kind, op, rank, size, count) for rank in range(size)]
    if kind == "bool":
        if op == "bxor":
            return np.logical_xor.reduce(rows)
        return (np.logical_or if op in ("sum", "max", "bor") else np.logical_and).reduce(rows)
    if op in ("band", "bor", "bxor"):
        names = {"band": np.bitwise_and, "bor": np.bitwise_or, "bxor": np.bitwise_xor}
        return names[op].reduce(rows)
    wide = [row.astype("c16" if kind[0] == "c" else "f8") for row in rows]
    total = {
        "sum": np.add, "avg": np.add, "premul_sum": np.add, "prod": np.multiply,
        "min": np.minimum, "max": np.maximum,
    }[op].reduce(wide)  # fmt: skip
    if op == "avg":
        total = total / size
    if op == "premul_sum":
        total = total * 2
    return total.astype(TYPES[kind])


def same(found: Any, wanted: Any) -> bool:
    """Whether two arrays hold the same bits."""
    return bool(found.shape == wanted.shape and found.tobytes() == wanted.tobytes())


# ---- every collective, type and operation ------------------------------------------------------


def wrong_reductions(comm: hccomm.Communicator, name: str, counts: list[int]) -> list[str]:
    """Run a reduction for every type, operation and count; return the cases that were wrong."""
    wrong = []
    for kind in TYPES:
        for op in hccomm.OPS:
            if not defined(kind, op):
                continue
            for count in counts:
                for in_place in (False, True):
                    if not _one_reduction(comm, name, kind, op, count, in_place):
                        wrong.append(f"{kind} {op} {count} {'in place' if in_place else ''}")
    return wrong


def _one_reduction(
    comm: hccomm.Communicator, name: str, kind: str, op: Any, count: int, in_place: bool
) -> bool:
    rank, size, root = comm.rank, comm.size, count % comm.size
    factor = 2.0 if op == "premul_sum" else 1.0
    if name == "reduce_scatter":
        source = values(kind, op, rank, size, count * size)
        wanted = reduced(kind, op, size, count * size)[rank * count : (rank + 1) * count]
        target = np.zeros(count, source.dtype)
        if in_place:
            target = source[rank * count : (rank + 1) * count]
        found = comm.reduce_scatter(source, op, out=target, factor=factor)
        return found is target and same(target, wanted)
    source = values(kind, op, rank, size, count)
    before = source.copy()
    wanted = reduced(kind, op, size, count)
    target = source if in_place else np.zeros_like(source)
    if name == "all_reduce":
        found = comm.all_reduce(source, op, out=None if in_place else target, factor=factor)
        return found is target and same(target, wanted) and (in_place or same(source, before))
    found = comm.reduce(source, op, root=root, out=None if in_place else target, factor=factor)
    if rank != root:
        return found is None and same(source, before)
    return found is target and same(target, wanted)


def wrong_copies(comm: hccomm.Communicator, name: str, counts: list[int]) -> list[str]:
    """Run a copying collective for every type and count; return the cases that were wrong."""
    wrong = []
    for kind in TYPES:
        for count in counts:
            for in_place in (False, True):
                if not _one_copy(comm, name, kind, count, in_place):
                    wrong.append(f"{kind} {count} {'in place' if in_place else ''}")
    return wrong


def _one_copy(comm: hccomm.Communicator, name: str, kind: str, count: int, in_place: bool) -> bool:
    rank, size, root = comm.rank, comm.size, (count + 1) % comm.size
    rows = [values(kind, "copy", each, size, count * size) for each in range(size)]
    mine = slice(rank * count, (rank + 1) * count)
    large, small = np.zeros(count * size, TYPES[kind]), np.zeros(count, TYPES[kind])
    if name == "broadcast":
        buffer = rows[rank].copy()
        return comm.broadcast(buffer, root) is buffer and same(buffer, rows[root])
    if name in ("all_gather", "gather"):
        wanted = np.concatenate([row[:count] for row in rows])
        source = rows[rank][:count].copy()
        if in_place:
            large[mine] = source
            source = large[mine]
        if name == "all_gather":
            return comm.all_gather(source, out=large) is large and same(large, wanted)
        found = comm.gather(source, root=root, out=large)
        return same(large, wanted) if rank == root else found is None
    if name == "scatter":
        source = rows[root].copy()
        target = source[mine] if in_place and rank == root else small
        comm.scatter(source if rank == root else None, root=root, out=target)
        return same(target, rows[root][mine])
    source = rows[rank].copy()
    comm.all_to_all(source, out=large)
    return same(large, np.concatenate([row[mine] for row in rows]))


def wrong_v_forms(comm: hccomm.Communicator, counts: list[int], gap: int) -> list[str]:
    """Run every v-form with a count for each rank and ``gap`` elements between the parts."""
    rank, size, root = comm.rank, comm.size, comm.size - 1
    offsets = [sum(counts[:each]) + gap * each for each in range(size)]
    given = None if gap == 0 else offsets
    span = sum(counts) + gap * size
    rows = [np.arange(span, dtype="i4") + 1000 * each for each in range(size)]
    wrong = []

    def parts(of: Any) -> Any:
        found = np.full(span, -1, "i4")
        for each in range(size):
            found[offsets[each] : offsets[each] + counts[each]] = of(each)
        return found

    gathered = parts(lambda each: rows[each][: counts[each]])
    out = np.full(span, -1, "i4")
    comm.all_gather(rows[rank][: counts[rank]], out=out, counts=counts, offsets=given)
    wrong += [] if same(out, gathered) else ["all_gather"]

    out = np.full(span, -1, "i4")
    comm.gather(rows[rank][: counts[rank]], root=root, out=out, counts=counts, offsets=given)
    wrong += [] if rank != root or same(out, gathered) else ["gather"]

    mine = slice(offsets[rank], offsets[rank] + counts[rank])
    small = np.zeros(counts[rank], "i4")
    comm.scatter(
        rows[root] if rank == root else None, root=root, out=small, counts=counts, offsets=given
    )
    wrong += [] if same(small, rows[root][mine]) else ["scatter"]

    small = np.zeros(counts[rank], "i4")
    comm.reduce_scatter(rows[rank].copy(), out=small, counts=counts, offsets=given)
    wrong += [] if same(small, np.add.reduce(rows)[mine].astype("i4")) else ["reduce_scatter"]

    # rank r sends counts[r] elements to everyone, so everyone receives counts[r] from r
    sends = [counts[rank]] * size
    source = np.concatenate([rows[rank][: counts[rank]] + 100 * each for each in range(size)])
    out = np.full(span, -1, "i4")
    comm.all_to_all(
        source.astype("i4"), out=out, counts=sends, recv_counts=counts, recv_offsets=given
    )
    wanted = parts(lambda each: rows[each][: counts[each]] + 100 * rank)
    wrong += [] if same(out, wanted) else ["all_to_all"]
    return wrong


def one_random_case(comm: hccomm.Communicator, case: dict[str, Any]) -> bool:
    """Run one case that hypothesis drew."""
    name, kind, count = case["name"], case["kind"], case["count"]
    if name in ("all_reduce", "reduce", "reduce_scatter"):
        return _one_reduction(comm, name, kind, case["op"], count, case["in_place"])
    return _one_copy(comm, name, kind, count, case["in_place"])


# ---- allocation, other arrays, asynchrony ------------------------------------------------------


def allocated_results(comm: hccomm.Communicator) -> dict[str, Any]:
    """Return the shapes and values of results that hccomm allocates."""
    size = comm.size
    matrix = np.full((2, 3), comm.rank, "f4")
    wide = np.arange(size * 4, dtype="f8").reshape(size * 2, 2)
    return {
        "all_gather": comm.all_gather(matrix),
        "gather": comm.gather(matrix, root=0),
        "reduce_scatter": comm.reduce_scatter(wide),
        "scatter": comm.scatter(wide, root=0, out=None if comm.rank == 0 else np.zeros((2, 2))),
        "all_to_all": comm.all_to_all(wide),
        "all_gather_v": comm.all_gather(np.ones(comm.rank + 1, "i4"), counts=range(1, size + 1)),
    }


def other_arrays(comm: hccomm.Communicator) -> dict[str, Any]:
    """Reduce arrays that are not NumPy's."""
    import array

    raw = bytearray([comm.rank + 1] * 4)
    typed = array.array("d", [1.5, 2.5])
    view = memoryview(bytearray(np.ones(3, "i4").tobytes())).cast("i")
    comm.all_reduce(raw)
    comm.all_reduce(typed)
    comm.all_reduce(view)
    return {"bytearray": list(raw), "array": list(typed), "memoryview": list(view)}


def torch_tensors(comm: hccomm.Communicator) -> dict[str, Any]:
    """Reduce and gather torch tensors through DLPack."""
    import torch

    half = torch.full((2, 2), 1.5, dtype=torch.bfloat16)
    comm.all_reduce(half)
    gathered = comm.all_gather(torch.tensor([comm.rank]))
    return {"bf16": half.tolist(), "gathered": gathered.tolist(), "type": type(gathered).__name__}


def many_in_flight(comm: hccomm.Communicator, count: int) -> bool:
    """Start many operations of all kinds and wait for them in reverse order."""
    arrays = [np.full(100 + each, comm.rank + each, "i8") for each in range(count)]
    works = [comm.all_reduce(each, async_op=True) for each in arrays]
    barrier = comm.barrier(async_op=True)
    for work in reversed(works):
        work.wait(timeout=30.0)
    barrier.wait()
    total = sum(range(comm.size))
    return all((each == total + comm.size * at).all() for at, each in enumerate(arrays))


def work_states(comm: hccomm.Communicator) -> dict[str, Any]:
    """Return what a Work says before and after."""
    buffer = np.ones(8, "f4")
    work = comm.all_reduce(buffer, async_op=True)
    first = work.sequence
    same_object = work.result(timeout=30.0) is buffer
    late = comm.barrier(async_op=True)
    late.wait()
    return {
        "same": same_object, "done": work.done(), "later": late.sequence > first,
        "text": repr(work), "again": work.result() is buffer,
    }  # fmt: skip


def forgotten_work(comm: hccomm.Communicator) -> bool:
    """Drop works without waiting; their buffers must stay valid until they are done."""
    import gc

    for each in range(20):
        comm.all_reduce(np.full(50_000, float(each)), async_op=True)
    gc.collect()
    comm.barrier()
    return bool((comm.all_reduce(np.ones(3)) == comm.size).all())


def exchange(comm: hccomm.Communicator, count: int) -> bool:
    """Send around a ring, larger than any buffer on the way, everyone sending first."""
    right, left = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    out, into = np.full(count, comm.rank, "i4"), np.zeros(count, "i4")
    sending = comm.send(out, right, async_op=True)
    comm.recv(into, left)
    sending.wait()
    return bool((into == left).all())


def sendrecv(comm: hccomm.Communicator, count: int) -> list[str]:
    """Shift around the ring, the plain call and the one with options; then three wrong calls."""
    right, left = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    mine = np.full(count, comm.rank, "i4")
    for options in ({}, {"tag": 7, "timeout": 60.0}):
        into = np.full(count, -1, "i4")
        assert comm.sendrecv(mine, right, into, left, **options) is into
        assert (into == left).all()
    meeting = np.zeros(count, "i4")  # it meets send and recv
    receiving = comm.recv(meeting, left, async_op=True)
    comm.send(mine, right, async_op=True).wait()
    receiving.wait()
    assert (meeting == left).all()
    assert (comm.sendrecv(mine, comm.rank, meeting, comm.rank) == comm.rank).all()
    errors = []
    wrong = ((comm.size, meeting, left), (right, meeting, -1), (right, mine.tobytes(), left))
    for each in wrong:
        try:
            comm.sendrecv(mine, *each)
        except hccomm.InvalidArgument as error:
            errors.append(str(error))
    comm.barrier()
    return errors


def any_source(comm: hccomm.Communicator) -> list[int]:
    """Rank 0 receives one message from each, in any order; returns the sources."""
    if comm.rank != 0:
        comm.send(np.array([comm.rank * 10]), 0, tag=5)
        return []
    sources = []
    for _ in range(comm.size - 1):
        into = np.zeros(1, "i8")
        source = comm.recv(into, tag=5)
        assert into[0] == source * 10
        sources.append(source)
    return sources


def tags(comm: hccomm.Communicator) -> list[int]:
    """Rank 1 receives by tag, in the other order than they were sent."""
    if comm.rank == 0:
        for tag in (1, 2, 3):
            comm.send(np.array([tag]), 1, tag=tag, async_op=True)
    found = []
    if comm.rank == 1:
        for tag in (3, 1, 2):
            into = np.zeros(1, "i8")
            comm.recv(into, 0, tag=tag)
            found.append(int(into[0]))
    comm.barrier()
    return found


def coalesced(comm: hccomm.Communicator) -> bool:
    """Exchange with everybody in one batch."""
    into = [np.zeros(10, "i4") for _ in range(comm.size)]
    total = np.ones(4, "f4")
    with comm.coalesce() as batch:
        for peer in range(comm.size):
            if peer != comm.rank:
                batch.send(np.full(10, comm.rank, "i4"), peer)
                batch.recv(into[peer], peer)
        batch.all_reduce(total)
    got = all((into[peer] == peer).all() for peer in range(comm.size) if peer != comm.rank)
    return got and bool((total == comm.size).all())


def groups(comm: hccomm.Communicator) -> dict[str, Any]:
    """Make groups and splits and use them, in different orders on different ranks."""
    evens = [each for each in range(comm.size) if each % 2 == 0]
    found: dict[str, Any] = {}
    if comm.rank in evens:
        with comm.group(list(reversed(evens))) as group:
            found["group"] = (group.rank, group.size)
            found["sum"] = int(group.all_reduce(np.array([comm.rank]))[0])
    half = comm.split(comm.rank % 2, key=-comm.rank)
    assert half is not None
    found["split"] = (half.rank, half.size, half.all_gather(np.array([comm.rank])).ravel().tolist())
    found["none"] = comm.split(None if comm.rank == 0 else 7) is None
    half.close()
    return found


def describe(comm: hccomm.Communicator) -> dict[str, Any]:
    """Use every link, then describe."""
    comm.all_to_all(np.zeros(comm.size, "i4"))
    return comm.describe()


def bits(comm: hccomm.Communicator, kind: str, count: int) -> tuple[bytes, bytes]:
    """Reduce numbers whose sum rounds, twice; return the bits."""
    source = np.random.default_rng(comm.rank).standard_normal(count).astype(TYPES[kind])
    first, second = (comm.all_reduce(source, out=np.empty_like(source)) for _ in range(2))
    return first.tobytes(), second.tobytes()


def large_count(comm: hccomm.Communicator, count: int) -> bool:
    """Broadcast more elements than 32 bits count."""
    buffer = np.zeros(count, "u1")
    if comm.rank == 0:
        buffer[0], buffer[-1], buffer[count // 2] = 1, 2, 3
    comm.broadcast(buffer, 0, timeout=120.0)
    return bool(buffer[0] == 1 and buffer[-1] == 2 and buffer[count // 2] == 3)


# ---- wrong calls and bad ends ------------------------------------------------------------------


def error_of(function: Any) -> tuple[str, str]:
    """Return the type and text of the hccomm.Error that ``function`` raises."""
    try:
        function()
    except hccomm.Error as error:
        return type(error).__name__, str(error)
    return "none", ""


def wrong_call(comm: hccomm.Communicator, which: str) -> tuple[str, str]:
    """Make one wrong call on every rank; return its error."""
    x, size = np.ones(8, "f4"), comm.size
    calls: dict[str, Any] = {
        "op": lambda: comm.all_reduce(x, "plus"),  # type: ignore[call-overload]
        "dtype and op": lambda: comm.all_reduce(x, "band"),
        "avg of integers": lambda: comm.all_reduce(np.ones(3, "i4"), "avg"),
        "root": lambda: comm.broadcast(x, size + 3),
        "negative root": lambda: comm.reduce(x, root=-2),
        "dest": lambda: comm.send(x, 99),
        "negative count": lambda: comm.all_gather(x, counts=[-1] + [8] * (size - 1)),
        "counts of another size": lambda: comm.all_gather(x, counts=[8]),
        "overlapping counts": lambda: comm.all_gather(
            x, out=np.zeros(8 * size, "f4"), counts=[8] * size, offsets=[0] * size
        ),
        "counts beyond out": lambda: comm.all_gather(x, out=np.zeros(8, "f4"), counts=[8] * size),
        "small out": lambda: comm.all_gather(x, out=np.zeros(3, "f4")),
        "dtype of out": lambda: comm.all_reduce(x, out=np.zeros(8, "f8")),
        "uneven": lambda: comm.reduce_scatter(np.ones(size * 2 + 1, "f4")),
        "strided": lambda: comm.all_reduce(np.ones((4, 4))[:, 1]),
        "no array": lambda: comm.all_reduce([1, 2, 3]),  # type: ignore[type-var]
        "strings": lambda: comm.all_reduce(np.array(["a"])),
        "foreign bytes": lambda: comm.all_reduce(np.ones(2, ">f4")),
        "read-only": lambda: comm.all_reduce(b"abcd"),
        "timeout": lambda: comm.barrier(timeout=-1.0),
        "scatter without out": lambda: comm.scatter(x if comm.rank == 0 else None, root=size),
        "group of strangers": lambda: comm.group([0, size]),
        "group with a rank twice": lambda: comm.group([comm.rank, comm.rank]),
    }
    return error_of(calls[which])


def still_works(comm: hccomm.Communicator) -> bool:
    """Whether the communicator is none the worse."""
    return bool((comm.all_reduce(np.ones(5), timeout=30.0) == comm.size).all())


def disagree(comm: hccomm.Communicator, how: str) -> tuple[str, str]:
    """Make calls that differ between ranks; return this rank's error.

    A rank whose part was over before the others' calls arrived learns of it by its next call.
    """
    odd = comm.rank == 1
    calls: dict[str, Any] = {
        "count": lambda: comm.all_reduce(np.ones(5 if odd else 4), timeout=20.0),
        "dtype": lambda: comm.all_reduce(np.ones(4, "f4" if odd else "i4"), timeout=20.0),
        "op": lambda: comm.all_reduce(np.ones(4), "max" if odd else "sum", timeout=20.0),
        "root": lambda: comm.broadcast(np.ones(4), 1 if odd else 0, timeout=20.0),
        "collective": lambda: (
            comm.barrier(timeout=20.0) if odd else comm.all_reduce(np.ones(4), timeout=20.0)
        ),
    }
    first = error_of(calls[how])
    return first if first[0] != "none" else error_of(lambda: comm.barrier(timeout=20.0))


def one_is_missing(comm: hccomm.Communicator) -> tuple[str, str]:
    """Everybody but the last rank enters a barrier."""
    if comm.rank == comm.size - 1:
        time.sleep(3.0)
        return "", ""
    return error_of(lambda: comm.barrier(timeout=1.0))


def one_dies(comm: hccomm.Communicator) -> tuple[str, str]:
    """Kill the last rank while the others wait for it, and for nothing before that."""
    last = comm.size - 1
    if comm.rank == last:
        for other in range(last):
            comm.recv(np.zeros(1), other)
        os.kill(os.getpid(), signal.SIGKILL)
    comm.send(np.zeros(1), last)
    return error_of(lambda: comm.all_reduce(np.ones(1000), timeout=30.0))


def one_aborts(comm: hccomm.Communicator) -> tuple[str, str]:
    """Rank 0 aborts while the others wait."""
    if comm.rank == 0:
        time.sleep(0.2)
        comm.abort("the test says so")
        return error_of(comm.barrier)
    return error_of(lambda: comm.barrier(timeout=30.0))


def wait_with_timeout(comm: hccomm.Communicator) -> tuple[str, bool]:
    """Wait too briefly for an operation, then for as long as it takes."""
    if comm.rank == 0:
        work = comm.barrier(async_op=True)
        name, _ = error_of(lambda: work.wait(timeout=0.05))
        comm.send(np.zeros(1), 1)
        work.wait(timeout=30.0)
        return name, work.done()
    if comm.rank == 1:
        comm.recv(np.zeros(1), 0)
    comm.barrier()
    return "Timeout", True


def closed(comm: hccomm.Communicator) -> list[tuple[str, str]]:
    """Use a group after it was closed."""
    group = comm.group(list(range(comm.size)))
    group.barrier()
    group.close()
    group.close()
    x = np.ones(3)
    return [error_of(group.barrier), error_of(lambda: group.all_reduce(x)),
            error_of(lambda: group.split(0)), error_of(group.describe)]  # fmt: skip


def forked(comm: hccomm.Communicator) -> tuple[str, str]:
    """Use the communicator in a forked child; return what the child saw."""
    comm.barrier()
    work = comm.all_reduce(np.ones(2), async_op=True)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        seen = error_of(lambda: comm.all_reduce(np.ones(2)))
        seen_work = error_of(lambda: work.wait(timeout=1.0))
        os.write(writing, "\n".join((*seen, seen_work[0])).encode())
        os._exit(0)
    os.waitpid(child, 0)
    work.wait()
    comm.barrier()
    name, text, work_name = os.read(reading, 4096).decode().split("\n")
    return (name, text) if work_name == name else (work_name, "of the work")


def interrupted(comm: hccomm.Communicator) -> bool:
    """Interrupt a blocking call of rank 0, as Ctrl-C does."""
    if comm.rank == 0:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell ignores it
        signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        try:
            comm.barrier(timeout=30.0)
        except KeyboardInterrupt:
            caught = True
        else:
            caught = False
    else:
        time.sleep(6.0)
        comm.barrier(timeout=30.0)
        caught = True
    comm.barrier(timeout=30.0)
    return caught


def parts_without_offsets(comm: hccomm.Communicator) -> list[float]:
    """Exchange parts that lie back to back through the C ABI, offsets left NULL."""
    counts = [peer + 1 for peer in range(comm.size)]
    mine = np.concatenate([np.full(n, comm.rank * 10.0 + p) for p, n in enumerate(counts)])
    into = np.zeros(comm.size * (comm.rank + 1))
    request = requests.all_to_all(
        comm.size, mine, into, counts, None, [comm.rank + 1] * comm.size, None
    )
    request.offsets = request.recv_offsets = None
    comm._start(request, None).wait()
    found: list[float] = into.tolist()
    return found


def tuned(comm: hccomm.Communicator, sizes: tuple[int, ...]) -> tuple[list[tune.Line], list[str]]:
    """Measure a small table."""
    return tune.measure(comm, sizes, seconds=0.001)

# SPDX-License-Identifier: Apache-2.0
"""Calls that do not agree: the matrix of ways in which one rank can differ from the others.

Each case gives every rank a call; the odd one, the last rank, differs. `expect` is the error that
all ranks must raise, or "fine" where the calls are legal or cannot be told from legal ones.
Buffers are filled with rank + 1 and followed by a few elements that nobody may touch; those that a
call only reads (``keep``) must be unharmed, too.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Comm = Any
Call = Callable[[], object]


_FENCE = 64  # elements behind each buffer


class Buffers:
    """The buffers of one rank, and whether anything was written where nothing may be."""

    def __init__(self, fill: int) -> None:
        self._fill = fill
        self._made: list[tuple[np.ndarray, int, bool]] = []

    def new(self, count: int, dtype: Any = np.float32, *, keep: bool = False) -> np.ndarray:
        """Return a filled buffer; ``keep`` says that the call only reads it."""
        whole = np.full(count + _FENCE, self._fill, dtype)
        self._made.append((whole, count, keep))
        return whole[:count]

    def damaged(self) -> bool:
        """Whether a fence or a buffer that is only read has changed."""
        return any(
            bool((whole[0 if keep else count :] != self._fill).any())
            for whole, count, keep in self._made
        )


@dataclass(frozen=True)
class Case:
    """One disagreement. ``make(comm, odd, new)`` returns a rank's call; new() its buffers."""

    make: Callable[[Comm, bool, Callable[..., np.ndarray]], Call]
    expect: str = "Mismatch"
    most: int = 8  # ranks that can take part
    matrix: bool = False  # one of the twelve of the published comparison

    def call(self, comm: Comm, buffers: Buffers) -> Call:
        """Return the call of this rank."""
        return self.make(comm, comm.rank == comm.size - 1, buffers.new)


def _sizes(mine: int, odd_one: int) -> Case:
    def make(comm: Comm, odd: bool, new: Callable[..., np.ndarray]) -> Call:
        buffer = new(odd_one if odd else mine)
        return lambda: comm.all_reduce(buffer)

    return Case(make, matrix=True)


def _types(odd_one: Any) -> Case:
    def make(comm: Comm, odd: bool, new: Callable[..., np.ndarray]) -> Call:
        buffer = new(8, odd_one if odd else np.float32)
        return lambda: comm.all_reduce(buffer)

    return Case(make, matrix=True)


def _ops(comm: Comm, odd: bool, new: Callable[..., np.ndarray]) -> Call:
    buffer = new(8)
    return lambda: comm.all_reduce(buffer, "prod" if odd else "sum")


def _root(name: str) -> Case:
    def make(comm: Comm, odd: bool, new: Callable[..., np.ndarray]) -> Call:
        buffer, root = new(8), comm.rank if odd else 0
        if name == "scatter":
            whole = np.zeros(8 * comm.size, np.float32) if comm.rank == root else None
            return lambda: comm.scatter(whole, root=root, out=buffer)
        return lambda: getattr(comm, name)(buffer, root=root)

    return Case(make, matrix=name == "broadcast")


def _broadcast_sizes(comm: Comm, odd: bool, new: Callable[..., np.ndarray]) -> Call:
    buffer = new(6 if odd else 4)
    return lambda: comm.broadcast(buffer, root=0)


def _collectives(comm: Comm, odd: bool, new: Callable[..., np.ndarray]) -> Call:
    buffer = new(8)
    return lambda: comm.broadcast(buffer) if odd else comm.all_reduce(buffer)


def _barrier(comm: Comm, odd: bool, new: Callable[..., np.ndarray]) -> Call:
    buffer = new(8)
    return lambda: comm.barrier() if odd else comm.all_reduce(buffer)


def _swapped_alike(comm: Comm, odd: bool, new: Callable[..., np.ndarray]) -> Call:
    both = [np.ones(8, np.float32), np.full(8, 10, np.float32)]
    return lambda: [comm.all_reduce(each) for each in (reversed(both) if odd else both)]


def _swapped(comm: Comm, odd: bool, new: Callable[..., np.ndarray]) -> Call:
    buffer = new(8)
    calls = [lambda: comm.all_reduce(buffer), lambda: comm.broadcast(buffer)]
    return lambda: [each() for each in (reversed(calls) if odd else calls)]


def _all_gather_sizes(comm: Comm, odd: bool, new: Callable[..., np.ndarray]) -> Call:
    count = 3 if odd else 4
    mine, out = new(count, keep=True), new(count * comm.size)
    return lambda: comm.all_gather(mine, out=out)


def _all_to_all_counts(comm: Comm, odd: bool, new: Callable[..., np.ndarray]) -> Call:
    parts = [1, *[2] * (comm.size - 2), 3] if odd else [2] * comm.size
    mine, out = new(2 * comm.size, keep=True), new(2 * comm.size)
    return lambda: comm.all_to_all(mine, out=out, counts=parts, recv_counts=parts)


def _absent(comm: Comm, odd: bool, new: Callable[..., np.ndarray]) -> Call:
    buffer = new(8)
    if odd:
        return lambda: (time.sleep(5.0), comm.all_reduce(buffer))
    return lambda: comm.all_reduce(buffer, timeout=2.0)


def _gathered_counts(name: str) -> Case:
    def make(comm: Comm, odd: bool, new: Callable[..., np.ndarray]) -> Call:
        counts = [4] * comm.size
        if odd:  # its own part is as the others believe; the first one's is not
            counts[0] = 5
        if name == "all_gather":
            mine, out = new(4, keep=True), new(sum(counts))
            return lambda: comm.all_gather(mine, out=out, counts=counts)
        mine, out = new(sum(counts), keep=True), new(4)
        return lambda: comm.reduce_scatter(mine, out=out, counts=counts)

    return Case(make)


def _pair(count: int, dtype: Any = np.float32) -> Case:
    def make(comm: Comm, odd: bool, new: Callable[..., np.ndarray]) -> Call:
        buffer = new(count, dtype) if odd else new(8, keep=True)
        return lambda: comm.recv(buffer, 0) if odd else comm.send(buffer, 1)

    return Case(make, most=2)


def _scatter_op(comm: Comm, odd: bool, new: Callable[..., np.ndarray]) -> Call:
    mine, out = new(4 * comm.size, keep=True), new(4)
    return lambda: comm.reduce_scatter(mine, "max" if odd else "min", out=out)


def _group_order(comm: Comm, odd: bool, new: Callable[..., np.ndarray]) -> Call:
    groups = [comm.group(list(range(comm.size)), name=name) for name in ("one", "two")]
    buffers = [np.ones(8, np.float32) for _ in groups]
    order = (1, 0) if odd else (0, 1)

    def call() -> None:
        works = [groups[each].all_reduce(buffers[each], async_op=True) for each in order]
        for work in works:
            work.wait()
        for group in groups:
            group.barrier()
            group.close()

    return call


def _group_members(comm: Comm, odd: bool, new: Callable[..., np.ndarray]) -> Call:
    ranks = list(range(comm.size))
    group = comm.group(ranks[::-1] if odd else ranks, name="turned", timeout=2.0)
    buffer = new(8)
    return lambda: group.all_reduce(buffer)


CASES: dict[str, Case] = {
    "all_reduce 8 or 5 elements": _sizes(8, 5),
    "all_reduce 1Mi or 4 fewer": _sizes(1 << 20, (1 << 20) - 4),
    "all_reduce f32 or i32": _types(np.int32),
    "all_reduce f32 or f64": _types(np.float64),
    "all_reduce sum or prod": Case(_ops, matrix=True),
    "broadcast by 0 or the last": _root("broadcast"),
    "broadcast 4 or 6 elements": Case(_broadcast_sizes, matrix=True),
    "all_reduce or broadcast": Case(_collectives, matrix=True),
    "alike calls swapped": Case(_swapped_alike, expect="fine", matrix=True),
    "all_gather 4 or 3 elements": Case(_all_gather_sizes, matrix=True),
    "all_to_all parts differ": Case(_all_to_all_counts, matrix=True),
    "one rank never calls": Case(_absent, expect="Timeout", matrix=True),
    "all_reduce or barrier": Case(_barrier),
    "calls swapped": Case(_swapped),
    "reduce to 0 or the last": _root("reduce"),
    "gather to 0 or the last": _root("gather"),
    "scatter from 0 or the last": _root("scatter"),
    "reduce_scatter min or max": Case(_scatter_op),
    "all_gather counts differ": _gathered_counts("all_gather"),
    "reduce_scatter counts differ": _gathered_counts("reduce_scatter"),
    "send 8, recv 5 elements": _pair(5),
    "send 8, recv 9 elements": _pair(9),
    "send f32, recv i32": _pair(8, np.int32),
    "groups used in another order": Case(_group_order, expect="fine"),
    "group in another order of ranks": Case(_group_members, expect="any"),
}

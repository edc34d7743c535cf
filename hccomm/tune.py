# SPDX-License-Identifier: Apache-2.0
"""Measure which algorithm is best where, and write the table that HCCOMM_TABLE names.

`hccomm tune` runs measure() on every rank, either on local ranks of its own or under a launcher,
over the transports that a job would use. Every algorithm of a collective is timed at every size on
a group of its own, which costs no connection; the quickest is taken, and a neighbouring size keeps
its choice unless another is clearly better. A line of the table holds up to the geometric mean of
two measured sizes. The remarks give the cost model of Hockney (1994), t = alpha + bytes / beta, of
one message, and gamma, the rate of a reduction.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import hccomm
from hccomm import bench
from hccomm.errors import InvalidArgument

if TYPE_CHECKING:
    from hccomm.communicator import Communicator

COLLECTIVES = {  # the core's names, and Python's
    "allreduce": "all_reduce",
    "allgather": "all_gather",
    "reducescatter": "reduce_scatter",
    "broadcast": "broadcast",
    "reduce": "reduce",
    "alltoall": "all_to_all",
}
SIZES = tuple(64 << (2 * step) for step in range(10))  # 64 B ... 16 MiB
_CLEARLY = 0.93  # another algorithm must take at most this part of the time to be preferred


class Timing(NamedTuple):
    """One algorithm at one size; ``us`` is the same on every rank."""

    collective: str
    algorithm: str
    size: int
    us: float


class Line(NamedTuple):
    """One line of the table: the quickest algorithm up to ``most_bytes`` (-1: any)."""

    collective: str
    place: str
    most_ranks: int
    most_bytes: int
    algorithm: str

    def __str__(self) -> str:
        most = "any" if self.most_bytes < 0 else str(self.most_bytes)
        return f"{self.collective} {self.place} {self.most_ranks} {most} {self.algorithm}"


def measure(
    comm: Communicator, sizes: Sequence[int] = SIZES, seconds: float = 0.01
) -> tuple[list[Line], list[str]]:
    """Time every algorithm on the ranks of ``comm``; return lines and remarks. Collective.

    ``seconds`` is spent on one algorithm and size. All ranks return the same.
    """
    lines: list[Line] = []
    place = place_of(comm)
    for collective in COLLECTIVES:
        # Twice, half the time each: what disturbs one of the two is forgotten.
        timings = [
            *_times(comm, collective, sizes, seconds / 2),
            *_times(comm, collective, sizes, seconds / 2),
        ]
        lines += choose(timings, place, comm.size)
    return lines, [_model(comm, seconds)]


def place_of(comm: Communicator) -> str:
    """Return where the ranks are, in the words of the table."""
    found = comm.describe()
    hosts, size = int(found["hosts"]), comm.size
    shm = any("shm" in str(peer.get("transport", "")) for peer in found["peers"])
    if hosts > 1:
        return "hosts" if size > hosts and shm else "network"
    if not shm:
        return "network"
    return "crowded" if size > int(hccomm.info()["cores"]) else "shared"


def choose(timings: Sequence[Timing], place: str, ranks: int) -> Iterator[Line]:
    """Turn the timings of one collective into lines, from the smallest size to any."""
    by_size: dict[int, dict[str, float]] = {}
    for each in timings:
        found = by_size.setdefault(each.size, {})
        found[each.algorithm] = min(each.us, found.get(each.algorithm, each.us))
    sizes = sorted(by_size)
    chosen: list[str] = []
    for size in sizes:
        found = by_size[size]
        best = min(found, key=lambda name: (found[name], name))
        last = chosen[-1] if chosen else ""
        keep = last in found and found[best] > _CLEARLY * found[last]
        chosen.append(last if keep else best)
    for index, name in enumerate(chosen):
        if index + 1 < len(chosen) and chosen[index + 1] == name:
            continue
        most = -1 if index + 1 == len(chosen) else math.isqrt(sizes[index] * sizes[index + 1])
        yield Line(timings[0].collective, place, ranks, most, name)


def table(measured: Sequence[tuple[Sequence[Line], Sequence[str]]], head: str) -> str:
    """Return the text of the table: fewer ranks first, so that the first line that holds fits."""
    text = [f"# {head}", "# collective place most_ranks most_bytes algorithm"]
    for lines, remarks in measured:
        text += [f"# {each}" for each in remarks]
        text += [str(each) for each in lines]
    return "\n".join(text) + "\n"


def _times(
    comm: Communicator, collective: str, sizes: Sequence[int], seconds: float
) -> Iterator[Timing]:
    for each in hccomm.info()["algorithms"]:
        if each["collective"] != collective:
            continue
        with _ruled(comm, collective, each["name"]) as group:
            options = bench.Options(sizes, seconds=seconds, warmup=2, check=False)
            mode = "in" if collective in ("allreduce", "broadcast", "reduce") else "out"
            try:
                for row in bench.run(group, COLLECTIVES[collective], options, (mode,)):
                    best = bench.mean_over_ranks(comm, row.min_us)
                    yield Timing(collective, each["name"], row.size, best)
            except InvalidArgument:
                continue  # it does not serve so many ranks or hosts; all ranks find that alike


def _ruled(comm: Communicator, collective: str, algorithm: str) -> Communicator:
    """Return a group of all ranks whose calls of ``collective`` use ``algorithm``."""
    before = os.environ.get("HCCOMM_ALGO")
    os.environ["HCCOMM_ALGO"] = f"{collective}:{algorithm}"
    try:
        return comm.group(range(comm.size), name=None)
    finally:
        if before is None:
            del os.environ["HCCOMM_ALGO"]
        else:
            os.environ["HCCOMM_ALGO"] = before


def _model(comm: Communicator, seconds: float) -> str:
    """Fit alpha, beta and gamma on a ring of messages and an all_reduce in one hop."""
    sizes = (8, 1 << 10, 64 << 10, 1 << 20, 4 << 20)
    options = bench.Options(sizes, seconds=seconds, warmup=2, check=False)
    sent = {
        row.size: bench.mean_over_ranks(comm, row.min_us)
        for row in bench.run(comm, "sendrecv", options, ("out",))
    }
    alpha = sent[8]
    beta = (4 << 20) / max(sent[4 << 20] - alpha, 1e-3) / 1e3
    with _ruled(comm, "allreduce", "direct") as group:
        large = bench.Options((1 << 20,), seconds=seconds, warmup=2, check=False)
        row = next(iter(bench.run(group, "all_reduce", large, ("in",))))
        reduced = bench.mean_over_ranks(comm, row.min_us)
    peers = max(comm.size - 1, 1)
    gamma = (1 << 20) * peers / max(reduced - peers * sent[1 << 20], 1e-3) / 1e3
    return (
        f"{comm.size} ranks, {place_of(comm)}: alpha {alpha:.2f} us, beta {beta:.2f} GB/s, "
        f"gamma {min(gamma, 1e3):.1f} GB/s"
    )

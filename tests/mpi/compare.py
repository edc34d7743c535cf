# SPDX-License-Identifier: Apache-2.0
"""One rank of tests/mpi: runs every collective on hccomm and on mpi4py and compares the bytes.

Started by mpiexec as ``compare.py how``: ``comm`` meets through an mpi4py communicator,
``initialised`` with hccomm.init() alone after MPI was started, ``alone`` with hccomm.init() before
anyone has imported mpi4py. Prints ``equal N`` on rank 0 when N comparisons were equal.
"""

from __future__ import annotations

import faulthandler
import sys
from typing import Any

import numpy as np

import hccomm

TYPES = ["i1", "u1", "i4", "i8", "u8", "f4", "f8", "c8", "c16"]
OPS = ["sum", "prod", "min", "max", "band", "bor", "bxor"]
COUNTS = [0, 1, 5, 700]


class Checked:
    """Counts comparisons and stops at the first that differs."""

    def __init__(self, rank: int) -> None:
        self.rank, self.equal = rank, 0

    def __call__(self, what: str, ours: Any, theirs: Any) -> None:
        if ours.tobytes() != theirs.tobytes():
            raise SystemExit(
                f"rank {self.rank}: {what}: {ours[:8]} differs from MPI's {theirs[:8]}"
            )
        self.equal += 1


def numbers(kind: str, rank: int, count: int) -> Any:
    """Return small whole numbers: sums and products of them are exact in any order."""
    return ((np.arange(count) + 2 * rank) % 3 + 1).astype(kind)


def reductions(ours: hccomm.Communicator, theirs: Any, mpi: Any, check: Checked) -> None:
    """Compare all_reduce, reduce and reduce_scatter."""
    rank, size = ours.rank, ours.size
    for kind in TYPES:
        for op in OPS:
            if (kind[0] in "cf" and op[0] == "b") or (kind[0] == "c" and op in ("min", "max")):
                continue
            mpi_op = getattr(mpi, op.upper())
            for count in COUNTS:
                source = numbers(kind, rank, count)
                a, b = np.zeros_like(source), np.zeros_like(source)
                ours.all_reduce(source, op, out=a)  # type: ignore[arg-type]
                theirs.Allreduce(source, b, mpi_op)
                check(f"all_reduce {kind} {op} {count}", a, b)

                root = count % size
                a, b = np.zeros_like(source), np.zeros_like(source)
                ours.reduce(source, op, root=root, out=a)  # type: ignore[arg-type]
                theirs.Reduce(source, b, mpi_op, root)
                check(f"reduce {kind} {op} {count}", a, b)

                wide = numbers(kind, rank, count * size)
                a, b = np.zeros(count, kind), np.zeros(count, kind)
                ours.reduce_scatter(wide, op, out=a)  # type: ignore[arg-type]
                theirs.Reduce_scatter_block(wide, b, mpi_op)
                check(f"reduce_scatter {kind} {op} {count}", a, b)


def copies(ours: hccomm.Communicator, theirs: Any, check: Checked) -> None:
    """Compare broadcast, all_gather, gather, scatter, all_to_all and sendrecv."""
    rank, size = ours.rank, ours.size
    for kind in TYPES:
        for count in COUNTS:
            root = (count + 1) % size
            small, wide = numbers(kind, rank, count), numbers(kind, rank, count * size)

            a, b = small.copy(), small.copy()
            ours.broadcast(a, root)
            theirs.Bcast(b, root)
            check(f"broadcast {kind} {count}", a, b)

            a, b = np.zeros_like(wide), np.zeros_like(wide)
            ours.all_gather(small, out=a)
            theirs.Allgather(small, b)
            check(f"all_gather {kind} {count}", a, b)

            a, b = np.zeros_like(wide), np.zeros_like(wide)
            ours.gather(small, root=root, out=a)
            theirs.Gather(small, b, root)
            check(f"gather {kind} {count}", a, b)

            a, b = np.zeros_like(small), np.zeros_like(small)
            ours.scatter(wide, root=root, out=a)
            theirs.Scatter(wide, b, root)
            check(f"scatter {kind} {count}", a, b)

            a, b = np.zeros_like(wide), np.zeros_like(wide)
            ours.all_to_all(wide, out=a)
            theirs.Alltoall(wide, b)
            check(f"all_to_all {kind} {count}", a, b)

            a, b = np.zeros_like(small), np.zeros_like(small)
            right, left = (rank + 1) % size, (rank - 1) % size
            with ours.coalesce() as batch:
                batch.send(small, right)
                batch.recv(a, left)
            theirs.Sendrecv(small, right, recvbuf=b, source=left)
            check(f"sendrecv {kind} {count}", a, b)


def v_forms(ours: hccomm.Communicator, theirs: Any, mpi: Any, check: Checked) -> None:
    """Compare the v-forms, with gaps between the parts."""
    rank, size = ours.rank, ours.size
    counts = [3 * each % 5 for each in range(size)]
    offsets = [sum(counts[:each]) + 2 * each for each in range(size)]
    span = sum(counts) + 2 * size
    for kind in ("i4", "f8"):
        code = mpi._typedict[np.dtype(kind).char]
        mine, wide = numbers(kind, rank, counts[rank]), numbers(kind, rank, span)

        a, b = np.zeros(span, kind), np.zeros(span, kind)
        ours.all_gather(mine, out=a, counts=counts, offsets=offsets)
        theirs.Allgatherv(mine, [b, counts, offsets, code])
        check(f"all_gather_v {kind}", a, b)

        a, b = np.zeros(span, kind), np.zeros(span, kind)
        ours.gather(mine, root=size - 1, out=a, counts=counts, offsets=offsets)
        theirs.Gatherv(mine, [b, counts, offsets, code], size - 1)
        check(f"gather_v {kind}", a, b)

        a, b = np.zeros(counts[rank], kind), np.zeros(counts[rank], kind)
        ours.scatter(wide, root=0, out=a, counts=counts, offsets=offsets)
        theirs.Scatterv([wide, counts, offsets, code], b, 0)
        check(f"scatter_v {kind}", a, b)

        packed = numbers(kind, rank, sum(counts))
        a, b = np.zeros(counts[rank], kind), np.zeros(counts[rank], kind)
        ours.reduce_scatter(packed, out=a, counts=counts)
        theirs.Reduce_scatter(packed, b, counts)
        check(f"reduce_scatter_v {kind}", a, b)

        sends = [counts[rank]] * size
        at = [0] * size
        a, b = np.zeros(span, kind), np.zeros(span, kind)
        ours.all_to_all(
            mine, out=a, counts=sends, offsets=at, recv_counts=counts, recv_offsets=offsets
        )
        theirs.Alltoallv([mine, sends, at, code], [b, counts, offsets, code])
        check(f"all_to_all_v {kind}", a, b)


def main(how: str) -> None:
    """Meet as ``how`` says, compare everything, say how much was equal."""
    faulthandler.dump_traceback_later(100.0, exit=True)
    early = hccomm.init() if how == "alone" else None
    from mpi4py import MPI

    theirs = MPI.COMM_WORLD
    ours = early or (hccomm.init(comm=theirs) if how == "comm" else hccomm.init())
    if (ours.rank, ours.size) != (theirs.Get_rank(), theirs.Get_size()):
        raise SystemExit(f"{ours} is rank {theirs.Get_rank()} of {theirs.Get_size()} in MPI")
    check = Checked(ours.rank)
    with ours, hccomm.init(name="second") as second:
        second.barrier()
        reductions(ours, theirs, MPI, check)
        copies(ours, theirs, check)
        v_forms(ours, theirs, MPI, check)
        total = ours.all_reduce(np.array([check.equal]), "min")
    if ours.rank == 0:
        print(f"equal {int(total[0])}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])

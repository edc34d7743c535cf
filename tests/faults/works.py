# SPDX-License-Identifier: Apache-2.0
"""Collectives with known answers, for the ranks of a storm: on the host's memory or over islands.

programs.py runs them again and again. Buffers are filled so that results are exact, and checked.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Protocol

import numpy as np

import hccomm

COLLECTIVES = (
    "all_reduce",
    "reduce_scatter",
    "all_gather",
    "broadcast",
    "all_to_all",
    "send_recv",
    "barrier",
)
MIRRORED = ("send_recv", "all_to_all", "all_gather", "broadcast", "all_reduce")  # MirrorWork's


class Work(Protocol):
    """One collective, to be done again and again, with its answer checked."""

    rounds: int

    def once(self) -> None:
        """Do it once. Raises AssertionError when the answer is wrong, and hccomm's errors."""


def make_work(comm: hccomm.Communicator, job: dict[str, Any]) -> Work:
    """Return the job's collective, of about as many bytes as it says."""
    if job.get("islands"):
        return IslandWork(comm, job["bytes"])
    if job.get("mirrors"):
        return MirrorWork(comm, job["collective"], job["bytes"])
    return HostWork(comm, job["collective"], job["bytes"])


class HostWork:
    """One collective of about ``nbytes``, to be done again and again, with its answer checked."""

    def __init__(self, comm: hccomm.Communicator, name: str, nbytes: int) -> None:
        self._comm, self._name = comm, name
        self._part = max(1, nbytes // 4 // comm.size)
        self._count = self._part * comm.size
        self._mine = float(comm.rank + 1)
        self._sum = float(comm.size * (comm.size + 1) // 2)
        self._whole = np.zeros(self._count, np.float32)
        self._other = np.zeros(self._count, np.float32)
        self.rounds = 0

    def once(self) -> None:
        """Do it once. Raises AssertionError when the answer is wrong, and hccomm's errors."""
        getattr(self, "_" + self._name)()
        self.rounds += 1

    def _check(self, array: np.ndarray, expected: float) -> None:
        found = (array[0], array[len(array) // 2], array[-1])
        assert all(each == expected for each in found), (
            f"wrong data: {self._name} of {array.nbytes} bytes, round {self.rounds}, rank "
            f"{self._comm.rank} of {self._comm.size}: {found}, not {expected}"
        )

    def _all_reduce(self) -> None:
        self._whole[:] = self._mine
        self._comm.all_reduce(self._whole)
        self._check(self._whole, self._sum)

    def _reduce_scatter(self) -> None:
        self._whole[:] = self._mine
        out = self._other[: self._part]
        self._comm.reduce_scatter(self._whole, out=out)
        self._check(out, self._sum)

    def _all_gather(self) -> None:
        mine = self._other[: self._part]
        mine[:] = self._mine
        self._comm.all_gather(mine, out=self._whole)
        self._check_parts()

    def _all_to_all(self) -> None:
        self._other[:] = self._mine
        self._comm.all_to_all(self._other, out=self._whole)
        self._check_parts()

    def _check_parts(self) -> None:
        for rank in range(self._comm.size):
            self._check(self._whole[rank * self._part : (rank + 1) * self._part], float(rank + 1))

    def _broadcast(self) -> None:
        root = self.rounds % self._comm.size
        self._whole[:] = self._mine
        self._comm.broadcast(self._whole, root=root)
        self._check(self._whole, float(root + 1))

    def _feed(self) -> None:
        self._whole[:] = 1.0  # rank 0 only sends, and waits for nobody
        self._comm.broadcast(self._whole, root=0)
        self._check(self._whole, 1.0)

    def _send_recv(self) -> None:
        size, rank = self._comm.size, self._comm.rank
        self._other[:] = self._mine
        with self._comm.coalesce() as batch:
            batch.recv(self._whole, (rank - 1) % size)
            batch.send(self._other, (rank + 1) % size)
        self._check(self._whole, float((rank - 1) % size + 1))

    def _barrier(self) -> None:
        self._comm.barrier()


class IslandWork:
    """Sums and gathers over arrays of two fake vendors, whose fake libraries work in their islands.

    Even ranks hold one vendor's device each, odd ranks the other's; two ranks are one island.
    """

    def __init__(self, comm: hccomm.Communicator, nbytes: int) -> None:
        sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "python"))
        import island_programs

        self._comm, self._count = comm, max(1, nbytes // 4)
        self._back = island_programs.back
        vendors = ("cuda", "musa") if comm.size > 2 else ("cuda",)
        many = len(vendors)
        kinds = [(vendors[rank % many], rank // many) for rank in range(comm.size)]
        self._place = lambda values: island_programs.place(comm, values, kinds)
        self.rounds = 0
        island_programs.settle(comm, kinds)
        state = comm.describe()["islands"]
        assert state["state"] == "on", f"the islands do not work: {state}"

    def once(self) -> None:
        """Do both once. Raises AssertionError when the answer is wrong, and hccomm's errors."""
        size, rank = self._comm.size, self._comm.rank
        total = self._place(np.full(self._count, rank + 1, np.float32))
        self._comm.all_reduce(total)
        right = (self._back(total) == size * (size + 1) // 2).all()
        mine = self._place(np.full(self._count, rank, np.float32))
        gathered = self._place(np.zeros((size, self._count), np.float32))
        self._comm.all_gather(mine, out=gathered)
        right &= (self._back(gathered) == np.arange(size)[:, None]).all()
        assert right, f"wrong data: islands, round {self.rounds}, rank {rank} of {size}"
        self.rounds += 1


class MirrorWork:
    """Collectives and messages between devices of two fake vendors whose copies take their time.

    What one rank's device has copied to the host the other's copies from there (docs/devices.md):
    each maps and pins memory of the other.
    """

    def __init__(self, comm: hccomm.Communicator, name: str, nbytes: int) -> None:
        sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "python"))
        import fake_arrays

        self._comm, self._name = comm, name
        self._part = max(1, nbytes // 4 // comm.size)
        kind, index = ("cuda", "musa")[comm.rank % 2], comm.rank // 2

        def place(values: np.ndarray) -> Any:
            if kind == "cuda":
                return fake_arrays.CudaArray(values, index=index)
            return fake_arrays.FakeArray(kind, values, index=index)

        self._place = place
        self.rounds = 0
        comm.barrier()  # there is a link: before, nobody knows what it can

    def copied(self) -> int:
        """Return how many messages this rank's device has copied out of its peers' memory."""
        told = str(self._comm.describe()["devices"][0]["figures"])
        return int(told.split(" messages copied from peers' memory")[0].rsplit(" ", 1)[1])

    def once(self) -> None:
        """Do it once. Raises AssertionError when the answer is wrong, and hccomm's errors."""
        getattr(self, "_" + self._name)()
        self.rounds += 1

    def _full(self, value: float, parts: int = 1) -> Any:
        return self._place(np.full(self._part * parts, value, np.float32))

    def _check(self, array: Any, expected: Any) -> None:
        found = array.numpy().reshape(-1, self._part)
        right = (found == np.reshape(expected, (-1, 1))).all()
        assert right, f"wrong data: {self._name}, round {self.rounds}, rank {self._comm.rank}"

    def _send_recv(self) -> None:
        size, rank = self._comm.size, self._comm.rank
        got = self._full(0.0)
        self._comm.sendrecv(self._full(rank + 1.0), (rank + 1) % size, got, (rank - 1) % size)
        self._check(got, (rank - 1) % size + 1.0)

    def _all_to_all(self) -> None:
        size, rank = self._comm.size, self._comm.rank
        got = self._full(0.0, size)
        self._comm.all_to_all(self._full(rank + 1.0, size), out=got)
        self._check(got, np.arange(size) + 1.0)

    def _all_gather(self) -> None:
        got = self._full(0.0, self._comm.size)
        self._comm.all_gather(self._full(self._comm.rank + 1.0), out=got)
        self._check(got, np.arange(self._comm.size) + 1.0)

    def _broadcast(self) -> None:
        root = self.rounds % self._comm.size
        data = self._full(self._comm.rank + 1.0, self._comm.size)
        self._comm.broadcast(data, root=root)
        self._check(data, np.full(self._comm.size, root + 1.0))

    def _all_reduce(self) -> None:
        size = self._comm.size
        data = self._full(self._comm.rank + 1.0, size)
        self._comm.all_reduce(data)
        self._check(data, np.full(size, size * (size + 1) / 2))

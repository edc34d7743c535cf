# SPDX-License-Identifier: Apache-2.0
"""What test_device_ipc.py runs on ranks: arrays of one fake vendor in each, or of two."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

import numpy as np
from fake_arrays import CudaArray, FakeArray

import hccomm


class PartArray(CudaArray):
    """An array amid a larger allocation, as a caching allocator hands it out."""

    AT = 3 * 4096 + 192

    def __init__(self, values: Any, index: int = 0) -> None:
        values = np.ascontiguousarray(values)
        super().__init__(np.zeros(values.nbytes + 2 * self.AT, np.uint8), index)
        self.base, self.address = self.address, self.address + self.AT
        self.shape, self.dtype, self.nbytes = values.shape, values.dtype, values.nbytes
        self.put(values)

    def __del__(self) -> None:
        self.address = self.base
        super().__del__()


def place(comm: hccomm.Communicator, values: Any) -> PartArray:
    return PartArray(values, comm.rank % 2)


def figures(comm: hccomm.Communicator) -> str:
    return str(comm.describe()["devices"][0]["figures"])


def across(comm: hccomm.Communicator) -> int:
    """Count the messages that came from a peer's device."""
    told = figures(comm).split(" messages copied from peers' devices (IPC)")
    return int(told[0].rsplit(" ", 1)[1]) if len(told) == 2 else -1


def move(comm: hccomm.Communicator, count: int) -> bool:
    """Call everything that moves data, on new arrays; True when all is right."""
    n, me = comm.size, comm.rank
    values = np.arange(n * count, dtype=np.int64).reshape(n, count)
    right = True

    def expect(array: Any, wanted: Any) -> None:
        nonlocal right
        right = right and bool((array.numpy().ravel() == np.ravel(wanted)).all())

    for root in range(n):
        data = place(comm, values[0] if me == root else np.zeros(count, np.int64))
        comm.broadcast(data, root)
        expect(data, values[0])
    got = place(comm, np.zeros((n, count), np.int64))
    comm.all_gather(place(comm, values[me]), out=got)
    expect(got, values)
    got = place(comm, np.zeros((n, count), np.int64))
    comm.all_to_all(place(comm, values + 10 * me), out=got)
    expect(got, [values[me] + 10 * each for each in range(n)])
    got = place(comm, np.zeros(count, np.int64))
    comm.sendrecv(place(comm, values[me]), (me + 1) % n, got, (me - 1) % n)
    expect(got, values[(me - 1) % n])
    return right


def moves(comm: hccomm.Communicator, count: int) -> tuple[bool, int, int, int, Any]:
    """Say whether all was right, how many came by IPC, misuses, bytes copied out, the pairs."""
    comm.barrier()
    right = move(comm, 1000)  # small: it only tells who has what
    probe = CudaArray(np.zeros(1), comm.rank % 2)
    before, staged = across(comm), probe.count("bytes_out")
    for _ in range(3):
        right = right and move(comm, count)
    staged = probe.count("bytes_out") - staged
    paths = [each["path"] for each in comm.describe()["peers"]]
    return right, across(comm) - before, probe.count("misuses"), staged, paths


def sums(comm: hccomm.Communicator, count: int) -> tuple[bool, int]:
    """Reduce after messages have gone by IPC: those go through the host."""
    move(comm, 1000)
    move(comm, count)
    before = across(comm)
    data = place(comm, np.full(count, 1.0 + comm.rank))
    comm.all_reduce(data)
    out = place(comm, np.zeros(count))
    comm.reduce(place(comm, np.full(count, 1.0 + comm.rank)), root=0, out=out)
    total = comm.size * (comm.size + 1) / 2
    right = bool((data.numpy() == total).all())
    return right and (comm.rank != 0 or bool((out.numpy() == total).all())), across(comm) - before


def one_sided(comm: hccomm.Communicator, count: int) -> tuple[bool, int]:
    """Exchange parts while rank 0 cannot export its memory; count what came by IPC."""
    comm.barrier()
    move(comm, 1000)
    probe = CudaArray(np.zeros(1), comm.rank % 2)
    probe.tell(f"vmm={1 - comm.rank}")
    right, before = True, across(comm)
    for turn in range(20):
        values = np.arange(2 * count, dtype=np.int64).reshape(2, count) + turn
        got = place(comm, np.zeros((2, count), np.int64))
        comm.all_to_all(place(comm, values + 10 * comm.rank), out=got)
        right = right and bool((got.numpy() == [values[comm.rank], values[comm.rank] + 10]).all())
    return right, across(comm) - before


def mixed(comm: hccomm.Communicator, count: int) -> tuple[bool, int]:
    """Broadcast where ranks lie on CUDA but for one, which moves: to another vendor, the host."""
    comm.barrier()
    values, right = np.arange(count, dtype=np.int64), True
    for turn in range(9):
        kind = ["cuda", "musa", "host"][turn % 3] if comm.rank == 1 else "cuda"
        mine = values + turn if comm.rank == 0 else np.zeros(count, np.int64)
        data: Any = mine if kind == "host" else FakeArray(kind, mine)
        if kind == "cuda":
            data = PartArray(mine)
        comm.broadcast(data, 0)
        got: Any = data if kind == "host" else data.numpy()
        right = right and bool((got == values + turn).all())
    return right, across(comm) if comm.rank != 1 else 0


def beside_another_vendor(comm: hccomm.Communicator, count: int) -> bool:
    """Gather from a peer's device and, in the same call, from what another vendor has staged."""
    comm.barrier()
    kind = "musa" if comm.rank == comm.size - 1 else "cuda"
    values, right = np.arange(comm.size * count, dtype=np.int64).reshape(comm.size, count), True
    for turn in range(30):
        got = FakeArray(kind, np.full((comm.size, count), -1, np.int64))
        comm.all_gather(FakeArray(kind, values[comm.rank] + turn), out=got)
        right = right and bool((got.numpy() == values + turn).all())
    return right


def reopened(comm: hccomm.Communicator, count: int) -> tuple[bool, int, int]:
    """Free and allocate again, mostly at one address; count what is open."""
    right = True
    for turn in range(20):
        mine = np.full(count, turn if comm.rank == 0 else -1, np.int64)
        data = CudaArray(mine)
        comm.broadcast(data, 0)
        right = right and bool((data.numpy() == turn).all())
        del data
    probe = CudaArray(np.zeros(1))
    opened = probe.count("opened")
    return right, opened, probe.count("misuses")


def left_open(comm: hccomm.Communicator, count: int) -> list[int]:
    """Count what is open after each of: messages, six seconds without."""
    move(comm, 1000)
    move(comm, count)
    probe = CudaArray(np.zeros(1))
    before = probe.count("opened")
    for _ in range(100):
        if probe.count("opened") == 0:
            break
        time.sleep(0.1)
    return [before, probe.count("opened"), probe.count("misuses")]


def killed(comm: hccomm.Communicator, victim: int) -> tuple[str, int, int]:
    """Broadcast until the victim kills itself amid a copy that takes 1.7 s."""
    values = np.zeros(1 << 20, np.uint8)
    for _ in range(3):
        comm.broadcast(CudaArray(values), 0)
    slow = CudaArray(np.zeros(1 << 25, np.uint8))
    slow.tell("gbps=0.02")
    if comm.rank == victim:
        threading.Timer(0.5, os.kill, [os.getpid(), signal.SIGKILL]).start()
    try:
        comm.broadcast(slow, 0, timeout=20.0)
    except hccomm.Error as error:
        said = f"{type(error).__name__}: {error}"
    else:
        said = "no error"
    slow.tell("gbps=0")
    for _ in range(100):
        if slow.count("opened") == 0:
            break
        time.sleep(0.1)
    return said, slow.count("opened"), slow.count("misuses")

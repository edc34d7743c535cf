# SPDX-License-Identifier: Apache-2.0
"""What test_devices.py runs on ranks: two fake vendors and the host in turn."""

from __future__ import annotations

from typing import Any

import numpy as np
from fake_arrays import CudaArray, FakeArray, capsule

import hccomm


def place(comm: hccomm.Communicator, values: Any) -> Any:
    """Put the values where this rank's arrays lie: two vendors and the host in turn."""
    if comm.rank % 3 == 0:
        return CudaArray(values, index=1)
    return FakeArray("musa", values) if comm.rank % 3 == 1 else values


def back(array: Any) -> Any:
    return array.numpy() if isinstance(array, FakeArray) else array


def reduce_and_gather(comm: hccomm.Communicator, count: int) -> tuple[list[float], list[int]]:
    """In place, out of place, and with a new array; nothing of the device may be misused."""
    data = place(comm, np.arange(count, dtype=np.float32) + comm.rank)
    comm.all_reduce(data)
    out = place(comm, np.zeros((comm.size, 3), dtype=np.int64))
    comm.all_gather(place(comm, np.full(3, comm.rank, dtype=np.int64)), out=out)
    if isinstance(data, FakeArray):
        assert data.count("misuses") == 0
        assert data.count("pageable_copies") <= 4  # this test's own
    return [float(each) for each in back(data)], back(out).ravel().tolist()


def send_round(comm: hccomm.Communicator, count: int) -> float:
    data, got = (place(comm, np.full(count, each, np.float64)) for each in (comm.rank, -1))
    work = comm.send(data, (comm.rank + 1) % comm.size, tag=4, async_op=True)
    comm.recv(got, (comm.rank - 1) % comm.size, tag=4)
    work.wait()
    values = back(got)
    assert (values == values[0]).all()
    return float(values[0])


def described(comm: hccomm.Communicator) -> Any:
    comm.all_reduce(place(comm, np.ones(10, np.float32)))
    return comm.describe()["devices"]


def reduce_on(comm: hccomm.Communicator, kind: str, index: int) -> str:
    """Rank 1 has a made-up array; say what is raised."""
    data: Any = np.ones(4, np.float32)
    if comm.rank == 1:
        data = PretendedArray(kind, index)
    try:
        comm.all_reduce(data, timeout=5.0)
    except hccomm.Error as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


class PretendedArray:
    """An array that says to lie on a device; there is none."""

    shape, dtype = (4,), np.dtype("f4")

    def __init__(self, kind: str, index: int) -> None:
        self.__hccomm_device__, self._index = kind, index
        self.address = 1 << 40

    def __dlpack_device__(self) -> tuple[int, int]:
        return 12, self._index

    def __dlpack__(self, stream: int | None = None) -> Any:
        return capsule(self)


def stream_is_gone(comm: hccomm.Communicator, count: int) -> str:
    """Rank 0 names a stream that it has destroyed; say what is raised."""
    comm.all_reduce(place(comm, np.ones(count, np.float32)))
    data = place(comm, np.ones(count, np.float32))
    # What fails next would fail a first call, too, that is not over on another rank.
    token = np.zeros(1, np.float32)
    for rank in range(1, comm.size):
        if comm.rank == 0:
            comm.recv(token, rank)
        elif comm.rank == rank:
            comm.send(token, 0)
    if isinstance(data, CudaArray):
        data.lose_stream()
    try:
        comm.all_reduce(data, timeout=20.0)
    except hccomm.Error as error:
        return f"{type(error).__name__} {error.rank}: {error}"
    return "no error"


def lose(comm: hccomm.Communicator) -> str:
    data = place(comm, np.ones(100_000, np.float32))
    if comm.rank == 1:
        data._runtime.fake_set(b"lost=2")
    try:
        comm.all_reduce(data, timeout=20.0)
    except hccomm.Error as error:
        return f"{type(error).__name__} {error.rank}: {error}"
    return "no error"

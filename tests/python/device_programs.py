# SPDX-License-Identifier: Apache-2.0
"""What test_devices.py runs on ranks: two fake vendors and the host in turn."""

from __future__ import annotations

import itertools
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


def between_devices(comm: hccomm.Communicator, count: int) -> tuple[bool, list[int]]:
    """Large calls between two vendors: are they right, and how many messages came in one copy."""
    mine, other = comm.rank, 1 - comm.rank
    right, seen = True, []

    def expect(array: Any, values: Any) -> None:
        nonlocal right
        right = right and bool((back(array).ravel() == np.ravel(values)).all())
        figures = comm.describe()["devices"][0]["figures"]
        seen.append(int(figures.split(" messages copied from peers' memory")[0].rsplit(" ", 1)[1]))

    comm.barrier()  # there is a link: before, nobody knows what it can
    values = np.arange(2 * count, dtype=np.int64).reshape(2, count)
    for _ in range(2):
        got = place(comm, np.zeros(count, np.int64))
        comm.sendrecv(place(comm, values[mine]), other, got, other)
        expect(got, values[other])
        got = place(comm, np.zeros((2, count), np.int64))
        comm.all_to_all(place(comm, values + 10 * mine), out=got)
        expect(got, [values[mine], values[mine] + 10])
        data = place(comm, values[mine])
        comm.all_reduce(data)
        expect(data, values[0] + values[1])
    return right, seen


def registered(comm: hccomm.Communicator) -> tuple[bool, float]:
    data = place(comm, np.full(1 << 18, 1.0 + comm.rank))
    with comm.register(data) as registration:
        comm.all_reduce(data)
        return registration.active, float(back(data)[-1])


def described(comm: hccomm.Communicator) -> Any:
    comm.all_reduce(place(comm, np.ones(10, np.float32)))
    told = comm.describe()
    return [{**each, "peers": told["peers"]} for each in told["devices"]]


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


class ExampleArray:
    """An array on the chip of examples/device_plugin.c, whose memory is the host's."""

    __hccomm_device__ = "examplechip"

    def __init__(self, values: Any) -> None:
        self.values = np.ascontiguousarray(values).copy()
        self.shape, self.dtype = self.values.shape, self.values.dtype
        self.address = self.values.ctypes.data

    def __dlpack_device__(self) -> tuple[int, int]:
        return 12, 0

    def __dlpack__(self, stream: int | None = None) -> Any:
        return capsule(self)


def reductions(comm: hccomm.Communicator) -> tuple[list[str], str]:
    """Reduce in every way, on the chip and on the host; give what differs and where sums were."""
    random = np.random.default_rng(comm.rank)
    differ = []
    for count, dtype, op in itertools.product(
        (1, 1000, 60_000), ("f4", "i4", "f2"), ("sum", "max", "avg")
    ):
        if op == "avg" and dtype == "i4":
            continue
        values = (random.standard_normal((comm.size, count)) * 1e3).astype(dtype)

        def called(array: Any, out: Any, op: Any = op, values: Any = values) -> list[bytes]:
            whole, part, alike = array(values), out(values[0]), out(values)
            comm.reduce_scatter(whole, op, out=part)
            comm.reduce(whole, op, root=comm.size - 1, out=alike)
            comm.reduce(whole, op, root=0)
            comm.all_reduce(alike, op)
            kept = [getattr(each, "values", each) for each in (whole, part, alike)]
            return [each.tobytes() for each in kept]

        here = [called(ExampleArray, ExampleArray) for _ in range(2)]
        if here != 2 * [called(np.copy, np.copy)]:
            differ.append(f"{op} of {count} {dtype}")
    figures = comm.describe()["devices"][0]["figures"]
    return differ, figures.split("sums", 1)[1]


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


def flip(comm: hccomm.Communicator, kind: str, way: str, messages: bool) -> str:
    """Let a copy of rank 1, `in` to its device or `out` of it, change a bit; say what is raised.

    ``messages``: it sends to rank 0, or receives from it.
    """
    values = np.ones(100_000, np.float32)
    comm.all_reduce(np.ones(8, np.float32))
    data: Any = FakeArray(kind, values) if comm.rank == 1 else values
    if comm.rank == 1:
        data._runtime.fake_set(f"flip_{way}=3".encode())
    try:
        if not messages:
            comm.all_reduce(data, timeout=20.0)
        elif (comm.rank == 1) == (way == "out"):
            comm.send(data, 1 - comm.rank, timeout=20.0)
        else:
            comm.recv(data, 1 - comm.rank, timeout=20.0)
    except hccomm.Error as error:
        return f"{type(error).__name__} {error.rank}: {error}"
    return "no error" if np.isin(back(data), (1, 2)).all() else "wrong result"

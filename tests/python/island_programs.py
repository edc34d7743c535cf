# SPDX-License-Identifier: Apache-2.0
"""What test_islands.py runs on ranks: three NVIDIA, two Moore Threads and one host, interleaved."""

from __future__ import annotations

from typing import Any

import numpy as np
from fake_arrays import CudaArray, FakeArray

import hccomm

# (kind, index of the device) by rank
PLACES = (("cuda", 0), ("musa", 0), ("cuda", 1), ("host", 0), ("musa", 1), ("cuda", 2))


def place(comm: hccomm.Communicator, values: Any) -> Any:
    kind, index = PLACES[comm.rank]
    if kind == "cuda":
        return CudaArray(values, index=index)
    return values if kind == "host" else FakeArray(kind, values, index=index)


def back(array: Any) -> Any:
    return array.numpy() if isinstance(array, FakeArray) else array


def over_islands(comm: hccomm.Communicator, counts: list[int]) -> Any:
    """Every all_reduce against the sum that must come out; returns what describe() says."""
    group = comm.group(range(comm.size), name="islands")
    group.use_islands(place(group, np.zeros(1, np.float32)))
    for count in counts:
        ramp = np.arange(count, dtype=np.float32) % 64
        data = place(group, ramp * (group.rank + 1))
        works = [group.all_reduce(data, async_op=True)]
        other = place(group, np.full(count, group.rank, np.int64))
        out = place(group, np.zeros(count, np.int64))
        works.append(group.all_reduce(other, out=out, op="max", async_op=True))
        for work in works:
            work.wait(60)
        assert np.array_equal(back(data), ramp * 21), count
        assert np.array_equal(back(out), np.full(count, 5)), count
        assert np.array_equal(back(other), np.full(count, group.rank)), count
        mean = place(group, np.full(count, group.rank + 0.5, np.float64))
        group.all_reduce(mean, op="avg")
        assert np.all(back(mean) == 3.0), count
        if isinstance(data, FakeArray):
            assert data.count("misuses") == 0
    told = group.describe()["two_level"]
    group.close()
    return told


def wrong_array(comm: hccomm.Communicator) -> str:
    """Rank 0 passes host memory although it promised its device."""
    group = comm.group(range(comm.size), name="wrong", timeout=20)
    group.use_islands(place(group, np.zeros(1, np.float32)))
    data = np.ones(100_000, np.float32)
    if group.rank == 0:
        try:
            group.all_reduce(data)
        except hccomm.InvalidArgument as error:
            return str(error)
        return "nothing was raised"
    return ""


def leaves(comm: hccomm.Communicator) -> str:
    """Rank 2 aborts while the others are in the call."""
    group = comm.group(range(comm.size), name="leaves", timeout=30)
    group.use_islands(place(group, np.zeros(1, np.float32)))
    comm.barrier()
    if group.rank == 2:
        group.abort("enough")
        return "left"
    try:
        group.all_reduce(place(group, np.ones(1_000_000, np.float32)))
    except hccomm.Aborted as error:
        return f"Aborted: {error}"
    return "nothing was raised"

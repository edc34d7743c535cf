# SPDX-License-Identifier: Apache-2.0
"""hccomm.empty: arrays that the ranks of a host map, otherwise like any other array."""

from __future__ import annotations

import gc
import os
import re
from typing import Any

import memory_programs as on_ranks
import numpy as np
import pytest

import hccomm
from hccomm._native import library


@pytest.mark.parametrize(
    ("shape", "dtype"), [(10, "f4"), ((3, 5), "i8"), ((), "f8"), ((0, 4), "f4"), (3 << 20, "u1")]
)
def test_an_array_has_the_shape_and_type_asked_for(shape: Any, dtype: str) -> None:
    found = hccomm.empty(shape, dtype)

    assert found.shape == np.empty(shape, dtype).shape
    assert found.dtype == np.dtype(dtype)
    assert found.flags.writeable
    assert found.flags.c_contiguous


def test_an_array_begins_at_a_page_and_a_large_one_at_a_huge_page() -> None:
    small, large = hccomm.empty(1000, "f4"), hccomm.empty(1 << 20, "f4")
    small[:], large[:] = 7, 8

    assert small.ctypes.data % 4096 == 0
    assert large.ctypes.data % (2 << 20) == 0
    assert (small == 7).all()
    assert (large == 8).all()


def test_registered_memory_serves_as_any_other_where_there_is_no_card() -> None:
    data = np.full(3, 7.0)

    with hccomm.init() as comm, comm.register(data) as registration:
        comm.all_reduce(data)

        assert registration.active
        assert data.tolist() == [7.0] * 3
    assert not registration.active


def test_what_cannot_be_registered_is_refused() -> None:
    with hccomm.init() as comm:
        for wrong, match in (
            (np.empty(0), "no memory"),
            (b"read-only", "read-only"),
            (5, "no array"),
            (np.zeros((4, 4))[:, 1], "contiguous"),
        ):
            with pytest.raises(hccomm.InvalidArgument, match=match):
                comm.register(wrong)  # type: ignore[arg-type]
        data = np.ones(4)
        registration = comm.register(data)
    with pytest.raises(hccomm.Aborted, match="closed"):
        comm.register(data)

    registration.deregister()

    assert not registration.active


def test_the_memory_goes_back_with_the_last_reference() -> None:
    def mapped() -> int:
        with open("/proc/self/status", encoding="ascii") as status:
            return int(re.search(r"VmSize:\s+(\d+)", status.read()).group(1))  # type: ignore[union-attr]

    hccomm.empty(64 << 20, "u1")
    gc.collect()
    before = mapped()
    for _ in range(20):
        hccomm.empty(64 << 20, "u1")
    gc.collect()

    assert mapped() - before < 128 << 10  # KiB: twenty of them would be 1,300 MiB


@pytest.mark.parametrize("size", [2, 3])
def test_every_collective_gives_the_same_bits(ranks: Any, size: int) -> None:
    for count in (100, 100_003):
        for private, shared in ranks(size).run(on_ranks.collect_private_and_shared, count):
            assert private == shared


def test_ranks_reduce_it_and_describe_counts_it(ranks: Any) -> None:
    for right, memory in ranks.fresh(2).run(on_ranks.reduce_shared):
        assert right
        if not memory["refused"]:
            assert memory["shared_buffers"] == 1
            assert memory["shared_bytes"] == 4 << 18


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("HCCOMM_CMA", "off", "HCCOMM_CMA=off"),
        ("HCCOMM_TRANSPORTS", "tcp", "no transport that is allowed"),
        ("HCCOMM_TEST_NO_MEMFD", "1", "HCCOMM_TEST_NO_MEMFD"),
    ],
)
def test_where_none_is_shared_it_works_and_says_why(
    ranks: Any, name: str, value: str, why: str
) -> None:
    for right, memory in ranks.fresh(2, **{name: value}).run(on_ranks.reduce_shared):
        assert right
        assert memory["shared_buffers"] == 0
        assert why in memory["refused"]


def test_neither_descriptors_nor_mappings_are_left_on_any_rank(ranks: Any) -> None:
    for before, after in ranks.fresh(3).run(on_ranks.map_and_forget):
        assert after == before


def test_a_forked_child_sees_it_and_harms_nothing() -> None:
    data = hccomm.empty(1 << 20, "u1")
    data[:] = 3
    child = os.fork()
    if child == 0:
        fine = bool((data == 3).all()) and hccomm.empty(10).size == 10
        del data
        gc.collect()
        os._exit(0 if fine else 1)

    assert os.waitpid(child, 0)[1] == 0
    assert (data == 3).all()


def test_what_was_not_allocated_is_not_freed() -> None:
    found = library()
    error, data = found.error(), found.ffi.new("void**")
    if found.lib.hccomm_alloc(1000, data, error) != 0:
        pytest.skip(found.string(error.text))

    assert found.lib.hccomm_free(data[0], error) == 0
    assert found.lib.hccomm_free(data[0], error) != 0
    assert "given back" in found.string(error.text)
    assert found.lib.hccomm_free(found.ffi.NULL, error) == 0


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(hccomm.InvalidArgument, match="shape=-1"):
        hccomm.empty(-1)
    with pytest.raises(hccomm.System, match="bytes"):
        hccomm.empty(1 << 60, "f8")

# SPDX-License-Identifier: Apache-2.0
"""hccomm.empty: arrays on huge pages, like any other array."""

from __future__ import annotations

import gc
import re
from typing import Any

import numpy as np
import pytest
import rank_programs as on_ranks

import hccomm


@pytest.mark.parametrize(
    ("shape", "dtype"), [(10, "f4"), ((3, 5), "i8"), ((), "f8"), ((0, 4), "f4"), (3 << 20, "u1")]
)
def test_an_array_has_the_shape_and_type_asked_for(shape: Any, dtype: str) -> None:
    found = hccomm.empty(shape, dtype)

    assert found.shape == np.empty(shape, dtype).shape
    assert found.dtype == np.dtype(dtype)
    assert found.flags.writeable
    assert found.flags.c_contiguous


def test_an_array_begins_at_a_huge_page() -> None:
    found = hccomm.empty(1000, "f4")
    found[:] = 7

    assert found.ctypes.data % (2 << 20) == 0
    assert (found == 7).all()


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


def test_ranks_reduce_it(ranks: Any) -> None:
    assert all(ranks(2).run(on_ranks.reduce_huge_pages))


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(hccomm.InvalidArgument, match="shape=-1"):
        hccomm.empty(-1)
    with pytest.raises(hccomm.System, match="bytes"):
        hccomm.empty(1 << 60, "f8")

# SPDX-License-Identifier: Apache-2.0
"""hccomm.torch.empty: tensors that the ranks of a host map."""

from __future__ import annotations

import torch
import torch.distributed as dist
from ranks import Ranks


def mapped() -> int:
    """How much of the memory of other ranks, or of our own, this process has mapped to share it."""
    with open("/proc/self/maps", encoding="ascii") as maps:
        return sum("memfd:hccomm" in line for line in maps)


def reduce() -> None:
    import hccomm.torch

    tensor = hccomm.torch.empty(1 << 10, 1 << 10, dtype=torch.float64)
    assert tensor.shape == (1 << 10, 1 << 10)
    assert tensor.dtype == torch.float64
    tensor.fill_(dist.get_rank() + 1)
    before = mapped()
    dist.all_reduce(tensor)
    assert bool((tensor == 3).all())
    memory = hccomm.torch.describe()["memory"]
    single = "single copy" in str(hccomm.torch.describe()["peers"])
    assert memory["refused"] or not single or mapped() > before, "it came through the kernel"


def test_ranks_reduce_out_of_them(two: Ranks) -> None:
    two.run(reduce)


def test_any_type_and_shape() -> None:
    import hccomm.torch

    for kind in (torch.bfloat16, torch.bool, torch.complex64, torch.int8):
        found = hccomm.torch.empty(3, 5, dtype=kind)
        assert found.dtype == kind
        assert found.shape == (3, 5)
    assert hccomm.torch.empty().shape == ()
    assert hccomm.torch.empty(0, 4).numel() == 0

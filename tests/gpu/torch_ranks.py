# SPDX-License-Identifier: Apache-2.0
"""One rank of a mixed group: even ranks keep their tensors on the GPU, odd ones on the CPU.

All GPU ranks share cuda:0, so two of them test that as well. Every value is exact in any order.
"""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist


def main() -> int:
    """Check the collectives once each, at sizes around the staging segment."""
    dist.init_process_group("hccomm")
    rank, size = dist.get_rank(), dist.get_world_size()
    device = torch.device("cuda:0") if rank % 2 == 0 else torch.device("cpu")
    total = size * (size + 1) // 2

    for count in (1, 1000, 1 << 20, (8 << 20) + 3):
        summed = torch.full((count,), float(rank + 1), device=device)
        dist.all_reduce(summed)
        assert torch.all(summed == total).item(), f"all_reduce of {count}"

        parts = [torch.empty(count, device=device) for _ in range(size)]
        dist.all_gather(parts, torch.full((count,), float(rank), device=device))
        assert all(torch.all(part == who).item() for who, part in enumerate(parts)), "all_gather"

        given = torch.full((size * count,), float(rank), device=device)
        got = torch.empty_like(given)
        dist.all_to_all_single(got, given)
        wanted = torch.arange(size, device=device).repeat_interleave(count)
        assert torch.all(got == wanted).item(), f"all_to_all of {count}"

        here, there = (rank + 1) % size, (rank - 1) % size
        message = torch.empty(count, device=device)
        work = dist.isend(torch.full((count,), float(rank), device=device), here)
        dist.recv(message, there)
        work.wait()
        assert torch.all(message == there).item(), f"a message of {count}"

        sent = torch.full((count,), 7.0 if rank == 1 else 0.0, device=device)
        dist.broadcast(sent, src=1)
        assert torch.all(sent == 7).item(), f"broadcast of {count}"

    # The producer's kernels are still running when the collective starts: the stream keeps order.
    busy = torch.zeros(1 << 20, device=device)
    for _ in range(200):
        busy += 1
    dist.all_reduce(busy)
    assert torch.all(busy == 200 * size).item(), "a collective behind running kernels"

    dist.destroy_process_group()
    print(f"rank {rank} on {device}: all right")
    return 0


if __name__ == "__main__":
    sys.exit(main())

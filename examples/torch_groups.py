# SPDX-License-Identifier: Apache-2.0
"""Subgroups, messages and asynchronous operations.

    torchrun --nproc-per-node 4 examples/torch_groups.py

Even and odd ranks sum among themselves, then each rank passes its sum around a ring while a large
all_reduce is on its way.
"""

from __future__ import annotations

import torch
import torch.distributed as dist


def main() -> None:
    """Run one rank."""
    dist.init_process_group("hccomm")
    rank, size = dist.get_rank(), dist.get_world_size()

    mine, _ = dist.new_subgroups_by_enumeration(
        [list(range(0, size, 2)), list(range(1, size, 2))] if size > 1 else [[0]]
    )
    total = torch.tensor([float(rank)])
    dist.all_reduce(total, group=mine)

    large = torch.ones(1 << 20)
    busy = dist.all_reduce(large, async_op=True)
    if size > 1:
        got = torch.empty(1)
        ring = [
            dist.P2POp(dist.isend, total, (rank + 1) % size),
            dist.P2POp(dist.irecv, got, (rank - 1) % size),
        ]
        for work in dist.batch_isend_irecv(ring):
            work.wait()
        print(
            f"rank {rank}: my subgroup sums to {total.item():g}, my neighbour's to {got.item():g}"
        )
    busy.wait()
    assert large[0].item() == size
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

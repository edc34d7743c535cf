# SPDX-License-Identifier: Apache-2.0
"""Train a small network on several ranks; only the backend's name says that hccomm is there.

    torchrun --nproc-per-node 4 examples/torch_ddp.py

The same file runs on any mixture of devices: each rank takes the accelerator it finds.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

STEPS, BATCH = 50, 64


def main() -> None:
    """Run one rank."""
    dist.init_process_group("hccomm")
    rank, size = dist.get_rank(), dist.get_world_size()
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    device = accelerator if accelerator is not None else torch.device("cpu")

    torch.manual_seed(0)
    net = DistributedDataParallel(
        nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 1)).to(device)
    )
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(rank)
    for step in range(STEPS):
        points = torch.rand(BATCH, 2, generator=generator).to(device)
        wanted = (points[:, :1] * points[:, 1:]).sin()
        loss = nn.functional.mse_loss(net(points), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

        if step % 10 == 9:
            mean = loss.detach().clone()
            dist.all_reduce(mean, op=dist.ReduceOp.AVG)
            if rank == 0:
                print(f"step {step + 1:3d}  loss {mean.item():.5f}  ({size} ranks on {device})")

    if rank == 0:
        import hccomm.torch

        for peer in hccomm.torch.describe()["peers"]:
            print(f"rank {peer['rank']} is reached over {peer['transport']}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""DeepSpeed over hccomm: ZeRO stages 1 and 2 on CPUs.

torchrun --nproc-per-node 2 examples/deepspeed_zero.py
"""

from __future__ import annotations

import deepspeed
import torch
import torch.distributed as dist
from torch import nn

import hccomm.torch


def train(stage: int) -> tuple[float, float]:
    """Return the first and the last loss."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 1))
    engine, _, _, _ = deepspeed.initialize(
        model=net,
        optimizer=torch.optim.Adam(net.parameters(), lr=1e-2),
        config={
            "train_micro_batch_size_per_gpu": 32,
            "zero_optimization": {"stage": stage},
            "zero_force_ds_cpu_optimizer": False,
        },
    )
    generator = torch.Generator().manual_seed(dist.get_rank())
    losses = []
    for _ in range(60):
        points = torch.rand(32, 2, generator=generator)
        wanted = (points[:, :1] * points[:, 1:]).sin()
        loss = nn.functional.mse_loss(engine(points), wanted)
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    return losses[0], losses[-1]


def main() -> None:
    """Run one rank."""
    deepspeed.init_distributed(dist_backend="hccomm")  # the line
    for stage in (1, 2):
        first, last = train(stage)
        transports = {peer["transport"] for peer in hccomm.torch.describe()["peers"]}
        if dist.get_rank() == 0:
            print(f"ZeRO-{stage}: loss {first:.5f} -> {last:.5f} over hccomm, {transports}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

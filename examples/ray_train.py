# SPDX-License-Identifier: Apache-2.0
"""Ray Train over hccomm: TorchConfig takes the backend's name.

python examples/ray_train.py          # starts Ray on this machine, and two ranks in it
"""

from __future__ import annotations

import tempfile

import ray
import torch
from ray.train import ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, prepare_model
from torch import nn


def train() -> None:
    """Learn sin(x y) on one rank of the group that Ray has made, and say how it went."""
    import hccomm.torch

    rank = ray.train.get_context().get_world_rank()
    torch.manual_seed(rank)
    model = prepare_model(nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 1)))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(100):
        points = torch.rand(64, 2)
        wanted = (points[:, :1] * points[:, 1:]).sin()
        loss = nn.functional.mse_loss(model(points), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    transports = {peer["transport"] for peer in hccomm.torch.describe()["peers"]}
    print(f"loss {losses[0]:.5f} -> {losses[-1]:.5f} over hccomm, {transports}", flush=True)


def main() -> None:
    """Start Ray here, and two ranks."""
    with tempfile.TemporaryDirectory() as results:
        ray.init(num_cpus=2, include_dashboard=False)
        trainer = TorchTrainer(
            train,
            torch_config=TorchConfig(backend="hccomm"),  # the line
            scaling_config=ScalingConfig(num_workers=2),
            run_config=ray.train.RunConfig(storage_path=results),
        )
        trainer.fit()
        ray.shutdown()


if __name__ == "__main__":
    main()

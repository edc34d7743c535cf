# SPDX-License-Identifier: Apache-2.0
"""Lightning over hccomm: its strategies take the backend's name.

python examples/lightning_training.py          # starts two ranks itself
"""

from __future__ import annotations

import lightning
import torch
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

import hccomm.torch


class Product(lightning.LightningModule):
    """Learns sin(x y)."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 1))
        self.losses: list[float] = []

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        """Return the loss of one batch."""
        inputs, wanted = batch
        loss = nn.functional.mse_loss(self.net(inputs), wanted)
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer."""
        return torch.optim.Adam(self.parameters(), lr=1e-2)

    def on_train_end(self) -> None:
        """Say how it went."""
        transports = {peer["transport"] for peer in hccomm.torch.describe()["peers"]}
        if self.global_rank == 0:
            first, last = self.losses[0], self.losses[-1]
            print(f"loss {first:.5f} -> {last:.5f} over hccomm, {transports}", flush=True)


def main() -> None:
    """Run one rank, and start the others."""
    lightning.seed_everything(0)
    points = torch.rand(512, 2)
    data = torch.utils.data.TensorDataset(points, (points[:, :1] * points[:, 1:]).sin())
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=2,
        strategy=DDPStrategy(process_group_backend="hccomm"),  # the line
        plugins=[
            LightningEnvironment()
        ],  # else it looks for MPI, and fails where that is half there
        max_epochs=6,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    trainer.fit(Product(), torch.utils.data.DataLoader(data, batch_size=32))


if __name__ == "__main__":
    main()

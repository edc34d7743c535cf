# SPDX-License-Identifier: Apache-2.0
"""Hugging Face Accelerate over hccomm: one line, because on CPUs it knows the name "gloo" only.

torchrun --nproc-per-node 2 examples/accelerate_training.py
"""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import nn

import hccomm
import hccomm.torch


def main() -> None:
    """Run one rank."""
    hccomm.install(as_="gloo")  # the line
    accelerator = Accelerator(cpu=True)

    torch.manual_seed(0)
    points = torch.rand(512, 2)
    data = torch.utils.data.TensorDataset(points, (points[:, :1] * points[:, 1:]).sin())
    loader = torch.utils.data.DataLoader(data, batch_size=32, shuffle=True)
    net = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 1))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    net, optimizer, loader = accelerator.prepare(net, optimizer, loader)

    losses = []
    for _ in range(6):
        for inputs, wanted in loader:
            loss = nn.functional.mse_loss(net(inputs), wanted)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
        losses.append(accelerator.reduce(loss.detach(), "mean").item())
    transports = {peer["transport"] for peer in hccomm.torch.describe()["peers"]}
    accelerator.print(f"loss {losses[0]:.5f} -> {losses[-1]:.5f} over hccomm, {transports}")
    accelerator.end_training()


if __name__ == "__main__":
    main()

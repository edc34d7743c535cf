# SPDX-License-Identifier: Apache-2.0
"""Train one network on ranks of different vendors and prove that all of them hold the same bits.

    torchrun --nproc-per-node 5 examples/torch_mixed.py --simulate alder,birch,cpu,alder,birch

Without --simulate each rank takes the accelerator it finds. Simulated vendors come from
tests/support/simdevice; a checkout has it, and it is compiled at first use.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

STEPS, BATCH = 20, 32


def find_device(simulate: str) -> torch.device:
    """Return this rank's device, simulated where asked."""
    local = int(os.environ["LOCAL_RANK"])
    if not simulate:
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        if accelerator is None:
            return torch.device("cpu")
        return torch.device(accelerator.type, local % torch.accelerator.device_count())
    vendors = simulate.split(",")
    vendor = vendors[local % len(vendors)]
    if vendor == "cpu":
        return torch.device("cpu")
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
    import simdevice

    latency, rate = simdevice.PACE.get(vendor, (0.0, 0.0))
    simdevice.start(vendor, latency_us=latency, gigabytes_per_second=rate)
    return torch.device(vendor, 0)


def main() -> None:
    """Run one rank."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulate", default="", help="a vendor per local rank, or cpu")
    device = find_device(parser.parse_args().simulate)
    if device.type != "cpu":
        torch.accelerator.set_device_index(device.index)
    dist.init_process_group("hccomm")
    rank, size = dist.get_rank(), dist.get_world_size()

    torch.manual_seed(0)
    net = DistributedDataParallel(
        nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 1)).to(device)
    )
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(rank)
    for step in range(STEPS):
        points = torch.rand(BATCH, 2, generator=generator)
        wanted = (points[:, :1] * points[:, 1:]).sin()
        loss = nn.functional.mse_loss(net(points.to(device)), wanted.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 5 == 4:
            mean = loss.detach().clone()  # on this rank's device, whichever that is
            dist.all_reduce(mean, op=dist.ReduceOp.AVG)
            if rank == 0:
                print(f"step {step + 1:3d}  loss {mean.item():.5f}")

    flat = torch.cat([parameter.detach().cpu().flatten() for parameter in net.parameters()])
    mine = (str(device), hashlib.sha256(flat.numpy().tobytes()).hexdigest()[:16])
    everyone: list[tuple[str, str]] = [mine] * size
    dist.all_gather_object(everyone, mine)
    if rank == 0:
        for other, (where, digest) in enumerate(everyone):
            print(f"rank {other} on {where:8} holds parameters {digest}")
        same = len({digest for _, digest in everyone}) == 1
        print("all ranks hold the same bits" if same else "THE RANKS DIFFER")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

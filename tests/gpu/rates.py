# SPDX-License-Identifier: Apache-2.0
"""How fast a GPU and a CPU rank sum, beside what the bus and the transport permit.

    .venv/bin/python tests/gpu/rates.py [--device cuda:0] [--rounds 15]

Prints the card's name, the rates of pinned copies both ways, all_reduce between two CPU ranks, and
all_reduce between a GPU and a CPU rank, with

    share = rate of GPU + CPU / the lesser of the slower copy's rate and the CPU ranks' rate

at one size; a rate is bytes of the tensor over the median time of one call. A GPU that two ranks
share is in tests/gpu/test_cuda.py. `--device cpu` runs it all without a GPU, and says nothing.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
import torch.distributed as dist

SIZES = [4 << 10, 64 << 10, 1 << 20, 16 << 20, 64 << 20]


def median(once: Callable[[], None], rounds: int) -> float:
    """Return the median seconds of ``once``, after two that do not count."""
    took = []
    for _ in range(rounds + 2):
        began = time.perf_counter()
        once()
        took.append(time.perf_counter() - began)
    return statistics.median(took[2:])


def sums(device: torch.device, rounds: int) -> list[float]:
    """Return the seconds of one all_reduce by size: this rank's tensor lies on ``device``."""
    times = []
    for size_bytes in SIZES:
        tensor = torch.zeros(size_bytes // 4, device=device)

        def once(tensor: torch.Tensor = tensor) -> None:
            dist.all_reduce(tensor)
            settle(device)

        times.append(median(once, rounds))
    return times


def settle(device: torch.device) -> None:
    """Wait until the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def copies(device: torch.device, rounds: int) -> list[tuple[float, float]]:
    """Return the seconds of a copy to the device and of one back, by size, with pinned memory."""
    times = []
    for size_bytes in SIZES:
        host = torch.zeros(size_bytes // 4, pin_memory=device.type == "cuda")
        there = torch.zeros(size_bytes // 4, device=device)
        pair = []
        for target, source in ((there, host), (host, there)):

            def once(target: torch.Tensor = target, source: torch.Tensor = source) -> None:
                target.copy_(source, non_blocking=True)
                settle(device)

            pair.append(median(once, rounds))
        times.append((pair[0], pair[1]))
    return times


def rank(device: torch.device, rounds: int) -> None:
    """Be one rank; rank 0 prints the table."""
    dist.init_process_group("hccomm")
    cpu = torch.device("cpu")
    plain = sums(cpu, rounds)
    mixed = sums(device if dist.get_rank() == 0 else cpu, rounds)
    if dist.get_rank() == 0:
        bus = copies(device, rounds)
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "no GPU"
        print(f"{name}; torch {torch.__version__}; {os.cpu_count()} cores; medians of {rounds}")
        print(f"{'bytes':>10} {'in':>8} {'out':>8} {'CPU+CPU':>9} {'GPU+CPU':>9} GB/s"
              f" {'GPU+CPU us':>12} {'share':>8}")  # fmt: skip
        for size_bytes, (into, out), host, both in zip(SIZES, bus, plain, mixed, strict=True):
            gbps = [size_bytes / seconds / 1e9 for seconds in (into, out, host, both)]
            print(f"{size_bytes:>10} {gbps[0]:>8.2f} {gbps[1]:>8.2f} {gbps[2]:>9.2f}"
                  f" {gbps[3]:>9.2f}      {both * 1e6:>12.1f} {gbps[3] / min(gbps[:3]):>8.1%}"
                  )  # fmt: skip
    dist.destroy_process_group()


def main() -> int:
    """Start two ranks, or be one of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    if "RANK" in os.environ:
        rank(torch.device(options.device), options.rounds)
        return 0
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    words = ["--device", options.device, "--rounds", str(options.rounds)]
    return subprocess.run(
        [*launcher, "--nproc-per-node", "2", __file__, *words], timeout=500, check=False
    ).returncode


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: Apache-2.0
"""One rank of demo/efficiency.py: measures all_reduce at the size it is told, as often as it is.

Rank 0 reads sizes in bytes from standard input, one per line, and answers each with a JSON object:
the seconds of one call on the slowest rank. 0 ends the job.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import time

import torch
import torch.distributed as dist
from worker import device

DEADLINE = 300.0  # a rank that still runs then prints its stacks and leaves
CALLS_BYTES = 2**26  # so much is reduced in a measurement, in at most 64 calls


def told() -> int:
    """Return the size that rank 0 was told; the same on all ranks."""
    size = torch.zeros(1, dtype=torch.int64)
    if dist.get_rank() == 0:
        size[0] = int(sys.stdin.readline() or 0)
    dist.broadcast(size, 0)
    return int(size.item())


def measure(data: torch.Tensor) -> float:
    """Return the seconds of one call: the mean of a few, of the slowest rank."""
    calls = max(2, min(64, CALLS_BYTES // data.nbytes))
    dist.barrier()
    begin = time.perf_counter()
    for _ in range(calls):
        dist.all_reduce(data, dist.ReduceOp.MAX)
    if data.device.type != "cpu":
        torch.accelerator.synchronize()
    took = torch.tensor([(time.perf_counter() - begin) / calls], dtype=torch.float64)
    dist.all_reduce(took, dist.ReduceOp.MAX)
    return float(took.item())


def check(data: torch.Tensor) -> None:
    """Reduce once by the sum; raise where an element is wrong."""
    rank, size = dist.get_rank(), dist.get_world_size()
    data.fill_(rank + 1)
    dist.all_reduce(data)
    wrong = int((data.cpu() != size * (size + 1) // 2).sum().item())
    if wrong:
        raise RuntimeError(f"rank {rank}: {wrong} elements of {data.numel()} are wrong")


def main() -> None:
    """Serve until told to end."""
    faulthandler.dump_traceback_later(DEADLINE, exit=True)
    torch.set_num_threads(1)
    where = device()
    dist.init_process_group("hccomm")
    data: dict[int, torch.Tensor] = {}
    while (size_bytes := told()) > 0:
        if size_bytes not in data:
            data = {size_bytes: torch.empty(size_bytes // 4, device=where)}
            check(data[size_bytes])
        seconds = measure(data[size_bytes])
        if os.environ["RANK"] == "0":
            print(json.dumps({"seconds": seconds}), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

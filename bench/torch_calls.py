# SPDX-License-Identifier: Apache-2.0
"""What one call of torch.distributed costs over hccomm, beside a backend that does nothing.

    python bench/torch_calls.py [--rounds 5] [--calls 2000] [--realtime]

Two ranks, all_reduce of 4 bytes, microseconds per call, the best round of each; the rounds of all
cases are interleaved, so that a busy machine is busy for all. "nothing" is torch's own fake
backend: what is left are torch's Python and C++ around the call. Then, over hccomm and over Gloo, a
training step of a small model under DDP. ``--realtime`` (root only) runs
the ranks at a real-time priority, for a machine that others use, too.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as processes
from torch.nn.parallel import DistributedDataParallel

_WARM_UP = 50


def _per_call_us(call: Callable[[], Any], calls: int) -> float:
    for _ in range(_WARM_UP):
        call()
    dist.barrier()
    began = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - began) / calls * 1e6


def _training_step(
    group: dist.ProcessGroup | None, *, synchronised: bool = True
) -> Callable[[], Any]:
    layers = [torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 8)]
    net = DistributedDataParallel(torch.nn.Sequential(*layers), process_group=group)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.01)
    values = torch.ones(8, 64)

    def step() -> None:
        optimiser.zero_grad()
        with contextlib.nullcontext() if synchronised else net.no_sync():
            net(values).sum().backward()
        optimiser.step()

    return step


def _rank(rank: int, given: argparse.Namespace, folder: str) -> None:
    for registers in ("torch.testing._internal.distributed.fake_pg", "hccomm.torch"):
        importlib.import_module(registers)
    torch.set_num_threads(1)
    if given.realtime:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(5))
    dist.init_process_group("hccomm", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    alone = [dist.new_group([each]) for each in range(2)][rank]
    groups = {"nothing": dist.new_group(backend="fake"), "hccomm, alone": alone, "hccomm": None}
    tensor = torch.ones(1)
    best: dict[str, float] = {}
    for _ in range(given.rounds):
        for name, group in groups.items():
            tensor.zero_()
            calls = {
                name: lambda group=group: dist.all_reduce(tensor, group=group),
                f"{name}, async": lambda group=group: dist.all_reduce(
                    tensor, group=group, async_op=True
                ).wait(),
            }
            for title, call in calls.items():
                took = _per_call_us(call, given.calls)
                best[title] = min(best.get(title, took), took)
    gloo = dist.new_group(backend="gloo")
    steps = {
        "DDP step, nothing": _training_step(None, synchronised=False),
        "DDP step, hccomm": _training_step(None),
        "DDP step, Gloo": _training_step(gloo),
    }
    for _ in range(given.rounds):
        for title, step in steps.items():
            took = _per_call_us(step, max(1, given.calls // 10))
            best[title] = min(best.get(title, took), took)
    if rank == 0:
        for title, took in best.items():
            print(f"{title:22} {took:8.2f} us")
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--realtime", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        processes.spawn(_rank, (given, folder), nprocs=2)


if __name__ == "__main__":
    main()

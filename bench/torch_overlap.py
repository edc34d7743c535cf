# SPDX-License-Identifier: Apache-2.0
"""How much of DDP's communication the backward pass hides, as figures and as a picture.

    python bench/torch_overlap.py [--picture docs/img/ddp-overlap.png] [--realtime]

Two ranks, a model of 50 MB in 13 layers. The layers' gradients are "computed" by a device that is
not this processor: each backward step waits as long as its kernel would take and leaves the cores
to the communication, as an accelerator does. Measured are the backward pass alone (with a silent
hook), the all_reduces of its buckets alone, and both together; hidden is what of the second does
not show in the third. ``--realtime`` (root only) runs the ranks at a real-time priority, for a
machine that others use, too.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as processes
from torch import nn
from torch.nn.parallel import DistributedDataParallel

LAYERS, WIDTH = 13, 1000  # 4 MB each
KERNEL_S = 0.012  # of each backward step

_spans: dict[str, list[tuple[float, float]]] = {"backward": [], "all_reduce": []}


class _Step(torch.autograd.Function):
    """A layer whose gradient takes its time, elsewhere."""

    @staticmethod
    def forward(context: Any, values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        context.save_for_backward(weight)
        return values.clone()

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        began = time.perf_counter()
        time.sleep(KERNEL_S)
        mine = torch.ones_like(context.saved_tensors[0])
        _spans["backward"].append((began, time.perf_counter()))
        return gradient, mine


class _Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(WIDTH, WIDTH))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return _Step.apply(values, self.weight)


class _Hook:
    """DDP's communication hook; with ``silent`` it does all but the communication."""

    silent = False


def _hook(size: int, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    if _Hook.silent:
        done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        done.set_result(bucket.buffer().div_(size))
        return done
    began = time.perf_counter()

    def ended(future: torch.futures.Future[list[torch.Tensor]]) -> torch.Tensor:
        _spans["all_reduce"].append((began, time.perf_counter()))
        return future.value()[0].div_(size)

    return dist.all_reduce(bucket.buffer(), async_op=True).get_future().then(ended)


def _seconds(step: Any) -> float:
    dist.barrier()
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def _rank(rank: int, given: argparse.Namespace, folder: str) -> None:
    import hccomm.torch_backend  # noqa: F401  registers the backend

    torch.set_num_threads(1)
    if given.realtime:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(5))
    dist.init_process_group("hccomm", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    net = DistributedDataParallel(
        nn.Sequential(*(_Layer() for _ in range(LAYERS))),
        bucket_cap_mb=4,
        gradient_as_bucket_view=True,
    )
    net.register_comm_hook(2, _hook)
    values = torch.zeros(4, requires_grad=True)
    buckets = [torch.ones(WIDTH * WIDTH) for _ in range(LAYERS)]

    def backward(*, silent: bool) -> float:
        _Hook.silent = silent
        loss = net(values).sum()
        return _seconds(loss.backward)

    def communicate() -> None:
        for bucket in buckets:
            dist.all_reduce(bucket)

    for silent in (True, False):  # buckets are rebuilt, links made
        backward(silent=silent)
        communicate()
    alone, wire, both = (float("inf"),) * 3
    kept: dict[str, list[tuple[float, float]]] = {}
    for _ in range(given.rounds):
        alone = min(alone, backward(silent=True))
        wire = min(wire, _seconds(communicate))
        for spans in _spans.values():
            spans.clear()
        took = backward(silent=False)
        if took < both:
            both, kept = took, {name: list(spans) for name, spans in _spans.items()}
    if rank == 0:
        hidden = min(1.0, 1 - (both - alone) / wire)
        says = (
            f"backward {alone * 1e3:.0f} ms, all_reduce {wire * 1e3:.0f} ms, together "
            f"{both * 1e3:.0f} ms: {hidden:.0%} hidden"
        )
        print(says)
        if given.picture:
            _draw(given.picture, kept, says)
    dist.destroy_process_group()


def _draw(path: Path, spans: dict[str, list[tuple[float, float]]], title: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    start = min(began for each in spans.values() for began, _ in each)
    figure, axes = pyplot.subplots(figsize=(9, 2.2), layout="constrained")
    for row, (name, colour) in enumerate((("all_reduce", "#d9822b"), ("backward", "#2b6cb0"))):
        bars = [((began - start) * 1e3, (ended - began) * 1e3) for began, ended in spans[name]]
        axes.broken_barh(bars, (row - 0.35, 0.7), facecolors=colour, edgecolor="white")
    axes.set_yticks([0, 1], ["all_reduce\n(buckets)", "backward\n(layers)"])
    axes.set_xlabel("ms")
    axes.set_title(title, fontsize=10)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--realtime", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        processes.spawn(_rank, (given, folder), nprocs=2)


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""Time the collectives of torch.distributed's default group, and check every result.

demo/worker.py calls table() after the training, on the same process group and the same devices (its
default device is the rank's own). Columns as nccl-tests
define them: bytes of the larger buffer of a rank, microseconds of the slowest rank, bus bandwidth.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import torch
import torch.distributed as dist

SIZES = [4**exponent for exponent in range(4, 13)]  # 256 B .. 16 MiB
ROUNDS = 5


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    collective: str
    bytes: int
    us: float  # median over the rounds, of the slowest rank
    gbps: float  # bus bandwidth, GB/s
    wrong: int  # elements that differ from the expected ones, over all ranks


@dataclass(frozen=True)
class Case:
    """A collective on buffers of one size: what to call, and what must come out."""

    name: str
    factor: float  # bus bandwidth / algorithm bandwidth
    start: Callable[[], object]
    refill: Callable[[], object]
    output: torch.Tensor
    expected: torch.Tensor


def cases(size_bytes: int, rank: int, size: int) -> Iterator[Case]:
    """Yield every collective on buffers of ``size_bytes``; sums are small and so exact."""
    count = size_bytes // 4
    part = count // size
    share = (size - 1) / size
    total = float(size * (size + 1) // 2)
    ranks = torch.arange(1, size + 1, dtype=torch.float32).repeat_interleave(part)
    mine = torch.full((count,), float(rank + 1))
    small = torch.full((part,), float(rank + 1))
    buffer, output = mine.clone(), torch.zeros(part * size)

    def refill() -> object:
        return buffer.fill_(rank + 1)

    yield Case(
        "all_reduce",
        2 * share,
        lambda: dist.all_reduce(buffer),
        refill,
        buffer,
        torch.full((count,), total),
    )
    yield Case(
        "all_gather",
        share,
        lambda: dist.all_gather_into_tensor(output, small),
        output.zero_,
        output,
        ranks,
    )
    yield Case(
        "reduce_scatter",
        share,
        lambda: dist.reduce_scatter_tensor(small, mine[: part * size]),
        small.zero_,
        small,
        torch.full((part,), total),
    )
    yield Case(
        "broadcast", 1.0, lambda: dist.broadcast(buffer, 0), refill, buffer, torch.ones(count)
    )
    yield Case(
        "all_to_all",
        share,
        lambda: dist.all_to_all_single(output, mine[: part * size]),
        output.zero_,
        output,
        ranks,
    )


def measure(case: Case, size_bytes: int) -> Row:
    """Check one collective once, then time it: all ranks make the same number of calls."""
    case.refill()
    case.start()
    wrong = torch.tensor([float((case.output != case.expected).sum())], device="cpu")
    dist.all_reduce(wrong)
    calls = max(2, min(40, 2**22 // size_bytes))
    rounds = []
    for _ in range(ROUNDS):
        case.refill()
        dist.barrier()
        begin = time.perf_counter()
        for _ in range(calls):
            case.start()
        synchronize()
        rounds.append((time.perf_counter() - begin) / calls)
    slowest = torch.tensor(rounds, dtype=torch.float64, device="cpu")
    dist.all_reduce(slowest, dist.ReduceOp.MAX)
    seconds = statistics.median(slowest.tolist())
    rate = size_bytes / seconds * case.factor / 1e9
    return Row(case.name, size_bytes, seconds * 1e6, rate, int(wrong.item()))


def synchronize() -> None:
    """Wait until the results are where they belong: on a device calls only order its stream."""
    if torch.get_default_device().type != "cpu":
        torch.accelerator.synchronize()


def table(say: Callable[[dict[str, object]], None]) -> list[dict[str, object]]:
    """Measure everything; ``say`` hears of each point."""
    rank, size = dist.get_rank(), dist.get_world_size()
    rows: list[dict[str, object]] = []
    for size_bytes in SIZES:
        for case in cases(size_bytes, rank, size):
            rows.append(asdict(measure(case, size_bytes)))
            say({"event": "point", "point": len(rows), "of": 5 * len(SIZES), **rows[-1]})
    return rows

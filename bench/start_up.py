# SPDX-License-Identifier: Apache-2.0
"""How long a job takes to begin, beside Gloo: medians of interleaved rounds, milliseconds.

    python bench/start_up.py [--ranks 8] [--rounds 9]

"init" is the slowest rank's init_process_group over a TCPStore that is there already, as under
torchrun; "first" is that and a first all_reduce of 4 bytes, so that connections which are made when
they are needed count, too. All ranks have imported torch and wait for each other before. "import"
is a fresh process's `import hccomm`, without the start of Python itself.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import socket
import statistics
import subprocess
import sys
import time
from datetime import timedelta
from typing import Any

_LIMIT = 120.0  # seconds, of one round


def _rank(rank: int, size: int, names: list[str], port: int, doors: Any, said: Any) -> None:
    import torch
    import torch.distributed as dist

    importlib.import_module("hccomm.torch")
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, size, rank == 0, timedelta(seconds=_LIMIT))
    for number, name in enumerate(names):
        doors.wait(_LIMIT)
        began = time.perf_counter()
        dist.init_process_group(
            name,
            store=dist.PrefixStore(str(number), store),
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=_LIMIT),
        )
        ready = time.perf_counter()
        dist.all_reduce(torch.ones(1))
        said.put((number, ready - began, time.perf_counter() - began))
        dist.destroy_process_group()
    doors.wait(_LIMIT)  # rank 0 holds the store


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _job(size: int, names: list[str]) -> dict[str, tuple[float, float]]:
    """Return for each backend the medians of the slowest rank's "init" and "first", seconds."""
    context = multiprocessing.get_context("spawn")
    doors, said, port = context.Barrier(size), context.Queue(), _free_port()
    ranks = [
        context.Process(target=_rank, args=(each, size, names, port, doors, said), daemon=True)
        for each in range(size)
    ]
    for each in ranks:
        each.start()
    told = [said.get(timeout=_LIMIT) for _ in range(size * len(names))]
    for each in ranks:
        each.join(_LIMIT)
    slowest = [
        tuple(max(line[column] for line in told if line[0] == number) for column in (1, 2))
        for number in range(len(names))
    ]
    return {
        name: tuple(
            statistics.median(
                slowest[number][column] for number, other in enumerate(names) if other == name
            )
            for column in (0, 1)
        )
        for name in dict.fromkeys(names)
    }


def _import(rounds: int) -> float:
    """Return the median time of `import hccomm` in a fresh process, seconds."""
    program = "import time; t = time.perf_counter(); import hccomm; print(time.perf_counter() - t)"
    return statistics.median(
        float(
            subprocess.run(
                [sys.executable, "-c", program],
                capture_output=True,
                check=True,
                text=True,
                timeout=_LIMIT,
            ).stdout
        )
        for _ in range(rounds)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    print(f"import hccomm: {_import(given.rounds) * 1e3:.1f} ms")
    for name, (ready, first) in _job(given.ranks, ["hccomm", "gloo"] * given.rounds).items():
        print(f"{name:8} {given.ranks} ranks: init {ready * 1e3:7.1f}, first {first * 1e3:7.1f} ms")


if __name__ == "__main__":
    main()

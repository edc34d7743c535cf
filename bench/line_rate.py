# SPDX-License-Identifier: Apache-2.0
"""all_reduce between two hosts on a slow line: how much of the line it uses.

``sudo python bench/line_rate.py`` makes two network namespaces joined by a veth pair that tbf cuts
to ``--mbit`` each way, puts one rank into each, and prints the bus bandwidth as a share of what a
plain exchange over one socket, both ways at once, gets out of the same line in the same run.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import numpy as np

import hccomm

ADDRESSES = ("10.77.53.1", "10.77.53.2")
PORT = 29555


def main() -> None:
    """Be the coordinator, or with --rank one of the two ranks."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--mbit", type=int, default=1000)
    parser.add_argument("--sizes", default="1,4,16", help="MiB")
    parser.add_argument("--rank", type=int, default=-1, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank >= 0:
        measure(options.rank, [int(each) << 20 for each in options.sizes.split(",")])
        return
    with line(options.mbit) as names:
        ranks = [
            subprocess.Popen(
                ["ip", "netns", "exec", name, sys.executable, __file__, "--rank", str(rank),
                 "--sizes", options.sizes],
                env=os.environ | {
                    "RANK": str(rank), "WORLD_SIZE": "2", "HCCOMM_HOST": name,
                    "HCCOMM_RENDEZVOUS": f"tcp://{ADDRESSES[0]}:{PORT}", "HCCOMM_AUTH": "off",
                },
            )
            for rank, name in enumerate(names)
        ]  # fmt: skip
        try:
            codes = [rank.wait(timeout=300) for rank in ranks]
        finally:
            for rank in ranks:
                rank.kill()
    sys.exit(max(codes))


@contextlib.contextmanager
def line(mbit: int) -> Iterator[list[str]]:
    """Two namespaces and the line between them; gone afterwards."""
    names = [f"hccomm-{os.getpid()}-{end}" for end in "ab"]
    ends = ["hc0", "hc1"]
    try:
        for name in names:
            _ip("netns", "add", name)
        _ip("link", "add", ends[0], "netns", names[0], "type", "veth",
            "peer", "name", ends[1], "netns", names[1])  # fmt: skip
        for name, end, address in zip(names, ends, ADDRESSES, strict=True):
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", end)
            for each in ("lo", end):
                _ip("-n", name, "link", "set", each, "up")
            subprocess.run(
                ["tc", "-n", name, "qdisc", "add", "dev", end, "root", "tbf", "rate",
                 f"{mbit}mbit", "burst", "256kb", "latency", "20ms"],
                check=True,
            )  # fmt: skip
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def measure(rank: int, sizes: list[int]) -> None:
    """Print, on rank 0, a line for each size."""
    with hccomm.init() as comm, _connection(rank) as wire:
        for size in sizes:
            values = np.ones(size // 4, "f4")
            # all_reduce of two ranks sends and receives as many bytes as the buffer has.
            turns = [(_timed(comm.all_reduce, values), _timed(_exchange, wire, size))
                     for _ in range(7)]  # fmt: skip
            ours, plain = (statistics.median(times) for times in zip(*turns, strict=True))
            if rank == 0:
                print(
                    f"{size >> 20:4} MiB  all_reduce {8e-9 * size / ours:.3f} Gbit/s busbw, plain "
                    f"exchange {8e-9 * size / plain:.3f} Gbit/s: {100 * plain / ours:.0f} %",
                    flush=True,
                )


def _timed(function: object, *arguments: object) -> float:
    begin = time.perf_counter()
    function(*arguments)  # type: ignore[operator]
    return time.perf_counter() - begin


def _connection(rank: int) -> socket.socket:
    if rank == 0:
        with socket.create_server((ADDRESSES[0], PORT + 1)) as listener:
            listener.settimeout(30)
            wire = listener.accept()[0]
            wire.settimeout(60)
            return wire
    deadline = time.monotonic() + 30
    while True:
        try:
            return socket.create_connection((ADDRESSES[0], PORT + 1), timeout=60)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def _exchange(wire: socket.socket, size: int) -> None:
    sending = threading.Thread(target=wire.sendall, args=(bytes(size),))
    sending.start()
    room, left = bytearray(1 << 20), size
    while left > 0:
        left -= wire.recv_into(room, min(left, len(room)))
    sending.join()


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""The efficiency of a group of mixed vendors: what mixing costs, beside a group of one vendor.

    efficiency = busbw of the mixed group / the lesser of the homogeneous groups' busbw, at one size

Three jobs of four ranks on the same two emulated hosts take turns at all_reduce: all on vendor
alder (copies at 24 GB/s), all on birch (12 GB/s), and the demo's mix of both and the CPU. In every
round each job measures once, and the figure is the median of the rounds' own ratios, so that what
else the machine does hits all alike. The wire between the hosts is the bottleneck, as in a real
machine room: where the system permits it, this program runs in a network namespace whose loopback
the kernel (tc, tbf) holds to --wire; where not, the wire is loopback as it is, and it says so.

`make demo` calls it; alone: python demo/efficiency.py [--wire 4gbit] [--rounds 5]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch.distributed as dist
from ranks import Ranks
from rich import box
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "tests" / "support"))
import simdevice  # noqa: E402

HOSTS = ["alpha", "beta", "alpha", "beta"]  # of ranks 0, 1, 2, 3
MIXED = ["alder", "birch", "", "alder"]  # simulated vendors, likewise; "": the CPU
GROUPS = {"alder": ["alder"] * 4, "birch": ["birch"] * 4, "mixed": MIXED}
WIRE = "4gbit"
SIZES = [4**exponent for exponent in range(5, 14)]  # 1 KiB .. 64 MiB
FACTOR = 2 * (len(HOSTS) - 1) / len(HOSTS)  # bus bandwidth / algorithm bandwidth
DEFINITION = (
    "efficiency = busbw of the mixed group / the lesser of the homogeneous groups' busbw,\n"
    "  at one size, on the same hosts; the median of the rounds' own ratios"
)


def environments(vendors: list[str], port: int) -> list[dict[str, str]]:
    """Return what each rank finds in its environment: torchrun's variables, host and vendor."""
    return [
        {
            **{key: value for key, value in os.environ.items() if key != "HCCOMM_HOST"},
            "RANK": str(rank),
            "WORLD_SIZE": str(len(HOSTS)),
            "LOCAL_RANK": str(HOSTS[:rank].count(host)),
            "LOCAL_WORLD_SIZE": str(HOSTS.count(host)),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "HCCOMM_HOST": host,
            "SIMDEVICE": pace(vendors[rank]),
            "OMP_NUM_THREADS": "1",
        }
        for rank, host in enumerate(HOSTS)
    ]


def pace(vendor: str) -> str:
    """Return the vendor with the latency (us) and rate (GB/s) of its copies, for SIMDEVICE."""
    if not vendor:
        return ""
    latency, rate = simdevice.PACE[vendor]
    return f"{vendor}:{latency}:{rate}"


def human(size_bytes: int) -> str:
    """Write a size as people do."""
    for unit in ("B", "KiB", "MiB"):
        if size_bytes < 1024:
            return f"{size_bytes} {unit}"
        size_bytes //= 1024
    return f"{size_bytes} GiB"


# ---- the wire ------------------------------------------------------------------------------------


def caged(rate: str) -> list[str]:
    """Return words that run a program where loopback has this rate; none where that cannot be."""
    limit = f"tbf rate {rate} burst 256kb latency 20ms"
    shape = f"ip link set lo up && tc qdisc add dev lo root {limit}"
    words = ["unshare", "--user", "--map-root-user", "--net", "sh", "-c", f'{shape} && exec "$@"']
    if any(shutil.which(tool) is None for tool in ("unshare", "ip", "tc")):
        return []
    try:
        tried = subprocess.run([*words, "sh", "true"], capture_output=True, timeout=20, check=False)
    except subprocess.TimeoutExpired:
        return []
    return [*words, "sh"] if tried.returncode == 0 else []


def measured(folder: Path, rate: str, rounds: int, seconds: float) -> dict[str, Any]:
    """Run the jobs over a wire of that rate where there can be one; return what was seen."""
    cage = caged(rate)
    simdevice.library()  # compiled before any rank's deadline counts
    result = folder / "efficiency.json"
    result.unlink(missing_ok=True)
    words = [sys.executable, str(HERE / "efficiency.py"), "--out", str(folder), "--inside"]
    words += ["--rounds", str(rounds), "--seconds", str(seconds)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen([*cage, *words], **pipes, text=True, start_new_session=True) as job:
        try:
            said, _ = job.communicate(timeout=seconds + 60)
        except subprocess.TimeoutExpired as late:
            os.killpg(job.pid, signal.SIGKILL)  # and its ranks
            raise RuntimeError(f"the measurement took more than {seconds + 60:.0f} s") from late
    if job.returncode != 0:
        raise RuntimeError(f"demo/efficiency.py failed:\n{said}")
    seen: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return {"wire": rate if cage else "", **seen}


# ---- measuring -----------------------------------------------------------------------------------


def times(folder: Path, rounds: int, deadline: float) -> dict[str, dict[int, list[float]]]:
    """Let the jobs take turns; return the seconds of one call by group and size."""
    took: dict[str, dict[int, list[float]]] = {name: {} for name in GROUPS}
    with ExitStack() as stack:
        jobs, stores = {}, []
        for name, vendors in GROUPS.items():
            store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
            stores.append(store)
            command = [sys.executable, str(HERE / "efficiency_rank.py")]
            place = folder / name
            place.mkdir(parents=True, exist_ok=True)
            ranks = Ranks(command, environments(vendors, store.port), place, deadline, orders=True)
            jobs[name] = (stack.enter_context(ranks), ranks.events())
        for size_bytes in SIZES:
            for _ in range(rounds):
                for name, (ranks, events) in jobs.items():
                    ranks.order(str(size_bytes))
                    took[name].setdefault(size_bytes, []).append(float(next(events)["seconds"]))
        for ranks, events in jobs.values():
            ranks.order("0")
            list(events)
    return took


def rows(took: dict[str, dict[int, list[float]]]) -> list[dict[str, Any]]:
    """Return a row for each size: the groups' busbw in GB/s, and the efficiency."""
    table = []
    for size_bytes in SIZES:
        own = {name: took[name][size_bytes] for name in GROUPS}
        slower = [max(pair) for pair in zip(own["alder"], own["birch"], strict=True)]
        ratios = [one / other for one, other in zip(slower, own["mixed"], strict=True)]
        busbw = {name: size_bytes * FACTOR / statistics.median(own[name]) / 1e9 for name in own}
        table.append({"bytes": size_bytes, **busbw, "efficiency": statistics.median(ratios)})
    return table


def show(seen: dict[str, Any], load: float, console: Console) -> None:
    """Print the table, and what the figure is. ``load``: of the machine, before we came."""
    wire = f"held to {seen['wire']}" if seen["wire"] else "as it is: no rate could be set here"
    title = f"Efficiency of the mixed group\nall_reduce, busbw in GB/s; the wire {wire}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0))
    for column in ("size", "4 x alder", "4 x birch", "mixed", "efficiency"):
        table.add_column(column, justify="right")
    for row in seen["rows"]:
        cells = [f"{row[name]:.4f}" for name in GROUPS]
        table.add_row(human(row["bytes"]), *cells, f"{row['efficiency']:.1%}")
    console.print()
    console.print(table)
    console.print(f"  {DEFINITION}")
    if load > 1:
        console.print(f"  the machine was not idle (load {load:.1f}): this says little")


def main() -> int:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo-out"), help="folder of the results")
    parser.add_argument("--wire", default=WIRE, help="rate of the wire, as tc has it")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=180.0, help="limit of the measurement")
    parser.add_argument("--inside", action="store_true", help="the wire is there: measure only")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    if not asked.inside:
        load = os.getloadavg()[0]
        seen = measured(asked.out.resolve(), asked.wire, asked.rounds, asked.seconds)
        show(seen, load, Console())
        return 0
    took = times(asked.out, asked.rounds, time.monotonic() + asked.seconds)
    text = json.dumps({"rows": rows(took)}, indent=1)
    (asked.out / "efficiency.json").write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

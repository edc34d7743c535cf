# SPDX-License-Identifier: Apache-2.0
"""The demo: one job over mixed transports, on real input. `make demo` calls it.

Four ranks on two emulated hosts (HCCOMM_HOST): those of one host meet over shared memory, the hosts
over TCP, in one process group. Their tensors lie on the chips of two simulated vendors and on the
CPU (tests/support/simdevice). They train a classifier, measure the collectives, and the outcome is
held against a single-process run of the same batches. Exit status 1 when that proof fails. Last
comes what mixing vendors costs: the efficiency of the mixed group (efficiency.py).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import efficiency
import picture
import torch
import torch.distributed as dist
import train
from efficiency import HOSTS, MIXED, environments, human
from ranks import Ranks
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

HERE = Path(__file__).resolve().parent
TOLERANCE = 1e-9  # of double-precision weights after hundreds of steps: only rounding may differ
SHOWN = [1024, 65536, 1048576, 16777216]  # sizes in the table; the picture has them all


def launch(folder: Path, console: Console, seconds: float) -> list[dict[str, Any]]:
    """Run the ranks with a progress bar; return their reports."""
    # As torchrun does: the launcher keeps the store, so that no rank's exit takes it away.
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    command = [sys.executable, str(HERE / "worker.py"), str(folder)]
    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with (
        Ranks(
            command, environments(MIXED, store.port), folder, time.monotonic() + seconds
        ) as ranks,
        Progress(*columns, console=console) as progress,
    ):
        training = progress.add_task("training", total=None, note="starting")
        points = progress.add_task("collectives", total=None, note="", start=False)
        for event in ranks.events():
            if event["event"] == "step":
                note = f"epoch {event['epoch']}, loss {event['loss']:.4f}"
                progress.update(training, completed=event["step"], total=event["of"], note=note)
            elif event["event"] == "point":
                progress.start_task(points)
                note = f"{event['collective']} {human(event['bytes'])}"
                progress.update(points, completed=event["point"], total=event["of"], note=note)
    return [json.loads((folder / f"rank{k}.json").read_text()) for k in range(len(HOSTS))]


def prove(folder: Path, reports: list[dict[str, Any]], console: Console) -> bool:
    """Hold the trained weights against a single-process run of the same batches."""
    recipe, data = train.Recipe(), train.load()
    alone = train.network(recipe)
    train.fit(alone, data, recipe, rank=0, size=1, say=lambda _event: None)
    together = torch.load(folder / "weights.pt", weights_only=True)
    worst = max(
        (weight - together[name]).abs().max().item() for name, weight in alone.state_dict().items()
    )
    moved = max(
        (weight - together[name]).abs().max().item()
        for name, weight in train.network(recipe).state_dict().items()
    )
    same_bits = len({report["weights"] for report in reports}) == 1
    steps = train.steps(recipe, len(data.train_y))
    console.print(f"\n[bold]Test accuracy[/]  {reports[0]['accuracy']:.2%}")
    console.print(f"  alone, in one process: {train.accuracy(alone, data):.2%}")
    console.print(f"[bold]Weights after {steps} steps[/], against one process on the same batches")
    console.print(f"  max abs difference {worst:.3e}, tolerance {TOLERANCE:g} {mark(worst, moved)}")
    console.print(f"  (training moved them by up to {moved:.3f})")
    console.print(f"  same bits on all ranks: {'yes' if same_bits else '[red]NO[/]'}")
    return worst <= TOLERANCE < moved and same_bits


def mark(worst: float, moved: float) -> str:
    """Say in a word whether the weights are equal, and not only because nothing was learnt."""
    return "[green]equal[/]" if worst <= TOLERANCE < moved else "[red]DIFFERENT[/]"


def show_transports(reports: list[dict[str, Any]], console: Console) -> set[str]:
    """Print how each pair of ranks is connected; return the transports in use."""
    table = Table(title="Transport of each pair", title_justify="left", box=box.SIMPLE)
    table.add_column("rank (host)")
    table.add_column("tensors on")
    for rank, host in enumerate(HOSTS):
        table.add_column(f"to {rank} ({host})")
    used = set()
    for rank, report in enumerate(reports):
        by_peer = {peer["rank"]: peer for peer in report["transports"]["peers"]}
        cells = []
        for other in range(len(HOSTS)):
            name = "-" if other == rank else by_peer[other]["transport"]
            used |= {name} - {"-"}
            cells.append(name)
        staged = report["transports"].get("devices", [])
        place = f"{staged[0]['device']}, staged" if staged else MIXED[rank] or "cpu"
        table.add_row(f"{rank} ({HOSTS[rank]})", place, *cells)
    console.print()
    console.print(table)
    return used


def show_table(rows: list[dict[str, Any]], console: Console) -> int:
    """Print the collectives table; return how many elements came out wrong at any size."""
    title = "Collectives, float32: microseconds, and bus bandwidth in GB/s"
    table = Table(title=title, title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("collective", no_wrap=True)
    for size_bytes in SHOWN:
        table.add_column(f"{human(size_bytes)}\nus", justify="right")
        table.add_column("\nGB/s", justify="right")
    table.add_column("\nwrong", justify="right")
    for name in dict.fromkeys(row["collective"] for row in rows):
        own = {row["bytes"]: row for row in rows if row["collective"] == name}
        cells = []
        for size_bytes in SHOWN:
            cells += [f"{own[size_bytes]['us']:.0f}", f"{own[size_bytes]['gbps']:.2f}"]
        table.add_row(name, *cells, str(sum(row["wrong"] for row in own.values())))
    console.print()
    console.print(table)
    return sum(row["wrong"] for row in rows)


def main() -> int:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo-out"), help="folder of the results")
    parser.add_argument("--seconds", type=float, default=240.0, help="limit of the whole run")
    parser.add_argument("--wire", default=efficiency.WIRE, help="its rate for the efficiency")
    parser.add_argument("--brief", action="store_true", help="leave the efficiency out")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    for stale in asked.out.glob("rank*"):
        stale.unlink()
    console = Console()
    begin = time.monotonic()
    busy = os.getloadavg()[0]
    console.print("[bold]hccomm demo[/]: ranks 0 and 2 on host alpha, 1 and 3 on host beta")
    console.print("devices: " + ", ".join(f"{k} {v or 'cpu'}" for k, v in enumerate(MIXED)))
    efficiency.simdevice.library()  # compiled before any rank's deadline counts
    try:
        reports = launch(asked.out.resolve(), console, asked.seconds)
    except RuntimeError as failure:
        console.print(f"[red]{failure}[/]", highlight=False)
        return 1
    wrong = show_table(reports[0]["table"], console)
    if busy > 1:
        console.print(f"  the machine was not idle (load {busy:.1f}): these times say little")
    used = show_transports(reports, console)
    equal = prove(asked.out, reports, console)
    if not asked.brief:
        try:
            seen = efficiency.measured(asked.out.resolve(), asked.wire, rounds=3, seconds=150.0)
            efficiency.show(seen, busy, console)
        except RuntimeError as failure:
            console.print(f"[yellow]The efficiency was not measured[/]: {failure}", highlight=False)
    drawn = asked.out / "bandwidth.png"
    picture.draw(reports[0]["table"], drawn, f"4 ranks, 2 vendors and CPU: {' + '.join(used)}")
    console.print(f"\nPicture: {drawn}   ({time.monotonic() - begin:.0f} s)")
    if not equal or wrong:
        console.print("[red]FAILED[/]: the distributed run is not the single-process run")
        return 1
    console.print("[green]All held.[/]")
    return 0


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: Apache-2.0
"""The command line: `hccomm info | explain | bench | tune | keygen`.

Only this file knows typer and rich. It prints what asking.py and bench.py answer; an hccomm.Error
ends a command with its text and exit code 2.
"""

from __future__ import annotations

import base64
import csv
import json
import os
import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

import hccomm
from hccomm import bench as benches
from hccomm import launchers
from hccomm import tune as tuning
from hccomm.local import RanksFailed

app = typer.Typer(
    help="Collective communication between ranks on chips of different vendors.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
out = Console(highlight=False, soft_wrap=True)


def main() -> None:
    """Run the command line; the entry point of the `hccomm` script."""
    try:
        app()
    except (hccomm.Error, RanksFailed) as error:
        print(f"hccomm: {error}", file=sys.stderr)
        sys.exit(2)


@app.command()
def info(
    config: bool = typer.Option(False, "--config", help="All HCCOMM_* settings, as Markdown."),
    as_json: bool = typer.Option(False, "--json", help="As JSON."),
    torch: bool = typer.Option(False, "--torch", help="Also how torch's device types are served."),
) -> None:
    """Show version, machine, transports and algorithms, each with why it is not available."""
    found: Any = hccomm.settings() if config else hccomm.info()
    if torch and not config:
        found["torch_devices"] = _torch_devices()
    if as_json:
        print(json.dumps(found, indent=2))
    elif config:
        _print_settings(found)
    else:
        _print_info(found)


@app.command()
def doctor(
    dumps: Annotated[list[str], typer.Argument(help="Files that ranks wrote to HCCOMM_DUMP.")],
) -> None:
    """Merge the flight recorders of all ranks; say who waits for whom and who is the cause."""
    from hccomm.doctor import diagnose, load

    print(diagnose(load(dumps)))


@app.command()
def explain(
    collective: str = typer.Argument(help="all_reduce, all_gather, ..."),
    ranks: int = typer.Option(4, help="Ranks of the group."),
    size: str = typer.Option("", "--bytes", help="Bytes of the count, like 4M; else 64K."),
    hosts: int = typer.Option(1, help="Equal hosts that the ranks sit on."),
    dtype: str = typer.Option("f32", help="Element type."),
    op: str = typer.Option("sum", help="Reduction."),
    plan: bool = typer.Option(False, "--plan", help="Also the steps of one rank."),
    rank: int = typer.Option(0, help="Whose steps."),
    islands: str = typer.Option("", help="Devices by rank, like cuda:0-2;musa:3,4; others: host."),
    as_json: bool = typer.Option(False, "--json", help="As JSON."),
) -> None:
    """Say which algorithm would serve a call, why, and what the alternatives are."""
    item = benches.SIZES_BY_NAME.get(dtype, 4)
    nbytes = benches.parse_bytes(size or ("0" if collective == "barrier" else "64K"))
    found = hccomm.explain(
        collective, count=nbytes // item, size=ranks, dtype=dtype, op=op,
        hosts=hosts, rank=rank, plan=plan, islands=islands,
    )  # fmt: skip
    if as_json:
        print(json.dumps(found, indent=2))
        return
    others, steps = found.pop("alternatives", []), found.pop("plan", "")
    over = found.pop("islands", {})
    for key, value in found.items():
        out.print(f"[bold]{key.replace('_', ' '):>14}[/]  ", end="")
        out.print(str(value), markup=False)
    if over:
        out.print(f"[bold]{'over islands':>14}[/]  ", end="")
        out.print(over["way"], markup=False)
        _table("islands", ("kind", "ranks", "library", "missing"), over["islands"])
        if over["rails"]:
            _table("rails of a block", ("first", "count", "ranks"), over["rails"])
    if others:
        _table("alternatives", ("name", "summary", "why_not"), others)
    if steps:
        out.print(f"\n[bold]the plan of rank {rank}[/]")
        print(steps)


@app.command()
def bench(
    collective: str = typer.Argument("all", help="One of them, or `all`."),
    ranks: int = typer.Option(0, help="Local ranks to start; 0: the launcher's, else 2."),
    hosts: int = typer.Option(1, help="Emulated hosts to spread local ranks over."),
    smallest: str = typer.Option("8", "--min", help="Smallest size in bytes."),
    largest: str = typer.Option("64M", "--max", help="Largest size in bytes."),
    factor: int = typer.Option(2, help="From one size to the next."),
    dtype: str = typer.Option("f32", help="Element type."),
    op: str = typer.Option("sum", help="Reduction."),
    root: int = typer.Option(0, help="Root of the rooted collectives."),
    seconds: float = typer.Option(0.1, help="Time to spend on one size."),
    iterations: int = typer.Option(0, "--iters", help="Calls per size; 0: as many as fit."),
    warmup: int = typer.Option(3, help="Calls before the clock runs."),
    check: bool = typer.Option(True, help="Check every result."),
    json_file: str = typer.Option("", "--json", help="Append JSON lines to this file."),
    csv_file: str = typer.Option("", "--csv", help="Write a table to this file."),
) -> None:
    """Time collectives as nccl-tests does: under any launcher, or on local ranks of its own."""
    names = benches.BENCHES if collective == "all" else (_bench_name(collective),)
    options = benches.Options(
        benches.sizes_between(benches.parse_bytes(smallest), benches.parse_bytes(largest), factor),
        dtype, op, root, seconds, iterations, warmup, check,
    )  # fmt: skip
    benches.numpy_dtype(dtype)  # says what is missing before any rank starts
    launched = launchers.detect()
    if launched.launcher != "none":
        if ranks not in (0, launched.size):
            raise hccomm.InvalidArgument(
                f"bench: --ranks {ranks}, but {launched.launcher} started {launched.size}; leave "
                "--ranks out under a launcher"
            )
        with hccomm.init() as comm:
            wrong = _bench_rank(comm, names, options, json_file, csv_file)
    else:
        limit = 60.0 + 40.0 * len(names) * len(options.sizes) * max(1.0, options.seconds)
        arguments = (names, options, json_file, csv_file)
        results = hccomm.run_local(_bench_rank, ranks or 2, *arguments, hosts=hosts, timeout=limit)
        wrong = results[0]
    if wrong:
        print(f"hccomm: bench: {wrong} elements were wrong", file=sys.stderr)
        sys.exit(1)


@app.command()
def tune(
    file: str = typer.Argument(help="Where to write the table; HCCOMM_TABLE names it then."),
    ranks: str = typer.Option("", help="Local ranks, like 2,4,8; default: 2 to twice the cores."),
    hosts: int = typer.Option(1, help="Emulated hosts to spread local ranks over."),
    seconds: float = typer.Option(0.01, help="Time to spend on one algorithm and size."),
) -> None:
    """Measure which algorithm is quickest where, and write a table for HCCOMM_TABLE.

    Under a launcher it measures the job's own ranks and rank 0 writes; else local ranks, under a
    minute. All ranks of a job must use the same table: copy it to every host.
    """
    launched = launchers.detect()
    if launched.launcher != "none":
        with hccomm.init() as comm:
            if comm.size < 2:
                raise hccomm.InvalidArgument(
                    "tune: the launcher started 1 rank, and one rank has nothing to choose; start "
                    "2 or more, or run it without a launcher"
                )
            measured = [tuning.measure(comm, seconds=seconds)]
            writes = comm.rank == 0
    else:
        if os.getloadavg()[0] > 0.7:
            print("hccomm: tune: the machine is busy; the table will not be good", file=sys.stderr)
        writes, measured = True, []
        for count in _tune_ranks(ranks):
            spread = min(hosts, count)
            found = hccomm.run_local(_tune_rank, count, seconds, hosts=spread, timeout=600.0)
            measured.append(found[0])
            out.print(found[0][1][0], markup=False)
    if not writes:
        return
    head = f"hccomm tune {hccomm.__version__}, {hccomm.info()['cores']} cores"
    try:
        with open(file, "w", encoding="utf-8") as stream:
            stream.write(tuning.table(measured, head))
    except OSError as error:
        raise hccomm.System(f"tune: {file}: {error.strerror}; name another file") from error
    print(f"wrote {file}; run every rank with HCCOMM_TABLE={os.path.abspath(file)}")


@app.command()
def keygen(
    file: str = typer.Argument(help="Where to write the key; must not exist."),
) -> None:
    """Make a job key, readable by its owner alone; give its path in HCCOMM_KEY_FILE."""
    try:
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise hccomm.System(f"keygen: {file}: {error.strerror}; name a new file") from error
    with os.fdopen(handle, "w") as stream:
        stream.write(base64.b64encode(os.urandom(32)).decode() + "\n")
    print(f"wrote {file}; run every rank with HCCOMM_KEY_FILE={file} HCCOMM_AUTH=require")


def _tune_rank(comm: hccomm.Communicator, seconds: float) -> tuple[list[tuning.Line], list[str]]:
    return tuning.measure(comm, seconds=seconds)


def _tune_ranks(asked: str) -> list[int]:
    cores = int(hccomm.info()["cores"])
    try:
        counts = sorted(
            {int(each) for each in asked.split(",")} if asked else {2, cores, 2 * cores}
        )
    except ValueError:
        counts = [0]
    if counts[0] < 2 and asked:
        raise hccomm.InvalidArgument(
            f"tune: --ranks {asked} is no list of numbers from 2 on; give one like 2,4,8"
        )
    return [count for count in counts if count >= 2]


# ---- printing --------------------------------------------------------------------------------


def _torch_devices() -> list[dict[str, Any]]:
    try:
        import hccomm.torch
    except ImportError as error:
        raise hccomm.Unavailable(f"info --torch: {error}; install torch") from error
    found = hccomm.torch.devices()
    nothing = {"type": "cpu", "devices": 0, "adapter": "", "native": False}
    return found or [{**nothing, "why": "torch sees no accelerator here"}]


def _print_info(found: dict[str, Any]) -> None:
    lists = {key: value for key, value in found.items() if isinstance(value, list)}
    for key, value in found.items():
        if key not in lists:
            out.print(f"[bold]{key:>12}[/]  ", end="")
            out.print(str(value), markup=False)
    for key, rows in lists.items():
        if key == "devices":
            _table(key, ("name", "summary", "available", "found"), [_found(row) for row in rows])
        elif rows:
            _table(key, tuple(rows[0]), rows)


def _found(row: dict[str, Any]) -> dict[str, Any]:
    """Say in one cell what was found of a kind of device, or why nothing was."""
    there = f"{row['count']} in {row['library']}: {row['devices']}; sums: {row['sums']}"
    there += f"; IPC: {row['ipc']}"
    return {**row, "found": there if row["available"] else row["reason"]}


def _print_settings(rows: list[dict[str, Any]]) -> None:
    """Print what docs/config.md is made of."""
    print("| setting | kind | default | meaning |\n| --- | --- | --- | --- |")
    for row in rows:
        kind = str(row["kind"]).replace("|", "\\|")
        print(f"| `{row['name']}` | {kind} | {row['default'] or '-'} | {row['meaning']} |")


def _table(title: str, columns: tuple[str, ...], rows: list[dict[str, Any]]) -> None:
    table = Table(title=title, title_justify="left", title_style="bold")
    for column in columns:
        table.add_column(column.replace("_", " "), overflow="fold")
    for row in rows:
        cells = (row.get(column, "") for column in columns)
        table.add_row(*("yes" if c is True else "no" if c is False else str(c) for c in cells))
    Console(highlight=False, markup=False).print(table)


def _bench_name(text: str) -> str:
    names = {each.replace("_", ""): each for each in benches.BENCHES}
    name = names.get(text.lower().replace("_", ""))
    if name is None:
        raise hccomm.InvalidArgument(
            f"bench: {text!r} is none; use one of {', '.join(benches.BENCHES)}, or all"
        )
    return name


def _bench_rank(
    comm: hccomm.Communicator,
    names: tuple[str, ...],
    options: benches.Options,
    json_file: str,
    csv_file: str,
) -> int:
    """Run the benches on this rank; rank 0 prints. Returns how many elements were wrong."""
    all_rows: list[benches.Row] = []
    for name in names:
        if comm.rank == 0:
            print(f"# hccomm {hccomm.version()} {name}, {comm.size} ranks")
            print("\n".join(benches.header()), flush=True)
        side: list[benches.Row] = []
        for row in benches.run(comm, name, options):
            if side and side[0].size != row.size:
                side = []
            side.append(row)
            all_rows.append(row)
            if comm.rank == 0 and row.mode == benches.last_mode(name):
                print(benches.line(side), flush=True)
    if comm.rank == 0:
        _write(all_rows, comm, json_file, csv_file)
    return sum(max(0, row.wrong) for row in all_rows)


def _write(
    rows: list[benches.Row], comm: hccomm.Communicator, json_file: str, csv_file: str
) -> None:
    common = {"library": "hccomm", "version": hccomm.version(), "ranks": comm.size}
    common["hosts"] = comm.describe().get("hosts", 1)
    if json_file:
        with open(json_file, "a", encoding="utf-8") as stream:
            for row in rows:
                stream.write(json.dumps(common | row._asdict()) + "\n")
    if csv_file:
        with open(csv_file, "w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow((*common, *benches.Row._fields))
            writer.writerows((*common.values(), *row) for row in rows)

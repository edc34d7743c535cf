# SPDX-License-Identifier: Apache-2.0
"""hccomm's C ABI beside the Intel MPI Benchmarks, interleaved, with ratios.

``python bench/imb.py --ranks 4`` runs build/release/bench/micro/collectives and IMB-MPI1, which the
wheel of Intel MPI ships and which MPICH runs as well (one ABI), round after round. Both time many
calls back to back and both put their buffers on huge pages where the kernel gives them. It prints
the medians over the rounds in microseconds, and the quickest peer's divided by hccomm's (above 1:
hccomm is quicker); and writes bench/results/<machine>-<ranks>ranks-c.md and .jsonl; with --tcp,
which holds all of them to TCP on loopback, <machine>-<ranks>ranks-tcp-c.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import mpis
import peers

HERE = Path(__file__).resolve()
PROGRAM = HERE.parent.parent / "build" / "release" / "bench" / "micro" / "collectives"
# IMB's name -> ours. Sizes mean the same in both.
NAMES = {
    "Allreduce": "allreduce", "Allgather": "allgather", "Reduce_scatter_block": "reducescatter",
    "Bcast": "bcast", "Alltoall": "alltoall", "Sendrecv": "sendrecv",
}  # fmt: skip
Times = dict[tuple[str, int], float]


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--least", type=int, default=3, help="the smallest size is 2 to this power")
    parser.add_argument("--most", type=int, default=24, help="the largest size is 2 to this power")
    parser.add_argument("--seconds", type=float, default=0.1, help="per collective and size")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds for one program")
    parser.add_argument("--tcp", action="store_true", help="no shared memory: TCP on loopback")
    parser.add_argument("--program", type=Path, default=PROGRAM)
    parser.add_argument("--out", type=Path, default=HERE.parent / "results")
    options = parser.parse_args()
    if not options.program.is_file():
        sys.exit(f"{options.program} is not built: cmake --preset release && cmake --build ...")
    commands, missing = programs(options)
    found: dict[str, dict[tuple[str, int], list[float]]] = {
        name: defaultdict(list) for name in commands
    }
    busy = []
    for turn in range(options.rounds):
        for name, (argv, environ) in commands.items():
            load = peers.Load()
            times = read(run(argv, environ, options.limit))
            busy.append(load.others())
            for key, microseconds in times.items():
                found[name][key].append(microseconds)
            print(f"# round {turn + 1} of {options.rounds}: {name} done", flush=True)
    report = table(options, found, missing, busy)
    print(report)
    options.out.mkdir(parents=True, exist_ok=True)
    way = "-tcp" if options.tcp else ""
    stem = options.out / f"{peers.machine()}-{options.ranks}ranks{way}-c"
    stem.with_suffix(".md").write_text(report, encoding="utf-8")
    with stem.with_suffix(".jsonl").open("w", encoding="utf-8") as stream:
        for name, rows in found.items():
            for (collective, size), rounds in rows.items():
                line = {"library": name, "ranks": options.ranks, "collective": collective}
                stream.write(json.dumps(line | {"size": size, "us": rounds}) + "\n")
    print(f"# wrote {stem}.md and .jsonl")


def programs(
    options: argparse.Namespace,
) -> tuple[dict[str, tuple[list[str], dict[str, str]]], dict[str, str]]:
    """Return what to run by library, and why the others are not there."""
    sizes = [str(1 << options.least), str(1 << options.most)]
    ours = [str(options.program), "all", str(options.ranks), *sizes, "5"]
    commands: dict[str, tuple[list[str], dict[str, str]]] = {"hccomm": (ours, {})}
    missing = {}
    intel = mpis.find("impi")
    imb = None if isinstance(intel, str) else Path(intel.launcher[0]).parent / "IMB-MPI1"
    for name in ("impi", "mpich"):
        mpi = mpis.find(name)
        if isinstance(mpi, str) or imb is None or not imb.is_file():
            missing[name] = mpi if isinstance(mpi, str) else "no IMB-MPI1: it comes with impi"
            continue
        library = Path(mpi.environ["MPI4PY_LIBMPI"]).parent
        fabric = library.parent / "opt" / "mpi" / "libfabric" / "lib"
        paths = [str(library), str(fabric), os.environ.get("LD_LIBRARY_PATH", "")]
        environ = mpi.environ | {
            "LD_LIBRARY_PATH": ":".join(filter(None, paths)),
            "FI_PROVIDER_PATH": str(fabric / "prov") if fabric.is_dir() else "",
        }
        settings = ["-msglog", f"{options.least}:{options.most}", "-npmin", str(options.ranks)]
        settings += ["-iter", "1000", "-time", str(options.seconds), "-mem", "4"]
        commands[name] = (mpi.command(options.ranks, str(imb), *NAMES, *settings), environ)
    if options.tcp:
        commands = {n: (argv, env | peers.over_tcp(n)) for n, (argv, env) in commands.items()}
    return commands, missing


def run(argv: list[str], environ: dict[str, str], limit: float) -> str:
    """Run one program to its end; return what it printed."""
    done = subprocess.run(
        argv, env=os.environ | environ, capture_output=True, text=True, timeout=limit, check=False
    )
    if done.returncode != 0:
        sys.exit(f"{' '.join(argv)}: exit status {done.returncode}: {done.stderr[-500:]}")
    return done.stdout


def read(said: str) -> Times:
    """Return the microseconds in the output of either program."""
    times: Times = {}
    current = ""
    for line in said.splitlines():
        if ours := re.match(r"(\w+) +\d+ ranks +(\d+) B +([\d.]+) us", line):
            times[ours[1], int(ours[2])] = float(ours[3])
        elif named := re.match(r"# Benchmarking (\w+)", line):
            current = NAMES.get(named[1], "")
        elif current and re.match(r" +[1-9]\d* +\d+ +[\d.]+ +[\d.]+ +[\d.]+", line):
            fields = line.split()  # bytes, repetitions, t_min, t_max, t_avg, ...
            times[current, int(fields[0])] = float(fields[4])
    return times


def table(
    options: argparse.Namespace,
    found: dict[str, dict[tuple[str, int], list[float]]],
    missing: dict[str, str],
    busy: list[float],
) -> str:
    """Return the report as Markdown."""
    names = list(found)
    lines = [
        f"# {options.ranks} ranks on one host from C{', TCP only' if options.tcp else ''}, "
        f"{options.rounds} interleaved rounds",
        "",
        f"{peers.cpu()}, {os.cpu_count()} cores. `python bench/imb.py {' '.join(sys.argv[1:])}`",
        "",
        "Medians in microseconds for one call on f32; sizes as IMB counts them (per rank, or per "
        "pair, except for allreduce, bcast and sendrecv). x is the quickest peer / hccomm.",
        "",
        peers.busy_note(busy),
        "",
        f"| collective | bytes | {' | '.join(names)} | x |",
        f"| --- | ---: |{' ---: |' * (len(names) + 1)}",
    ]
    ratios: dict[str, list[float]] = defaultdict(list)
    for collective in NAMES.values():
        for key in sorted(key for key in found["hccomm"] if key[0] == collective):
            times = {n: statistics.median(found[n][key]) for n in names if key in found[n]}
            if len(times) < 2:
                continue
            ratio = min(times[n] for n in times if n != "hccomm") / times["hccomm"]
            ratios[collective].append(ratio)
            cells = [f"{times[n]:.2f}" if n in times else "-" for n in names]
            lines.append(f"| {collective} | {key[1]} | {' | '.join(cells)} | {ratio:.2f} |")
    lines += ["", "Geometric mean of x:", ""]
    lines += [f"- {name}: {statistics.geometric_mean(all_)}" for name, all_ in ratios.items()]
    lines = [re.sub(r"(: \d\.\d\d)\d+$", r"\1", line) for line in lines]
    lines += [f"- not measured: {name}: {why}" for name, why in missing.items()]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""The same loop on hccomm and its peers, interleaved, with ratios.

``python bench/peers.py --ranks 4`` starts each peer as its own job (mpiexec, torchrun, local
ranks), a few seconds each, round after round (A B C A B C ...), so that a machine that gets busy
slows all alike. Every result is checked. It prints, for each collective and size, the median over
the rounds and the minimum in microseconds, and each peer's median divided by hccomm's (above 1:
hccomm is quicker); and writes bench/results/<machine>.jsonl and .md. A peer that is not installed
or cannot run is named with the reason.

``--fabric tcp`` (or shm, or a card's provider) compares hccomm's ofi transport with MPICH over the
same provider of the same libfabric, the one of MPICH's wheel, with MPICH's own shared memory off.
``--tcp`` holds every library to TCP inside the host, as it would be between hosts.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import adapters
import mpis
import oneccl_adapter

from hccomm import bench
from hccomm.rendezvous import unique_url

HERE = Path(__file__).resolve()
COLLECTIVES = (
    *("all_reduce", "all_gather", "reduce_scatter", "broadcast", "all_to_all", "barrier"),
    "sendrecv",
)
# One mode for each: torch reduces in place only, and the others are quickest out of place.
MODES = {"all_reduce": "in", "broadcast": "in"}


def main() -> None:
    """Be the coordinator, or with --worker one rank of one peer."""
    options = _arguments()
    if options.worker:
        work(options)
    else:
        coordinate(options)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", default=",".join(adapters.PEERS))
    parser.add_argument("--collectives", default=",".join(COLLECTIVES))
    parser.add_argument("--sizes", default="8,1K,64K,1M,16M")
    parser.add_argument("--seconds", type=float, default=0.1, help="per collective and size")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds for one peer's job")
    parser.add_argument("--fabric", default="", help="libfabric's provider for hccomm and mpich")
    parser.add_argument("--tcp", action="store_true", help="no shared memory: TCP on loopback")
    parser.add_argument("--out", default=str(HERE.parent / "results"))
    parser.add_argument("--worker", default="", help=argparse.SUPPRESS)
    parser.add_argument("--file", default="", help=argparse.SUPPRESS)
    return parser.parse_args()


# ---- one rank ----------------------------------------------------------------------------------


def work(options: argparse.Namespace) -> None:
    """Measure every case; rank 0 writes the rows."""
    adapter = adapters.make(options.worker)
    sizes = [bench.parse_bytes(each) for each in options.sizes.split(",")]
    settings = bench.Options(sizes, seconds=options.seconds)
    rows: list[dict[str, Any]] = []
    for name in options.collectives.split(","):
        mode = MODES.get(name, "out")
        try:
            rows += [row._asdict() for row in bench.run(adapter, name, settings, (mode,))]
        except (NotImplementedError, RuntimeError, KeyError) as error:
            rows.append({"collective": name, "missing": f"{type(error).__name__}: {error}"})
    if adapter.rank == 0:
        answer = {"version": adapters.version(adapter), "rows": rows}
        Path(options.file).write_text(json.dumps(answer), encoding="utf-8")
    adapters.end(adapter)


# ---- the coordinator ---------------------------------------------------------------------------


def coordinate(options: argparse.Namespace) -> None:
    """Run the rounds, print and write the table."""
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    names, missing = [], {}
    for name in options.peers.split(","):
        found = command(name, options, "/dev/null")
        if isinstance(found, str):
            missing[name] = found
        else:
            names.append(name)
    results: dict[str, list[dict[str, Any]]] = defaultdict(list)
    versions: dict[str, str] = {}
    busy: list[float] = []
    for turn in range(options.rounds):
        for name in list(names):
            answer, other = run_once(name, options)
            busy.append(other)
            if isinstance(answer, str):
                missing[name] = answer
                names.remove(name)
                print(f"# {name} left out: {answer}", flush=True)
                continue
            versions[name] = answer["version"]
            results[name] += [row | {"round": turn} for row in answer["rows"]]
            print(f"# round {turn + 1} of {options.rounds}: {name} done", flush=True)
    report = table(options, results, versions, missing, busy)
    print(report)
    way = f"-ofi-{options.fabric.replace(';', '-')}" if options.fabric else ""
    stem = out / f"{machine()}-{options.ranks}ranks{'-tcp' if options.tcp else way}"
    stem.with_suffix(".md").write_text(report, encoding="utf-8")
    with stem.with_suffix(".jsonl").open("w", encoding="utf-8") as stream:
        for name, rows in results.items():
            for row in rows:
                line = {"library": name, "version": versions[name], "ranks": options.ranks}
                stream.write(json.dumps(line | row) + "\n")
    print(f"# wrote {stem}.md and .jsonl")


def command(name: str, options: argparse.Namespace, file: str) -> tuple[list[str], dict] | str:
    """Return how to start ``name``, or why it cannot be."""
    found = _command(name, options, file)
    if isinstance(found, str):
        return found
    if options.tcp:
        return found[0], found[1] | over_tcp(name)
    if not options.fabric:
        return found
    fabric = _over_fabric(name, options.fabric)
    return fabric if isinstance(fabric, str) else (found[0], found[1] | fabric)


def over_tcp(name: str) -> dict[str, str]:
    """Return what holds ``name`` to TCP; Gloo and oneCCL know nothing else here."""
    if name in mpis.WHEELS:
        return mpis.over_tcp(name)
    return {"HCCOMM_TRANSPORTS": "tcp"} if name.startswith("hccomm") else {}


def _over_fabric(name: str, provider: str) -> dict[str, str] | str:
    """Return what holds ``name`` to libfabric's ``provider``, or why nothing does."""
    mpich = mpis.find("mpich")
    if isinstance(mpich, str):
        return mpich
    if name == "mpich":
        return mpis.over_tcp("mpich") | {"FI_PROVIDER": provider}
    if name != "hccomm":
        return "only hccomm and mpich are held to a provider of libfabric"
    library = Path(mpich.environ["MPI4PY_LIBMPI"]).parent / "mpich" / "libfabric.so.1"
    return {
        "HCCOMM_TRANSPORTS": "ofi",
        "HCCOMM_OFI_PROVIDER": provider,
        "HCCOMM_OFI_LIB": str(library),
    }


def _command(name: str, options: argparse.Namespace, file: str) -> tuple[list[str], dict] | str:
    worker = [
        *(sys.executable, str(HERE), "--worker", name, "--file", file),
        *("--sizes", options.sizes, "--collectives", options.collectives),
        *("--seconds", str(options.seconds)),
    ]
    if name in ("gloo", "hccomm-torch"):
        try:
            import torch  # noqa: F401
        except ImportError as error:
            return str(error)
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
        return [sys.executable, *launch, str(options.ranks), *worker[1:]], {"OMP_NUM_THREADS": "1"}
    if name == "oneccl":
        environ = oneccl_adapter.environ(options.ranks)
        return environ if isinstance(environ, str) else (worker, environ)
    if name == "hccomm":
        return worker, {}
    if name not in mpis.WHEELS:
        return f"unknown; choose from {', '.join(adapters.PEERS)}"
    found = mpis.find(name)
    if isinstance(found, str):
        return found
    try:
        import mpi4py  # noqa: F401
    except ImportError as error:
        return str(error)
    return found.command(options.ranks, *worker), found.environ


def run_once(name: str, options: argparse.Namespace) -> tuple[dict[str, Any] | str, float]:
    """Run one job of ``name``; return its answer and how busy others kept the machine."""
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "answer.json")
        found = command(name, options, file)
        if isinstance(found, str):
            return found, 0.0
        argv, environ = found
        copies = options.ranks if name in ("hccomm", "oneccl") else 1
        url = unique_url()
        before = Load()
        jobs = [
            subprocess.Popen(
                argv,
                env=os.environ | environ | (_local(rank, copies, url) if copies > 1 else {}),
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                start_new_session=True,
            )
            for rank in range(copies)
        ]  # fmt: skip
        said = _finish(jobs, options.limit)
        busy = before.others()
        if any(job.returncode != 0 for job in jobs) or not Path(file).is_file():
            told = [line for line in said.splitlines() if "Error" in line] or [said[-300:]]
            return f"exit codes {[job.returncode for job in jobs]}: {told[0].strip()}", busy
        answer: dict[str, Any] = json.loads(Path(file).read_text(encoding="utf-8"))
        return answer, busy


def _local(rank: int, size: int, url: str) -> dict[str, str]:
    return {
        "RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(size), "HCCOMM_RENDEZVOUS": url,
    }  # fmt: skip


def _finish(jobs: list[subprocess.Popen[str]], limit: float) -> str:
    """Wait for the jobs and end what is left of them; return what they printed."""
    said = ""
    deadline = time.monotonic() + limit
    try:
        for job in jobs:
            said += job.communicate(timeout=max(1.0, deadline - time.monotonic()))[0]
    except subprocess.TimeoutExpired:
        said += f" not done after {limit} s"
    finally:
        for job in jobs:
            if job.poll() is None:
                os.killpg(job.pid, signal.SIGKILL)
                job.wait(timeout=30)
    return said


class Load:
    """How many cores' worth of time passed in processes that are not this run's."""

    def __init__(self) -> None:
        self._busy, self._own, self._at = _busy_seconds(), _own_seconds(), time.monotonic()

    def others(self) -> float:
        """Return the cores that others used since."""
        spent = _busy_seconds() - self._busy - (_own_seconds() - self._own)
        return max(0.0, spent / max(1e-3, time.monotonic() - self._at))


def _busy_seconds() -> float:
    fields = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()[1:]
    numbers = [int(each) for each in fields]
    idle, stolen = numbers[3] + numbers[4], numbers[7] if len(numbers) > 7 else 0
    return (sum(numbers[:8]) - idle - stolen) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


# ---- the table -----------------------------------------------------------------------------------


def table(
    options: argparse.Namespace,
    results: dict[str, list[dict[str, Any]]],
    versions: dict[str, str],
    missing: dict[str, str],
    busy: list[float],
) -> str:
    """Return the whole report as Markdown."""
    names = [name for name in options.peers.split(",") if name in results]
    lines = [
        f"# {options.ranks} ranks on one host{', TCP only' if options.tcp else ''}, "
        f"{options.rounds} interleaved rounds",
        "",
        f"{platform.node()}: {cpu()}, {os.cpu_count()} cores, {platform.platform()}, Python "
        f"{platform.python_version()}. `python bench/peers.py {' '.join(sys.argv[1:])}`",
        "",
        "Median (minimum) of the rounds in microseconds for one call from Python on f32 in host "
        "memory; x is the peer's median / hccomm's, above 1 where hccomm is quicker.",
        "",
        busy_note(busy),
        "",
        "| collective | bytes | " + " | ".join(names) + " |",
        "| --- | ---: |" + " ---: |" * len(names),
    ]
    for key in _keys(results):
        cells = [_cell(results, name, key) for name in names]
        lines.append(f"| {key[0]} | {key[1]} | " + " | ".join(cells) + " |")
    lines += ["", "Geometric mean of x over all rows:", ""]
    for name in names:
        ratios = [each for each in (_ratio(results, name, key) for key in _keys(results)) if each]
        if ratios and name != "hccomm":
            lines.append(f"- {name}: {statistics.geometric_mean(ratios):.2f}")
    lines += ["", "Measured:", "", *(f"- {name}: {versions[name]}" for name in names)]
    lines += [f"- {name}: not measured: {_one_line(why)}" for name, why in missing.items()]
    wrong = sum(row.get("wrong", 0) for rows in results.values() for row in rows)
    lines += ["", f"Wrong elements: {wrong}.", ""]
    return "\n".join(lines)


def _keys(results: dict[str, list[dict[str, Any]]]) -> list[tuple[str, int]]:
    keys: dict[tuple[str, int], None] = {}
    for rows in results.values():
        for row in rows:
            if "size" in row:
                keys[row["collective"], row["size"]] = None
    return sorted(keys, key=lambda key: (COLLECTIVES.index(key[0]), key[1]))


def _times(results: dict[str, list[dict[str, Any]]], name: str, key: tuple[str, int]) -> list[Any]:
    return [row for row in results.get(name, ()) if (row["collective"], row.get("size")) == key]


def _ratio(
    results: dict[str, list[dict[str, Any]]], name: str, key: tuple[str, int]
) -> float | None:
    ours, theirs = _times(results, "hccomm", key), _times(results, name, key)
    if not ours or not theirs:
        return None
    medians = [statistics.median(row["time_us"] for row in rows) for rows in (theirs, ours)]
    return medians[0] / medians[1]


def _cell(results: dict[str, list[dict[str, Any]]], name: str, key: tuple[str, int]) -> str:
    rows = _times(results, name, key)
    if not rows:
        return "-"
    median = statistics.median(row["time_us"] for row in rows)
    text = f"{median:.1f} ({min(row['min_us'] for row in rows):.1f})"
    ratio = _ratio(results, name, key)
    return text if name == "hccomm" or ratio is None else f"{text} x{ratio:.2f}"


def busy_note(busy: list[float]) -> str:
    most, middle = max(busy, default=0.0), statistics.median(busy or [0.0])
    if most < 0.1:
        return "The machine was idle otherwise."
    return (
        f"**The machine was not idle**: other processes used {middle:.2f} cores in the median job "
        f"and {most:.2f} in the busiest; trust ratios and minima, not medians alone."
    )


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]


def cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def machine() -> str:
    """Return a file name for this machine: processor and cores."""
    words = "".join(c if c.isalnum() else " " for c in cpu().lower()).split()
    return "-".join([*words[:4], f"{os.cpu_count()}cores"])


if __name__ == "__main__":
    main()

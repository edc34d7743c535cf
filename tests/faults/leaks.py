# SPDX-License-Identifier: Apache-2.0
"""The leak storm: what is left on the machine, and in a process, when communicators have gone.

Promise: after SIGKILL of every rank and of what launched them nothing new is in /dev/shm, in the
folder for temporary files, among System V segments or abstract sockets, with a /dev/shm of 1 MiB;
making and closing communicators leaves no descriptor, no thread and no megabyte.

storm.py runs this in namespaces of its own where it may, so that other programs cannot be blamed.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import private
from pool import ROOT, Hung, Pool, await_all, moment, set_to_work
from report import Trial
from works import COLLECTIVES

TIMEOUT = 30.0
SETUP = "mount -t tmpfs -o size=1m tmpfs /dev/shm && mount -t tmpfs tmpfs /tmp"


def trials(
    count: int,
    seed: int,
    *,
    transports: Sequence[str] = ("shm", "tcp"),
    ranks: Sequence[int] = (2, 3, 4),
    cycles: int = 200,
    delays: Sequence[float] = (0.0, 0.005, 0.02, 0.2),
) -> Iterator[Trial]:
    """Kill ``count`` whole jobs with their launchers, then count what ``cycles`` leave behind."""
    chance = random.Random(seed)
    for number in range(count):
        what = {
            "transport": transports[number % len(transports)],
            "ranks": chance.choice(list(ranks)),
            "collective": chance.choice(COLLECTIVES),
            "bytes": chance.choice((64, 1 << 20, 16 << 20)),
            "delay": chance.choice(list(delays)),
        }
        yield _massacre(number, what)
    for transport in transports:
        for groups in (False, True):
            what = {"transport": transport, "ranks": 3, "groups": groups, "cycles": cycles}
            yield _cycles(what)


# ---- everybody dies --------------------------------------------------------------------------


def _massacre(number: int, what: dict[str, Any]) -> Trial:
    trial = Trial("leak", f"leak, all killed {what['transport']}", number, what)
    folder = tempfile.mkdtemp(prefix="leaks-")
    saved, tempfile.tempdir = tempfile.tempdir, None
    os.environ["TMPDIR"] = os.environ["XDG_RUNTIME_DIR"] = folder
    home = f"{folder}/hccomm-{os.getuid()}"  # where hccomm itself makes meeting places
    os.mkdir(home, 0o700)
    try:
        before = _snapshot(folder)
        pool = Pool.over(what["transport"])
        group, meeting = pool.take(what["ranks"]), {"url": f"file://{home}/job", "name": "job"}
        job = {name: what[name] for name in ("collective", "bytes")}
        set_to_work(group, meeting, "loop", TIMEOUT, **job)
        if what["delay"] > 0.1:  # in mid-work; else while they meet
            await_all(group, "up", TIMEOUT)
        moment(what["delay"])
        pool.nursery.process.send_signal(signal.SIGKILL)  # the ranks die with it
        trial.asked = len(group)
        for process in group:
            process.end()
            trial.noticed += 1
            trial.named += 1
        pool.ranks.clear()
        for each in os.scandir(
            home
        ):  # killed before the mark was whole: a minute later it is swept
            os.utime(each.path, (time.time() - 120.0,) * 2)
        _next_job(f"file://{home}/next")
        left = sorted(_snapshot(folder) - before - _own(pool.folder))
        trial.leaked = len(left)
        trial.faults += [f"left behind: {each}" for each in left]
        pool.close()
    except (Hung, EOFError, RuntimeError) as error:
        trial.hung += isinstance(error, Hung)
        trial.faults.append(str(error))
    finally:
        tempfile.tempdir = saved
        del os.environ["TMPDIR"], os.environ["XDG_RUNTIME_DIR"]
        shutil.rmtree(folder, ignore_errors=True)
    return trial


def _next_job(url: str) -> None:
    """Open the next meeting place: that removes what jobs killed in meeting have left beside it."""
    code = (
        "import hccomm, sys\n"
        "try: hccomm.init(rank=0, size=2, rendezvous=sys.argv[1], name='next', timeout=0.05)\n"
        "except hccomm.Timeout: pass"
    )
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    subprocess.run(
        [sys.executable, "-c", code, url],
        env=os.environ | {"PYTHONPATH": path},
        timeout=TIMEOUT,
        check=True,
    )


def _snapshot(folder: str) -> set[str]:
    """Return what programs can leave behind; outside private namespaces only our own names."""
    found = {f"/dev/shm/{name}" for name in os.listdir("/dev/shm")}
    with open("/proc/sysvipc/shm", encoding="ascii") as segments:
        found |= {f"sysv segment {line.split()[1]}" for line in segments.readlines()[1:]}
    with open("/proc/net/unix", encoding="utf-8", errors="replace") as sockets:
        names = [line.split()[7] for line in sockets.readlines()[1:] if len(line.split()) > 7]
    found |= {f"socket {name}" for name in names if name.startswith("@")}
    if not private.inside():
        found = {each for each in found if "hccomm" in each}
    found |= {f"/tmp/{name}" for name in os.listdir("/tmp") if "hccomm" in name}
    return found | {str(path) for path in Path(folder).rglob("*")}


def _own(folder: Path) -> set[str]:
    """Return what the pool itself puts into its folder; the ranks' meetings are not of it."""
    return {str(folder)} | {str(path) for path in folder.glob("*.log")}


# ---- again and again -------------------------------------------------------------------------


def _cycles(what: dict[str, Any]) -> Trial:
    label = "groups" if what["groups"] else "cycles"
    trial = Trial("leak", f"leak, {label} {what['transport']}", 0, what)
    with Pool.over(what["transport"]) as pool:
        group, meeting = pool.take(what["ranks"]), pool.meeting()
        trial.asked = len(group)
        began = time.monotonic()
        job = {name: what[name] for name in ("groups", "cycles")}
        set_to_work(group, meeting, "cycles", TIMEOUT, **job)
        for rank, process in enumerate(group):
            try:
                answer = process.hear("done", began + TIMEOUT + what["cycles"] * 0.5)
            except (Hung, EOFError, RuntimeError) as error:
                trial.hung += isinstance(error, Hung)
                trial.faults.append(str(error))
                continue
            before, after = answer["before"], answer["after"]
            more = {name: after[name] - before[name] for name in before}
            what.setdefault("growth", []).append(more)
            leaked = max(0, more["fds"]) + max(0, more["threads"])
            trial.leaked += leaked
            trial.noticed += 1
            trial.named += 1
            if leaked or more["rss_kib"] > 2048:
                trial.faults.append(f"rank {rank} grew in {what['cycles']} cycles: {more}")
        trial.times_ms.append((time.monotonic() - began) * 1e3 / what["cycles"])
    return trial

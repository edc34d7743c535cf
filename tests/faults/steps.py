# SPDX-License-Identifier: Apache-2.0
"""The step storm: a rank is killed at the Nth system call of its init().

Promise: the others' init() returns or raises within its timeout and one second, naming that rank,
whenever they come to the meeting. The victim is traced with ptrace, so
that every place at which its peers can see a difference is met, not only those that chance finds.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from typing import Any

from pool import Hung, Pool, Rank, others_say
from report import Trial
from strays import free_port

TIMEOUT = 3.0  # of init()
PATIENCE = 20.0
_SEIZE, _INTERRUPT, _SYSCALL = 0x4206, 0x4207, 24
_TRACESYSGOOD = 1
_WALL = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def trials(
    count: int,
    *,
    first: int = 1,
    step: int = 7,
    ranks: int = 3,
    stores: Sequence[str] = ("file", "tcp"),
    late: float = 1.0,
) -> Iterator[Trial]:
    """Kill at calls ``first``, ``first + step``, ... of init, ``count`` of them for each store."""
    with Pool(HCCOMM_TRANSPORTS="shm,tcp") as pool:
        for store in stores:
            for number in range(count):
                at = first + number * step
                what = {"store": store, "at": at, "ranks": ranks, "victim": number % ranks}
                yield _trial(pool, number, what, late)


def permitted() -> bool:
    """Whether this machine lets us trace a process of ours."""
    if platform.machine() != "x86_64":  # the only one it was tried on
        return False
    child = subprocess.Popen(["sleep", "30"])
    try:
        _ptrace(child.pid, _SEIZE, 0)
    except OSError:
        return False
    finally:
        child.kill()
        child.wait(30.0)
    return True


def _trial(pool: Pool, number: int, what: dict[str, Any], late: float) -> Trial:
    trial = Trial("step", f"killed at a call of init, {what['store']}", number, what)
    group, meeting = pool.take(what["ranks"]), pool.meeting()
    if what["store"] == "tcp":
        meeting["url"] = f"tcp://127.0.0.1:{free_port()}"
    victim = group[what["victim"]]
    try:
        order = sorted(enumerate(group), key=lambda each: each[1] is victim)  # the victim last
        for rank, process in order:
            job = {"program": "kill", "rank": rank, "size": len(group), "timeout": TIMEOUT}
            job |= {"phase": "init", "how": "signal", "collective": "all_reduce", "bytes": 64}
            if process is victim:
                _kill_at(process, job | meeting, what["at"])
            else:
                process.tell(job | meeting)
        died = time.monotonic()
        trial.asked = len(group) - 1
        for rank, process in enumerate(group):
            if process is not victim:
                _judge(trial, rank, process.hear("done", died + PATIENCE), died, late)
        os.waitpid(victim.pid, _WALL)  # until now nobody has asked for it, as often in real jobs
    except (Hung, EOFError, RuntimeError, OSError) as error:
        trial.hung += isinstance(error, Hung)
        trial.faults.append(f"{error}\n{others_say(group)}")
        for process in group:
            pool.drop(process)
    else:
        pool.drop(victim)
    return trial


def _judge(trial: Trial, rank: int, answer: dict[str, Any], died: float, late: float) -> None:
    took, victim = answer["at"] - died, trial.what["victim"]
    trial.times_ms.append(took * 1e3)
    right = answer["error"] in ("PeerLost", "Timeout") and took < TIMEOUT + late
    missing = re.findall(r"ranks? ([0-9][0-9, and]*)", answer["text"])
    named = answer["blames"] == victim or any(
        str(victim) in re.findall(r"[0-9]+", each) for each in missing
    )
    trial.noticed += right
    trial.named += right and named
    if not named or not right:
        text = f"{answer['error']} {answer['blames']} after {took:.2f} s: {answer['text']}"
        trial.faults.append(f"rank {rank}: {text}")


def _kill_at(victim: Rank, job: dict[str, Any], number: int) -> None:
    """Give a process its job, and kill it at its ``number``-th system call from then on.

    Its first thread alone is watched: it is the one that calls init(). Raises OSError where the
    system does not permit it, RuntimeError when the process makes no call any more.
    """
    _ptrace(victim.pid, _SEIZE, _TRACESYSGOOD)
    _ptrace(victim.pid, _INTERRUPT, 0)
    _stopped(victim.pid)
    victim.tell(job)
    stops = passed_on = 0
    while stops < 2 * number:  # a call stops where it begins and where it ends
        _ptrace(victim.pid, _SYSCALL, passed_on)
        reason = _stopped(victim.pid)
        stops += reason == signal.SIGTRAP | 0x80
        passed_on = 0 if reason & 0x7F == signal.SIGTRAP else reason
    victim.signal(signal.SIGKILL)


def _stopped(pid: int) -> int:
    """Wait until the traced process stops, and return the signal it stopped for."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        found, status = os.waitpid(pid, os.WNOHANG | _WALL)
        if found and not os.WIFSTOPPED(status):
            raise RuntimeError(f"process {pid} ended by itself: {status}")
        if found:
            return os.WSTOPSIG(status)
        time.sleep(0.0001)
    raise RuntimeError(f"process {pid} made no system call for {PATIENCE} s")


def _ptrace(pid: int, request: int, data: int) -> None:
    if _libc.ptrace(*(ctypes.c_long(each) for each in (request, pid, 0, data))) != 0:
        raise OSError(ctypes.get_errno(), f"ptrace {request:#x} of process {pid}")

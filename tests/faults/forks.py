# SPDX-License-Identifier: Apache-2.0
"""The fork storm: children that hold a dead rank's sockets open, and children that use them.

Promise: survivors notice a death as soon as they do without children (workers of a data loader); a
communicator used in a forked child raises at once, and its parent goes on undisturbed.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Iterator, Sequence
from typing import Any

from pool import Hung, Pool, Rank, moment, others_say, set_to_work
from report import Trial
from works import COLLECTIVES

TIMEOUT = 20.0


def trials(
    count: int,
    seed: int,
    *,
    transports: Sequence[str] = ("shm", "tcp"),
    ranks: Sequence[int] = (2, 3, 4),
    late: float = 2.0,
) -> Iterator[Trial]:
    """Kill ``count`` ranks whose children live on; then use communicators in children."""
    chance = random.Random(seed)
    for transport in transports:
        with Pool.over(transport) as pool:
            for number in range(max(1, count // len(transports))):
                what = {
                    "transport": transport,
                    "ranks": chance.choice(list(ranks)),
                    "collective": chance.choice(COLLECTIVES),
                    "bytes": chance.choice((64, 1 << 20)),
                    "children": chance.choice((1, 4)),
                }
                what["victim"] = chance.randrange(what["ranks"])
                yield _death(pool, number, what, late)
            yield _use(pool, 0, {"transport": transport, "ranks": min(ranks)})


def _start(pool: Pool, what: dict[str, Any], program: str) -> list[Rank]:
    group, meeting = pool.take(what["ranks"]), pool.meeting()
    job = {name: value for name, value in what.items() if name != "ranks"}
    set_to_work(group, meeting, program, TIMEOUT, **job)
    return group


def _death(pool: Pool, number: int, what: dict[str, Any], late: float) -> Trial:
    trial = Trial("fork", f"fork, then kill {what['transport']}", number, what)
    group, victim = _start(pool, what, "parent"), what["victim"]
    trial.asked = len(group) - 1
    orphans: list[int] = []
    try:
        for rank, process in enumerate(group):
            answer = process.hear("up", time.monotonic() + TIMEOUT + 10.0)
            if rank == victim:
                orphans = answer["children"]
        moment(0.05)
        died = group[victim].signal(signal.SIGKILL)
        for rank, process in enumerate(group):
            if rank == victim:
                continue
            answer = process.hear("done", died + TIMEOUT + 10.0)
            took = answer["at"] - died
            trial.times_ms.append(took * 1e3)
            right = answer["error"] == "PeerLost"
            trial.noticed += right
            trial.named += right and answer["blames"] == victim
            if not right or answer["blames"] != victim or took > late:
                text = f"{answer['error']} {answer['blames']} after {took:.2f} s: {answer['text']}"
                trial.faults.append(f"rank {rank}: {text}")
    except (Hung, EOFError, RuntimeError) as error:
        trial.hung += isinstance(error, Hung)
        trial.faults.append(f"{error}\n{others_say(group)}")
        for process in group:
            pool.drop(process)
    finally:
        for child in orphans:  # ours alone: they end by themselves in a minute, no sooner
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
    return trial


def _use(pool: Pool, number: int, what: dict[str, Any]) -> Trial:
    trial = Trial("fork", f"use in a child {what['transport']}", number, what)
    group = _start(pool, what, "use_in_child")
    harmless = {"close": "nothing", "exit": "nothing", "parent goes on": "fine"}
    for rank, process in enumerate(group):
        try:
            answers = process.hear("done", time.monotonic() + 150.0)["answers"]
        except (Hung, EOFError, RuntimeError) as error:
            trial.hung += isinstance(error, Hung)
            trial.faults.append(str(error))
            pool.drop(process)
            continue
        answers.setdefault("parent goes on", "raised")
        for name, answer in answers.items():
            trial.asked += 1
            right = answer == harmless[name] if name in harmless else "forked" in answer
            trial.noticed += right
            trial.named += right
            if not right:
                trial.faults.append(f"rank {rank}, {name} in a child: {answer}")
    return trial

# SPDX-License-Identifier: Apache-2.0
"""The fork storm: children that hold a dead rank's sockets open, and children that use them.

Promise: survivors notice a death as soon as they do without children (workers of a data loader); a
communicator used in a forked child raises at once, and its parent goes on undisturbed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import kills
from pool import Hung, Pool, Rank, set_to_work
from report import Trial

TIMEOUT = 20.0
PHASES = ("collective", "idle", "init", "teardown")


def trials(
    count: int,
    seed: int,
    *,
    transports: Sequence[str] = ("shm", "tcp"),
    ranks: Sequence[int] = (2, 3, 4),
    late: float = 2.0,
) -> Iterator[Trial]:
    """Kill ``count`` ranks whose children live on; then use communicators in children."""
    for children in (1, 4):
        yield from kills.trials(
            max(1, count // 2),
            seed + children,
            transports=transports,
            ranks=ranks,
            phases=PHASES,
            sizes=(64, 1 << 20),
            late=late,
            children=children,
        )
    for transport in transports:
        with Pool.over(transport) as pool:
            yield _use(pool, 0, {"transport": transport, "ranks": min(ranks)})


def _start(pool: Pool, what: dict[str, Any], program: str) -> list[Rank]:
    group, meeting = pool.take(what["ranks"]), pool.meeting()
    job = {name: value for name, value in what.items() if name != "ranks"}
    set_to_work(group, meeting, program, TIMEOUT, **job)
    return group


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

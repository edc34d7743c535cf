# SPDX-License-Identifier: Apache-2.0
"""The rejoin storm: a worker is lost in mid-training, another comes, and nothing of it shows.

The driver is what torchft calls a lighthouse: workers ask it for a group; it names rank, size and a
place. Promise: the survivors go on in their processes (Communicator.reconfigure), a new process
joins them, and the loss in the end is that of a run that nobody disturbed.
"""

from __future__ import annotations

import math
import random
import signal
import time
from collections.abc import Iterator, Sequence
from typing import Any

import training
from pool import Hung, Pool, Rank, moment, others_say
from report import Trial

TIMEOUT = 30.0
STEPS = 120


def trials(
    count: int,
    seed: int,
    *,
    transports: Sequence[str] = ("shm", "tcp"),
    ranks: Sequence[int] = (2, 3, 4),
    late: float = 2.0,
) -> Iterator[Trial]:
    """Train ``count`` times; each loses a worker and gets another. ``late``: seconds to go on."""
    chance, end = random.Random(seed), training.undisturbed(STEPS)
    pools = {each: Pool.over(each) for each in transports}
    try:
        for number in range(count):
            transport = list(transports)[number % len(transports)]
            what = {"transport": transport, "ranks": chance.choice(list(ranks))}
            what["victim"] = chance.randrange(what["ranks"])
            what["delay"] = chance.uniform(0.0, 0.01)
            yield _trial(pools[transport], number, what, end, late)
    finally:
        for each in pools.values():
            each.close()


def _trial(
    pool: Pool, number: int, what: dict[str, Any], end: training.Model, late: float
) -> Trial:
    trial = Trial("rejoin", f"rejoin {what['transport']}", number, what)
    group: list[Rank] = []
    try:
        group = list(pool.take(what["ranks"]))
        for process in group:
            process.tell({"program": "train", "steps": STEPS, "timeout": TIMEOUT})
        _gather(pool, group)
        _await_step(group[0], STEPS // 4)
        moment(what["delay"])
        victim = group[what["victim"]]
        died = victim.signal(signal.SIGKILL)
        pool.drop(victim)
        group.remove(victim)
        _gather(pool, group)
        if _await_step(group[0], 1) < STEPS // 2:
            _await_step(group[0], STEPS // 2)
        took = time.monotonic() - died
        trial.times_ms.append(took * 1e3)
        group[0].tell("make room")
        group = list(pool.take(what["ranks"]))  # the survivors, and a new process
        group[-1].tell({"program": "train", "steps": STEPS, "timeout": TIMEOUT})
        _gather(pool, group)
        for process in group:
            process.hear("ready", time.monotonic() + TIMEOUT)
            process.tell("end")
        trial.asked = len(group)
        for rank, process in enumerate(group):
            answer = process.hear("done", time.monotonic() + TIMEOUT)
            right = math.isclose(answer["loss"], end.loss(), rel_tol=1e-9)
            trial.noticed += right
            trial.named += right
            if not right:
                trial.faults.append(f"rank {rank}: loss {answer['loss']}, not {end.loss()}")
        if took > late:
            trial.faults.append(f"it took {took:.1f} s to go on")
    except (Hung, EOFError, RuntimeError) as error:
        trial.hung += isinstance(error, Hung)
        trial.faults.append(f"{error}\n{others_say(group)}")
        for process in [each for each in group if each in pool.ranks]:
            pool.drop(process)
    return trial


def _gather(pool: Pool, group: list[Rank]) -> None:
    """Make a group of those that ask for one; who is ahead gives its state."""
    deadline = time.monotonic() + TIMEOUT
    steps = [process.hear("ready", deadline)["step"] for process in group]
    order = {"size": len(group), "root": steps.index(max(steps)), **pool.meeting()}
    for rank, process in enumerate(group):
        process.tell(order | {"rank": rank})


def _await_step(process: Rank, step: int) -> int:
    """Wait until the worker has done ``step`` steps; return how many it has."""
    while True:
        found = int(process.hear("at", time.monotonic() + TIMEOUT)["step"])
        if found >= step:
            return found

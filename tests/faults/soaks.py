# SPDX-License-Identifier: Apache-2.0
"""The soak: ranks work for a long time while they are stopped for moments, killed, and replaced.

Promise: a stop of less than a second disturbs nobody; after a death the others shrink and go on
with right sums; when half are left, new processes join the rest in a new meeting. In the end the
rank that lived through all of it holds no more descriptors and threads than a new one.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator, Sequence
from typing import Any

import kills
from pool import Hung, Pool, Rank, await_all, moment, others_say, set_to_work
from report import Trial

TIMEOUT = 30.0
FEWEST = 4  # ranks that are left when new ones join


def trials(
    seconds: float, seed: int, *, transports: Sequence[str] = ("shm", "tcp"), ranks: int = 8
) -> Iterator[Trial]:
    """Work for ``seconds`` in all, by the transports in turn; each job is one trial."""
    chance, number = random.Random(seed), 0
    pools = {each: Pool.over(each) for each in transports}
    until = time.monotonic() + seconds
    try:
        while time.monotonic() < until:
            for transport, pool in pools.items():
                yield _trial(pool, number, {"transport": transport, "ranks": ranks}, chance)
                number += 1
        for transport, pool in pools.items():
            yield kills.held(pool, number, transport)
    finally:
        for each in pools.values():
            each.close()


def _trial(pool: Pool, number: int, what: dict[str, Any], chance: random.Random) -> Trial:
    trial = Trial("soak", f"soak {what['transport']}", number, what)
    what["bytes"] = chance.choice((64, 4096, 1 << 20, 4 << 20))
    what["stops"] = what["deaths"] = 0
    group: list[Rank] = []
    try:
        group, meeting = pool.take(what["ranks"]), pool.meeting()
        set_to_work(group, meeting, "survive", TIMEOUT, bytes=what["bytes"])
        await_all(group, "up", TIMEOUT)
        while len(group) > FEWEST:
            if chance.random() < 0.6:
                _stop(chance.choice(group), what, chance)
            else:
                group = _kill(group, trial, chance)
            moment(chance.uniform(0.0, 1.0))
        group[0].tell("stop")
        for rank, process in enumerate(group):
            answer = process.hear("done", time.monotonic() + TIMEOUT)
            if answer["error"]:
                trial.faults.append(f"survivor {rank}: {answer['error']}: {answer['text']}")
    except (Hung, EOFError, RuntimeError) as error:
        trial.hung += isinstance(error, Hung)
        trial.faults.append(f"{error}\n{others_say(group)}")
        for process in [each for each in group if each in pool.ranks]:
            pool.drop(process)
    return trial


def _stop(process: Rank, what: dict[str, Any], chance: random.Random) -> None:
    what["stops"] += 1
    process.pause(chance.uniform(0.05, 0.9))


def _kill(group: list[Rank], trial: Trial, chance: random.Random) -> list[Rank]:
    """Kill one rank; return the others once each has a right sum without it."""
    victim = chance.choice(group)
    left = [each for each in group if each is not victim]
    died = victim.signal(signal.SIGKILL)
    trial.what["deaths"] += 1
    trial.asked += len(left)
    for rank, process in enumerate(left):
        answer = process.hear("up", died + TIMEOUT)
        trial.times_ms.append((answer["at"] - died) * 1e3)
        trial.noticed += 1
        trial.named += answer["rank"] == rank and answer["size"] == len(left)
        if answer["rank"] != rank or answer["size"] != len(left):
            trial.faults.append(f"survivor {rank}: {answer}")
    return left

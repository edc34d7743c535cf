# SPDX-License-Identifier: Apache-2.0
"""The shrink storm: ranks die one after the other, the rest go on without them, others join.

Promise: after a death the survivors agree on who is left and have a correct all_reduce in less than
a second, also when a second rank dies while they agree; and at a reconfigure point (a new meeting)
processes that were not there before join them, without a restart of those that were.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator, Sequence
from typing import Any

from pool import Hung, Pool, Rank, await_all, moment, others_say, set_to_work
from report import Trial

TIMEOUT = 30.0


def trials(
    count: int,
    seed: int,
    *,
    transports: Sequence[str] = ("shm", "tcp"),
    ranks: Sequence[int] = (3, 4, 5, 6, 7, 8),
    late: float = 1.0,
) -> Iterator[Trial]:
    """Shrink ``count`` jobs by one or two ranks, and fill each up again with new processes."""
    chance = random.Random(seed)
    pools = {each: Pool.over(each) for each in transports}
    try:
        for number in range(count):
            size = chance.choice(list(ranks))
            deaths = chance.choice((1, 2)) if size > 3 else 1
            what = {
                "transport": chance.choice(list(transports)),
                "ranks": size,
                "bytes": chance.choice((64, 1 << 20)),
                "victims": chance.sample(range(size), deaths),
                "gap": chance.choice((0.0, 0.001, 0.01, 0.03)),
            }
            yield _trial(pools[what["transport"]], number, what, late)
    finally:
        for each in pools.values():
            each.close()


def _start(pool: Pool, what: dict[str, Any]) -> list[Rank]:
    """Set as many ranks to work as the job has, those of the last trial among them."""
    group, meeting = pool.take(what["ranks"]), pool.meeting()
    set_to_work(group, meeting, "survive", TIMEOUT, bytes=what["bytes"])
    await_all(group, "up", TIMEOUT)
    return group


def _trial(pool: Pool, number: int, what: dict[str, Any], late: float) -> Trial:
    row = f"shrink by {len(what['victims'])} {what['transport']}"
    trial = Trial("shrink", row, number, what)
    group: list[Rank] = []
    try:
        group = _start(pool, what)
        moment(0.05)
        died = 0.0
        for victim in what["victims"]:
            died = group[victim].signal(signal.SIGKILL)
            moment(what["gap"])
        left = [each for rank, each in enumerate(group) if rank not in what["victims"]]
        trial.asked = len(left)
        for rank, process in enumerate(left):
            answer = {"size": 0}
            while answer["size"] != len(left):  # with two deaths it may take two turns
                answer = process.hear("up", died + TIMEOUT)
            took = answer["at"] - died
            trial.times_ms.append(took * 1e3)
            trial.noticed += 1
            trial.named += answer["rank"] == rank
            if answer["rank"] != rank or took > late:
                trial.faults.append(f"survivor {rank}: {answer} after {took:.2f} s")
        left[0].tell("stop")
        for rank, process in enumerate(left):
            answer = process.hear("done", time.monotonic() + TIMEOUT)
            if answer["error"]:
                trial.faults.append(f"survivor {rank}: {answer['error']}: {answer['text']}")
    except (Hung, EOFError, RuntimeError) as error:
        trial.hung += isinstance(error, Hung)
        trial.faults.append(f"{error}\n{others_say(group)}")
        for process in list(group):
            if process in pool.ranks:
                pool.drop(process)
    return trial

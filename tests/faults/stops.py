# SPDX-License-Identifier: Apache-2.0
"""The stop storm: a rank that is silent for a while is not dead; one that stays silent is.

Promise: SIGSTOP of less than a second, or a rank that computes for longer than HCCOMM_SILENCE
between two calls, disturbs nobody; a stop that lasts is PeerLost, naming the rank, within
HCCOMM_SILENCE (3 s); and the stopped rank itself gets an error when it wakes up.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator, Sequence
from typing import Any

from pool import Hung, Pool, Rank, await_all, moment, others_say, set_to_work
from report import Trial
from works import COLLECTIVES

SILENCE = 3.0
TIMEOUT = 60.0
KINDS = ("pulses", "long", "slow", "back")


def trials(
    count: int,
    seed: int,
    *,
    transports: Sequence[str] = ("shm", "tcp"),
    ranks: Sequence[int] = (2, 3, 4, 5, 6, 7, 8),
    pulses: int = 6,
    late: float = SILENCE,
    kinds: Sequence[str] = KINDS,
) -> Iterator[Trial]:
    """Run ``count`` jobs: with pulses, a lasting stop, a slow rank, or one that comes back."""
    chance = random.Random(seed)
    pools = {each: Pool.over(each) for each in transports}
    try:
        for number in range(count):
            what = {
                "kind": kinds[number % len(kinds)],
                "transport": chance.choice(list(transports)),
                "ranks": chance.choice(list(ranks)),
                "collective": chance.choice(COLLECTIVES),
                "bytes": chance.choice((64, 1 << 20, 4 << 20)),
            }
            what["victim"] = chance.randrange(what["ranks"])
            what["pulses"] = [chance.uniform(0.05, 0.9) for _ in range(pulses)]
            yield _trial(pools[what["transport"]], number, what, chance, late)
    finally:
        for each in pools.values():
            each.close()


def _trial(
    pool: Pool, number: int, what: dict[str, Any], chance: random.Random, late: float
) -> Trial:
    trial = Trial("stop", f"stop {what['kind']} {what['transport']}", number, what)
    group = pool.take(what["ranks"])
    trial.asked = len(group)
    try:
        _start(pool, group, what)
        if what["kind"] in ("long", "back"):
            _lasting(trial, group, late)
        else:
            _passing(trial, group, chance)
        if what["kind"] == "back":  # the same processes, the one that was lost among them
            trial.asked += len(group)
            _start(pool, group, what)
            _passing(trial, group, chance)
    except (Hung, EOFError, RuntimeError) as error:
        trial.hung += isinstance(error, Hung)
        trial.faults.append(f"{error}\n{others_say(group)}")
        for process in group:
            pool.drop(process)
    else:
        if what["kind"] == "long":
            pool.drop(group[what["victim"]])
    return trial


def _start(pool: Pool, group: list[Rank], what: dict[str, Any]) -> None:
    """Set the ranks to work, and wait until they are."""
    job = {name: what[name] for name in ("collective", "bytes")}
    slow = {what["victim"]: {"pause": SILENCE + 1.0}} if what["kind"] == "slow" else {}
    set_to_work(group, pool.meeting(), "loop", TIMEOUT, of=slow, **job)
    await_all(group, "up", TIMEOUT)


def _passing(trial: Trial, group: list[Rank], chance: random.Random) -> None:
    """Stop ranks for less than a second each, or let one be slow: nobody may mind."""
    if trial.what["kind"] == "pulses":
        for seconds in trial.what["pulses"]:
            chance.choice(group).pause(seconds)
            moment(chance.uniform(0.0, 0.2))
    all_calm(trial, group)


def all_calm(trial: Trial, group: list[Rank]) -> None:
    """End a job of programs.loop that nothing should have disturbed."""
    group[0].tell("stop")
    for rank, process in enumerate(group):
        answer = process.hear("done", time.monotonic() + TIMEOUT)
        trial.times_ms.append(answer["longest"] * 1e3)
        if answer["error"]:
            trial.faults.append(f"false alarm: rank {rank}: {answer['error']}: {answer['text']}")
        else:
            trial.noticed += 1
            trial.named += 1


def _lasting(trial: Trial, group: list[Rank], late: float) -> None:
    """Stop one rank for good: the others must lose it, and it must learn of that later."""
    victim = trial.what["victim"]
    moment(0.2)
    stopped = group[victim].signal(signal.SIGSTOP)
    try:
        for rank, process in enumerate(group):
            if rank == victim:
                continue
            answer = process.hear("done", stopped + TIMEOUT + 10.0)
            took = answer["at"] - stopped
            trial.times_ms.append(took * 1e3)
            right = answer["error"] == "PeerLost"
            trial.noticed += right
            trial.named += right and answer["blames"] == victim
            if not right or answer["blames"] != victim or took > late:
                text = f"{answer['error']} {answer['blames']} after {took:.2f} s: {answer['text']}"
                trial.faults.append(f"rank {rank}: {text}")
    finally:
        group[victim].signal(signal.SIGCONT)
    answer = group[victim].hear("done", time.monotonic() + 15.0)
    if answer["error"]:
        trial.noticed += 1
        trial.named += 1
    else:
        trial.faults.append("the stopped rank went on as if nothing had happened")

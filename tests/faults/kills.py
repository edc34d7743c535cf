# SPDX-License-Identifier: Apache-2.0
"""The kill storm: one rank dies, in some phase of some job, and all others must say so.

Promise: every survivor raises PeerLost naming the dead rank, in 500 ms on one quiet host; a rank
that dies before it was heard of makes init raise at its own deadline; close() returns in about a
second, whoever is dead. The ranks of a pool live on, so what they leak adds up and shows.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cages import Cage
from children import Leash
from pool import Hung, Pool, Rank, await_all, moment, others_say, set_to_work
from report import Trial
from works import COLLECTIVES, MIRRORED

PHASES = ("collective", "collective", "collective", "idle", "teardown", "init")
SIZES = (64, 1 << 20, 16 << 20)
WAYS = ("SIGKILL", "SIGKILL", "SIGSEGV", "exit", "segfault")
SIGNALS = {"SIGKILL": 9, "SIGSEGV": 11}
TIMEOUT = 20.0  # seconds of an operation: an error that comes only then is a fault
INIT_TIMEOUT = 3.0
_HELD = ("fds", "threads", "shared", "mapped")
_HELD_OF_OTHERS = ("fds", "mapped", "pinned")  # devices keep threads and memory, to use them again
PATIENCE = 10.0  # seconds on top of a deadline until a rank counts as hung


def trials(
    count: int,
    seed: int,
    *,
    transports: Sequence[str] = ("shm", "tcp"),
    ranks: Sequence[int] = (2, 3, 4, 5, 6, 7, 8),
    phases: Sequence[str] = PHASES,
    sizes: Sequence[int] = SIZES,
    ways: Sequence[str] = WAYS,
    late: float = 2.0,
    children: int = 0,
) -> Iterator[Trial]:
    """Kill ``count`` ranks, one a trial. Noticing later than ``late`` seconds is a fault.

    With ``children`` every rank forks so many, and they outlive it.
    """
    chance = random.Random(seed)
    pools = {each: Pool.over(each) for each in transports}
    try:
        for number in range(count):
            what = {
                "phase": phases[number % len(phases)],
                "transport": chance.choice(list(transports)),
                "ranks": chance.choice(list(ranks)),
                "collective": chance.choice((*COLLECTIVES, "feed")),
                "bytes": chance.choice(list(sizes)),
                "way": chance.choice(list(ways)),
                "delay": chance.uniform(0.0, chance.choice((0.02, 0.05, 0.3))),
            }
            if what["transport"] == "islands":
                what["collective"] = "all_reduce, all_gather"
            if what["transport"] == "mirrors":
                what["collective"] = chance.choice(MIRRORED)
            what["victim"] = chance.randrange(what["ranks"])
            if children:
                what["children"] = children
            if what["phase"] == "init":
                what["delay"] *= 0.1  # it takes milliseconds
            if what["way"] == "hunger":
                yield _starve(pools[what["transport"]], number, what, late)
            else:
                yield _trial(pools[what["transport"]], number, what, late)
        for transport, pool in pools.items():
            if transport != "islands":  # a vendor's runtime keeps what it has made
                yield held(pool, count, transport)
    finally:
        for each in pools.values():
            each.close()
        for left in Path("/dev/shm").glob("fake-ccl-*"):  # by a fake library that died joining
            if not Path("/proc", left.name.split("-")[2]).exists():
                left.unlink(missing_ok=True)


def _starve(pool: Pool, number: int, what: dict[str, Any], late: float) -> Trial:
    """Let the kernel kill the victim for want of memory; without a cage the driver does it."""
    cage = Cage.make()
    what["caged"] = cage is not None
    if cage is None:
        what["way"] = "SIGKILL"
        return _trial(pool, number, what, late)
    try:
        cage.put(pool.take(what["ranks"])[what["victim"]].pid)
        trial = _trial(pool, number, what, late)
        if not cage.killed():
            trial.faults.append("the kernel has not killed the victim")
        return trial
    finally:
        cage.close()


def _trial(pool: Pool, number: int, what: dict[str, Any], late: float) -> Trial:
    if "children" not in what:
        return _death(pool, number, what, late, {})
    with Leash(pool.folder) as leash:
        victim = pool.take(what["ranks"])[what["victim"]].pid
        trial = _death(pool, number, what, late, {"leash": str(leash.path)})
        what["orphans"] = leash.children_of(victim)
        if what["phase"] != "init" and what["orphans"] == 0:
            trial.faults.append("the victim had no children")
        return trial


def _death(
    pool: Pool, number: int, what: dict[str, Any], late: float, more: dict[str, str]
) -> Trial:
    kind = "fork, kill" if more else "kill"
    trial = Trial("kill", f"{kind} {what['phase']} {what['transport']}", number, what)
    group = pool.take(what["ranks"])
    survivors = {rank: each for rank, each in enumerate(group) if rank != what["victim"]}
    trial.asked = len(survivors)
    died = _inject(pool, group, survivors, what, trial, more)
    if died is None:
        return trial
    allowed = INIT_TIMEOUT if what["phase"] == "init" else 0.0
    deadline = time.monotonic() + TIMEOUT + PATIENCE
    blamed: set[int] = set()
    for rank, process in survivors.items():
        try:
            answer = process.hear("done", deadline)
        except (Hung, EOFError, RuntimeError) as error:
            trial.hung += isinstance(error, Hung)
            trial.faults.append(f"rank {rank}: {type(error).__name__}: {error}")
            pool.drop(process)
            continue
        blamed.add(answer["blames"])
        what["copied"] = what.get("copied", 0) + answer.get("copied", 0)
        _judge(trial, rank, answer, died, late + allowed)
    if what["phase"] not in ("teardown", "init") and len(blamed) > 1:
        trial.faults.append(f"survivors blame different ranks: {sorted(blamed)}")
    pool.drop(group[what["victim"]])
    return trial


def held(pool: Pool, number: int, transport: str) -> Trial:
    """Compare what the oldest rank holds with what a new one does, after a job of these two.

    What is held for the dead is released at the next look, half a second later: no sooner.
    """
    trial = Trial("held", f"held after all {transport}", number, {"transport": transport})
    names = _HELD_OF_OTHERS if transport == "mirrors" else _HELD
    pool.take(1)
    for process in pool.ranks[1:]:
        pool.drop(process)
    pair, meeting = pool.take(2), pool.meeting()
    set_to_work(pair, meeting, "cycles", TIMEOUT, cycles=1, groups=False)
    deadline = time.monotonic() + TIMEOUT + PATIENCE
    try:
        old, new = (process.hear("done", deadline)["after"] for process in pair)
        until = min(deadline, time.monotonic() + PATIENCE)
        while any(old[each] > new[each] for each in names) and time.monotonic() < until:
            time.sleep(0.1)
            pair[0].tell({"program": "count"})
            old = pair[0].hear("done", deadline)
    except (Hung, EOFError, RuntimeError) as error:
        trial.hung += isinstance(error, Hung)
        trial.faults.append(f"{error}\n{others_say(pair)}")
        return trial
    trial.asked = trial.noticed = trial.named = 1
    more = {name: old[name] - new[name] for name in names}
    trial.leaked = sum(max(0, each) for each in more.values())
    if trial.leaked:
        trial.faults.append(f"a rank that lived through it holds more than a new one: {more}")
    return trial


def _inject(
    pool: Pool,
    group: list[Rank],
    survivors: dict[int, Rank],
    what: dict[str, Any],
    trial: Trial,
    more: dict[str, str],
) -> float | None:
    """Start the job and end the victim; return when, or None when the job did not come up."""
    meeting, victim = pool.meeting(), group[what["victim"]]
    by_signal = what["way"] in SIGNALS
    how = {} if by_signal else {what["victim"]: {"how": what["way"]}}
    job = {name: what[name] for name in ("phase", "collective", "bytes")} | more
    job["children"] = what.get("children", 0)
    job["islands"] = what["transport"] == "islands"
    job["mirrors"] = what["transport"] == "mirrors"
    timeout = INIT_TIMEOUT if what["phase"] == "init" else TIMEOUT
    set_to_work(group, meeting, "kill", timeout, of=how, how="signal", **job)
    deadline = time.monotonic() + TIMEOUT + PATIENCE
    try:
        await_all(group, "up", TIMEOUT + PATIENCE)
    except (Hung, EOFError, RuntimeError) as error:
        trial.hung += isinstance(error, Hung)
        trial.faults.append(f"the job did not start: {error}\n{others_say(group)}")
        for process in group:
            pool.drop(process)
        return None
    if what["phase"] == "teardown":
        _say_go(survivors.values(), victim if by_signal else None, what)
    moment(what["delay"])
    if by_signal:
        died = victim.signal(SIGNALS[what["way"]])
    else:
        victim.tell("die")
        try:
            died = victim.hear("dying", deadline)["at"]
        except (Hung, EOFError, RuntimeError) as error:
            trial.faults.append(f"the victim did not get to die: {error}")
            died = time.monotonic()
    if what["phase"] == "idle":
        _say_go(survivors.values(), None, what)
    return died


def _say_go(survivors: Any, victim: Rank | None, what: dict[str, Any]) -> None:
    """Let the ranks call what comes next; often the victim of a teardown, too."""
    if victim is not None and what["delay"] < 0.03:
        victim.tell("go")
    for process in survivors:
        process.tell("go")


def _judge(trial: Trial, rank: int, answer: dict[str, Any], died: float, late: float) -> None:
    called = answer.get("called", died)
    took = answer["at"] - (called if trial.what["phase"] == "teardown" else max(died, called))
    trial.times_ms.append(took * 1e3)
    phase, victim = trial.what["phase"], trial.what["victim"]
    where = f"rank {rank}: {answer['error']} after {took * 1e3:.0f} ms: {answer['text']}"
    if answer["error"] == "wrong":
        trial.faults.append(where)
        return
    if phase == "teardown":
        trial.noticed += 1
        trial.named += 1
        if took > late:
            trial.faults.append(where)
        return
    init_ended = phase == "init" and answer["error"] == "Timeout"
    right = answer["error"] == "PeerLost" or init_ended
    names = answer["blames"] == victim or (init_ended and _names(answer["text"], victim))
    trial.noticed += right
    trial.named += right and names
    if not right or not names or took > late:
        trial.faults.append(where)


def _names(text: str, rank: int) -> bool:
    """Whether a list of missing ranks holds ``rank``."""
    import re

    for found in re.finditer(r"ranks? ([0-9][0-9, and]*)", text):
        if str(rank) in re.findall(r"[0-9]+", found.group(1)):
            return True
    return False

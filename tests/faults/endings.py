# SPDX-License-Identifier: Apache-2.0
"""The ending storm: somebody ends a job, or himself, while the others wait in a collective.

Promise: abort() from another thread and hccomm_abort_signal() as a signal handler end a waiting
collective on all ranks; Ctrl-C ends a wait; SIGTERM is a death like another; an interpreter leaves
with operations in flight. One rank, the victim, ends; the others wait in a collective for it.
And close() returns within a second, also while a peer is stopped.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from typing import Any

from pool import Hung, Pool, Rank, await_all, moment, others_say, set_to_work
from report import Trial

TIMEOUT = 60.0
# What the victim is told to do, and what its peers must raise.
KINDS = {
    "abort by a thread": "Aborted",
    "abort by a handler": "Aborted",
    "Ctrl-C": "Aborted",
    "SIGTERM": "PeerLost",
    "exit": "PeerLost",
    "stop, close": "",
}
# exit: what close() gives operations in flight; Ctrl-C: how often wait() looks at signals.
EXTRA = {"exit": 1.0, "Ctrl-C": 0.25, "stop, close": 0.8}
_SIGNALS = {
    "abort by a handler": signal.SIGUSR2,
    "Ctrl-C": signal.SIGINT,
    "SIGTERM": signal.SIGTERM,
    "stop, close": signal.SIGSTOP,
}


def trials(
    count: int,
    *,
    transports: Sequence[str] = ("shm", "tcp"),
    ranks: int = 3,
    kinds: Sequence[str] = tuple(KINDS),
    late: float = 0.2,
) -> Iterator[Trial]:
    """End jobs in every way, ``count`` times by each transport; ``late`` seconds are a fault."""
    for transport in transports:
        with Pool.over(transport) as pool:
            for number in range(count):
                for kind in kinds:
                    what = {"kind": kind, "transport": transport, "ranks": ranks}
                    yield _trial(pool, number, what | {"victim": number % ranks}, late)


def _trial(pool: Pool, number: int, what: dict[str, Any], late: float) -> Trial:
    trial = Trial("ending", f"{what['kind']}, {what['transport']}", number, what)
    group, meeting = pool.take(what["ranks"]), pool.meeting()
    victim = group[what["victim"]]
    trial.asked = len(group)
    try:
        job = {"victim": what["victim"], "kind": what["kind"]}
        set_to_work(group, meeting, "end", TIMEOUT, **job)
        await_all(group, "up", TIMEOUT)
        moment(0.1)  # in which most begin to wait
        began = time.monotonic()
        if what["kind"] in _SIGNALS:
            victim.signal(_SIGNALS[what["kind"]])
        else:
            victim.tell("go")
        others = [(rank, process) for rank, process in enumerate(group) if process is not victim]
        if what["kind"] == "stop, close":
            for _, process in others:
                process.tell("go")
        for rank, process in others:
            _judge(trial, rank, process.hear("done", began + TIMEOUT), began, late)
        if what["kind"] == "stop, close":
            victim.signal(signal.SIGCONT)
            victim.tell("go")
        _judge_victim(trial, victim, began)
    except (Hung, EOFError, RuntimeError) as error:
        trial.hung += isinstance(error, Hung)
        trial.faults.append(f"{error}\n{others_say(group)}")
        for process in group:
            pool.drop(process)
    return trial


def _judge(trial: Trial, rank: int, answer: dict[str, Any], began: float, late: float) -> None:
    took = answer["at"] - began
    trial.times_ms.append(took * 1e3)
    right = answer["error"] == KINDS[trial.what["kind"]]
    named = right and (answer["error"] != "PeerLost" or answer["blames"] == trial.what["victim"])
    trial.noticed += right
    trial.named += named
    late += EXTRA.get(trial.what["kind"], 0.0)
    if not named or took > late:
        text = f"{answer['error']} {answer['blames']} after {took * 1e3:.0f} ms: {answer['text']}"
        trial.faults.append(f"rank {rank}: {text}")


def _judge_victim(trial: Trial, victim: Rank, began: float) -> None:
    """Say what became of who was to end: an error like the others', or its process."""
    kind = trial.what["kind"]
    if kind in ("SIGTERM", "exit"):
        while victim.alive() and time.monotonic() < began + TIMEOUT:
            time.sleep(0.01)
        right = not victim.alive()
        text = "is still there"
    else:
        answer = victim.hear("done", began + TIMEOUT)
        right = answer["error"] == ("KeyboardInterrupt" if kind == "Ctrl-C" else KINDS[kind])
        text = f"{answer['error']}: {answer['text']}"
    trial.noticed += right
    trial.named += right
    if not right:
        trial.faults.append(f"the victim: {text}")

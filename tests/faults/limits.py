# SPDX-License-Identifier: Apache-2.0
"""The limit storm: a rank may open only a few descriptors more, lock no memory, or have none.

Promise: a job that cannot have what it needs says so on every rank, in an error that names the
limit where it was met; nothing hangs or crashes. Where it is enough, all go on. With too little
memory (RLIMIT_AS) all get an error by their deadlines: the rank raises System, or Timeout where a
thread of its own got none, or it ends, where glibc or the C++ library can do nothing else (a new
thread's thread-local data, an exception).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from pool import Hung, Pool, Rank, others_say, set_to_work
from report import Trial

TIMEOUT = 3.0
PATIENCE = 30.0
ENDED = "its process has ended"
# Addresses, of which each thread that connects takes a stack of 8 MiB, and glibc 128 for its arena.
ENOUGH_MIB = 1024


def trials(
    *,
    more: Sequence[int] = (0, 2, 4, 6, 8, 10, 12, 14, 18, 24, 64),
    each: Sequence[int] = (10, 14, 20, 64),
    transports: Sequence[str] = ("shm", "tcp"),
    mib: Sequence[int] = (0, 4, 8, 12, 16, 24, 32, 40, 48, 64, 128),
    ranks: int = 3,
    crowd: int = 16,
) -> Iterator[Trial]:
    """Run a job for each number of descriptors or MiB that rank 1 (or each) may have beyond its."""
    for transport in transports:
        with Pool.over(transport) as pool:
            for number, fds in enumerate(more):
                yield _trial(pool, number, {"transport": transport, "ranks": ranks, "fds": fds})
            for number, fds in enumerate(each):
                what = {"transport": transport, "ranks": crowd, "fds": fds, "each": True}
                yield _trial(pool, number, what)
            for number, more_mib in enumerate(mib):
                what = {"transport": transport, "ranks": ranks, "fds": -1, "mib": more_mib}
                yield _trial(pool, number, what)


def _trial(pool: Pool, number: int, what: dict[str, Any]) -> Trial:
    ranks, everybody = what["ranks"], what.get("each", False)
    few = "memory" if "mib" in what else "descriptors"
    row = f"few {few}{' each' if everybody else ''} {what['transport']}"
    trial = Trial("limit", row, number, what)
    group, meeting = pool.take(ranks), pool.meeting()
    trial.asked = ranks
    began, texts = time.monotonic(), []
    few_of = {each: what.get(each, -1) for each in ("fds", "mib")}
    meant = {rank: few_of for rank in range(ranks) if everybody or rank == 1}
    set_to_work(group, meeting, "limited", TIMEOUT, of=meant, fds=-1, mib=-1)
    try:
        for rank, process in enumerate(group):
            texts.append(_outcome(trial, process, began, "mib" in what and rank == 1))
            trial.noticed += 1
        errors = [each != ": " for each in texts]
        limited = texts if everybody else texts[1:2]
        signs = ("System: ", "Timeout: ", ENDED) if "mib" in what else ("raise `ulimit -n`",)
        named = any(sign in text for text in limited for sign in signs) or not any(errors)
        what["ended"] = texts.count(ENDED)
        trial.named += ranks if named else 0
        enough = what.get("mib", 0) >= ENOUGH_MIB
        if any(errors) != all(errors) or not named or (enough and any(errors)):
            trial.faults.append(" | ".join(texts))
    except (Hung, EOFError, RuntimeError) as error:
        trial.hung += isinstance(error, Hung)
        trial.faults.append(f"{error}\n{others_say(group)}")
    for process in list(group):  # its limit and its half-made endpoint go with it
        pool.drop(process)
    return trial


def _outcome(trial: Trial, process: Rank, began: float, may_end: bool) -> str:
    """Return what a rank said of its job; ENDED where it could not even do that, and may not."""
    try:
        answer = process.hear("done", began + PATIENCE)
    except EOFError:
        if not may_end:
            raise
        return ENDED
    trial.times_ms.append((answer["at"] - began) * 1e3)
    return f"{answer['error']}: {answer['text']}"

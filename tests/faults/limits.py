# SPDX-License-Identifier: Apache-2.0
"""The limit storm: one rank, or each, may open only a few descriptors more, and lock no memory.

Promise: a job that cannot have what it needs says so on every rank, in an error that names the
limit where it was met; nothing hangs or crashes. Where it is enough, all go on.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from pool import Hung, Pool, others_say
from report import Trial

TIMEOUT = 3.0
PATIENCE = 30.0


def trials(
    *,
    more: Sequence[int] = (0, 2, 4, 6, 8, 10, 12, 14, 18, 24, 64),
    each: Sequence[int] = (10, 14, 20, 64),
    transports: Sequence[str] = ("shm", "tcp"),
    ranks: int = 3,
    crowd: int = 16,
) -> Iterator[Trial]:
    """Run a job for each number of descriptors that rank 1, or each, may open beyond its own."""
    for transport in transports:
        with Pool(HCCOMM_TRANSPORTS=transport) as pool:
            for number, fds in enumerate(more):
                yield _trial(pool, number, {"transport": transport, "ranks": ranks, "fds": fds})
            for number, fds in enumerate(each):
                what = {"transport": transport, "ranks": crowd, "fds": fds, "each": True}
                yield _trial(pool, number, what)


def _trial(pool: Pool, number: int, what: dict[str, Any]) -> Trial:
    ranks, everybody = what["ranks"], what.get("each", False)
    row = f"few descriptors{' each' if everybody else ''} {what['transport']}"
    trial = Trial("limit", row, number, what)
    group, meeting = pool.take(ranks), pool.meeting()
    trial.asked = ranks
    began, texts = time.monotonic(), []
    for rank, process in enumerate(group):
        job = {"program": "limited", "rank": rank, "size": ranks, "timeout": TIMEOUT}
        process.tell(job | meeting | {"fds": what["fds"] if everybody or rank == 1 else -1})
    try:
        for process in group:
            answer = process.hear("done", began + PATIENCE)
            trial.times_ms.append((answer["at"] - began) * 1e3)
            texts.append(f"{answer['error']}: {answer['text']}")
            trial.noticed += 1
        errors = [each != ": " for each in texts]
        limited = texts if everybody else texts[1:2]
        named = any("raise `ulimit -n`" in text for text in limited) or not any(errors)
        trial.named += ranks if named else 0
        if any(errors) != all(errors) or not named:
            trial.faults.append(" | ".join(texts))
    except (Hung, EOFError, RuntimeError) as error:
        trial.hung += isinstance(error, Hung)
        trial.faults.append(f"{error}\n{others_say(group)}")
    for process in list(group):  # its limit and its half-made endpoint go with it
        pool.drop(process)
    return trial

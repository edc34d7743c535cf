# SPDX-License-Identifier: Apache-2.0
"""The limit storm: one rank may open only a few descriptors more, or lock no memory.

Promise: a job that cannot have what it needs says so on every rank, in an error that names the
limit where it was met; nothing hangs or crashes. Where it is enough, all go on.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from pool import Hung, Pool, others_say
from report import Trial

TIMEOUT = 5.0
PATIENCE = 30.0


def trials(
    *,
    more: Sequence[int] = (0, 2, 4, 6, 8, 10, 12, 14, 18, 24, 64),
    transports: Sequence[str] = ("shm", "tcp"),
    ranks: int = 3,
) -> Iterator[Trial]:
    """Run a job for each number of descriptors that rank 1 may open beyond those it has."""
    for transport in transports:
        with Pool(HCCOMM_TRANSPORTS=transport) as pool:
            for number, fds in enumerate(more):
                yield _trial(pool, number, transport, ranks, fds)


def _trial(pool: Pool, number: int, transport: str, ranks: int, fds: int) -> Trial:
    what = {"transport": transport, "ranks": ranks, "fds": fds}
    trial = Trial("limit", f"few descriptors {transport}", number, what)
    group, meeting = pool.take(ranks), pool.meeting()
    trial.asked = ranks
    began, texts = time.monotonic(), []
    for rank, process in enumerate(group):
        job = {"program": "limited", "rank": rank, "size": ranks, "timeout": TIMEOUT}
        process.tell(job | meeting | {"fds": fds if rank == 1 else -1})
    try:
        for process in group:
            answer = process.hear("done", began + PATIENCE)
            trial.times_ms.append((answer["at"] - began) * 1e3)
            texts.append(f"{answer['error']}: {answer['text']}")
            trial.noticed += 1
        errors = [each != ": " for each in texts]
        named = "open files" in texts[1] or "Too many" in texts[1] or not errors[1]
        trial.named += ranks if named else 0
        if any(errors) != all(errors) or not named:
            trial.faults.append(" | ".join(texts))
    except (Hung, EOFError, RuntimeError) as error:
        trial.hung += isinstance(error, Hung)
        trial.faults.append(f"{error}\n{others_say(group)}")
    for process in list(group):  # its limit and its half-made endpoint go with it
        pool.drop(process)
    return trial

# SPDX-License-Identifier: Apache-2.0
"""The mismatch storm: one rank calls something else, and all must be told who called what.

Promise: of the twelve disagreements of the published comparison at least ten raise Mismatch on all
ranks, naming both calls, in 200 ms on a quiet host and before data is damaged; a call that is
missing raises Timeout at its deadline, naming the absent rank.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from mismatch_cases import CASES, Case
from pool import Hung, Pool, set_to_work
from report import Trial

TIMEOUT = 8.0


def trials(
    count: int,
    *,
    transports: Sequence[str] = ("shm", "tcp"),
    ranks: Sequence[int] = (2, 3, 5),
    late: float = 1.0,
) -> Iterator[Trial]:
    """Run the whole matrix ``count`` times for each transport and number of ranks."""
    number = 0
    for transport in transports:
        with Pool.over(transport) as pool:
            for _ in range(count):
                for size in ranks:
                    for name, case in CASES.items():
                        if size > case.most:
                            continue
                        what = {"case": name, "transport": transport, "ranks": size}
                        yield _trial(pool, number, what, case, late)
                        number += 1


def _trial(pool: Pool, number: int, what: dict[str, Any], case: Case, late: float) -> Trial:
    label = "matrix" if case.matrix else "more"
    trial = Trial("mismatch", f"mismatch {label} {what['transport']}", number, what)
    group, meeting = pool.take(what["ranks"]), pool.meeting()
    trial.asked = len(group)
    set_to_work(group, meeting, "disagree", TIMEOUT, case=what["case"])
    deadline, answers = time.monotonic() + 3 * TIMEOUT + 10.0, {}
    for rank, process in enumerate(group):
        try:
            answers[rank] = process.hear("done", deadline)
        except (Hung, EOFError, RuntimeError) as error:
            trial.hung += isinstance(error, Hung)
            trial.faults.append(f"{what['case']}: rank {rank}: {error}")
            pool.drop(process)
    _judge(trial, case, answers, late)
    return trial


def _judge(trial: Trial, case: Case, answers: dict[int, dict[str, Any]], late: float) -> None:
    odd = trial.what["ranks"] - 1
    began = max((each["called"] for each in answers.values()), default=0.0)
    trial.what["errors"] = [each["error"] or "none" for each in answers.values()]
    for rank, answer in answers.items():
        took = answer["at"] - began
        where = f"{trial.what['case']}, {trial.what['ranks']} ranks: rank {rank}: "
        where += f"{answer['error'] or 'no error'} after {took * 1e3:.0f} ms: {answer['text']}"
        absent = case.expect == "Timeout"
        if case.expect == "any":
            right = named = answer["error"] in ("Mismatch", "Timeout", "InvalidArgument")
        elif case.expect == "fine":
            right = named = answer["error"] == ""
        elif absent and rank == odd:
            right = named = answer["error"] != ""
        else:
            right = answer["error"] == case.expect
            said = any(word in answer["text"] for word in (" called ", " expects ", " receives "))
            named = f"rank {odd}" in answer["text"] and (absent or said)
        trial.noticed += right
        trial.named += right and named
        if case.expect == "Mismatch":
            trial.times_ms.append(took * 1e3)
        trial.what.setdefault("later", 0)
        trial.what["later"] += answer["later"] and answer["error"] != ""
        if not right or not named or (case.expect == "Mismatch" and took > late):
            trial.faults.append(where)
        elif answer["damaged"]:
            trial.faults.append("wrote where it may not: " + where)

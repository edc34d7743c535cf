# SPDX-License-Identifier: Apache-2.0
"""The rails storm: two islands of two ranks each, and one of the cables between them is slow.

Promise: what crosses between islands is divided as the rails can bear it, by what they were seen to
carry. Each rank has a host and a cable of its own; the islands work by fake vendors' libraries.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "python"))

from fake_arrays import ccl_library, library
from networks import Network
from pool import Hung, others_say
from report import Trial

TIMEOUT = 60.0
ISLANDS = [[0, 1], [2, 3]]
CALLS = 9  # shares are looked at after the 4th and the 8th
RATES = ((400, 400, 400, 50), (50, 400, 400, 400))  # Mbit/s that each rank's cable carries


def trials(count: int, *, rates: Sequence[Sequence[int]] = RATES) -> Iterator[Trial]:
    """Run ``count`` jobs, by turns with each of the ``rates``."""
    for number in range(count):
        yield _trial(number, list(rates[number % len(rates)]))


def _trial(number: int, rates: list[int]) -> Trial:
    what: dict[str, Any] = {"mbit": rates, "islands": ISLANDS}
    trial = Trial("rails", "rails, one slow", number, what)
    trial.asked = len(rates)
    environ = {
        "HCCOMM_ISLAND": ";".join(",".join(map(str, island)) for island in ISLANDS),
        "HCCOMM_TEST_FAKE": "devices=2",
    }
    with Network(len(rates), **environ) as network:
        for host, mbit in zip(network.hosts, rates, strict=True):
            network.rate(host, mbit)
        group = network.take(len(rates))
        fakes = {
            "HCCOMM_CUDA_LIB": str(library("cuda", network.folder)),
            "HCCOMM_CCL_CUDA_LIB": str(ccl_library("cuda", network.folder)),
        }
        meeting = network.meeting()
        for rank, process in enumerate(group):
            job = {"program": "rails", "rank": rank, "size": len(rates), "timeout": TIMEOUT}
            process.tell(job | meeting | {"fakes": fakes, "calls": CALLS})
        try:
            for rank, process in enumerate(group):
                answer = process.hear("done", time.monotonic() + TIMEOUT)
                trial.times_ms.append(answer["last"] * 1e3)
                trial.noticed += 1
                trial.named += _judge(trial, rank, answer["shares"], rates)
        except (Hung, EOFError, RuntimeError) as error:
            trial.hung += isinstance(error, Hung)
            trial.faults.append(f"{error}\n{others_say(group)}")
    return trial


def _judge(trial: Trial, rank: int, shares: list[list[int]], rates: list[int]) -> bool:
    """Say whether the slow rail bears less than two thirds of the other: 1/8 is what it could."""
    trial.what["shares"] = shares
    place = rates.index(min(rates)) % 2
    uneven = len(shares) == 2 and all(3 * each[place] < 2 * each[1 - place] for each in shares)
    if not uneven:
        trial.faults.append(f"rank {rank}: the shares of cables of {rates} Mbit/s are {shares}")
    return uneven

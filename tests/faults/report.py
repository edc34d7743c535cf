# SPDX-License-Identifier: Apache-2.0
"""What came of a storm: one JSON line for each trial, and a table at the end.

A trial injects one fault and asks the ranks that are left. `asked` is how many should notice,
`noticed` how many raised the right error (or, where none is right, went on), `named` how many
blamed the right rank. Whatever a storm finds amiss goes into `faults`, as a sentence.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, TextIO


@dataclass
class Trial:
    """One injected fault and what came of it. Times are milliseconds."""

    storm: str
    row: str  # the line of the table it counts in
    number: int
    what: dict[str, Any] = field(default_factory=dict)
    asked: int = 0
    noticed: int = 0
    named: int = 0
    hung: int = 0
    leaked: int = 0
    times_ms: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def line(self) -> str:
        """Return it as one line of JSON."""
        body = asdict(self)
        body["times_ms"] = [round(each, 1) for each in self.times_ms]
        return json.dumps(body)


class Report:
    """Writes trials as they come and adds them up."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stdout
        self.trials: list[Trial] = []

    def run(self, trials: Iterable[Trial]) -> None:
        """Take all trials, printing each as it comes."""
        for trial in trials:
            self.trials.append(trial)
            print(trial.line(), file=self._out, flush=True)

    @property
    def faults(self) -> list[str]:
        """Everything that was amiss, with the trial it happened in."""
        return [
            f"{each.row} #{each.number}: {text}" for each in self.trials for text in each.faults
        ]

    def table(self) -> str:
        """Return the counts by row, and in all."""
        head = (
            f"{'':28}{'injected':>9}{'asked':>7}{'noticed':>9}{'named':>7}{'median ms':>11}"
            f"{'p99 ms':>9}{'slowest ms':>12}{'hung':>6}{'leaked':>8}{'amiss':>7}"
        )
        rows = sorted({each.row for each in self.trials})
        lines = [head, *(self._row(row, row) for row in rows)]
        if len(rows) > 1:
            lines.append(self._row("all", None))
        return "\n".join(lines)

    def _row(self, label: str, row: str | None) -> str:
        chosen = [each for each in self.trials if row is None or each.row == row]
        times = sorted(time for each in chosen for time in each.times_ms) or [0.0]
        p99 = times[min(len(times) - 1, int(len(times) * 0.99))]
        total = {
            name: sum(getattr(each, name) for each in chosen)
            for name in ("asked", "noticed", "named", "hung", "leaked")
        }
        return (
            f"{label:28}{len(chosen):9}{total['asked']:7}{total['noticed']:9}{total['named']:7}"
            f"{statistics.median(times):11.1f}{p99:9.1f}{times[-1]:12.1f}{total['hung']:6}"
            f"{total['leaked']:8}{sum(len(each.faults) for each in chosen):7}"
        )

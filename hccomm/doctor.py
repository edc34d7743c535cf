# SPDX-License-Identifier: Apache-2.0
"""Who waits for whom: reads the flight recorders of all ranks and names the cause of a failure.

`hccomm doctor DUMP...` prints what diagnose() returns. A dump is the JSON of Communicator.dump(),
or a file that a rank wrote to HCCOMM_DUMP. It needs no library: dumps may be read on any machine.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hccomm.errors import InvalidArgument

Dump = dict[str, Any]


@dataclass
class Group:
    """The dumps of one communicator, by rank; a later dump of a rank replaces an earlier."""

    name: str
    size: int
    dumps: dict[int, Dump] = field(default_factory=dict)

    def who(self, rank: int) -> str:
        """Return what the ranks call each other: "rank 2 (host alpha, pid 812)"."""
        for dump in self.dumps.values():
            return str(dump["who"][rank])
        return f"rank {rank}"


def load(paths: Iterable[str | Path]) -> list[Dump]:
    """Read dumps from files. Raises InvalidArgument naming a file that holds none."""
    dumps = []
    for path in paths:
        try:
            dump = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InvalidArgument(f"doctor: {path} cannot be read: {error}") from None
        if not isinstance(dump, dict) or dump.get("writer") != "hccomm":
            raise InvalidArgument(f"doctor: {path} is no dump of hccomm's flight recorder")
        dumps.append(dump)
    return dumps


def groups_of(dumps: Iterable[Dump]) -> list[Group]:
    """Sort dumps by communicator, those with failures or waits first."""
    found: dict[str, Group] = {}
    for dump in sorted(dumps, key=lambda each: int(each["time_ns"])):
        name, number = dump["process_group"]
        group = found.setdefault(number, Group(name, dump["size"]))
        group.dumps[dump["rank"]] = dump
    return sorted(found.values(), key=lambda each: not any(map(_stuck, each.dumps.values())))


def diagnose(dumps: Sequence[Dump]) -> str:
    """Return one paragraph for each communicator: who waits for whom, and who is the cause."""
    return "\n\n".join(_paragraph(group) for group in groups_of(dumps))


def _stuck(dump: Dump) -> dict[str, Any] | None:
    """Return the first operation of a rank that is in flight or failed, the latest such run."""
    for entry in dump["entries"]:
        if entry["state"] != "completed":
            return dict(entry)
    return None


def _paragraph(group: Group) -> str:
    silent = [rank for rank in range(group.size) if rank not in group.dumps]
    stuck = {rank: entry for rank, dump in group.dumps.items() if (entry := _stuck(dump))}
    head = f"{group.name} ({group.size} ranks, {len(group.dumps)} dumps): "
    if not stuck:
        missing = f" No dump of {_list(group, silent)}." if silent else ""
        return f"{head}every recorded operation has completed.{missing}"
    waits = {
        rank: {each for each in entry["waits_for"] if each != rank} for rank, entry in stuck.items()
    }
    sentences = [_what(group, rank, entry, waits[rank]) for rank, entry in sorted(stuck.items())]
    sentences += _calls(group, stuck)
    failures = [dump["failure"] for dump in group.dumps.values() if "failure" in dump]
    if failures:
        sentences.append(f"They failed with {failures[0]['code']}: {failures[0]['text']}.")
    sentences.append(_cause(group, stuck, waits, silent, failures))
    return head + " ".join(sentences)


def _what(group: Group, rank: int, entry: dict[str, Any], waits: set[int]) -> str:
    number = f" #{entry['collective_seq_id']}" if "collective_seq_id" in entry else ""
    state = "failed in" if entry["state"] == "failed" else "is in"
    text = f"Rank {rank} {state} {entry['call']}{number}"
    if "steps" in entry:
        text += f" after {entry['steps_done']} of {entry['steps']} steps"
    return text + (f", waiting for {_ranks(waits)}." if waits else ", waiting for nobody.")


def _calls(group: Group, stuck: dict[int, dict[str, Any]]) -> list[str]:
    """Say where ranks that are in the same operation called different things."""
    by_number: dict[int, dict[str, list[int]]] = {}
    for rank, entry in stuck.items():
        if "collective_seq_id" in entry:
            calls = by_number.setdefault(entry["collective_seq_id"], {})
            calls.setdefault(entry["call"], []).append(rank)
    return [
        f"In operation #{number} they called different things: "
        + ", ".join(f"{call} on {_ranks(ranks)}" for call, ranks in calls.items())
        + "."
        for number, calls in by_number.items()
        if len(calls) > 1
    ]


def _cause(
    group: Group,
    stuck: dict[int, dict[str, Any]],
    waits: dict[int, set[int]],
    silent: list[int],
    failures: list[dict[str, Any]],
) -> str:
    """Follow the waits to whoever waits for nobody that is known."""
    awaited = set().union(*waits.values())
    for rank in sorted(awaited & set(silent)):
        return (
            f"The cause is {group.who(rank)}: others wait for it and it left no dump, so it has "
            "died, or was stopped before it could write one."
        )
    latest = max(int(dump["last_enqueued_collective"]) for dump in group.dumps.values())
    behind = {
        rank: int(dump["last_enqueued_collective"])
        for rank, dump in group.dumps.items()
        if int(dump["last_enqueued_collective"]) < latest
    }
    for rank in sorted(awaited & set(behind), key=lambda each: behind[each]):
        return (
            f"The cause is {group.who(rank)}: it has called {behind[rank] + 1} collectives where "
            f"others have called {latest + 1}; look what it does instead."
        )
    blamed = {each["rank"] for each in failures if each["rank"] >= 0}
    if len(blamed) == 1:
        return f"The cause is {group.who(blamed.pop())}, whom the failure names."
    idle = sorted(awaited - set(stuck))
    if idle:
        return f"The cause is {group.who(idle[0])}: others wait for it and it has nothing to do."
    if not awaited:
        return "No rank waits for another: the operations were cut short."
    return (
        f"All of {_ranks(awaited)} wait for each other: they were slow, or their connection is; "
        "compare the bytes and steps of their operations."
    )


def _ranks(ranks: Iterable[int]) -> str:
    chosen = sorted(ranks)
    return ("rank " if len(chosen) == 1 else "ranks ") + ", ".join(map(str, chosen))


def _list(group: Group, ranks: Sequence[int]) -> str:
    return ", ".join(group.who(rank) for rank in ranks)

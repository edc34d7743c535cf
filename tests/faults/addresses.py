# SPDX-License-Identifier: Apache-2.0
"""The address storm: machines with odd interfaces, names and address families.

Promise: ranks connect at the first try over the interface that leads to the meeting place, whatever
decoys lie beside it and though no host name has an address; v4, v6, both, or link-local addresses
alone will do. Where nothing can work, init() says so within its timeout.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from networks import CABLE, Network
from pool import Hung, Nursery, Rank, others_say, set_to_work
from report import Trial

TIMEOUT = 20.0
SHORT = 2.0  # of an init() that cannot work
LATE = 5.0  # seconds in which the ranks must be connected
KINDS: dict[str, dict[str, Any]] = {
    "v4": {"families": ("4",), "at": "10.77.1.1"},
    "v6": {"families": ("6",), "at": "[fd77::1]"},
    "dual by v4": {"families": ("4", "6"), "at": "10.77.1.1"},
    "dual by v6": {"families": ("4", "6"), "at": "[fd77::1]"},
    "link-local": {"families": ("link",), "at": f"[fe80::1%{CABLE}]"},
    "decoys": {"families": ("4", "6"), "at": "10.77.1.1", "decoys": True},
    "decoys, file": {"families": ("4", "6"), "at": "", "decoys": True},
    "no such name": {"families": ("4",), "at": "storm-without-address", "error": "storm-without"},
    "no such host": {"families": ("4",), "at": "10.77.1.99", "error": "10.77.1.99"},
    "no such interface": {"families": ("4",), "at": "10.77.1.1", "error": "eth7", "if": "eth7"},
}


def trials(count: int, *, ranks: int = 3, kinds: Sequence[str] = tuple(KINDS)) -> Iterator[Trial]:
    """Meet on networks of every kind, ``count`` times each."""
    nursery = Nursery.share()
    try:
        for number in range(count):
            for kind in kinds:
                yield _trial(number, kind, ranks)
    finally:
        nursery.leave()


def _trial(number: int, kind: str, ranks: int) -> Trial:
    how = KINDS[kind]
    trial = Trial("address", f"address {kind}", number, {"kind": kind, "ranks": ranks})
    trial.asked = ranks
    environ = {"HCCOMM_SOCKET_IFNAME": how["if"]} if "if" in how else {}
    with Network(ranks, families=how["families"], **environ) as network:
        if how.get("decoys"):
            for count, host in enumerate(network.hosts):
                _add_decoys(network, host, count)
        group = network.take(ranks)
        meeting = network.meeting(how["at"])
        if not how["at"]:
            meeting["url"] = f"file://{network.folder}/meeting"
        try:
            if "error" in how:
                _refused(trial, group, meeting, how["error"])
            else:
                _connected(trial, group, meeting)
        except (Hung, EOFError, RuntimeError) as error:
            trial.hung += isinstance(error, Hung)
            trial.faults.append(f"{error}\n{others_say(group)}")
    return trial


def _add_decoys(network: Network, host: str, number: int) -> None:
    """Two bridges that lead nowhere: one as docker's, alike on all hosts; one in our own subnet."""
    for name, address in (("docker0", "172.17.0.1/16"), ("lan0", f"10.77.1.{number + 101}/24")):
        network.ip(host, "link", "add", name, "type", "bridge")
        network.ip(host, "link", "set", name, "up")
        network.ip(host, "addr", "add", address, "dev", name, "metric", "700")
    network.ip(host, "route", "add", "default", "via", "10.77.1.254", "dev", CABLE)


def _tell(group: Sequence[Rank], meeting: dict[str, str], timeout: float) -> None:
    set_to_work(group, meeting, "loop", timeout, collective="all_to_all", bytes=1 << 18)


def _connected(trial: Trial, group: Sequence[Rank], meeting: dict[str, str]) -> None:
    began = time.monotonic()
    _tell(group, meeting, TIMEOUT)
    for process in group:
        took = process.hear("up", began + TIMEOUT + 10.0)["at"] - began
        trial.times_ms.append(took * 1e3)
        if took > LATE:
            trial.faults.append(f"connected only after {took:.2f} s")
    group[0].tell("stop")
    for rank, process in enumerate(group):
        answer = process.hear("done", time.monotonic() + TIMEOUT)
        if answer["error"]:
            trial.faults.append(f"rank {rank}: {answer['error']}: {answer['text']}")
        else:
            trial.noticed += 1
            trial.named += 1


def _refused(trial: Trial, group: Sequence[Rank], meeting: dict[str, str], word: str) -> None:
    began = time.monotonic()
    _tell(group, meeting | {"may_fail": "yes"}, SHORT)
    for rank, process in enumerate(group):
        answer = process.hear("done", began + TIMEOUT)
        took = answer["at"] - began
        trial.times_ms.append(took * 1e3)
        right = bool(answer["error"]) and took < SHORT + LATE
        trial.noticed += right
        trial.named += right and word in answer["text"]
        if not right or word not in answer["text"]:
            text = f"{answer['error']} after {took:.2f} s: {answer['text']}"
            trial.faults.append(f"rank {rank}: {text}")

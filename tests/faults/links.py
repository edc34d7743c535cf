# SPDX-License-Identifier: Apache-2.0
"""The link storm: the network between the hosts of a job breaks, in one direction or both.

Promise: a cable that is pulled, a firewall that drops all or one direction, and one that resets are
PeerLost on both sides in HCCOMM_SILENCE (3 s), naming a rank on the other side of the break. A line
of 10 Mbit/s, alone or with ranks that are stopped for less than a second, one that loses packets,
and breaks of less than a second with more than a second between them disturb nobody. With
HCCOMM_INTEGRITY=crc32c a payload that was changed under a valid TCP checksum is an Integrity error.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from typing import Any

from networks import CABLE, Network
from pool import Hung, Nursery, Rank, await_all, moment, others_say, set_to_work
from report import Trial
from stops import all_calm
from works import COLLECTIVES

TIMEOUT = 60.0
PAUSE = 1.2  # between two pulses: TCP tries again once a second at least
BREAKS = {  # what the packet filter of one host does from then on
    "blackhole": "input: drop\noutput: drop",
    "deaf": "input: drop",
    "mute": "output: drop",
    "reset in": "input: meta l4proto tcp reject with tcp reset",
    "reset out": "output: meta l4proto tcp reject with tcp reset",
    "flip": "output: meta l4proto tcp meta length > 1200 @ih,512,16 set 0xfade",
}
KINDS = ("down", *BREAKS, "pulses", "slow", "loss", "stops")
CALM = ("pulses", "slow", "loss", "stops")  # the last: on a slow line


def trials(
    count: int,
    seed: int,
    *,
    ranks: Sequence[int] = (2, 3, 4, 5, 6),
    kinds: Sequence[str] = KINDS,
    silence: float = 3.0,
    seconds: float = 10.0,
    late: float = 0.0,
    pause: float = PAUSE,
    control: str = "",
) -> Iterator[Trial]:
    """Break ``count`` networks. Later than the silence and ``late`` seconds more is a fault."""
    chance = random.Random(seed)
    nursery = Nursery.share()  # of all networks: it takes a while to start
    try:
        for number in range(count):
            what = _plan(kinds[number % len(kinds)], chance, ranks)
            what |= {"silence": silence, "seconds": seconds, "late": silence + late, "pause": pause}
            what["control"] = control
            yield _trial(number, what, chance)
    finally:
        nursery.leave()


def _plan(kind: str, chance: random.Random, ranks: Sequence[int]) -> dict[str, Any]:
    what = {
        "kind": kind,
        "ranks": chance.choice(list(ranks)),
        "collective": chance.choice([each for each in COLLECTIVES if each != "barrier"]),
        "bytes": 1 << 20 if kind == "flip" else chance.choice((64, 64 << 10, 1 << 20)),
    }
    what["hosts"] = min(3, what["ranks"])
    what["victim"] = chance.randrange(what["hosts"])
    return what


def _trial(number: int, what: dict[str, Any], chance: random.Random) -> Trial:
    trial = Trial("link", f"link {what['kind']}", number, what)
    trial.asked = what["ranks"]
    environ = {"HCCOMM_SILENCE": str(what["silence"])}
    if what["kind"] == "flip":
        environ["HCCOMM_INTEGRITY"] = "crc32c"
    with Network(what["hosts"], control=what["control"], **environ) as network:
        group = network.take(what["ranks"])
        try:
            if what["kind"] in ("slow", "stops"):
                for host in network.hosts:
                    network.rate(host, 10)
            job = {name: what[name] for name in ("collective", "bytes")}
            set_to_work(group, network.meeting(), "loop", TIMEOUT, **job)
            await_all(group, "up", TIMEOUT)
            if what["kind"] in CALM:
                _bear(trial, network, group, chance)
            else:
                _break(trial, network, group)
        except (Hung, EOFError, RuntimeError) as error:
            trial.hung += isinstance(error, Hung)
            trial.faults.append(f"{error}\n{others_say(group)}")
    return trial


def _bear(trial: Trial, network: Network, group: list[Rank], chance: random.Random) -> None:
    """Make the line slow, lossy, or away for less than a second: nobody may mind."""
    victim, until = network.hosts[trial.what["victim"]], time.monotonic() + trial.what["seconds"]
    if trial.what["kind"] == "loss":
        for host in network.hosts:
            network.rules(host, "output: numgen random mod 100 < 2 drop")
    while time.monotonic() < until:
        if trial.what["kind"] == "pulses":
            network.rules(victim, BREAKS["blackhole"])
            moment(chance.uniform(0.05, 0.25) * trial.what["silence"])
            network.rules(victim, "")
        if trial.what["kind"] == "stops":
            chance.choice(group).pause(chance.uniform(0.05, 0.95))
        moment(trial.what["pause"])
    all_calm(trial, group)


def _break(trial: Trial, network: Network, group: list[Rank]) -> None:
    """Break a host's cable for good: both sides must lose a rank on the other."""
    victim = network.hosts[trial.what["victim"]]
    began = time.monotonic()
    if trial.what["kind"] == "down":
        network.ip(victim, "link", "set", CABLE, "down")
    else:
        network.rules(victim, BREAKS[trial.what["kind"]])
    for rank, process in enumerate(group):
        answer = process.hear("done", began + TIMEOUT + 10.0)
        took = answer["at"] - began
        trial.times_ms.append(took * 1e3)
        right = answer["error"] == ("Integrity" if trial.what["kind"] == "flip" else "PeerLost")
        named = right and _named(trial.what["kind"], network, victim, rank, answer)
        trial.noticed += right
        trial.named += named
        if not named or took > trial.what["late"]:
            text = f"{answer['error']} {answer['blames']} after {took:.2f} s: {answer['text']}"
            trial.faults.append(f"rank {rank} on {network.host_of(rank)}: {text}")


def _named(kind: str, network: Network, victim: str, rank: int, answer: dict[str, Any]) -> bool:
    """Whether an end of the break is blamed, and by who is not behind it himself, its own."""
    blamed = answer["blames"]
    if blamed < 0:
        return False
    if kind in ("deaf", "mute", "flip", "reset in", "reset out"):
        return True  # one side still hears the other, and may be told whom that has lost
    return (network.host_of(blamed) == victim) != (network.host_of(rank) == victim)

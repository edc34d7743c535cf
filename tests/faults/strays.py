# SPDX-License-Identifier: Apache-2.0
"""The stray storm: somebody who is no rank talks to every listening socket of a job.

Promise: port scanners, browsers, garbage, half a handshake, slow senders and floods neither stop
the job nor spoil its data, whether they come while the ranks meet or later; the log names a source
once. Listeners are found in /proc by the processes that own them.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from typing import Any

from pool import Hung, Pool, Rank, others_say
from report import Trial

TIMEOUT = 60.0
HELLO = b"hccomm\r\n"
STORE = struct.pack("<I", 0x74736368)
PAYLOADS: dict[str, bytes] = {
    "nothing": b"",
    "http": b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n",
    "random": random.Random(4).randbytes(64),
    "ones": b"\xff" * 4096,
    "zeros": bytes(8),
    "half a magic": HELLO[:4],
    "magic, then ones": HELLO + b"\xff" * 600,
    "magic, then zeros": HELLO + bytes(600),
    "store, huge value": STORE + struct.pack("<BBHII", 1, 2, 1, 1, 0xFFFFFFFF) + b"k",
    "store, unknown ask": STORE + struct.pack("<BBHII", 1, 99, 4, 1, 4) + b"keyvalue",
    "store, half a request": STORE + b"\x01",
}
Address = tuple[str, int] | str | bytes
MOMENTS = ("meeting", "tcp store", "working", "idle", "ending")


def listeners(pids: Sequence[int]) -> list[Address]:
    """Return what these processes listen on: (host, port), or the name of a Unix socket."""
    inodes = set()
    for pid in pids:
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                found = re.match(r"socket:\[(\d+)\]", os.readlink(f"/proc/{pid}/fd/{name}"))
                inodes |= {found.group(1)} if found else set()
    places: list[Address] = []
    for family, file in ((socket.AF_INET, "tcp"), (socket.AF_INET6, "tcp6")):
        for line in _lines(f"/proc/net/{file}"):
            if line[3] == "0A" and line[9] in inodes:
                host, port = line[1].split(":")
                words = struct.unpack(f">{len(host) // 8}I", bytes.fromhex(host))
                packed = struct.pack(f"<{len(words)}I", *words)
                places.append((socket.inet_ntop(family, packed), int(port, 16)))
    for line in _lines("/proc/net/unix"):
        if int(line[3], 16) & 0x10000 and line[6] in inodes and len(line) > 7:
            name = line[7].encode()
            places.append(b"\0" + name[1:] if name.startswith(b"@") else line[7])
    return places


def _lines(path: str) -> list[list[str]]:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return [line.split() for line in file.readlines()[1:]]


def call(place: Address) -> socket.socket | None:
    """Connect to a listener, or return None where it does not take us."""
    family = socket.AF_UNIX
    if isinstance(place, tuple):
        family = socket.AF_INET6 if ":" in place[0] else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    made.settimeout(1.0)
    try:
        made.connect(place)
    except OSError:
        made.close()
        return None
    return made


class Intruder:
    """Talks to listeners, and keeps some connections open until closed.

    Owns:   its sockets.
    Thread: one.
    Fails:  never: what a listener does to a stranger is its own affair.
    """

    def __init__(self) -> None:
        self._held: list[socket.socket] = []
        self._dripping: list[socket.socket] = []
        self.sources = 0

    def visit(self, places: Sequence[Address], *, flood: int = 100) -> None:
        """Say everything to every place; leave one connection silent, one slow, and a flood."""
        for place in places:
            self.sources += 1
            for payload in PAYLOADS.values():
                guest = call(place)
                if guest is None:
                    continue
                with contextlib.suppress(OSError):
                    guest.sendall(payload)
                if len(self._held) % 2:  # some leave at once, some wait to be shown out
                    self._held.append(guest)
                else:
                    guest.close()
            self._hold(place, 1, self._held)
            self._hold(place, 1, self._dripping)
            self._hold(place, flood, self._held)
        self.drip()

    def drip(self) -> None:
        """Send one more byte on the slow connections."""
        for number, guest in enumerate(self._dripping):
            with contextlib.suppress(OSError):
                guest.send(HELLO[number % 8 : number % 8 + 1])

    def close(self) -> None:
        """Hang up everywhere."""
        for guest in self._held + self._dripping:
            guest.close()

    def _hold(self, place: Address, count: int, where: list[socket.socket]) -> None:
        for _ in range(count):
            guest = call(place)
            if guest is None:
                return
            where.append(guest)


def trials(
    count: int,
    *,
    transports: Sequence[str] = ("shm", "tcp"),
    ranks: Sequence[int] = (3,),
    seconds: float = 3.0,
    moments: Sequence[str] = MOMENTS,
) -> Iterator[Trial]:
    """Intrude ``count`` times on each transport, in every phase of a job."""
    for transport in transports:
        with Pool.over(transport, HCCOMM_LOG="warn") as pool:
            for number in range(count):
                for size in ranks:
                    for moment in moments:
                        what = {"transport": transport, "ranks": size, "moment": moment}
                        yield _trial(pool, number, what, seconds)


def _trial(pool: Pool, number: int, what: dict[str, Any], seconds: float) -> Trial:
    trial = Trial("stray", f"stray {what['moment']} {what['transport']}", number, what)
    group, intruder = pool.take(what["ranks"]), Intruder()
    trial.asked = len(group)
    meeting = pool.meeting()
    if what["moment"] == "tcp store":
        meeting["url"] = f"tcp://127.0.0.1:{free_port()}"
    before = [len(process.log_text()) for process in group]
    try:
        meets = what["moment"] in ("meeting", "tcp store")
        early = group[:-1] if meets else group
        idle = {"pause": seconds} if what["moment"] == "idle" else {}
        _start(early, len(group), meeting | idle)
        if meets:
            what["listeners"] = len(_intrude(intruder, early))
            _start(group, len(group), meeting, only=len(group) - 1)
        began = time.monotonic()
        for process in group:
            process.hear("up", began + TIMEOUT)
        trial.times_ms.append((time.monotonic() - began) * 1e3)
        if what["moment"] == "ending":
            places = _await_listeners(group)
            group[0].tell("stop")
            what["listeners"] = len(places)
            intruder.visit(places)
        else:
            what["listeners"] = len(_intrude(intruder, group))
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                intruder.drip()
                time.sleep(0.1)
            group[0].tell("stop")
        for rank, process in enumerate(group):
            answer = process.hear("done", time.monotonic() + TIMEOUT)
            if answer["error"]:
                trial.faults.append(f"rank {rank}: {answer['error']}: {answer['text']}")
            else:
                trial.noticed += 1
                trial.named += 1
            what["rounds"] = answer["rounds"]
            what["longest_ms"] = round(answer["longest"] * 1e3, 1)
    except (Hung, EOFError, RuntimeError) as error:
        trial.hung += isinstance(error, Hung)
        trial.faults.append(f"{error}\n{others_say(group)}")
        for process in group:
            pool.drop(process)
    finally:
        intruder.close()
    texts = [p.log_text()[at:] for p, at in zip(group, before, strict=True)]
    what["sources"] = intruder.sources
    what["log_lines"] = sum(text.count("\n") for text in texts)
    if what["log_lines"] > 4 * max(1, intruder.sources):
        trial.faults.append(f"{what['log_lines']} log lines, beginning {texts[0][:300]!r}")
    return trial


def _intrude(intruder: Intruder, group: Sequence[Rank]) -> list[Address]:
    """Wait until every process listens, then visit all places."""
    places = _await_listeners(group)
    intruder.visit(places)
    return places


def _await_listeners(group: Sequence[Rank]) -> list[Address]:
    """Return where all of the processes listen, once each does."""
    until = time.monotonic() + 10.0
    places: list[Address] = []
    while time.monotonic() < until:
        places = listeners([process.pid for process in group])
        if len(places) >= len(group):
            break
        time.sleep(0.02)
    return places


def _start(group: Sequence[Rank], size: int, meeting: dict[str, str], only: int = -1) -> None:
    for rank, process in enumerate(group):
        if only not in (-1, rank):
            continue
        job = {"program": "loop", "rank": rank, "size": size, "timeout": TIMEOUT}
        process.tell(job | meeting | {"collective": "all_reduce", "bytes": 4096})


def free_port() -> int:
    """Return a TCP port that nobody has at the moment."""
    with socket.socket() as probing:
        probing.bind(("127.0.0.1", 0))
        return int(probing.getsockname()[1])

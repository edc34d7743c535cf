# SPDX-License-Identifier: Apache-2.0
"""The tight storm: many ranks on few ports, and folders where nobody may, or can, write.

Promise: a rank listens on one port, which the system chooses, so 64 ranks fit into a range of 512
that serves their connections, too. Nothing is written to the home or to the folder for temporary
files of a job that meets over tcp; a meeting in a folder that is read-only or full says so.

storm.py runs this in namespaces of its own, whose ports and folders SETUP makes so.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from pool import Hung, Pool, others_say, set_to_work
from report import Trial

CLOSED, FULL = "/mnt", "/media"
SETUP = (
    f"mount -t tmpfs -o ro tmpfs {CLOSED} && mount -t tmpfs -o size=4k tmpfs {FULL} && "
    f"head -c 4096 /dev/zero > {FULL}/all && "
    "echo 40000 40511 > /proc/sys/net/ipv4/ip_local_port_range"
)
TIMEOUT = 60.0
SHORT = 3.0  # where the meeting must fail


def trials(ranks: int = 64) -> Iterator[Trial]:
    """Run ``ranks`` on 512 ports; then two where home and folder for temporary files are closed."""
    with Pool(HCCOMM_TRANSPORTS="tcp") as pool:
        yield _trial(pool, 0, "512 ports", ranks, "tcp://127.0.0.1:39000", TIMEOUT, "")
    names = ("HOME", "TMPDIR", "XDG_RUNTIME_DIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")
    with Pool(**dict.fromkeys(names, CLOSED)) as pool:
        yield _trial(pool, 1, "closed home", 2, "tcp://127.0.0.1:39001", TIMEOUT, "")
        url, said = f"file://{CLOSED}/job", "Read-only file system"
        yield _trial(pool, 2, "closed meeting", 2, url, SHORT, said)
        url, said = f"file://{FULL}/job", "No space left on device"
        yield _trial(pool, 3, "full meeting", 2, url, SHORT, said)


def _trial(
    pool: Pool, number: int, kind: str, ranks: int, url: str, timeout: float, expected: str
) -> Trial:
    what: dict[str, Any] = {"kind": kind, "ranks": ranks}
    trial = Trial("tight", f"tight, {kind}", number, what)
    group, began = pool.take(ranks), time.monotonic()
    trial.asked = ranks
    set_to_work(group, {"url": url, "name": f"job-{number}"}, "limited", timeout, fds=-1)
    try:
        for rank, process in enumerate(group):
            answer = process.hear("done", began + timeout + 30.0)
            trial.times_ms.append((answer["at"] - began) * 1e3)
            right = bool(answer["error"]) == bool(expected) and (rank or expected in answer["text"])
            trial.noticed += bool(answer["error"]) == bool(expected)
            trial.named += bool(right)
            if not right or (not expected and answer["text"]):
                trial.faults.append(f"rank {rank}: {answer['error']}: {answer['text']}")
    except (Hung, EOFError, RuntimeError) as error:
        trial.hung += isinstance(error, Hung)
        trial.faults.append(f"{error}\n{others_say(group)}")
    return trial

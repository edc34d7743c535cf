# SPDX-License-Identifier: Apache-2.0
"""Children that ranks of a storm fork at work, as data loaders do, and that outlive them.

A child does nothing but inherit what its parent had open. It lives until its driver lets go of the
leash, a FIFO, or has ended itself; a minute at most, whatever happens.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_LIFE = 60  # seconds


class Leash:
    """What keeps the children of one job alive, and their names. A context manager.

    Owns:   the FIFO and the list; closing it ends the children.
    Thread: one.
    Fails:  OSError when the folder takes no FIFO.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "leash"
        os.mkfifo(self.path, 0o600)
        self._end = os.open(self.path, os.O_RDWR)

    def __enter__(self) -> Leash:
        return self

    def __exit__(self, *_: object) -> None:
        self.path.unlink()
        os.close(self._end)
        self._names().unlink(missing_ok=True)

    def _names(self) -> Path:
        return self.path.with_suffix(".names")

    def children_of(self, pid: int) -> int:
        """Return how many children of a process have come to life; all still live."""
        with contextlib.suppress(FileNotFoundError):
            lines = self._names().read_text(encoding="ascii").split()
            return sum(each == str(pid) for each in lines)
        return 0


def bear(leash: str) -> None:
    """Fork a child that lives as long as the leash."""
    parent = os.getpid()
    if os.fork() != 0:
        return
    try:
        signal.alarm(_LIFE)
        end = os.open(leash, os.O_RDONLY | os.O_NONBLOCK)  # raises: the job is over
        os.set_blocking(end, True)
        names = os.open(f"{leash}.names", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(names, f"{parent}\n".encode())
        os.read(end, 1)
    finally:
        os._exit(0)


@contextlib.contextmanager
def around(job: dict[str, Any]) -> Iterator[None]:
    """Fork the job's ``children``: one at once, the rest from a thread meanwhile."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0] != 0:  # those of the last job
            pass
    if not job.get("children"):
        yield
        return
    bear(job["leash"])
    over, chance = threading.Event(), random.Random(job["rank"])

    def bear_the_rest() -> None:
        for number in range(1, job["children"]):
            if over.wait(chance.uniform(0.0, 0.004 * 3**number)):
                return
            bear(job["leash"])

    thread = threading.Thread(target=bear_the_rest, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()

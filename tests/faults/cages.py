# SPDX-License-Identifier: Apache-2.0
"""A cage of little memory for one process: the kernel kills it when it takes more.

A control group under our own, of either version, where the system lets us make one. Elsewhere there
is none, and who wants a process to die of hunger has to kill it himself (kills.py does, and says
so).
"""

from __future__ import annotations

import os
import time
from pathlib import Path

ROOM = 64 << 20  # bytes that are charged to the process from now on


class Cage:
    """A control group for one process. make() answers None where there can be none.

    Owns:   the folder of the group; close() removes it, once the process has ended.
    Thread: one.
    Fails:  OSError from put() where the system refuses.
    """

    def __init__(self, folder: Path, limit: str, kills: str) -> None:
        self._folder, self._limit, self._kills = folder, limit, kills

    @staticmethod
    def make() -> Cage | None:
        """Make a group under that of this process."""
        for folder, limit, kills in _places():
            try:
                folder.mkdir()
                (folder / limit).write_text(str(ROOM))
            except OSError:
                _remove(folder)
                continue
            return Cage(folder, limit, kills)
        return None

    def put(self, pid: int) -> None:
        """Charge to the cage what the process takes from now on."""
        (self._folder / "cgroup.procs").write_text(str(pid))

    def killed(self) -> bool:
        """Whether the kernel has killed somebody in it."""
        words = (self._folder / self._kills).read_text().split()
        return int(words[words.index("oom_kill") + 1]) > 0

    def close(self) -> None:
        """Remove it."""
        until = time.monotonic() + 5.0
        while not _remove(self._folder) and time.monotonic() < until:
            time.sleep(0.01)


def _places() -> list[tuple[Path, str, str]]:
    """Return where a group could be, the file of its limit, and that of its kills."""
    found, name = [], f"hccomm-storm-{os.getpid()}"
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, kinds, path = line.split(":", 2)
        if "memory" in kinds.split(","):
            folder = Path("/sys/fs/cgroup/memory" + path)
            found.append((folder / name, "memory.limit_in_bytes", "memory.oom_control"))
        elif not kinds:
            folder = Path("/sys/fs/cgroup" + path)
            found.append((folder / name, "memory.max", "memory.events"))
    return found


def _remove(folder: Path) -> bool:
    try:
        folder.rmdir()
    except OSError:
        return not folder.exists()
    return True

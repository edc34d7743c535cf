# SPDX-License-Identifier: Apache-2.0
"""Start one process per rank, listen to rank 0, and leave none behind: what demo/run.py stands on.

Owns its processes: leaving the `with` block ends those that still run. A rank that fails, or a
deadline that passes, is a RuntimeError with the end of that rank's log.
"""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any


class Ranks:
    """The processes of one job."""

    def __init__(
        self,
        command: list[str],
        environments: list[dict[str, str]],
        logs: Path,
        deadline: float,
        *,
        orders: bool = False,
    ) -> None:
        self._logs = logs
        self._deadline = deadline
        self._lines: queue.Queue[str] = queue.Queue()
        self._processes: list[subprocess.Popen[str]] = []
        for rank, environment in enumerate(environments):
            with self._log(rank).open("w") as log:
                out: int | IO[str] = subprocess.PIPE if rank == 0 else log
                process = subprocess.Popen(
                    command,
                    env=environment,
                    stdin=subprocess.PIPE if orders and rank == 0 else subprocess.DEVNULL,
                    stdout=out,
                    stderr=log,
                    text=True,
                )
            self._processes.append(process)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.kill()
        for process in self._processes:
            process.wait()
        self._reader.join(timeout=5)

    def order(self, line: str) -> None:
        """Tell rank 0 a line, where the ranks take orders."""
        stdin = self._processes[0].stdin
        assert stdin is not None
        with contextlib.suppress(BrokenPipeError):  # events() has the story
            stdin.write(line + "\n")
            stdin.flush()

    def events(self) -> Iterator[dict[str, Any]]:
        """Yield what rank 0 says, until all ranks have left in peace."""
        while True:
            try:
                line = self._lines.get(timeout=0.1)
            except queue.Empty:
                if self._all_left():
                    return
                continue
            if line.startswith("{"):
                yield json.loads(line)

    def _all_left(self) -> bool:
        codes = [process.poll() for process in self._processes]
        failed = [rank for rank, code in enumerate(codes) if code not in (None, 0)]
        if failed:
            time.sleep(1.0)  # the others may have the better story: let them write it
            raise RuntimeError("\n".join(self._story(rank) for rank in range(len(codes))))
        if time.monotonic() > self._deadline:
            slow = [rank for rank, code in enumerate(codes) if code is None]
            stories = "\n".join(self._story(rank) for rank in slow)
            raise RuntimeError(f"ranks {slow} did not end in time\n{stories}")
        return all(code == 0 for code in codes) and self._lines.empty()

    def _read(self) -> None:
        stdout = self._processes[0].stdout
        assert stdout is not None
        for line in stdout:
            self._lines.put(line)

    def _log(self, rank: int) -> Path:
        return self._logs / f"rank{rank}.log"

    def _story(self, rank: int) -> str:
        code = self._processes[rank].poll()
        state = "still runs" if code is None else f"left with {code}"
        tail = self._log(rank).read_text(errors="replace").splitlines()[-25:]
        return f"rank {rank} {state}; the end of {self._log(rank)}:\n  " + "\n  ".join(tail)

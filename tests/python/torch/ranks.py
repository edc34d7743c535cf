# SPDX-License-Identifier: Apache-2.0
"""Process groups for tests: processes that run a test's function on every rank.

Every wait has a deadline; when it passes, the ranks print their stacks and are killed.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import hccomm

_START_SECONDS = 300.0  # importing torch on a machine that is busy with other things
_WORKER = Path(__file__).with_name("worker.py")


class RankError(AssertionError):
    """A rank raised. ``kinds`` and ``texts`` say what, by rank; ``values`` what others returned."""

    def __init__(
        self, failures: dict[int, tuple[str, str, str]], values: dict[int, Any] | None = None
    ) -> None:
        self.values = values or {}
        self.kinds = {rank: kind for rank, (kind, _, _) in failures.items()}
        self.texts = {rank: text for rank, (_, text, _) in failures.items()}
        super().__init__(
            "\n".join(f"--- rank {rank}\n{trace}" for rank, (_, _, trace) in failures.items())
        )


class Ranks:
    """``size`` processes with one "hccomm" group (or another backend's, or none).

    ``vendors`` names the simulated accelerator of each rank, "" for none; ``backends`` what each
    rank gives init_process_group, where they differ.
    Owns the processes: close() ends them in any state.
    """

    def __init__(
        self,
        size: int,
        *,
        backend: str = "hccomm",
        environ: dict[str, str] | None = None,
        timeout: float = 60.0,
        vendors: Sequence[str] = (),
        backends: Sequence[str] = (),
    ) -> None:
        self.size = size
        self.started = False
        self.folder = tempfile.TemporaryDirectory()
        self.processes: list[subprocess.Popen[bytes]] = []
        self.pipes: list[Connection] = []
        for rank in range(size):
            here, there = socket.socketpair()
            ranks_environ = {
                **environment(),
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(size),
                "OMP_NUM_THREADS": "1",
                "TEST_BACKEND": backends[rank] if backends else backend,
                "TEST_INIT": f"file://{self.folder.name}/store",
                "TEST_TIMEOUT": str(timeout),
                **(environ or {}),
            }
            if vendors:
                ranks_environ["SIMDEVICE"] = vendors[rank]
            self.processes.append(
                subprocess.Popen(
                    [sys.executable, str(_WORKER), str(there.fileno())],
                    env=ranks_environ,
                    pass_fds=[there.fileno()],
                )
            )
            there.close()
            self.pipes.append(Connection(here.detach()))

    @property
    def alive(self) -> bool:
        return all(process.poll() is None for process in self.processes)

    def run(self, function: Callable[..., Any], *args: Any, timeout: float = 90.0) -> list[Any]:
        """Return what ``function(*args)`` returned on each rank; raise RankError if one raised."""
        if not self.started:
            self.results(_START_SECONDS)
            self.started = True
        call = (inspect.getfile(function), function.__name__, args)
        for pipe in self.pipes:
            pipe.send(call)
        return self.results(timeout)

    def results(self, timeout: float) -> list[Any]:
        deadline = time.monotonic() + timeout
        values: dict[int, Any] = {}
        failures: dict[int, tuple[str, str, str]] = {}
        for rank, pipe in enumerate(self.pipes):
            try:
                if not pipe.poll(max(0.1, deadline - time.monotonic())):
                    failures[rank] = ("Hang", "no answer", f"no answer in {timeout:.0f} s\n")
                    continue
                good, value = pipe.recv()
            except (EOFError, ConnectionError):
                status = self.processes[rank].wait(10)
                failures[rank] = ("Exit", str(status), f"the process ended with {status}\n")
                continue
            if good:
                values[rank] = value
            else:
                failures[rank] = value
                deadline = min(deadline, time.monotonic() + 15.0)
        if any(kind in ("Hang", "Exit") for kind, _, _ in failures.values()):
            self.kill()
        if failures:
            raise RankError(failures, values)
        return [values[rank] for rank in range(self.size)]

    def kill(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGUSR1)  # prints the stacks
        time.sleep(0.5)
        for process in self.processes:
            process.kill()
            process.wait(10)

    def close(self) -> None:
        """End the ranks: politely, then not."""
        for pipe in self.pipes:
            try:
                pipe.send(None)
            except OSError:
                continue
        deadline = time.monotonic() + 20.0
        for process in self.processes:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                self.kill()
        for pipe in self.pipes:
            pipe.close()
        self.folder.cleanup()

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_site: tempfile.TemporaryDirectory[str] | None = None


def environment() -> dict[str, str]:
    """Return the environment of a process that finds hccomm as an installed package would be."""
    global _site
    support = Path(__file__).parents[2] / "support"  # simdevice
    paths = [str(Path(hccomm.__file__).parent.parent), str(support)]
    installed = importlib.metadata.entry_points(group="torch.backends")
    if "hccomm" not in installed.names:  # a source tree: give torch the entry point to find
        if _site is None:
            _site = tempfile.TemporaryDirectory()
            info = Path(_site.name) / "hccomm-0.dist-info"
            info.mkdir()
            (info / "METADATA").write_text("Metadata-Version: 2.1\nName: hccomm\nVersion: 0\n")
            (info / "entry_points.txt").write_text(
                "[torch.backends]\nhccomm = hccomm:_torch_autoload\n"
            )
        paths.append(_site.name)
    inherited = os.environ.get("PYTHONPATH")
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([*paths, *([inherited] if inherited else [])]),
    }

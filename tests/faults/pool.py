# SPDX-License-Identifier: Apache-2.0
"""Processes to do harm to: forked from one that has imported everything, so that each is cheap.

Pools share a nursery, a process that imports NumPy and hccomm once and forks a rank in a few
milliseconds. Ranks serve one job after the other (see programs.py) until somebody kills them; they
die with the nursery, and the nursery with the driver, whatever way the driver ends.
"""

from __future__ import annotations

import abc
import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Self

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
_PR_SET_PDEATHSIG = 1
_CLONE_NEWNET = 0x40000000
_START = 60.0  # seconds in which the nursery must have imported everything


class Hung(RuntimeError):
    """A rank did not answer by its deadline; the text holds its stacks."""


class Rank:
    """One process of a pool.

    Owns:   the pidfd, the pipe and the log of the process.
    Thread: one.
    Fails:  hear() raises Hung at the deadline and EOFError when the process has ended.
    """

    def __init__(self, pid: int, pidfd: int, pipe: Connection, log: Path) -> None:
        self.pid = pid
        self.log = log
        self._pidfd = pidfd
        self._pipe = pipe

    def tell(self, message: Any) -> None:
        """Send a message; a dead process is noticed by hear()."""
        with contextlib.suppress(OSError):
            self._pipe.send(message)

    def hear(self, kind: str, deadline: float) -> dict[str, Any]:
        """Return the next message of ``kind``, passing over others, by ``deadline`` (monotonic)."""
        while True:
            if not self._pipe.poll(max(0.0, deadline - time.monotonic())):
                raise Hung(f"process {self.pid} did not say {kind!r} in time\n{self.stacks()}")
            try:
                found, body = self._pipe.recv()
            except ConnectionError:  # a process that is killed with unread orders resets its pipe
                raise EOFError(f"process {self.pid} has ended") from None
            if found == kind:
                return dict(body)
            if found in ("crash", "done"):  # it cannot say the rest of what it was asked
                raise RuntimeError(f"process {self.pid}: {found}: {body}")

    def last_words(self, until: float) -> str:
        """Return the next message, or that there is none by ``until`` (monotonic)."""
        if not self._pipe.poll(max(0.0, until - time.monotonic())):
            return "still at work"
        return str(self._pipe.recv())[:1000]

    def signal(self, number: int) -> float:
        """Send a signal and return the time just before it."""
        now = time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)
        return now

    def pause(self, seconds: float) -> None:
        """Stop the process for a moment."""
        self.signal(signal.SIGSTOP)
        moment(seconds)
        self.signal(signal.SIGCONT)

    def alive(self) -> bool:
        """Whether the process still runs."""
        return not select.select([self._pidfd], [], [], 0)[0]

    def stacks(self) -> str:
        """Return the stacks of the process: Python's, from its log, and gdb's if it is there."""
        self.signal(signal.SIGUSR1)
        time.sleep(0.5)
        text = self.log_text()[-6000:]
        gdb = shutil.which("gdb")
        if gdb is not None and self.alive():
            with contextlib.suppress(subprocess.TimeoutExpired, OSError):
                text += subprocess.run(
                    [gdb, "-p", str(self.pid), "-batch", "-ex", "thread apply all bt 12"],
                    capture_output=True,
                    text=True,
                    timeout=60,
                    check=False,
                ).stdout[-8000:]
        return text

    def log_text(self) -> str:
        """Return what the process wrote to stderr."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def end(self) -> None:
        """Kill the process, in whatever state, and wait until it is gone."""
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGKILL)
        select.select([self._pidfd], [], [], 30.0)
        self._pipe.close()
        os.close(self._pidfd)


def fakes(folder: Path, *, collectives: bool, fake: str) -> dict[str, str]:
    """Compile two fake vendors' runtimes, and collective libraries; return them as settings."""
    sys.path.insert(0, str(HERE.parent / "python"))
    from fake_arrays import ccl_library, library

    found = {"HCCOMM_TEST_FAKE": fake}
    for kind in ("cuda", "musa"):
        found[f"HCCOMM_{kind.upper()}_LIB"] = str(library(kind, folder))
        if collectives:
            found[f"HCCOMM_CCL_{kind.upper()}_LIB"] = str(ccl_library(kind, folder))
    return found


def set_to_work(
    group: Sequence[Rank],
    meeting: Mapping[str, str],
    program: str,
    timeout: float,
    *,
    of: Mapping[int, dict[str, Any]] | None = None,
    **job: Any,
) -> None:
    """Give every rank its part of one job; ``of`` holds what is a single rank's."""
    shared = {"program": program, "size": len(group), "timeout": timeout, **meeting, **job}
    for rank, process in enumerate(group):
        process.tell(shared | {"rank": rank} | (of or {}).get(rank, {}))


def await_all(group: Sequence[Rank], kind: str, timeout: float) -> None:
    """Hear a message of ``kind`` from every rank, each within ``timeout`` seconds."""
    for process in group:
        process.hear(kind, time.monotonic() + timeout)


def moment(seconds: float) -> None:
    """Let a job go on, so that the harm meets it anywhere: no outcome depends on how long."""
    time.sleep(seconds)


def others_say(group: list[Rank]) -> str:
    """Return what ranks of a failed job have to say, within a second; for reports."""
    until, lines = time.monotonic() + 1.0, []
    for number, rank in enumerate(group):
        try:
            lines.append(f"rank {number}: {rank.last_words(until)}")
        except (EOFError, OSError):
            lines.append(f"rank {number}: has ended")
    return "\n".join(lines)


class Nursery:
    """The process that forks ranks. Pools share one: share() counts who uses it.

    Owns:   the process and the line to it; close() ends both, and with them all ranks.
    Thread: one.
    Fails:  RuntimeError when the process cannot start, or has ended.
    """

    _shared: Nursery | None = None

    def __init__(self) -> None:
        self.users = 0
        self._line, theirs = socket.socketpair()
        variables = {k: v for k, v in os.environ.items() if not k.startswith("HCCOMM_")}
        variables |= {
            k: v for k, v in os.environ.items() if k.startswith(("HCCOMM_PY_", "HCCOMM_OFI_"))
        }
        variables |= {"HCCOMM_LOG": "error", "OMP_NUM_THREADS": "1"}
        variables["PYTHONPATH"] = os.pathsep.join(
            filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])
        )
        with tempfile.TemporaryFile() as log:
            self.process = subprocess.Popen(
                [sys.executable, str(HERE / "pool.py"), str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stderr=log,
                env=variables,
            )
            theirs.close()
            self._line.settimeout(_START)
            try:
                ready = self._line.recv(5) == b"ready"
            except TimeoutError:
                ready = False
            if not ready:
                self.close()
                log.seek(0)
                raise RuntimeError(f"the nursery did not start:\n{log.read().decode()}")

    @classmethod
    def share(cls) -> Nursery:
        """Return the nursery of this process, making it; each taker calls leave()."""
        if cls._shared is None:
            cls._shared = Nursery()
        cls._shared.users += 1
        return cls._shared

    def leave(self) -> None:
        """End it when the last user has left."""
        self.users -= 1
        if self.users == 0:
            Nursery._shared = None
            self.close()

    def bear(self, log: Path, environ: Mapping[str, str]) -> Rank:
        """Fork a rank with more variables."""
        ours, theirs = socket.socketpair()
        text = json.dumps({"log": str(log), "environ": dict(environ)})
        socket.send_fds(self._line, [text.encode()], [theirs.fileno()])
        theirs.close()
        pid, fds, _, _ = socket.recv_fds(self._line, 64, 1)
        if not fds:
            raise RuntimeError("the nursery has ended")
        return Rank(int(pid), fds[0], Connection(ours.detach()), log)

    def close(self) -> None:
        """Hang up, which ends the process; kill it if need be."""
        self._line.close()
        try:
            self.process.wait(5.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(30.0)


class Owner(abc.ABC):
    """Something that is closed where a with block ends."""

    @abc.abstractmethod
    def close(self) -> None:
        """End everything that was started."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Pool(Owner):
    """Ranks that share an environment, kept for many trials. A context manager.

    Owns:   its ranks, and a folder for their logs and meetings.
    Thread: one.
    Fails:  RuntimeError when the nursery cannot start.
    """

    def __init__(self, **environ: str) -> None:
        self.nursery = Nursery.share()
        self.folder = Path(tempfile.mkdtemp(prefix="storm-"))
        self.ranks: list[Rank] = []
        self._environ = environ
        self._meetings = 0
        self._born = 0

    @classmethod
    def over(cls, transport: str, **environ: str) -> Pool:
        """Return a pool for one transport; "ofi:tcp" names libfabric's provider, "ofi" is net's.

        "islands": fake vendors' devices and libraries, over whatever transports there are;
        "mirrors": such devices, slow ones, that copy out of each other's memory over shm.
        """
        name, _, provider = transport.partition(":")
        if name == "islands":
            pool = cls(**environ)
            pool._environ = environ | fakes(pool.folder, collectives=True, fake="devices=4")
            return pool
        if name == "mirrors":
            pool = cls(HCCOMM_TRANSPORTS="shm", **environ)
            pool._environ |= fakes(pool.folder, collectives=False, fake="devices=4,gbps=1")
            return pool
        if name == "ofi":
            environ["HCCOMM_OFI_PROVIDER"] = provider or "net"
        return cls(HCCOMM_TRANSPORTS=name, **environ)

    def take(self, count: int) -> list[Rank]:
        """Return ``count`` ranks that live, making those that lack."""
        for each in [rank for rank in self.ranks if not rank.alive()]:
            self.drop(each)
        while len(self.ranks) < count:
            self._born += 1
            log = self.folder / f"rank-{self._born}.log"
            self.ranks.append(self.nursery.bear(log, self._environ))
        return self.ranks[:count]

    def drop(self, rank: Rank) -> None:
        """End a rank and forget it; take() makes another in its place."""
        self.ranks.remove(rank)
        rank.end()

    def meeting(self) -> dict[str, str]:
        """Return a new place for ranks to meet, and a name: init() numbers those it has seen."""
        self._meetings += 1
        name = f"job-{self._meetings}"
        return {"url": f"file://{self.folder}/{name}", "name": name}

    def close(self) -> None:
        """End everything that was started."""
        for each in list(self.ranks):
            self.drop(each)
        self.nursery.leave()
        shutil.rmtree(self.folder, ignore_errors=True)


# ---- the nursery: what runs when this file is the program ------------------------------------


def _nurse(line: socket.socket) -> None:
    sys.path.insert(0, str(HERE))
    import programs

    import hccomm._native

    hccomm._native.library()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits: the kernel reaps
    line.sendall(b"ready")
    nurse = os.getpid()
    while True:
        text, fds, _, _ = socket.recv_fds(line, 4096, 1)
        if not fds:
            return
        pid = os.fork()
        if pid == 0:
            line.close()
            try:
                born = json.loads(text)
                os.environ.update(born["environ"])  # the library reads it in its first job
                _grow_up(nurse, born["log"])
                _move(born["environ"].get("HCCOMM_TEST_NETNS"))
                programs.serve(Connection(fds[0]))
            finally:
                os._exit(0)
        os.close(fds[0])
        pidfd = os.pidfd_open(pid)
        socket.send_fds(line, [str(pid).encode()], [pidfd])
        os.close(pidfd)


def _grow_up(nurse: int, log: str) -> None:
    """Become a process of its own: die with the nurse, log to a file, dump no core."""
    import faulthandler
    import resource

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != nurse:  # it died before prctl
        os._exit(1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    file = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    os.dup2(file, 2)
    os.close(file)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    faulthandler.register(signal.SIGUSR1, file=sys.stderr, all_threads=True)


def _move(host: str | None) -> None:
    """Live on a host of networks.py from now on."""
    if host is None:
        return
    with open(f"/run/netns/{host}", encoding="ascii") as space:
        if ctypes.CDLL(None, use_errno=True).setns(space.fileno(), _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"setns to {host}")


if __name__ == "__main__":
    _nurse(socket.socket(fileno=int(sys.argv[1])))

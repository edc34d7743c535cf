# SPDX-License-Identifier: Apache-2.0
"""Run ranks on this machine, without a launcher: for tests, the bench and first tries.

``run_local(function, ranks)`` starts processes, runs ``function(comm)`` in each and returns what
they returned. ``Ranks`` keeps the processes for more than one call. What was started is always
ended, and a call that takes too long prints the stacks of every rank and fails.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from hccomm.errors import InvalidArgument

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

T = TypeVar("T")
_GRACE = 5.0  # seconds between a rank's own watchdog and its end from outside


class RanksFailed(RuntimeError):
    """Some ranks raised or died. ``failures`` maps their numbers to what they raised."""

    def __init__(self, failures: Mapping[int, BaseException], traces: Mapping[int, str]) -> None:
        self.failures = dict(failures)
        lines = [f"{len(failures)} rank(s) failed"]
        for rank, failure in sorted(failures.items()):
            lines.append(f"rank {rank}: {type(failure).__name__}: {failure}")
            lines.extend(f"    {line}" for line in traces.get(rank, "").splitlines())
        super().__init__("\n".join(lines))


def run_local(
    function: Callable[..., T],
    ranks: int,
    *args: Any,
    hosts: int = 1,
    environ: Mapping[str, str] | None = None,
    timeout: float = 60.0,
) -> list[T]:
    """Run ``function(comm, *args)`` on ``ranks`` new processes and return the results by rank.

    ``function`` must be importable from its module. ``hosts`` spreads the ranks over so many
    emulated hosts. Raises RanksFailed when a rank raises, dies or takes ``timeout`` seconds.
    """
    with Ranks(ranks, hosts=hosts, environ=environ, timeout=timeout) as group:
        return group.run(function, *args)


class Ranks:
    """Processes of this machine, each a rank with a communicator of all.

    Owns:   the processes; close() or the end of a ``with`` block ends them, in any state.
    Thread: one.
    Fails:  run() raises RanksFailed; after a rank died or hung, the group is of no further use.
    """

    def __init__(
        self,
        size: int,
        *,
        hosts: int = 1,
        environ: Mapping[str, str] | None = None,
        timeout: float = 60.0,
    ) -> None:
        if size < 1 or not 1 <= hosts <= size:
            raise InvalidArgument(
                f"run_local: {size} ranks on {hosts} hosts; ask for 1 rank or more, and no more "
                "hosts than ranks"
            )
        import multiprocessing

        from hccomm.rendezvous import unique_url

        url = unique_url()
        context = multiprocessing.get_context("spawn")
        self.size = size
        self.usable = True
        self._timeout = timeout
        self._pipes: list[Connection] = []
        self.processes: list[Any] = []
        for rank in range(size):
            ours, theirs = context.Pipe()
            variables = _variables(rank, size, hosts, url) | dict(environ or {})
            process = context.Process(
                target=_serve, args=(theirs, variables), daemon=True, name=f"rank {rank}"
            )
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self.processes.append(process)

    def run(self, function: Callable[..., T], *args: Any, timeout: float | None = None) -> list[T]:
        """Run ``function(comm, *args)`` on every rank and return the results by rank."""
        self.start(function, *args, timeout=timeout)
        return self.collect(timeout=timeout)

    def start(self, function: Callable[..., Any], *args: Any, timeout: float | None = None) -> None:
        """Begin ``run``; collect() ends it. Between them ``processes`` may be tampered with."""
        import pickle

        message = pickle.dumps((function, args, timeout or self._timeout))
        for pipe in self._pipes:
            with contextlib.suppress(OSError):  # a dead rank shows in collect()
                pipe.send_bytes(message)

    def collect(
        self, *, timeout: float | None = None, ranks: Sequence[int] | None = None
    ) -> list[Any]:
        """Return the results of ``ranks`` (default: all). Raises RanksFailed."""
        from multiprocessing.connection import Connection, wait

        deadline = time.monotonic() + (timeout or self._timeout) + _GRACE
        wanted = list(range(self.size)) if ranks is None else list(ranks)
        results: dict[int, Any] = {}
        failures: dict[int, BaseException] = {}
        traces: dict[int, str] = {}
        waiting = {self._pipes[rank]: rank for rank in wanted}
        while waiting:
            ready = wait(list(waiting), max(0.0, deadline - time.monotonic()))
            for pipe in ready:
                assert isinstance(pipe, Connection)
                rank = waiting.pop(pipe)
                try:
                    fine, value, trace = pipe.recv()
                except (EOFError, OSError):
                    self.usable = False
                    code = self._exit_code(rank)
                    failures[rank] = RuntimeError(f"its process ended with exit code {code}")
                    continue
                if fine:
                    results[rank] = value
                else:
                    failures[rank], traces[rank] = value, trace
            if not ready:
                for rank in waiting.values():
                    failures[rank] = RuntimeError("it did not answer in time")
                self.close()
                break
        if failures:
            raise RanksFailed(failures, traces)
        return [results[rank] for rank in wanted]

    def close(self) -> None:
        """End the processes: by asking, then by force."""
        self.usable = False
        for pipe in self._pipes:
            pipe.close()
        deadline = time.monotonic() + 5.0
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
        for process in self.processes:
            if process.is_alive():
                process.kill()
                process.join(5.0)

    def _exit_code(self, rank: int) -> int | None:
        self.processes[rank].join(5.0)
        code: int | None = self.processes[rank].exitcode
        return code

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _variables(rank: int, size: int, hosts: int, url: str) -> dict[str, str]:
    """Return the environment of one rank, as torchrun would name things."""
    variables = {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(size),
        "HCCOMM_RENDEZVOUS": url,
    }
    if hosts > 1:
        variables["HCCOMM_HOST"] = f"host{rank * hosts // size}"
    return variables


def _serve(pipe: Connection, variables: Mapping[str, str]) -> None:
    """Be one rank: answer calls until the pipe closes."""
    import faulthandler
    import pickle
    import traceback

    os.environ.update(variables)
    import hccomm

    comm: Any = None
    while True:
        try:
            message = pipe.recv_bytes()
        except (EOFError, OSError):
            break
        faulthandler.dump_traceback_later(60.0, exit=True, file=sys.stderr)
        try:
            function, args, timeout = pickle.loads(message)
            faulthandler.dump_traceback_later(timeout, exit=True, file=sys.stderr)
            if comm is None:
                comm = hccomm.init()
            answer = (True, function(comm, *args), "")
        except BaseException as error:  # the other side raises it
            answer = (False, error, traceback.format_exc())
        faulthandler.cancel_dump_traceback_later()
        with contextlib.suppress(OSError):
            pipe.send_bytes(_pickled(answer))
    faulthandler.dump_traceback_later(10.0, exit=True, file=sys.stderr)
    if comm is not None:
        comm.close()
    faulthandler.cancel_dump_traceback_later()


def _pickled(answer: tuple[bool, Any, str]) -> bytes:
    import pickle

    try:
        return pickle.dumps(answer)
    except Exception as error:
        fine, value, trace = answer
        text = f"{type(value).__name__}: {value} (not picklable: {error})"
        return pickle.dumps((False, RuntimeError(text), trace if not fine else ""))

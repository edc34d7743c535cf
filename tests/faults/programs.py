# SPDX-License-Identifier: Apache-2.0
"""What the ranks of a storm do: each program takes one job and returns what it saw.

pool.py forks the processes that run serve(); the storms send them jobs. A program reports times of
the monotonic clock, which all processes of a host share. An operation that ends without an error
must have given the right numbers (works.py).
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import children
import numpy as np
from works import MirrorWork, Work, make_work

import hccomm
from hccomm import _native

Job = dict[str, Any]


def serve(pipe: Connection) -> None:
    """Run jobs until the driver hangs up."""
    while True:
        try:
            job = pipe.recv()
        except (EOFError, OSError):
            return
        if not isinstance(job, dict):
            continue  # an order that came too late for its job
        try:
            pipe.send(("done", PROGRAMS[job["program"]](job, pipe)))
        except BaseException:
            pipe.send(("crash", {"text": traceback.format_exc()}))


def join(job: Job) -> hccomm.Communicator:
    """Make the job's communicator."""
    return hccomm.init(
        rank=job["rank"],
        size=job["size"],
        rendezvous=job["url"],
        name=job["name"],
        timeout=job["timeout"],
    )


@contextlib.contextmanager
def joined(job: Job) -> Iterator[hccomm.Communicator]:
    """Make the job's communicator and close it, whatever its state, without a word."""
    comm = join(job)
    try:
        yield comm
    finally:
        with contextlib.suppress(hccomm.Error):
            comm.close()


def seen(error: hccomm.Error | AssertionError | None = None, text: str = "") -> dict[str, Any]:
    """Return what a rank saw: which error (none; "wrong" for data), when, whom it names."""
    known = isinstance(error, hccomm.Error)
    return {
        "error": "" if error is None else type(error).__name__ if known else "wrong",
        "blames": error.rank if isinstance(error, hccomm.Error) else -1,
        "text": str(error)[:600] if error else text,
        "at": time.monotonic(),
    }


FAILURES = (hccomm.Error, AssertionError)


def inventory() -> dict[str, int]:
    """Return what this process holds: descriptors, threads, resident KiB; and of others' memory.

    `mapped` counts mappings of memory that has no descriptor here, `pinned` what fake devices have
    pinned beyond the memory that this process shares (and keeps, to use it again: `shared`).
    """
    gc.collect()
    with open("/proc/self/statm", encoding="ascii") as statm:
        pages = int(statm.read().split()[1])
    names = {}
    for each in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the one that lists them
            names[each] = os.readlink(f"/proc/self/fd/{each}")
    ours = set()
    for each in names:
        with contextlib.suppress(FileNotFoundError):  # closed since
            if _MEMORY in names[each]:
                ours.add(os.stat(f"/proc/self/fd/{each}").st_ino)
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        inodes = [int(line.split()[4]) for line in maps if _MEMORY in line]
    return {
        "fds": len(names) - len(ours),
        "threads": len(os.listdir("/proc/self/task")),
        "rss_kib": pages * (os.sysconf("SC_PAGE_SIZE") // 1024),
        "shared": len(ours),
        "mapped": sum(inode not in ours for inode in inodes),
        "pinned": _pinned() - len(ours),
    }


_MEMORY = "memfd:hccomm"


def _pinned() -> int:
    """Return how many blocks the fake devices of this process have pinned."""
    count = 0
    for each in ("HCCOMM_CUDA_LIB", "HCCOMM_MUSA_LIB"):
        if each in os.environ:
            function = ctypes.CDLL(os.environ[each]).fake_count
            function.restype = ctypes.c_int64
            count += function(b"pinned_blocks")
    return count


# ---- programs --------------------------------------------------------------------------------


def kill(job: Job, pipe: Connection) -> dict[str, Any]:
    """Work until a peer's death ends it; say when and whom the error names."""
    _maybe_die(job, pipe)
    with contextlib.ExitStack() as leaving:
        try:
            leaving.enter_context(children.around(job))
            if job["phase"] == "init":
                pipe.send(("up", {"at": time.monotonic()}))
            comm = leaving.enter_context(joined(job))
            work = make_work(comm, job)
            work.once()
            if job.get("children"):
                children.bear(job["leash"])  # which inherits all there is
            if job["phase"] != "init":
                pipe.send(("up", {"at": time.monotonic()}))
            return _until_the_end(job, pipe, comm, work)
        except FAILURES as error:
            return seen(error)


def _until_the_end(
    job: Job, pipe: Connection, comm: hccomm.Communicator, work: Work
) -> dict[str, Any]:
    called = time.monotonic()
    if job["phase"] in ("idle", "teardown") or job["how"] != "signal":
        _wait_for_go(pipe, job)
        called = time.monotonic()
    if job["phase"] == "teardown":
        try:
            comm.close()
        except hccomm.Error as error:
            return seen(error) | {"called": called}
        return seen() | {"error": "closed", "called": called}
    try:
        while True:
            work.once()
    except hccomm.Error as error:
        copied = work.copied() if isinstance(work, MirrorWork) else 0
        return seen(error) | {"called": called, "rounds": work.rounds, "copied": copied}


def _wait_for_go(pipe: Connection, job: Job) -> None:
    """Stay idle until the driver says go; the victim that ends by itself has a thread for it."""
    if job["how"] != "signal":
        if job["phase"] in ("idle", "teardown"):
            threading.Event().wait(120.0)
        return
    if pipe.poll(120.0):
        pipe.recv()


def _maybe_die(job: Job, pipe: Connection) -> None:
    """Start the thread that ends this process when told to, where that is the way it dies."""
    if job["how"] == "signal":
        return

    def wait() -> None:
        pipe.recv()
        pipe.send(("dying", {"at": time.monotonic()}))
        if job["how"] == "exit":
            os._exit(17)
        hog = []
        while job["how"] == "hunger" and len(hog) < 32:  # its cage has room for four
            hog.append(b"x" * (16 << 20))
        ctypes.string_at(0)  # a real segmentation fault

    threading.Thread(target=wait, daemon=True).start()


def loop(job: Job, pipe: Connection) -> dict[str, Any]:
    """Work until told to stop, together: rank 0's word goes round in a broadcast after each."""
    try:
        comm = join(job)
    except hccomm.Error as error:
        if not job.get("may_fail"):
            raise
        return seen(error)
    outcome = seen()
    work = make_work(comm, job)
    word = np.zeros(1, np.int32)
    longest, began = 0.0, time.monotonic()
    try:
        for round_ in range(1 << 30):
            if round_ == 1 and job.get("pause"):
                time.sleep(job["pause"])  # a long step: slow, not dead
            before = time.monotonic()
            work.once()
            word[0] = comm.rank == 0 and pipe.poll() and pipe.recv() == "stop"
            comm.broadcast(word, root=0)
            longest = max(longest, time.monotonic() - before)
            if round_ == 0:
                pipe.send(("up", {"at": time.monotonic()}))
            if word[0]:
                break
    except FAILURES as error:
        outcome = seen(error)
    spent = time.monotonic() - began
    with contextlib.suppress(hccomm.Error):
        comm.close()
    return outcome | {"rounds": work.rounds, "longest": longest, "seconds": spent}


def cycles(job: Job, pipe: Connection) -> dict[str, Any]:
    """Make and close communicators again and again; say what the process held before and after."""
    before: dict[str, int] = {}
    warm = min(20, job["cycles"] // 4)
    for cycle in range(job["cycles"]):
        if cycle == warm:
            before = inventory()
        comm = join(job | {"url": f"{job['url']}-{cycle}", "name": f"{job['name']}-{cycle}"})
        comm.all_reduce(np.ones(1024, np.float32))
        if job["groups"]:
            with comm.group(list(range(comm.size))) as group:
                group.all_reduce(np.ones(16, np.float32))
        comm.close()
    return {"before": before, "after": inventory()}


def count(job: Job, pipe: Connection) -> dict[str, Any]:
    """Say what the process holds now."""
    return dict(inventory())


def disagree(job: Job, pipe: Connection) -> dict[str, Any]:
    """Make one call that the other ranks do not agree with, and say what came of it."""
    import mismatch_cases

    comm, later = join(job), False
    buffers = mismatch_cases.Buffers(comm.rank + 1)
    call = mismatch_cases.CASES[job["case"]].call(comm, buffers)
    called = time.monotonic()
    outcome = seen()
    try:
        comm.barrier()  # it may see the error of a rank that is ahead
        called = time.monotonic()
        call()
        outcome["at"] = time.monotonic()
        later = True
        comm.barrier()  # nobody leaves while another still works
    except hccomm.Error as error:
        outcome = seen(error)
    with contextlib.suppress(hccomm.Error):
        comm.close()
    return outcome | {"called": called, "later": later, "damaged": buffers.damaged()}


def use_in_child(job: Job, pipe: Connection) -> dict[str, Any]:
    """Use the communicator in a forked child, which must raise; then go on in the parent."""
    comm = join(job)
    flying = comm.all_reduce(np.ones(1 << 16, np.float32), async_op=True)
    answers = {name: _ask_child(lambda name=name: _try(comm, name, flying)) for name in _TRIES}
    flying.wait()
    with contextlib.suppress(hccomm.Error):
        total = comm.all_reduce(np.ones(8, np.float32))
        answers["parent goes on"] = "fine" if (total == comm.size).all() else "wrong"
    comm.close()
    return {"answers": answers}


_TRIES = ("all_reduce", "wait", "abort", "group", "close", "exit")


def _try(comm: hccomm.Communicator, name: str, flying: Any) -> str:
    try:
        if name == "all_reduce":
            comm.all_reduce(np.ones(4, np.float32))
        elif name == "wait":
            flying.wait()
        elif name == "abort":
            comm.abort("from the child")
        elif name == "group":
            comm.group([comm.rank])
        elif name == "close":
            comm.close()
        elif name == "exit":
            atexit._run_exitfuncs()
    except hccomm.Error as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def _ask_child(function: Callable[[], str]) -> str:
    """Run ``function`` in a forked child and return its answer, or "hung" after five seconds."""
    out, into = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        try:
            os.write(into, function().encode()[:2000])
        finally:
            os._exit(0)
    os.close(into)
    import select

    ready = select.select([out], [], [], 20.0)[0]
    answer = os.read(out, 4096).decode() if ready else "hung"
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(out)
    return answer or "died"


def survive(job: Job, pipe: Connection) -> dict[str, Any]:
    """Sum ones until told to stop; when a rank is lost, shrink and go on without it."""
    comm = join(job)
    while True:
        try:
            if _sum_until_stopped(job, pipe, comm):
                comm.close()
                return seen()
        except AssertionError as error:
            return seen(error)
        except hccomm.PeerLost:
            smaller = comm.shrink(timeout=15.0)
            comm.close()
            comm = smaller


def _sum_until_stopped(job: Job, pipe: Connection, comm: hccomm.Communicator) -> bool:
    word = np.zeros(1, np.int32)
    said = False
    while True:
        ones = np.ones(max(1, job["bytes"] // 4), np.float32)
        comm.all_reduce(ones)
        assert (ones == comm.size).all(), f"wrong sum {ones[0]} of {comm.size}"
        word[0] = comm.rank == 0 and pipe.poll() and pipe.recv() == "stop"
        comm.broadcast(word, root=0)
        if not said:
            pipe.send(("up", {"at": time.monotonic(), "size": comm.size, "rank": comm.rank}))
        said = True
        if word[0]:
            return True


def end(job: Job, pipe: Connection) -> dict[str, Any]:
    """Wait in a collective that the victim does not join, or be the victim (endings.py)."""
    with joined(job) as comm:
        comm.barrier()
        if job["kind"] == "stop, close":
            pipe.send(("up", {"at": time.monotonic()}))
            pipe.recv()  # for the victim, which is stopped meanwhile, once the others have closed
            comm.close()
            return seen()
        try:
            if comm.rank != job["victim"]:
                pipe.send(("up", {"at": time.monotonic()}))
                comm.all_reduce(np.ones(1 << 18, np.float32))
            else:
                _be_the_victim(job["kind"], comm, pipe)
        except KeyboardInterrupt:
            comm.abort("Ctrl-C")
            return {"error": "KeyboardInterrupt", "blames": -1, "text": ""}
        except hccomm.Error as error:
            return seen(error)
    return seen(text="nothing happened")


def _be_the_victim(kind: str, comm: hccomm.Communicator, pipe: Connection) -> None:
    """Wait for a message that never comes; what else happens is the kind's affair."""
    room = np.zeros(1 << 18, np.float32)
    if kind == "abort by a handler":  # a real one, not Python's
        library = ctypes.CDLL(str(_native.find()))
        handler = ctypes.cast(library.hccomm_abort_signal, ctypes.c_void_p)
        ctypes.CDLL(None).signal(signal.SIGUSR2, handler)
    elif kind == "Ctrl-C":
        signal.signal(signal.SIGINT, signal.default_int_handler)
    elif kind == "exit":
        comm.recv(room, (comm.rank + 1) % comm.size, async_op=True)
        pipe.send(("up", {"at": time.monotonic()}))
        pipe.recv()
        atexit._run_exitfuncs()
        os._exit(0)
    elif kind == "abort by a thread":

        def abort() -> None:
            pipe.recv()
            comm.abort("a thread said so")

        threading.Thread(target=abort, daemon=True).start()
    pipe.send(("up", {"at": time.monotonic()}))
    comm.recv(room, (comm.rank + 1) % comm.size)


def limited(job: Job, pipe: Connection) -> dict[str, Any]:
    """Meet and sum with few descriptors left; say what came of it."""
    import resource

    if job.get("mib", -1) >= 0:
        with open("/proc/self/statm", encoding="ascii") as statm:
            pages = int(statm.read().split()[0])
        most = pages * os.sysconf("SC_PAGE_SIZE") + (job["mib"] << 20)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    if job["fds"] >= 0:
        highest = max(int(each) for each in os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + job["fds"],) * 2)
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
    try:
        with join(job) as comm:
            total = comm.all_reduce(np.ones(1 << 18, np.float32))
            wrong = "" if (total == comm.size).all() else "wrong sum"
            out = comm.all_to_all(np.full(comm.size, comm.rank, np.float32))
            wrong = wrong or ("" if (out == np.arange(comm.size)).all() else "wrong parts")
            comm.barrier()
    except hccomm.Error as error:
        return seen(error)
    return seen(text=wrong)


def train(job: Job, pipe: Connection) -> dict[str, Any]:
    """Train in groups as the driver makes them: ask for one, take its state over, work, ask again.

    The batch of a step is the same whoever shares it. A step that fails counts for nobody, or for
    those that have finished it: who is ahead gives its state to the others.
    """
    import training

    model, comm = training.Model(), None
    try:
        while True:
            pipe.send(("ready", {"step": model.step}))
            while (order := pipe.recv()) == "make room":
                pass  # it came after the last step
            if order == "end":
                return {"weights": model.weights.tolist(), "loss": model.loss()}
            place = {"rendezvous": order["url"], "name": order["name"], "timeout": job["timeout"]}
            with contextlib.suppress(hccomm.PeerLost):
                if comm is None:
                    comm = hccomm.init(rank=order["rank"], size=order["size"], **place)
                else:
                    comm.reconfigure(order["rank"], order["size"], **place)
                _train_together(model, comm, order["root"], job["steps"], pipe)
    finally:
        if comm is not None:
            comm.close()


def _train_together(
    model: Any, comm: hccomm.Communicator, root: int, steps: int, pipe: Any
) -> None:
    """Work until all steps are done or rank 0 is told that others wait to join."""
    state = model.state()
    comm.broadcast(state, root=root)
    model.load(state)
    said = np.zeros(1)
    while model.step < steps and not said[0]:
        gradient = model.gradient(comm.rank, comm.size)
        comm.all_reduce(gradient)
        model.apply(gradient)
        said[0] = comm.rank == 0 and pipe.poll() and pipe.recv() == "make room"
        comm.broadcast(said, root=0)
        if model.step % 10 == 0:
            pipe.send(("at", {"step": model.step}))


def rails(job: Job, pipe: Connection) -> dict[str, Any]:
    """Add up arrays on fake devices; report how islands divide what crosses between them."""
    os.environ.update(job["fakes"])
    sys.path.append(str(Path(__file__).resolve().parent.parent / "python"))
    from fake_arrays import CudaArray

    comm = join(job)
    last = 0.0
    for _ in range(job["calls"]):
        array = CudaArray(np.full(1_000_000, comm.rank + 1, np.float32), index=comm.rank % 2)
        began = time.monotonic()
        comm.all_reduce(array)
        last = time.monotonic() - began
        assert np.all(array.numpy() == comm.size * (comm.size + 1) // 2)
    shares = [each["shares"] for each in comm.describe()["islands"]["islands"]]
    comm.close()
    return {"shares": shares, "last": last}


PROGRAMS: dict[str, Callable[[Job, Connection], dict[str, Any]]] = {
    "kill": kill,
    "loop": loop,
    "cycles": cycles,
    "count": count,
    "disagree": disagree,
    "use_in_child": use_in_child,
    "survive": survive,
    "train": train,
    "end": end,
    "limited": limited,
    "rails": rails,
}

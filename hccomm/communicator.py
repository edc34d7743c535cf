# SPDX-License-Identifier: Apache-2.0
"""A communicator: a group of ranks that move data together, from its making to its end.

rendezvous.init() makes the first one of a job; group() and split() make smaller ones. The methods
that move data are in operations.py.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from hccomm import errors
from hccomm._native import Library, library
from hccomm.buffers import Buffer, view
from hccomm.memory import Registration
from hccomm.operations import Operations
from hccomm.requests import COLLECTIVES, Request
from hccomm.work import CHandle, Handle, Work

if TYPE_CHECKING:
    from hccomm.rendezvous import Store

_ADRIFT = "in no group since reconfigure() was called"
_MANY_ORPHANS = 64  # then look which of them are done
_live: weakref.WeakSet[Communicator] = weakref.WeakSet()


class Communicator(Operations):
    """A group of ranks. Use it as a context manager, or close() it.

    Owns:   the C handle, and the buffers of operations that their callers forgot.
    Thread: operations from any thread, in the same order on all ranks; close from one.
    Fails:  after close(), abort() or a fork every method raises Aborted or InvalidArgument, saying
            which it was.
    """

    def __init__(self, handle: Any, name: str = "world") -> None:
        """Take over ``handle``, an ``hccomm_comm*``. Users call hccomm.init() instead."""
        self._library: Library = library()
        self._handle = handle
        self._name = name
        self._rank = int(self._library.lib.hccomm_rank(handle))
        self._size = int(self._library.lib.hccomm_size(handle))
        self._ended = ""  # why it cannot be used any more
        self._orphans: list[Handle] = []
        self._inside = 0  # threads inside a C call with this handle
        self._count = threading.Lock()
        self._state: Any = None
        self._attach_fast_path()
        _live.add(self)

    @property
    def rank(self) -> int:
        """Place of this process in the group, 0..size-1."""
        return self._rank

    @property
    def size(self) -> int:
        """How many ranks the group has."""
        return self._size

    @property
    def name(self) -> str:
        """What the group was called when it was made."""
        return self._name

    @property
    def closed(self) -> bool:
        """Whether the communicator can no longer be used."""
        return bool(self._ended)

    # ---- groups ------------------------------------------------------------------------------

    def group(
        self, ranks: Sequence[int], *, name: str | None = None, timeout: float | None = None
    ) -> Communicator:
        """Make the group of ``ranks`` of this one, in that order. Only its members call it.

        No network traffic happens. Groups of the same ranks are told apart by ``name``, or by how
        many there were before.
        """
        library = self._library
        members = library.ffi.new("int32_t[]", [int(each) for each in ranks])
        label = library.ffi.NULL if name is None else library.ffi.new("char[]", name.encode())
        made, error = library.ffi.new("hccomm_comm**"), library.error()
        with _Inside(self, "group") as handle:
            code = library.lib.hccomm_group(
                handle, members, len(members), label, _seconds(timeout, "group"), made, error
            )
        library.check(code, error)
        return Communicator(made[0], name or f"{self._name}{list(ranks)}")

    def split(self, color: int | None, key: int = 0) -> Communicator | None:
        """Make one group for each ``color``, ordered by ``(key, rank)``. Every rank calls it.

        A rank whose color is None (or negative) joins no group and gets None.
        """
        library = self._library
        made, error = library.ffi.new("hccomm_comm**"), library.error()
        chosen = -1 if color is None else int(color)
        with _Inside(self, "split") as handle:
            code = library.lib.hccomm_split(handle, chosen, int(key), made, error)
        library.check(code, error)
        if made[0] == library.ffi.NULL:
            return None
        return Communicator(made[0], f"{self._name}/{chosen}")

    def use_islands(self, like: Buffer) -> None:
        """Settle the islands now, which otherwise the first collectives do. Every rank calls it.

        Ranks of one vendor on one host, each on a device of its own, work by their vendor's
        library; hccomm works between them. This rank's arrays lie where ``like`` does; others are
        taken too, by a detour. Raises alike on all ranks where there is no island;
        ``describe()["islands"]`` shows them.
        """
        place = view(like, "use_islands").place
        error = self._library.error()
        with _Inside(self, "use_islands") as handle:
            code = self._library.lib.hccomm_use_islands(handle, place.kind, place.number, error)
        self._library.check(code, error)

    def register(self, buffer: Buffer) -> Registration:
        """Register the memory of ``buffer`` with this process's network cards, until deregistered.

        For arrays that are sent or received into again and again: transport ofi then finds them
        registered at their first large message, also where it keeps nothing registered by itself,
        as of devices (docs/rdma.md). Other transports have nothing to register, and no card may
        reach the device: then this does nothing. It serves all communicators of the process; other
        ranks need not do the same.

            with comm.register(weights):
                comm.all_reduce(weights)

        Raises InvalidArgument for an array that is empty or read-only, System when a card or the
        limit on locked memory (``ulimit -l``) refuses an array on the host.
        """
        with _Inside(self, "register") as handle:
            return Registration(self._library, handle, buffer)

    def shrink(self, *, timeout: float | None = None) -> Communicator:
        """Make the group of the ranks that live, after one was lost; each of them calls it.

        They agree on who is lost, also if more die meanwhile. This communicator stays failed: close
        it. Raises Timeout naming a rank that does not call, and PeerLost on a rank that the others
        have given up.
        """
        library = self._library
        made, error = library.ffi.new("hccomm_comm**"), library.error()
        with _Inside(self, "shrink") as handle:
            code = library.lib.hccomm_shrink(handle, _seconds(timeout, "shrink"), made, error)
        library.check(code, error)
        return Communicator(made[0], f"{self._name}/shrink")

    def reconfigure(
        self,
        rank: int,
        size: int,
        *,
        rendezvous: str = "",
        store: Store | None = None,
        name: str = "world",
        timeout: float | None = None,
    ) -> None:
        """Become the communicator of other ranks: survivors call this, new processes ``init``.

        Ends what is in flight (Aborted), then meets at ``rendezvous`` or in ``store``, under a
        ``name`` that was not used there before. No process restarts; connections between processes
        that knew each other stay. When it raises, the communicator belongs to no group: reconfigure
        it again, or close it. Groups made of it before stay as they are.
        """
        from hccomm.rendezvous import Place, meet_again

        if self._ended != _ADRIFT:
            self._usable("reconfigure")
            self._detach(_ADRIFT)
            error = self._library.error()
            self._library.lib.hccomm_abort(self._handle, b"reconfigure() was called", error)
        if not self._wait_for_threads(self._handle, 5.0):
            raise errors.Timeout("reconfigure: another thread is still inside a call; end it first")
        meet_again(self._library, self._handle, rank, size, Place(rendezvous, store, name), timeout)
        for each in self._orphans:
            each.release()
        self._orphans.clear()
        self._rank, self._size, self._name, self._ended = rank, size, name, ""
        self._attach_fast_path()

    def coalesce(self) -> Batch:
        """Return a batch: operations started on it together, all done when its block ends.

        ::

            with comm.coalesce() as batch:
                batch.send(mine, right)
                batch.recv(theirs, left)
        """
        return Batch(self)

    # ---- asking ------------------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """Return rank, size, hosts, and each peer's host and transport, with the reasons."""
        with _Inside(self, "describe") as handle:
            found: dict[str, Any] = self._library.json(
                lambda out, capacity: int(self._library.lib.hccomm_describe(handle, out, capacity)),
                "describe",
            )
        return found

    def dump(self) -> dict[str, Any]:
        """Return this rank's last 1,000 operations, and what they wait for.

        `hccomm doctor` reads it. Names are those of torch's flight recorder where it has them.
        """
        with _Inside(self, "dump") as handle:
            found: dict[str, Any] = self._library.json(
                lambda out, capacity: int(self._library.lib.hccomm_dump(handle, out, capacity)),
                "dump",
            )
        return found

    def set_timeout(self, seconds: float) -> None:
        """Give operations started from now on this deadline, unless they bring their own."""
        error = self._library.error()
        with _Inside(self, "set_timeout") as handle:
            code = self._library.lib.hccomm_set_timeout(
                handle, _seconds(seconds, "set_timeout"), error
            )
        self._library.check(code, error)

    def __repr__(self) -> str:
        state = f", {self._ended}" if self._ended else ""
        return f"<hccomm.Communicator {self._name}: rank {self._rank} of {self._size}{state}>"

    # ---- the end -----------------------------------------------------------------------------

    def abort(self, reason: str = "abort() was called") -> None:
        """Make every pending and later operation on all ranks raise Aborted, with ``reason``."""
        error = self._library.error()
        with _Inside(self, "abort") as handle:
            code = self._library.lib.hccomm_abort(handle, reason.encode(), error)
        self._library.check(code, error)

    def close(self, timeout: float = 1.0) -> None:
        """Wait at most ``timeout`` seconds for pending operations, then end the communicator.

        Half a second of them may pass until the other ranks have taken what this one sent.

        Closing twice is fine. Operations still pending afterwards raise Aborted.
        """
        if self._ended and self._ended != _ADRIFT:
            return
        seconds = _seconds(timeout, "close")
        handle, self._handle = self._handle, None
        self._detach("closed")
        if not self._wait_for_threads(handle, seconds):
            return  # a thread is still inside: leave it the memory
        error = self._library.error()
        code = int(self._library.lib.hccomm_close(handle, seconds, error))
        for each in self._orphans:
            each.release()
        self._orphans.clear()
        if code not in (0, errors.Timeout.code, errors.PeerLost.code, errors.Aborted.code):
            self._library.check(code, error)

    def __enter__(self) -> Communicator:
        return self

    def __exit__(self, kind: object, value: BaseException | None, trace: object) -> None:
        if value is not None and not self._ended:
            self.abort(f"rank {self._rank} left with {type(value).__name__}: {value}"[:300])
        self.close()

    # ---- inside ------------------------------------------------------------------------------

    def _issue(self, request: Request, timeout: float | None, async_op: bool) -> Any:
        work = self._start(request, timeout)
        return work if async_op else work.result()

    def _start(self, request: Request, timeout: float | None) -> Work[Any]:
        library = self._library
        if self._orphans:
            self._reap()
        call, keep = _call(library, request, _seconds(timeout, request.name))
        made, error = library.ffi.new("hccomm_work**"), library.error()
        with _Inside(self, request.name) as handle:
            code = library.lib.hccomm_start(handle, call, made, error)
        del keep
        library.check(code, error)
        return Work(self, CHandle(library, made[0], request), request.name, request.result)

    def _usable(self, what: str, which: str = "") -> None:
        """Raise when the communicator has ended. ``what`` (and ``which``) name the call."""
        if not self._ended:
            return
        what = f"{what} {which}" if which else what
        if self._ended == "forked":
            raise errors.InvalidArgument(
                f"{what}: this process was forked from rank {self._rank} of "
                f"{self._name}, and a communicator does not cross a fork; make one in the child "
                "with hccomm.init(), or start processes by spawn"
            )
        raise errors.Aborted(
            f"{what}: the communicator {self._name} (rank {self._rank} of {self._size}) is "
            f"{self._ended}; make a new one with hccomm.init() or group()"
        )

    def _adopt(self, handle: Handle) -> None:
        """Keep the buffers of a forgotten operation until it is done."""
        if self._ended == "forked":
            return
        if self._ended:
            handle.release()
        else:
            if len(self._orphans) >= _MANY_ORPHANS:
                self._reap()
            self._orphans.append(handle)

    def _reap(self) -> None:
        orphans, self._orphans = self._orphans, []
        for each in orphans:
            if each.test() < 0:
                self._orphans.append(each)
            else:
                each.release()

    def _attach_fast_path(self) -> None:
        fast = _fast_path(self._library)
        if fast is not None:
            pointer = int(self._library.ffi.cast("uintptr_t", self._handle))
            self._state = fast.Attached(pointer, self._rank, self._size)
            for name, collective in COLLECTIVES.items():
                general = getattr(self, name)
                self.__dict__[name] = self._state.method(collective, general, self, name, Work)
            # 0: kSendrecv of bindings/fast, which is no collective of the C ABI
            exchange = self._state.method(0, self.sendrecv, self, "sendrecv", Work)
            self.__dict__["sendrecv"] = exchange

    def _detach(self, why: str) -> None:
        self._ended = why
        if self._state is not None:
            self._state.detach()
            for name in (*COLLECTIVES, "sendrecv"):  # they refer back to this object
                self.__dict__.pop(name, None)

    def _wait_for_threads(self, handle: Any, seconds: float) -> bool:
        """Wait until no thread uses ``handle``; abort it after ``seconds``. Return whether so."""
        deadline = time.monotonic() + seconds
        aborted = False
        while self._inside > 0 or (self._state is not None and self._state.inside() > 0):
            if time.monotonic() > deadline:
                if aborted:
                    return False
                error = self._library.error()
                self._library.lib.hccomm_abort(handle, b"close() was called", error)
                aborted, deadline = True, time.monotonic() + 5.0
            time.sleep(0.001)
        return True


class Batch:
    """Operations of one communicator that are started together and waited for together.

    It has every operation of Communicator; each returns its Work at once. Leaving the block waits
    for all of them and raises the first error; leaving it by an exception waits for none.
    """

    def __init__(self, owner: Communicator) -> None:
        self._owner = owner
        self.works: list[Work[Any]] = []

    def __getattr__(self, name: str) -> Callable[..., Work[Any]]:
        if name not in COLLECTIVES:
            raise AttributeError(f"a batch has no {name!r}; it has {', '.join(COLLECTIVES)}")
        method = getattr(self._owner, name)

        def start(*args: Any, **kwargs: Any) -> Work[Any]:
            work: Work[Any] = method(*args, async_op=True, **kwargs)
            self.works.append(work)
            return work

        return start

    def wait(self, timeout: float | None = None) -> None:
        """Wait for all operations so far; raise the first error among them."""
        failure: errors.Error | None = None
        for work in self.works:
            try:
                work.wait(timeout)
            except errors.Error as error:  # the others may be using their buffers still
                failure = failure or error
        if failure is not None:
            raise failure

    def __enter__(self) -> Batch:
        return self

    def __exit__(self, kind: object, value: BaseException | None, trace: object) -> None:
        if value is None:
            self.wait()


class _Inside:
    """Marks a C call with the communicator's handle, so that close() waits for it."""

    __slots__ = ("_owner", "_what")

    def __init__(self, owner: Communicator, what: str) -> None:
        self._owner, self._what = owner, what

    def __enter__(self) -> Any:
        owner = self._owner
        with owner._count:
            owner._usable(self._what)
            owner._inside += 1
            return owner._handle

    def __exit__(self, *_: object) -> None:
        with self._owner._count:
            self._owner._inside -= 1


def _seconds(timeout: float | None, name: str) -> float:
    if timeout is None:
        return 0.0
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout > 0:
        raise errors.InvalidArgument(
            f"{name}: timeout is {timeout!r}; pass seconds above 0, or None for the communicator's"
        )
    return float(timeout)


def _call(library: Library, request: Request, timeout: float) -> tuple[Any, list[Any]]:
    """Return ``request`` as an ``hccomm_call*``, and what must live until it is started."""
    ffi = library.ffi
    keep: list[Any] = []
    call = ffi.new("hccomm_call*")
    call.struct_size = ffi.sizeof("hccomm_call")
    call.collective = COLLECTIVES[request.name]
    call.dtype, call.op, call.root = request.dtype, request.op, request.root
    call.count, call.tag = request.count, request.tag
    call.factor, call.timeout = request.factor, timeout
    for place, found in ((call.input, request.input), (call.output, request.output)):
        if found is not None:
            place.data = ffi.cast("void*", found.address)
            place.count = found.count
            place.offset = found.offset
            place.device_kind, place.device_index = found.place.kind, found.place.number
            if found.place.stream:
                place.stream = ffi.cast("void*", found.place.stream)
    for field in ("counts", "offsets", "recv_counts", "recv_offsets"):
        values = getattr(request, field)
        if values is not None:
            keep.append(ffi.new("uint64_t[]", values))
            setattr(call, field, keep[-1])
    return call, keep


_fast_module: Any = None


def _fast_path(library: Library) -> Any:
    """Return the compiled module bound to ``library``, or None where it was not built."""
    global _fast_module
    if _fast_module is None:
        _fast_module = False
        if os.environ.get("HCCOMM_PY_FAST", "1") != "0":
            try:
                from hccomm import _fast  # type: ignore[attr-defined,unused-ignore]
            except ImportError:
                return None
            _fast.bind(library.path, errors.from_code)
            _fast_module = _fast
    return _fast_module or None


def _close_all() -> None:
    for each in list(_live):
        try:
            each.close()
        except errors.Error:
            each._detach("closed")


def _after_fork() -> None:
    for each in list(_live):
        each._detach("forked")
        each._count = threading.Lock()


atexit.register(_close_all)
os.register_at_fork(after_in_child=_after_fork)

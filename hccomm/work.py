# SPDX-License-Identifier: Apache-2.0
"""An operation in flight: what ``async_op=True`` returns.

communicator.py makes a Work for each operation that it starts; the Work keeps the buffers alive
until the operation is done, also when its caller has forgotten it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from hccomm.errors import InvalidArgument, Timeout, from_code

if TYPE_CHECKING:
    from hccomm._native import Library
    from hccomm.communicator import Communicator

T = TypeVar("T")
_TIMEOUT = Timeout.code
_SLICE = 0.25  # seconds between looks at Python's signals


class Handle(Protocol):
    """An operation of the C ABI and the memory it uses; by cffi or by the compiled fast path."""

    def wait(self, seconds: float) -> int:
        """Drive at most ``seconds``; return the code: Timeout's when it goes on."""

    def test(self) -> int:
        """Return the code of the ended operation, or -1 while it goes on."""

    def failure(self) -> tuple[str, int]:
        """Return the text and the rank of the error. Requires: it has failed."""

    def source(self) -> int:
        """Return whom a completed ``recv`` received from."""

    def sequence(self) -> int:
        """Return the number of the operation within its communicator."""

    def release(self) -> None:
        """Forget the operation and its memory. Requires: it has ended."""


class CHandle:
    """A Handle by cffi. ``keep`` is what must live as long as the operation."""

    __slots__ = ("_keep", "_library", "_work")

    def __init__(self, library: Library, work: Any, keep: object) -> None:
        self._library, self._work, self._keep = library, work, keep

    def wait(self, seconds: float) -> int:
        """See Handle."""
        return int(self._library.lib.hccomm_wait(self._work, seconds, self._library.ffi.NULL))

    def test(self) -> int:
        """See Handle."""
        flag = self._library.ffi.new("int*")
        code = int(self._library.lib.hccomm_test(self._work, flag, self._library.ffi.NULL))
        return code if code != 0 or flag[0] else -1

    def failure(self) -> tuple[str, int]:
        """See Handle."""
        error = self._library.error()
        self._library.lib.hccomm_wait(self._work, 1e-6, error)
        return self._library.string(error.text), int(error.rank)

    def source(self) -> int:
        """See Handle."""
        return int(self._library.lib.hccomm_source(self._work))

    def sequence(self) -> int:
        """See Handle."""
        return int(self._library.lib.hccomm_sequence(self._work))

    def release(self) -> None:
        """See Handle."""
        self._library.lib.hccomm_release(self._work)
        self._keep = None


class Work(Generic[T]):
    """One operation, started. ``result()`` waits for it and gives what the blocking call returns.

    Owns:   the handle, and with it the buffers, until the operation is done.
    Thread: any, one at a time.
    Fails:  ``wait`` and ``done`` raise the operation's error, each time they are called.
    """

    __slots__ = (
        *("_owner", "_handle", "_name", "_result", "_ended", "_failure", "_source", "_sequence"),
        "__weakref__",
    )

    def __init__(self, owner: Communicator, handle: Handle, name: str, result: Any) -> None:
        self._owner = owner
        self._handle: Handle | None = handle
        self._name = name
        self._result = result
        self._ended = False
        self._failure: tuple[int, str, int] | None = None
        self._source = self._sequence = -1

    def wait(self, timeout: float | None = None) -> None:
        """Wait for the operation, at most ``timeout`` seconds; by default until its own deadline.

        Raises Timeout when it is not done by then: it goes on, and ``wait`` may be called again.
        Raises the operation's own error when it failed.
        """
        if timeout is not None and not timeout > 0:
            raise InvalidArgument(
                f"wait: timeout is {timeout!r}; pass seconds above 0, or call done() to look only"
            )
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._ended:
            self._owner._usable("wait for", self._name)
            left = _SLICE if deadline is None else min(_SLICE, deadline - time.monotonic())
            if self._wait_once(max(left, 1e-6)):
                break
            if self.done():
                break
            if deadline is not None and time.monotonic() >= deadline:
                raise Timeout(
                    f"wait: {self._name} {self.sequence} is not done after {timeout} s; "
                    "it goes on: call wait() again, or abort() the communicator"
                )
        self._raise_failure()

    def done(self) -> bool:
        """Return whether the operation has ended, without waiting; raise its error if it failed."""
        if not self._ended:
            self._owner._usable("look at", self._name)
            assert self._handle is not None
            code = self._handle.test()
            if code >= 0:
                self._end(code)
        self._raise_failure()
        return self._ended

    def result(self, timeout: float | None = None) -> T:
        """Wait like ``wait`` and return what the blocking call would have returned."""
        self.wait(timeout)
        found: T = self._result
        return found

    @property
    def source(self) -> int:
        """The rank that a completed ``recv`` received from; -1 before, and for others."""
        return self._source

    @property
    def sequence(self) -> int:
        """The number of the operation within its communicator."""
        return self._sequence if self._handle is None else self._handle.sequence()

    def __repr__(self) -> str:
        state = "failed" if self._failure else "done" if self._ended else "in flight"
        return f"<hccomm.Work {self._name} {self.sequence}, {state}>"

    def _wait_once(self, seconds: float) -> bool:
        """Drive the operation at most ``seconds``; return whether it has ended."""
        assert self._handle is not None
        code = self._handle.wait(seconds)
        if code == _TIMEOUT:
            return False  # of this wait, or of the operation: done() tells
        self._end(code)
        return True

    def _end(self, code: int) -> None:
        handle = self._handle
        assert handle is not None
        if code != 0:
            self._failure = (code, *handle.failure())
        elif self._name == "recv":
            self._result = self._source = handle.source()
        self._sequence = handle.sequence()
        self._ended = True
        self._handle = None
        handle.release()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise from_code(*self._failure)

    def __del__(self) -> None:
        if not getattr(self, "_ended", True) and self._handle is not None:
            self._owner._adopt(self._handle)

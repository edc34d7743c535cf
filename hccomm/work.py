# SPDX-License-Identifier: Apache-2.0
"""An operation in flight: what ``async_op=True`` returns.

communicator.py makes a Work for each operation that it starts; the Work keeps the buffers alive
until the operation is done, also when its caller has forgotten it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from hccomm.errors import InvalidArgument, Timeout, from_code

if TYPE_CHECKING:
    from hccomm._native import Library
    from hccomm.communicator import Communicator
    from hccomm.requests import Request

T = TypeVar("T")
_TIMEOUT = Timeout.code
_SLICE = 0.25  # seconds between looks at Python's signals


class Work(Generic[T]):
    """One operation, started. ``result()`` waits for it and gives what the blocking call returns.

    Owns:   the C handle and the buffers, until the operation is done.
    Thread: any, one at a time.
    Fails:  ``wait`` and ``done`` raise the operation's error, each time they are called.
    """

    def __init__(
        self, owner: Communicator, library: Library, handle: Any, request: Request
    ) -> None:
        self._owner = owner
        self._library = library
        self._handle = handle
        self._request = request
        self._result: Any = request.result
        self._ended = False
        self._failure: tuple[int, str, int] | None = None
        self._source = -1

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
            self._owner._usable(f"wait for {self._request.name}")
            left = _SLICE if deadline is None else min(_SLICE, deadline - time.monotonic())
            if self._wait_once(max(left, 1e-6)):
                break
            if self.done():
                break
            if deadline is not None and time.monotonic() >= deadline:
                raise Timeout(
                    f"wait: {self._request.name} {self.sequence} is not done after {timeout} s; "
                    "it goes on: call wait() again, or abort() the communicator"
                )
        self._raise_failure()

    def done(self) -> bool:
        """Return whether the operation has ended, without waiting; raise its error if it failed."""
        if not self._ended:
            self._owner._usable(f"look at {self._request.name}")
            library = self._library
            flag, error = library.ffi.new("int*"), library.error()
            code = int(library.lib.hccomm_test(self._handle, flag, error))
            if code != 0 or flag[0]:
                self._end(code, error)
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
        if self._handle is None:
            return self._sequence
        return int(self._library.lib.hccomm_sequence(self._handle))

    def __repr__(self) -> str:
        state = "failed" if self._failure else "done" if self._ended else "in flight"
        return f"<hccomm.Work {self._request.name} {self.sequence}, {state}>"

    def _wait_once(self, seconds: float) -> bool:
        """Drive the operation at most ``seconds``; return whether it has ended."""
        library = self._library
        error = library.error()
        code = int(library.lib.hccomm_wait(self._handle, seconds, error))
        if code == _TIMEOUT:
            return False  # of this wait, or of the operation: done() tells
        self._end(code, error)
        return True

    def _end(self, code: int, error: Any) -> None:
        library = self._library
        if code != 0:
            self._failure = (code, library.string(error.text), int(error.rank))
        elif self._request.name == "recv":
            self._source = int(library.lib.hccomm_source(self._handle))
            self._result = self._source
        self._sequence = int(library.lib.hccomm_sequence(self._handle))
        self._ended = True
        library.lib.hccomm_release(self._handle)
        self._handle = None
        self._request.input = self._request.output = None

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise from_code(*self._failure)

    def __del__(self) -> None:
        if not getattr(self, "_ended", True):
            self._owner._adopt(self._handle, self._request)

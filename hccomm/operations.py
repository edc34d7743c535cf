# SPDX-License-Identifier: Apache-2.0
"""The operations of a communicator: their signatures, shapes and meaning.

Each method builds a Request and hands it to ``_issue``, which communicator.py defines. Where the
compiled fast path is there, a communicator's own attributes stand in front of these methods and
take the plain blocking calls. Arguments that all methods share:

``out``       where the result goes; None: in place where that has a meaning, else a new array.
``timeout``   seconds until the operation fails with Timeout; None: the communicator's.
``async_op``  True: return a Work at once; the buffers are in use until it is done.

All ranks of the group call the same operations in the same order. Everything raises
InvalidArgument before anything is sent when the call is wrong, Mismatch when ranks disagree,
PeerLost, Timeout and Aborted when the world ends the operation.
"""

from __future__ import annotations

from typing import Any, Literal, TypeVar, overload

from hccomm import requests
from hccomm.buffers import Buffer
from hccomm.requests import ANY_SOURCE, Counts, Op, Request
from hccomm.work import Work

B = TypeVar("B", bound=Buffer)


class Operations:
    """What a group of ranks can do together. Communicator adds how it begins and ends."""

    _rank: int
    _size: int

    def _issue(self, request: Request, timeout: float | None, async_op: bool) -> Any:
        raise NotImplementedError

    # ---- reductions ------------------------------------------------------------------------

    # fmt: off
    @overload
    def all_reduce(
        self, buffer: B, op: Op = ..., *, out: B | None = ..., factor: float = ...,
        timeout: float | None = ..., async_op: Literal[False] = ...,
    ) -> B: ...
    @overload
    def all_reduce(
        self, buffer: B, op: Op = ..., *, out: B | None = ..., factor: float = ...,
        timeout: float | None = ..., async_op: Literal[True],
    ) -> Work[B]: ...
    # fmt: on
    def all_reduce(
        self,
        buffer: B,
        op: Op = "sum",
        *,
        out: B | None = None,
        factor: float = 1.0,
        timeout: float | None = None,
        async_op: bool = False,
    ) -> B | Work[B]:
        """Reduce ``buffer`` over all ranks, element by element; every rank gets the same bits.

        ``out`` has as many elements as ``buffer``; None reduces in place. ``factor`` multiplies
        every input first when ``op`` is ``"premul_sum"``. Returns ``out`` (or ``buffer``).
        """
        return self._issue(requests.all_reduce(buffer, op, out, factor), timeout, async_op)  # type: ignore[no-any-return]

    # fmt: off
    @overload
    def reduce(
        self, buffer: B, op: Op = ..., *, root: int = ..., out: B | None = ...,
        factor: float = ..., timeout: float | None = ..., async_op: Literal[False] = ...,
    ) -> B | None: ...
    @overload
    def reduce(
        self, buffer: B, op: Op = ..., *, root: int = ..., out: B | None = ...,
        factor: float = ..., timeout: float | None = ..., async_op: Literal[True],
    ) -> Work[B | None]: ...
    # fmt: on
    def reduce(
        self,
        buffer: B,
        op: Op = "sum",
        *,
        root: int = 0,
        out: B | None = None,
        factor: float = 1.0,
        timeout: float | None = None,
        async_op: bool = False,
    ) -> B | None | Work[B | None]:
        """Reduce ``buffer`` over all ranks into ``out`` of rank ``root``, or in place there.

        Returns the result on the root and None elsewhere; ``out`` of the others is not used.
        """
        request = requests.reduce(self._rank, buffer, op, root, out, factor)
        return self._issue(request, timeout, async_op)  # type: ignore[no-any-return]

    # fmt: off
    @overload
    def reduce_scatter(
        self, buffer: B, op: Op = ..., *, out: B | None = ..., counts: Counts = ...,
        offsets: Counts = ..., factor: float = ..., timeout: float | None = ...,
        async_op: Literal[False] = ...,
    ) -> B: ...
    @overload
    def reduce_scatter(
        self, buffer: B, op: Op = ..., *, out: B | None = ..., counts: Counts = ...,
        offsets: Counts = ..., factor: float = ..., timeout: float | None = ...,
        async_op: Literal[True],
    ) -> Work[B]: ...
    # fmt: on
    def reduce_scatter(
        self,
        buffer: B,
        op: Op = "sum",
        *,
        out: B | None = None,
        counts: Counts = None,
        offsets: Counts = None,
        factor: float = 1.0,
        timeout: float | None = None,
        async_op: bool = False,
    ) -> B | Work[B]:
        """Reduce ``buffer`` over all ranks and give rank r its r-th part in ``out``.

        Without ``counts`` all parts are equal: ``buffer`` holds ``size`` times the elements of
        ``out``. With ``counts``, part r has ``counts[r]`` elements and begins at element
        ``offsets[r]`` of ``buffer``; parts lie back to back when ``offsets`` is None.
        """
        request = requests.reduce_scatter(
            self._rank, self._size, buffer, op, out, counts, offsets, factor
        )
        return self._issue(request, timeout, async_op)  # type: ignore[no-any-return]

    # ---- copies ----------------------------------------------------------------------------

    # fmt: off
    @overload
    def broadcast(
        self, buffer: B, root: int = ..., *, timeout: float | None = ...,
        async_op: Literal[False] = ...,
    ) -> B: ...
    @overload
    def broadcast(
        self, buffer: B, root: int = ..., *, timeout: float | None = ..., async_op: Literal[True]
    ) -> Work[B]: ...
    # fmt: on
    def broadcast(
        self,
        buffer: B,
        root: int = 0,
        *,
        timeout: float | None = None,
        async_op: bool = False,
    ) -> B | Work[B]:
        """Copy ``buffer`` of rank ``root`` into ``buffer`` of every rank, and return it."""
        return self._issue(requests.broadcast(self._rank, buffer, root), timeout, async_op)  # type: ignore[no-any-return]

    # fmt: off
    @overload
    def all_gather(
        self, buffer: B, *, out: B | None = ..., counts: Counts = ..., offsets: Counts = ...,
        timeout: float | None = ..., async_op: Literal[False] = ...,
    ) -> B: ...
    @overload
    def all_gather(
        self, buffer: B, *, out: B | None = ..., counts: Counts = ..., offsets: Counts = ...,
        timeout: float | None = ..., async_op: Literal[True],
    ) -> Work[B]: ...
    # fmt: on
    def all_gather(
        self,
        buffer: B,
        *,
        out: B | None = None,
        counts: Counts = None,
        offsets: Counts = None,
        timeout: float | None = None,
        async_op: bool = False,
    ) -> B | Work[B]:
        """Give every rank the ``buffer`` of all, one after the other in ``out``.

        ``out`` holds ``size`` times the elements of ``buffer``; a new one has the shape
        ``(size, *buffer.shape)``. With ``counts``, rank r gives ``counts[r]`` elements (the size
        of its ``buffer``), which go to element ``offsets[r]`` of ``out``. In place: pass the own
        part of ``out`` as ``buffer``.
        """
        request = requests.all_gather(self._size, buffer, out, counts, offsets)
        return self._issue(request, timeout, async_op)  # type: ignore[no-any-return]

    # fmt: off
    @overload
    def gather(
        self, buffer: B, *, root: int = ..., out: B | None = ..., counts: Counts = ...,
        offsets: Counts = ..., timeout: float | None = ..., async_op: Literal[False] = ...,
    ) -> B | None: ...
    @overload
    def gather(
        self, buffer: B, *, root: int = ..., out: B | None = ..., counts: Counts = ...,
        offsets: Counts = ..., timeout: float | None = ..., async_op: Literal[True],
    ) -> Work[B | None]: ...
    # fmt: on
    def gather(
        self,
        buffer: B,
        *,
        root: int = 0,
        out: B | None = None,
        counts: Counts = None,
        offsets: Counts = None,
        timeout: float | None = None,
        async_op: bool = False,
    ) -> B | None | Work[B | None]:
        """Give rank ``root`` the ``buffer`` of all, as ``all_gather`` does for everyone.

        Returns ``out`` on the root and None elsewhere.
        """
        request = requests.gather(self._rank, self._size, buffer, root, out, counts, offsets)
        return self._issue(request, timeout, async_op)  # type: ignore[no-any-return]

    # fmt: off
    @overload
    def scatter(
        self, buffer: B | None = ..., *, root: int = ..., out: B | None = ...,
        counts: Counts = ..., offsets: Counts = ..., timeout: float | None = ...,
        async_op: Literal[False] = ...,
    ) -> B: ...
    @overload
    def scatter(
        self, buffer: B | None = ..., *, root: int = ..., out: B | None = ...,
        counts: Counts = ..., offsets: Counts = ..., timeout: float | None = ...,
        async_op: Literal[True],
    ) -> Work[B]: ...
    # fmt: on
    def scatter(
        self,
        buffer: B | None = None,
        *,
        root: int = 0,
        out: B | None = None,
        counts: Counts = None,
        offsets: Counts = None,
        timeout: float | None = None,
        async_op: bool = False,
    ) -> B | Work[B]:
        """Give each rank its part of the ``buffer`` of rank ``root``, in ``out``.

        Only the root passes ``buffer``; the others must pass ``out``. Parts are as in
        ``reduce_scatter``. In place on the root: pass its own part of ``buffer`` as ``out``.
        """
        request = requests.scatter(self._rank, self._size, buffer, root, out, counts, offsets)
        return self._issue(request, timeout, async_op)  # type: ignore[no-any-return]

    # fmt: off
    @overload
    def all_to_all(
        self, buffer: B, *, out: B | None = ..., counts: Counts = ..., offsets: Counts = ...,
        recv_counts: Counts = ..., recv_offsets: Counts = ..., timeout: float | None = ...,
        async_op: Literal[False] = ...,
    ) -> B: ...
    @overload
    def all_to_all(
        self, buffer: B, *, out: B | None = ..., counts: Counts = ..., offsets: Counts = ...,
        recv_counts: Counts = ..., recv_offsets: Counts = ..., timeout: float | None = ...,
        async_op: Literal[True],
    ) -> Work[B]: ...
    # fmt: on
    def all_to_all(
        self,
        buffer: B,
        *,
        out: B | None = None,
        counts: Counts = None,
        offsets: Counts = None,
        recv_counts: Counts = None,
        recv_offsets: Counts = None,
        timeout: float | None = None,
        async_op: bool = False,
    ) -> B | Work[B]:
        """Give rank r the r-th part of ``buffer``; part r of ``out`` comes from rank r.

        Without counts all parts are equal and ``out`` is as large as ``buffer``. With them, this
        rank sends ``counts[r]`` elements from ``offsets[r]`` of ``buffer`` to rank r and receives
        ``recv_counts[r]`` elements at ``recv_offsets[r]`` of ``out`` from it.
        """
        request = requests.all_to_all(
            self._size, buffer, out, counts, offsets, recv_counts, recv_offsets
        )
        return self._issue(request, timeout, async_op)  # type: ignore[no-any-return]

    # ---- meeting and pairs -------------------------------------------------------------------

    # fmt: off
    @overload
    def barrier(
        self, *, timeout: float | None = ..., async_op: Literal[False] = ...
    ) -> None: ...
    @overload
    def barrier(self, *, timeout: float | None = ..., async_op: Literal[True]) -> Work[None]: ...
    # fmt: on
    def barrier(self, *, timeout: float | None = None, async_op: bool = False) -> None | Work[None]:
        """Return once every rank has called it."""
        return self._issue(requests.barrier(), timeout, async_op)  # type: ignore[no-any-return]

    # fmt: off
    @overload
    def send(
        self, buffer: Buffer, dest: int, *, tag: int = ..., timeout: float | None = ...,
        async_op: Literal[False] = ...,
    ) -> None: ...
    @overload
    def send(
        self, buffer: Buffer, dest: int, *, tag: int = ..., timeout: float | None = ...,
        async_op: Literal[True],
    ) -> Work[None]: ...
    # fmt: on
    def send(
        self,
        buffer: Buffer,
        dest: int,
        *,
        tag: int = 0,
        timeout: float | None = None,
        async_op: bool = False,
    ) -> None | Work[None]:
        """Send ``buffer`` to rank ``dest``, whose ``recv`` has the same tag, type and count.

        A blocking ``send`` may wait for its ``recv``: two ranks that exchange use ``async_op``.
        """
        return self._issue(requests.send(buffer, dest, tag), timeout, async_op)  # type: ignore[no-any-return]

    # fmt: off
    @overload
    def recv(
        self, buffer: Buffer, source: int = ..., *, tag: int = ..., timeout: float | None = ...,
        async_op: Literal[False] = ...,
    ) -> int: ...
    @overload
    def recv(
        self, buffer: Buffer, source: int = ..., *, tag: int = ..., timeout: float | None = ...,
        async_op: Literal[True],
    ) -> Work[int]: ...
    # fmt: on
    def recv(
        self,
        buffer: Buffer,
        source: int = ANY_SOURCE,
        *,
        tag: int = 0,
        timeout: float | None = None,
        async_op: bool = False,
    ) -> int | Work[int]:
        """Receive into ``buffer`` from rank ``source``, or from whoever sends first.

        Returns the rank it came from.
        """
        return self._issue(requests.recv(buffer, source, tag), timeout, async_op)  # type: ignore[no-any-return]

    def sendrecv(
        self,
        buffer: Buffer,
        dest: int,
        out: B,
        source: int,
        *,
        tag: int = 0,
        timeout: float | None = None,
    ) -> B:
        """Send ``buffer`` to rank ``dest`` while receiving ``out`` from rank ``source``.

        Both go on at once, so ranks that exchange, or shift around a ring, do not wait for each
        other. It meets ``send``, ``recv`` and ``sendrecv`` of the same tag. ``buffer`` and ``out``
        must not overlap. Returns ``out``.
        """
        outgoing, incoming = requests.sendrecv(self._size, buffer, dest, out, source, tag)
        received = self._issue(incoming, timeout, True)
        sent = self._issue(outgoing, timeout, True)
        received.wait()
        sent.wait()
        return out

# SPDX-License-Identifier: Apache-2.0
"""What a caller asked for, checked, as the C ABI wants it: one function for each operation.

operations.py calls these with the arguments of its methods; communicator.py turns the Request into
an hccomm_call. They check what the C side cannot see (whether a thing is an array, which argument
it was) and allocate results; ranges, sizes and overlaps are checked once, in C.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

from hccomm.buffers import Buffer, View, allocate, name_of, view
from hccomm.errors import InvalidArgument

Op: TypeAlias = Literal["sum", "avg", "prod", "min", "max", "band", "bor", "bxor", "premul_sum"]
OPS: tuple[Op, ...] = ("sum", "avg", "prod", "min", "max", "band", "bor", "bxor", "premul_sum")
OP_CODES: dict[str, int] = {name: code for code, name in enumerate(OPS)}

COLLECTIVES = {
    "all_reduce": 1, "all_gather": 2, "reduce_scatter": 3, "broadcast": 4, "reduce": 5,
    "gather": 6, "scatter": 7, "all_to_all": 8, "barrier": 9, "send": 32, "recv": 33,
}  # fmt: skip

ANY_SOURCE = -1
Counts: TypeAlias = "Sequence[int] | None"
_U8 = 5


class Request:
    """One call of the C ABI, and the object its caller gets back.

    The views keep the memory of the caller's arrays alive.
    """

    __slots__ = (
        *("name", "dtype", "count", "op", "root", "factor", "tag", "input", "output", "result"),
        *("counts", "offsets", "recv_counts", "recv_offsets"),
    )

    def __init__(
        self,
        name: str,
        dtype: int = _U8,
        count: int = 0,
        op: int = 0,
        root: int = 0,
        *,
        factor: float = 0.0,
        tag: int = 0,
        input: View | None = None,  # the word of the C ABI
        output: View | None = None,
        result: Any = None,
    ) -> None:
        self.name, self.dtype, self.count, self.op, self.root = name, dtype, count, op, root
        self.factor, self.tag, self.input, self.output = factor, tag, input, output
        self.result = result
        self.counts: tuple[int, ...] | None = None
        self.offsets: tuple[int, ...] | None = None
        self.recv_counts: tuple[int, ...] | None = None
        self.recv_offsets: tuple[int, ...] | None = None


def all_reduce(buffer: Buffer, op: str, out: Buffer | None, factor: float) -> Request:
    """Reduce over all ranks into ``out``, or in place."""
    source = view(buffer, "all_reduce: buffer")
    target = (
        _output(out, source, "all_reduce") if out is not None else _writable(source, "all_reduce")
    )
    return Request(
        "all_reduce", source.dtype, source.count, _op(op, "all_reduce"), factor=factor,
        input=source, output=target, result=buffer if out is None else out,
    )  # fmt: skip


def reduce(
    rank: int, buffer: Buffer, op: str, root: int, out: Buffer | None, factor: float
) -> Request:
    """Reduce over all ranks into ``out`` of ``root``, or in place there."""
    source = view(buffer, "reduce: buffer")
    request = Request(
        "reduce", source.dtype, source.count, _op(op, "reduce"), _index(root, "reduce: root"),
        factor=factor, input=source,
    )  # fmt: skip
    if rank == root:
        request.output = (
            _output(out, source, "reduce") if out is not None else _writable(source, "reduce")
        )
        request.result = buffer if out is None else out
    return request


def broadcast(rank: int, buffer: Buffer, root: int) -> Request:
    """Copy the buffer of ``root`` into everybody's."""
    source = view(buffer, "broadcast: buffer")
    if rank != root:
        _writable(source, "broadcast")
    return Request(
        "broadcast", source.dtype, source.count, root=_index(root, "broadcast: root"),
        input=source, output=source, result=buffer,
    )  # fmt: skip


def all_gather(
    size: int, buffer: Buffer, out: Buffer | None, counts: Counts, offsets: Counts
) -> Request:
    """Give everybody the inputs of all ranks."""
    return _gathering("all_gather", size, buffer, out, counts, offsets, True, 0)


def gather(
    rank: int,
    size: int,
    buffer: Buffer,
    root: int,
    out: Buffer | None,
    counts: Counts,
    offsets: Counts,
) -> Request:
    """Give ``root`` the inputs of all ranks."""
    return _gathering("gather", size, buffer, out, counts, offsets, rank == root, root)


def reduce_scatter(
    rank: int,
    size: int,
    buffer: Buffer,
    op: str,
    out: Buffer | None,
    counts: Counts,
    offsets: Counts,
    factor: float,
) -> Request:
    """Reduce over all ranks and give each its part."""
    name = "reduce_scatter"
    source = view(buffer, f"{name}: buffer")
    request = Request(name, source.dtype, op=_op(op, name), factor=factor, input=source)
    request.counts, request.offsets = _parts(name, "counts", size, counts, offsets)
    if request.counts is None:
        shape = _part_shape(name, source, size)
    else:
        shape = (request.counts[rank],)
    _give_output(request, out, buffer, source, shape)
    if request.counts is None and request.output is not None:
        request.count = request.output.count
    return request


def scatter(
    rank: int,
    size: int,
    buffer: Buffer | None,
    root: int,
    out: Buffer | None,
    counts: Counts,
    offsets: Counts,
) -> Request:
    """Give each rank its part of the buffer of ``root``."""
    request = Request("scatter", root=_index(root, "scatter: root"))
    request.counts, request.offsets = _parts("scatter", "counts", size, counts, offsets)
    if rank == root:
        if buffer is None:
            raise InvalidArgument(
                f"scatter: buffer is None on the root, rank {rank}; pass the array to cut up"
            )
        source = request.input = view(buffer, "scatter: buffer")
        request.dtype = source.dtype
        if request.counts is None:
            shape = _part_shape("scatter", source, size)
        else:
            shape = (request.counts[rank],)
        _give_output(request, out, buffer, source, shape)
    else:
        if out is None:
            raise InvalidArgument(
                f"scatter: out is None on rank {rank}, which is not the root, so its size is not "
                "known; pass the array to receive into"
            )
        request.output = _writable(view(out, "scatter: out"), "scatter", "out")
        request.dtype = request.output.dtype
        request.result = out
    if request.counts is None and request.output is not None:
        request.count = request.output.count
    return request


def all_to_all(
    size: int,
    buffer: Buffer,
    out: Buffer | None,
    counts: Counts,
    offsets: Counts,
    recv_counts: Counts,
    recv_offsets: Counts,
) -> Request:
    """Give each rank its part of everybody's buffer."""
    name = "all_to_all"
    source = view(buffer, f"{name}: buffer")
    request = Request(name, source.dtype, input=source)
    if (counts is None) != (recv_counts is None):
        raise InvalidArgument(
            f"{name}: counts and recv_counts come together: what this rank sends to each and what "
            "it receives from each; pass both or neither"
        )
    request.counts, request.offsets = _parts(name, "counts", size, counts, offsets)
    request.recv_counts, request.recv_offsets = _parts(
        name, "recv_counts", size, recv_counts, recv_offsets
    )
    shape = source.shape
    if request.recv_counts is not None:
        shape = (_extent(request.recv_counts, request.recv_offsets),)
    elif source.count % size != 0:
        raise _indivisible(name, source.count, size)
    else:
        request.count = source.count // size
    _give_output(request, out, buffer, source, shape)
    return request


def barrier() -> Request:
    """Wait for everybody."""
    return Request("barrier")


def send(buffer: Buffer, dest: int, tag: int) -> Request:
    """Send the buffer to rank ``dest``."""
    source = view(buffer, "send: buffer")
    return Request(
        "send", source.dtype, source.count, root=_index(dest, "send: dest"),
        tag=_tag(tag, "send"), input=source, output=source,
    )  # fmt: skip


def recv(buffer: Buffer, source: int, tag: int) -> Request:
    """Receive into the buffer from rank ``source``."""
    target = _writable(view(buffer, "recv: buffer"), "recv")
    return Request(
        "recv", target.dtype, target.count, root=_index(source, "recv: source"),
        tag=_tag(tag, "recv"), input=target, output=target, result=buffer,
    )  # fmt: skip


def sendrecv(
    size: int, buffer: Buffer, dest: int, out: Buffer, source: int, tag: int
) -> tuple[Request, Request]:
    """Send to ``dest`` and receive from ``source``. Wrong ranks are found before either begins."""
    outgoing, incoming = send(buffer, dest, tag), recv(out, source, tag)
    for name, request in (("dest", outgoing), ("source", incoming)):
        if not 0 <= request.root < size:
            raise InvalidArgument(
                f"sendrecv: {name} is {request.root}; the ranks of this group are 0 to {size - 1}"
            )
    return outgoing, incoming


def _gathering(
    name: str,
    size: int,
    buffer: Buffer,
    out: Buffer | None,
    counts: Counts,
    offsets: Counts,
    receives: bool,
    root: int,
) -> Request:
    source = view(buffer, f"{name}: buffer")
    request = Request(name, source.dtype, root=_index(root, f"{name}: root"), input=source)
    request.counts, request.offsets = _parts(name, "counts", size, counts, offsets)
    shape: tuple[int, ...] = (size, *source.shape)
    if request.counts is None:
        request.count = source.count
    else:
        shape = (_extent(request.counts, request.offsets),)
    if receives:
        _give_output(request, out, buffer, source, shape)
    return request


def _give_output(
    request: Request, out: Buffer | None, buffer: Buffer, source: View, shape: tuple[int, ...]
) -> None:
    """Set the output of ``request`` to ``out``, or to a new array like ``buffer``."""
    if out is None:
        out = allocate(buffer, shape, source.dtype)
        request.output = view(out, f"{request.name}: result")
        if request.output.dtype != source.dtype:  # a bytearray stands in for a type unknown here
            made = request.output
            request.output = View(made.address, made.count, source.dtype, shape, False, out)
    else:
        request.output = _output(out, source, request.name)
    request.result = out


def _output(out: Buffer, source: View, name: str) -> View:
    target = _writable(view(out, f"{name}: out"), name, "out")
    if target.dtype != source.dtype:
        raise InvalidArgument(
            f"{name}: out is of {name_of(target.dtype)}, but buffer of {name_of(source.dtype)}; "
            "give both one element type"
        )
    return target


def _writable(target: View, name: str, argument: str = "buffer") -> View:
    if target.readonly:
        raise InvalidArgument(
            f"{name}: {argument} is read-only and would be written; pass a writable array, or a "
            "separate out where there is one"
        )
    return target


def _op(op: str, name: str) -> int:
    code = OP_CODES.get(op)
    if code is None:
        raise InvalidArgument(f"{name}: op={op!r} is no operation; use one of {', '.join(OPS)}")
    return code


def _index(value: int, what: str) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise InvalidArgument(f"{what} is {value!r}; pass a rank, a whole number")
    found = value.__index__()
    if not -(2**31) <= found < 2**31:
        raise InvalidArgument(f"{what} {found} is no rank of any group; pass 0..size-1")
    return found


def _tag(value: int, name: str) -> int:
    if not hasattr(value, "__index__") or not 0 <= value.__index__() < 2**64:
        raise InvalidArgument(f"{name}: tag is {value!r}; pass a whole number from 0 to 2^64-1")
    return value.__index__()


def _parts(
    name: str, argument: str, size: int, counts: Counts, offsets: Counts
) -> tuple[tuple[int, ...] | None, tuple[int, ...] | None]:
    """Return counts and offsets as tuples, each with an entry for every rank, none negative."""
    where = argument.replace("counts", "offsets")
    if counts is None:
        if offsets is not None:
            raise InvalidArgument(f"{name}: {where} need {argument}; pass both, or neither")
        return None, None
    numbers = _numbers(name, argument, size, counts)
    if offsets is None:
        return numbers, (0, *itertools.accumulate(numbers[:-1]))  # back to back
    return numbers, _numbers(name, where, size, offsets)


def _numbers(name: str, argument: str, size: int, values: Sequence[int]) -> tuple[int, ...]:
    try:
        found = tuple(each.__index__() for each in values)
    except (AttributeError, TypeError):
        raise InvalidArgument(
            f"{name}: {argument}={values!r}; pass one whole number for each of the {size} ranks"
        ) from None
    if len(found) != size:
        raise InvalidArgument(
            f"{name}: {argument} has {len(found)} entries, but the group {size} ranks; pass one "
            "for each rank"
        )
    for rank, each in enumerate(found):
        if not 0 <= each < 2**63:
            raise InvalidArgument(
                f"{name}: {argument}[{rank}] is {each}; pass a number of elements, 0 or more"
            )
    return found


def _extent(counts: tuple[int, ...], offsets: tuple[int, ...] | None) -> int:
    """Return how many elements the parts span."""
    spans = zip(offsets or (), counts, strict=True)
    return max((at + count for at, count in spans if count > 0), default=0)


def _part_shape(name: str, source: View, size: int) -> tuple[int, ...]:
    """Return the shape of one of ``size`` equal parts of ``source``."""
    if source.count % size != 0:
        raise _indivisible(name, source.count, size)
    if source.shape and source.shape[0] == size:
        return source.shape[1:]
    if source.shape and source.shape[0] % size == 0:
        return (source.shape[0] // size, *source.shape[1:])
    return (source.count // size,)


def _indivisible(name: str, count: int, size: int) -> InvalidArgument:
    return InvalidArgument(
        f"{name}: buffer has {count} elements, which {size} ranks cannot share evenly; pad it, or "
        "pass counts"
    )

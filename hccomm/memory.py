# SPDX-License-Identifier: Apache-2.0
"""Memory that other ranks of the host read fastest, and memory that network cards know.

A rank that reads a peer's buffer in one copy (docs/architecture.md, shm) pays for each page of it;
on huge pages that is next to nothing, and the copy runs at the speed of memcpy. NumPy and torch use
ordinary pages for all but large arrays. ``hccomm.empty`` takes huge ones. ``Registration`` is what
``Communicator.register`` returns.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hccomm.buffers import SIZES, view
from hccomm.errors import InvalidArgument, System, Unavailable

if TYPE_CHECKING:
    import numpy

    from hccomm._native import Library
    from hccomm.buffers import Buffer

_HUGE = 2 << 20  # bytes of a huge page, and the alignment that it needs


def empty(shape: int | Sequence[int], dtype: Any = "f4") -> numpy.ndarray[Any, Any]:
    """Return a new NumPy array on huge pages, aligned to them; its content is unspecified.

    ``dtype`` is anything that numpy.dtype() takes. Where the system has no huge pages to give the
    array lies on ordinary ones. Arrays below 64 KiB gain nothing: each takes 2 MiB of addresses.
    ``torch.from_numpy`` makes a tensor of it. The memory is returned with the last reference.

    Raises InvalidArgument for a negative size, Unavailable without NumPy, System without memory.
    """
    try:
        import numpy
    except ImportError as error:
        raise Unavailable("empty: it needs NumPy; pip install numpy") from error
    kind = numpy.dtype(dtype)
    extents = (shape,) if isinstance(shape, int) else tuple(int(each) for each in shape)
    if any(each < 0 for each in extents):
        raise InvalidArgument(f"empty: shape={shape!r} has a negative size; pass sizes from 0 on")
    count = 1
    for each in extents:
        count *= each
    size = count * kind.itemsize
    try:
        area = mmap.mmap(-1, _round_up(size) + _HUGE)
    except (OSError, OverflowError, ValueError) as error:
        raise System(f"empty: {size} bytes: {error}; free memory, or ask for less") from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            area.madvise(mmap.MADV_HUGEPAGE)
    start = numpy.frombuffer(area, dtype="u1").ctypes.data
    offset = -start % _HUGE
    flat = numpy.frombuffer(area, dtype=kind, count=count, offset=offset)
    return flat.reshape(extents)


class Registration:
    """Memory that this process's network cards know. Use it as a context manager.

    Owns:   the registration and a reference to the array. It ends with deregister(), or when it is
            collected.
    Thread: any; deregister() once no operation uses the memory.
    Fails:  Communicator.register() says how.
    """

    def __init__(self, library: Library, handle: Any, buffer: Buffer) -> None:
        """Register with ``handle``, an ``hccomm_comm*``. Users call Communicator.register()."""
        found = view(buffer, "register: buffer")
        if found.readonly:
            raise InvalidArgument(
                "register: buffer is read-only, and cards are given leave to write; pass one that "
                "can be written"
            )
        ffi, made, error = library.ffi, library.ffi.new("hccomm_registration**"), library.error()
        size = found.count * SIZES[found.dtype]
        if found.place.kind == 0:
            data = ffi.cast("void*", found.address + found.offset)
            code = library.lib.hccomm_register(handle, data, size, made, error)
        else:
            place = ffi.new("hccomm_buffer*")
            place.data, place.offset = ffi.cast("void*", found.address), found.offset
            place.device_kind, place.device_index = found.place.kind, found.place.number
            code = library.lib.hccomm_register_device(handle, place, size, made, error)
        library.check(code, error)
        self._library = library
        self._registration: Any = None
        if made[0] != ffi.NULL:
            self._registration = ffi.gc(made[0], library.lib.hccomm_deregister)
        self._array: Any = found.owner

    @property
    def active(self) -> bool:
        """Whether the memory is registered. Never that of a device which no card reaches."""
        return self._registration is not None

    def deregister(self) -> None:
        """End the registration. Twice is fine."""
        registration, self._registration = self._registration, None
        if registration is not None:
            self._library.ffi.release(registration)
        self._array = None

    def __enter__(self) -> Registration:
        return self

    def __exit__(self, *_: object) -> None:
        self.deregister()


def _round_up(size: int) -> int:
    return max(1, -(-size // _HUGE)) * _HUGE

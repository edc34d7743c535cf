# SPDX-License-Identifier: Apache-2.0
"""Memory that other ranks of the host read fastest, and memory that network cards know.

What lies in ordinary memory a rank of the host copies through the kernel, page by page. What lies
in memory that it can map (docs/architecture.md, shm) it copies, or reduces, plainly (README.md has
what that gains). ``hccomm.empty`` gives such memory, or, where it cannot be had, huge pages of this
process. ``Registration`` is what ``Communicator.register`` returns.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hccomm._native import library
from hccomm.buffers import SIZES, view
from hccomm.errors import InvalidArgument, System, Unavailable

if TYPE_CHECKING:
    import numpy

    from hccomm._native import Library
    from hccomm.buffers import Buffer

_HUGE = 2 << 20  # bytes of a huge page, and the alignment that it needs


def empty(shape: int | Sequence[int], dtype: Any = "f4") -> numpy.ndarray[Any, Any]:
    """Return a new NumPy array that the other ranks of the host map; its content is unspecified.

    ``dtype`` is anything that numpy.dtype() takes. It begins at a page, from 2 MiB on at a huge
    one, and all of its memory is there at once: make it once, use it again and again. Arrays below
    64 KiB gain nothing. A forked child sees the array itself, not a copy. ``torch.from_numpy``
    makes a tensor of it (``hccomm.torch.empty`` in one step). The memory is returned with the last
    reference to it. Where such memory is not to be had (HCCOMM_CMA=off, HCCOMM_TRANSPORTS without
    shm, a kernel that refuses) the array lies on huge pages of this process alone:
    ``describe()["memory"]`` counts the arrays that are shared, and says what was refused.

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
    flat = numpy.frombuffer(_shared(size) or _private(size), dtype=kind, count=count)
    return flat.reshape(extents)


def _shared(size: int) -> Any:
    """Return memory from hccomm_alloc, which goes back with its last user; None without any."""
    found = library()
    error, data = found.error(), found.ffi.new("void**")
    if size >= 1 << 63 or found.lib.hccomm_alloc(size, data, error) != 0:
        return None
    free = found.lib.hccomm_free
    owned = found.ffi.gc(data[0], lambda data: free(data, found.ffi.NULL), size)
    return found.ffi.buffer(owned, max(size, 1))


def _private(size: int) -> Any:
    """Return huge pages where the system gives them, beginning at one."""
    import ctypes

    try:
        area = mmap.mmap(-1, _round_up(size) + _HUGE)
    except (OSError, OverflowError, ValueError) as error:
        raise System(f"empty: {size} bytes: {error}; free memory, or ask for less") from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            area.madvise(mmap.MADV_HUGEPAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(area))
    offset = -start % _HUGE
    return memoryview(area)[offset : offset + max(size, 1)]


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

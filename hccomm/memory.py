# SPDX-License-Identifier: Apache-2.0
"""Memory that other ranks of the host read fastest.

A rank that reads a peer's buffer in one copy (docs/architecture.md, shm) pays for each page of it;
on huge pages that is next to nothing, and the copy runs at the speed of memcpy. NumPy and torch use
ordinary pages for all but large arrays. ``hccomm.empty`` takes huge ones.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hccomm.errors import InvalidArgument, System, Unavailable

if TYPE_CHECKING:
    import numpy

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


def _round_up(size: int) -> int:
    return max(1, -(-size // _HUGE)) * _HUGE

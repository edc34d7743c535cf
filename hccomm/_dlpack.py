# SPDX-License-Identifier: Apache-2.0
"""Read a DLPack capsule: the way into torch tensors and others without importing their library.

buffers.view() calls inspect() for arrays that offer ``__dlpack__`` and no array interface.
The capsule stays unconsumed and is kept by the view, so its deleter runs when the view goes.
"""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Versioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("manager_ctx", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    )


class Found(NamedTuple):
    """What a capsule says; ``owner`` keeps it valid."""

    address: int  # on some devices a handle
    offset: int  # bytes from there
    shape: tuple[int, ...]
    contiguous: bool
    code: int
    bits: int
    lanes: int
    readonly: bool
    owner: Any


_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype = ctypes.c_void_p
_pointer.argtypes = (ctypes.py_object, ctypes.c_char_p)
_is_valid = ctypes.pythonapi.PyCapsule_IsValid
_is_valid.restype = ctypes.c_int
_is_valid.argtypes = (ctypes.py_object, ctypes.c_char_p)


def inspect(array: Any, stream: int | None = None) -> Found:
    """Return where ``array`` lies. Raises what its ``__dlpack__`` raises.

    ``stream`` is the device's in which the data shall be ready; None on the host.
    """
    options = {} if stream is None else {"stream": stream}
    try:
        capsule = array.__dlpack__(max_version=(1, 1), **options)
    except TypeError:  # from before DLPack 1.0
        capsule = array.__dlpack__(**options)
    readonly = False
    if _is_valid(capsule, b"dltensor_versioned"):
        versioned = _Versioned.from_address(_pointer(capsule, b"dltensor_versioned"))
        if versioned.flags & 2:  # writing to it would be lost
            raise BufferError(
                f"{type(array).__name__}.__dlpack__ gives a copy, not the data itself"
            )
        tensor, readonly = versioned.tensor, bool(versioned.flags & 1)
    else:
        tensor = _Tensor.from_address(_pointer(capsule, b"dltensor"))
    shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
    strides = tuple(tensor.strides[i] for i in range(tensor.ndim)) if tensor.strides else None
    return Found(
        address=tensor.data or 0,
        offset=tensor.byte_offset,
        shape=shape,
        contiguous=strides is None or _is_c_contiguous(shape, strides),
        code=tensor.code,
        bits=tensor.bits,
        lanes=tensor.lanes,
        readonly=readonly,
        owner=(array, capsule),
    )


def _is_c_contiguous(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    if 0 in shape:
        return True
    expected = 1
    for extent, stride in zip(reversed(shape), reversed(strides), strict=True):
        if extent != 1 and stride != expected:
            return False
        expected *= extent
    return True

# SPDX-License-Identifier: Apache-2.0
"""See where the data of anybody's array lies: address, count, type, whether it may be written.

``view()`` takes whatever has the array interface (NumPy and its relatives, ml_dtypes included), the
buffer protocol (bytearray, memoryview, array.array), ``__dlpack__`` (torch and others, without
importing them) or ``__cuda_array_interface__``; the last two also on devices (_devices.py).
operations.py calls it for each argument.
"""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from hccomm import _devices
from hccomm._devices import CUDA_TYPES, HOST, HOST_TYPES, Place
from hccomm.errors import InvalidArgument

if TYPE_CHECKING:
    from array import array


class _ArrayInterface(Protocol):
    @property
    def __array_interface__(self) -> dict[str, Any]: ...


class _DLPack(Protocol):
    def __dlpack__(self) -> Any: ...
    def __dlpack_device__(self) -> tuple[Any, int]: ...


class _CudaArrayInterface(Protocol):
    @property
    def __cuda_array_interface__(self) -> dict[str, Any]: ...


# What the operations accept. Arrays must be C-contiguous: a copy would hide a cost from the caller.
Buffer: TypeAlias = (
    "bytes | bytearray | memoryview | array[Any] | _ArrayInterface | _DLPack | _CudaArrayInterface"
)

# The names of the element types; their place is their number in the C ABI.
DTYPES = (
    *("bool", "i8", "i16", "i32", "i64", "u8", "u16", "u32", "u64"),
    *("f16", "bf16", "f8e4m3fn", "f8e5m2", "f32", "f64", "c64", "c128"),
)
SIZES = (1, 1, 2, 4, 8, 1, 2, 4, 8, 2, 2, 1, 1, 4, 8, 8, 16)

_BY_DTYPE_NAME = {
    "bool": 0, "int8": 1, "int16": 2, "int32": 3, "int64": 4,
    "uint8": 5, "uint16": 6, "uint32": 7, "uint64": 8,
    "float16": 9, "bfloat16": 10, "float8_e4m3fn": 11, "float8_e5m2": 12,
    "float32": 13, "float64": 14, "complex64": 15, "complex128": 16,
}  # fmt: skip
_BY_TYPESTR = {
    "b1": 0, "i1": 1, "i2": 2, "i4": 3, "i8": 4, "u1": 5, "u2": 6, "u4": 7, "u8": 8,
    "f2": 9, "f4": 13, "f8": 14, "c8": 15, "c16": 16,
}  # fmt: skip
# DLPack's (code, bits): 0 int, 1 uint, 2 float, 4 bfloat, 5 complex, 6 bool, 10 and 12 float8.
_BY_DLPACK = {
    (6, 8): 0, (0, 8): 1, (0, 16): 2, (0, 32): 3, (0, 64): 4,
    (1, 8): 5, (1, 16): 6, (1, 32): 7, (1, 64): 8,
    (2, 16): 9, (4, 16): 10, (10, 8): 11, (12, 8): 12,
    (2, 32): 13, (2, 64): 14, (5, 64): 15, (5, 128): 16,
}  # fmt: skip


class View:
    """Where the elements of an array lie. A value: nobody changes it.

    ``owner`` keeps the memory alive; whoever starts an operation holds the view until it is done.
    """

    __slots__ = ("address", "count", "dtype", "offset", "owner", "place", "readonly", "shape")

    def __init__(
        self,
        address: int,
        count: int,
        dtype: int,
        shape: tuple[int, ...],
        readonly: bool,
        owner: Any,
        place: Place = HOST,
        offset: int = 0,
    ) -> None:
        self.address = address  # on some devices a handle, and `offset` bytes from its beginning
        self.offset = offset
        self.place = place
        self.count = count  # elements
        self.dtype = dtype  # HCCOMM_BOOL ... HCCOMM_C128
        self.shape = shape
        self.readonly = readonly
        self.owner = owner


def view(array: Any, what: str) -> View:
    """Return where the elements of ``array`` lie; ``what`` names it in errors: "send: buffer".

    Raises InvalidArgument when it is no array, not C-contiguous, of a type hccomm has not, or on a
    device of a kind hccomm has not.
    """
    interface = getattr(array, "__array_interface__", None)
    if isinstance(interface, dict):
        return _from_array_interface(array, interface, what)
    if hasattr(array, "__dlpack_device__"):
        return _from_dlpack(array, what)
    interface = getattr(array, "__cuda_array_interface__", None)
    if isinstance(interface, dict):
        return _from_cuda_interface(array, interface, what)
    try:
        memory = memoryview(array)
    except TypeError:
        raise InvalidArgument(
            f"{what}: {type(array).__name__} is no array; give an object with the buffer protocol "
            "(numpy.ndarray, bytearray, array.array), __dlpack__ or __cuda_array_interface__"
        ) from None
    return _from_memoryview(memory, what)


def name_of(dtype: int) -> str:
    """Return the name of a type number, such as ``"f32"``."""
    return DTYPES[dtype] if 0 <= dtype < len(DTYPES) else f"type {dtype}"


def allocate(like: Any, shape: tuple[int, ...], dtype: int) -> Any:
    """Return a new array of ``shape`` of the kind and type of ``like``.

    NumPy arrays give NumPy arrays, torch tensors give torch tensors, and device arrays of the
    array API one of their own. Other host arrays give a NumPy array where NumPy is installed and
    knows the type, else a bytearray. Raises InvalidArgument for a device array that can make none.
    """
    if hasattr(like, "new_empty"):  # torch and its relatives
        return like.new_empty(shape)
    if _off_host(like):
        if not hasattr(like, "__array_namespace__"):
            raise InvalidArgument(
                f"the result lies on a device where {type(like).__name__} makes no new arrays; "
                "pass out="
            )
        empty: Any = like.__array_namespace__().empty
        return empty(shape, dtype=like.dtype, device=getattr(like, "device", None))
    try:
        import numpy
    except ImportError:
        return bytearray(math.prod(shape) * SIZES[dtype])
    own = getattr(like, "dtype", None)
    if isinstance(own, numpy.dtype):
        return numpy.empty(shape, own)
    by_number = {number: name for name, number in _BY_DTYPE_NAME.items()}
    try:
        return numpy.empty(shape, by_number[dtype])
    except TypeError:  # a type NumPy has not, of an array that is not NumPy's
        return bytearray(math.prod(shape) * SIZES[dtype])


_known_dtypes: dict[Any, int] = {}  # dtype objects seen before: naming one takes microseconds


def _from_array_interface(array: Any, interface: dict[str, Any], what: str) -> View:
    if interface.get("strides") is not None:
        raise _not_contiguous(what)
    own = getattr(array, "dtype", None)
    dtype = _known_dtypes.get(own) if own is not None else None
    if dtype is None:
        dtype = _dtype_of_typestr(own, str(interface["typestr"]), what)
        if own is not None:
            _known_dtypes[own] = dtype
    data, shape = interface.get("data"), interface["shape"]
    if data is None:
        return _from_memoryview(memoryview(array), what)
    return View(data[0], math.prod(shape), dtype, shape, data[1], array)


def _dtype_of_typestr(own: Any, typestr: str, what: str) -> int:
    """Return the type number of a dtype object or, where there is none, of an array's typestr."""
    if typestr[0] == (">" if sys.byteorder == "little" else "<"):
        raise InvalidArgument(
            f"{what}: its bytes are in foreign order ({typestr}); convert it with "
            ".astype(array.dtype.newbyteorder('='))"
        )
    dtype = _BY_DTYPE_NAME.get(str(own))
    if dtype is None:
        dtype = _BY_TYPESTR.get(typestr[1:])
    if dtype is None:
        raise _no_type(what, typestr if own is None else str(own))
    return dtype


def _from_memoryview(memory: memoryview, what: str) -> View:
    from hccomm._native import library

    if not memory.c_contiguous:
        raise _not_contiguous(what)
    dtype = _dtype_of_format(memory.format, memory.itemsize)
    if dtype is None:
        raise _no_type(what, f"format {memory.format!r}")
    ffi = library().ffi
    address = int(ffi.cast("uintptr_t", ffi.from_buffer(memory)))
    count = memory.nbytes // memory.itemsize
    return View(address, count, dtype, memory.shape or (), memory.readonly, memory)


def _dtype_of_format(text: str, itemsize: int) -> int | None:
    """Return the type number of a ``struct`` format; native sizes come from ``itemsize``."""
    code = text.lstrip("@=<")
    kind = {"?": "b", "e": "f", "f": "f", "d": "f", "Zf": "c", "Zd": "c", "c": "u"}.get(code)
    if kind is None:
        kind = "i" if code in tuple("bhilqn") else "u" if code in tuple("BHILQN") else ""
    return _BY_TYPESTR.get(f"{kind}{itemsize}")


def _from_dlpack(array: Any, what: str) -> View:
    from hccomm import _dlpack

    kind, index = (int(each) for each in array.__dlpack_device__())
    if kind in CUDA_TYPES:  # from version 3 on this interface tells the stream
        interface = getattr(array, "__cuda_array_interface__", None)
        if isinstance(interface, dict) and int(interface.get("version", 0)) >= 3:
            return _from_cuda_interface(array, interface, what)
    on_host = kind in HOST_TYPES
    place = HOST if on_host else _devices.of_dlpack(array, kind, index, what)
    try:
        found = _dlpack.inspect(array, None if on_host else _devices.dlpack_stream(kind))
    except (BufferError, RuntimeError, TypeError) as error:
        raise InvalidArgument(f"{what}: {error}") from error
    if not found.contiguous:
        raise _not_contiguous(what)
    dtype = _BY_DLPACK.get((found.code, found.bits)) if found.lanes == 1 else None
    if dtype is None:
        raise _no_type(what, str(getattr(array, "dtype", f"DLPack type {found.code}")))
    count = math.prod(found.shape)
    return View(
        found.address, count, dtype, found.shape, found.readonly, found.owner, place, found.offset
    )


def _from_cuda_interface(array: Any, interface: dict[str, Any], what: str) -> View:
    try:
        shape = tuple(int(each) for each in interface["shape"])
        typestr, (address, readonly) = str(interface["typestr"]), interface["data"]
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidArgument(f"{what}: __cuda_array_interface__ is incomplete: {error}") from error
    dtype = _dtype_of_typestr(getattr(array, "dtype", None), typestr, what)
    strides = interface.get("strides")
    if strides is not None and not _back_to_back(shape, tuple(strides), SIZES[dtype]):
        raise _not_contiguous(what)
    if interface.get("mask") is not None:
        raise InvalidArgument(f"{what}: masked arrays are not supported; pass the data themselves")
    place = _devices.of_cuda_interface(array, interface, what)
    return View(int(address), math.prod(shape), dtype, shape, bool(readonly), array, place)


def _back_to_back(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> bool:
    if 0 in shape:
        return True
    expected = itemsize
    for extent, stride in zip(reversed(shape), reversed(strides), strict=True):
        if extent != 1 and stride != expected:
            return False
        expected *= extent
    return True


def _off_host(array: Any) -> bool:
    if isinstance(getattr(array, "__array_interface__", None), dict):
        return False
    if hasattr(array, "__dlpack_device__"):
        return int(array.__dlpack_device__()[0]) not in HOST_TYPES
    return hasattr(array, "__cuda_array_interface__")


def _not_contiguous(what: str) -> InvalidArgument:
    return InvalidArgument(
        f"{what}: the array is not C-contiguous; pass numpy.ascontiguousarray(array) (for torch "
        "array.contiguous()), and copy the result back"
    )


def _no_type(what: str, name: str) -> InvalidArgument:
    return InvalidArgument(
        f"{what}: {name} is no element type of hccomm; use one of {', '.join(DTYPES)}"
    )

# SPDX-License-Identifier: Apache-2.0
"""Arrays on fake vendors' devices, as CuPy and others would bring them: what the device tests use.

``library(kind)`` compiles tests/fakes for a vendor once; ``FakeArray`` is memory of that device
with DLPack's protocol, and ``CudaArray`` one with ``__cuda_array_interface__`` as well.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

FAKES = Path(__file__).parents[1] / "fakes"
VENDORS = {  # kind: (file, the prefix of its functions, its name in settings, DLPack's type)
    "cuda": ("libcudart.so.12", "cuda", "CUDA", 2),
    "musa": ("libmusart.so", "musa", "MUSA", 12),
    "ascend": ("libascendcl.so", "aclrt", "ASCEND", 12),
}


def library(kind: str, folder: Path) -> Path:
    """Compile the fake runtime of that kind below ``folder``, unless it is there."""
    file, prefix, name, _ = VENDORS[kind]
    path = folder / kind / file
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    defines, source = [f'-DFAKE_NAME="{name}"'], "acl.c"
    if kind != "ascend":
        driver = {"cuda": "cu", "musa": "mu"}[kind]
        defines += [f"-DFAKE_PREFIX={prefix}", f"-DFAKE_DRIVER={driver}"]
        source = "cuda_shaped.c"
    return _compiled(path, defines, [source, "fake.c", "fake_ipc.c", "fake_stream.c"])


def ccl_library(kind: str, folder: Path) -> Path:
    """Compile the fake collective library of that kind, to be used with the fake runtime."""
    file, source, prefix = {
        "cuda": ("libnccl.so.2", "nccl.c", "nccl"),
        "musa": ("libmccl.so.2", "nccl.c", "mccl"),
        "ascend": ("libhccl.so", "hccl.c", "Hccl"),
    }[kind]
    path = folder / f"ccl_{kind}" / file
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    setting = f'-DRUNTIME_SETTING="HCCOMM_{kind.upper()}_LIB"'
    defines = [f"-DFAKE_PREFIX={prefix}", setting]
    return _compiled(path, defines, [source, "ccl.c", "ccl_numbers.c"])


def stale_plugin(folder: Path) -> Path:
    """Compile the device plug-in whose table is of another version."""
    header = f"-I{FAKES.parents[1] / 'csrc' / 'capi'}"
    return _compiled(folder / "libstale.so", [header], ["stale_plugin.c"])


def example_plugin(folder: Path) -> Path:
    """Compile the documented device plug-in."""
    source = FAKES.parents[1] / "examples" / "device_plugin.c"
    header = f"-I{FAKES.parents[1] / 'csrc' / 'capi'}"
    return _compiled(folder / "libexamplechip.so", [header], [str(source)])


def failing_fabric(folder: Path) -> Path:
    """Compile the libfabric whose provider vanishes once the file FAILING_FABRIC is there."""
    return _fabric(folder / "libfailing.so", ["failing_fabric.c"])


def cards_fabric(folder: Path) -> Path:
    """Compile the libfabric that has the cards of FAKE_CARDS."""
    return _fabric(folder / "libcards.so", ["cards_fabric.c", "cards_list.c"])


def _fabric(path: Path, sources: list[str]) -> Path:
    header = f"-I{FAKES.parents[1] / 'third_party' / 'libfabric' / 'include'}"
    versions = f"-Wl,--version-script={FAKES / 'fabric.map'}"
    options = ["-fvisibility=default", header, versions]
    return _compiled(path, options, sources)


def _compiled(path: Path, defines: list[str], sources: list[str]) -> Path:
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise FileNotFoundError("no C compiler for tests/fakes")
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        made = Path(scratch) / path.name
        subprocess.run(
            [
                *(compiler, "-std=gnu11", "-O1", "-fPIC", "-shared", "-fvisibility=hidden"),
                *(*defines, f"-I{FAKES}", *(str(FAKES / each) for each in sources)),
                *("-o", str(made), "-lpthread", "-ldl", "-lrt"),
            ],
            check=True,
            timeout=120,
        )
        os.replace(made, path)
    return path


class FakeArray:
    """An array on a fake vendor's device, which the host cannot touch."""

    def __init__(self, kind: str, values: Any, index: int = 0) -> None:
        values = np.ascontiguousarray(values)
        self.kind, self.index = kind, index
        self.shape, self.dtype = values.shape, values.dtype
        self.nbytes = max(values.nbytes, 1)
        self._runtime = ctypes.CDLL(os.environ[f"HCCOMM_{kind.upper()}_LIB"])
        self._prefix = VENDORS[kind][1]
        address = ctypes.c_void_p()
        if kind == "ascend":
            self._runtime.aclInit(None)  # an error but at the first time
        self._call("SetDevice", ctypes.c_int(index))
        self._call("Malloc", ctypes.byref(address), ctypes.c_size_t(self.nbytes), ctypes.c_int(0))
        self.address = int(address.value or 0)
        self.put(values)

    def put(self, values: Any) -> None:
        ctypes.memmove(self._view(), values.ctypes.data, values.nbytes)

    def __del__(self) -> None:
        self._call("Free", ctypes.c_void_p(self.address))

    def numpy(self) -> Any:
        """Return a copy on the host."""
        values = np.empty(self.shape, self.dtype)
        ctypes.memmove(values.ctypes.data, self._view(), values.nbytes)
        return values

    def count(self, name: str) -> int:
        """Return a counter of the fake runtime (tests/fakes/fake.h)."""
        function = self._runtime.fake_count
        function.restype = ctypes.c_int64
        return int(function(name.encode()))

    def tell(self, setting: str) -> None:
        """Change a setting of the fake runtime in this process."""
        assert self._runtime.fake_set(setting.encode()) == 0

    def _view(self) -> int:
        """Return where the host sees the memory: the test's way behind the device's back."""
        function = self._runtime.fake_host_view
        function.restype = ctypes.c_void_p
        return int(function(ctypes.c_void_p(self.address), ctypes.c_size_t(self.nbytes)))

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._runtime, self._prefix + name)(*arguments)
        if code != 0:
            raise RuntimeError(f"{self._prefix}{name} gives {code}")

    # ---- DLPack, as of version 0.8 ----

    def __dlpack_device__(self) -> tuple[int, int]:
        return VENDORS[self.kind][3], self.index

    @property
    def __hccomm_device__(self) -> str:
        return self.kind

    def __dlpack__(self, stream: int | None = None) -> Any:
        assert stream == (1 if self.kind == "cuda" else None)
        return capsule(self)


class CudaArray(FakeArray):
    """One that tells its stream: 1, the default one, unless it is told otherwise."""

    def __init__(self, values: Any, index: int = 0) -> None:
        super().__init__("cuda", values, index)

    stream = 1

    def lose_stream(self) -> None:
        """Name a stream that has been destroyed."""
        stream = ctypes.c_void_p()
        self._call("SetDevice", ctypes.c_int(self.index))
        self._call("StreamCreateWithFlags", ctypes.byref(stream), ctypes.c_uint(1))
        self._call("StreamDestroy", stream)
        self.stream = int(stream.value or 0)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "version": 3,
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, False),
            "strides": None,
            "stream": self.stream,
        }


class _Managed(ctypes.Structure):
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
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    )


def capsule(array: Any) -> Any:
    """Return the array as an unversioned capsule; array keeps what it points at."""
    shape = (ctypes.c_int64 * len(array.shape))(*array.shape)
    code = {"i": 0, "u": 1, "f": 2, "c": 5}[array.dtype.kind]
    device_type, index = array.__dlpack_device__()
    managed = _Managed(
        *(array.address, device_type, index, len(array.shape), code, array.dtype.itemsize * 8, 1),
        *(shape, None, 0, None, None),
    )
    array._kept = (shape, managed)
    new = ctypes.pythonapi.PyCapsule_New
    new.restype = ctypes.py_object
    new.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
    return new(ctypes.addressof(managed), b"dltensor", None)

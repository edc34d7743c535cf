# SPDX-License-Identifier: Apache-2.0
"""Find and load libhccomm.so, once per process and not before something needs it.

The rest of the package speaks to the library through ``library()``. ``HCCOMM_PY_LIBRARY`` names
another build of the library, for development.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hccomm.errors import Unavailable, from_code

if TYPE_CHECKING:
    from pathlib import Path

_NODELETE = getattr(os, "RTLD_NODELETE", 0)  # its threads may outlive the interpreter's objects


class Library:
    """The loaded library: ``lib`` holds its functions, ``ffi`` makes its structures.

    Owns:   nothing that is ever unloaded.
    Thread: any.
    Fails:  ``Unavailable`` when there is no library or it speaks another ABI.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.ffi = _declarations()
        try:
            self.lib: Any = self.ffi.dlopen(path, os.RTLD_NOW | os.RTLD_LOCAL | _NODELETE)
        except OSError as error:
            raise Unavailable(f"load {path}: {error}; reinstall hccomm for this machine") from error
        found, wanted = int(self.lib.hccomm_abi_version()), int(self.lib.HCCOMM_ABI_VERSION)
        if found != wanted:
            raise Unavailable(
                f"load {path}: it speaks version {found} of the C ABI, this package version "
                f"{wanted}; install both from one release, and unset HCCOMM_PY_LIBRARY if it is set"
            )

    def version(self) -> str:
        """Return the version of the library, such as ``"0.1.0"``."""
        return self.string(self.lib.hccomm_version())

    def string(self, text: Any) -> str:
        """Return a C string as ``str``."""
        found = self.ffi.string(text)
        return found.decode("utf-8", "replace") if isinstance(found, bytes) else str(found)

    def error(self) -> Any:
        """Return a new ``hccomm_error`` for a call to fill."""
        return self.ffi.new("hccomm_error*")

    def check(self, code: int, error: Any) -> None:
        """Raise what ``error`` says, unless ``code`` is success."""
        if code != 0:
            raise from_code(code, self.string(error.text), int(error.rank))

    def json(self, ask: Callable[[Any, int], int], what: str) -> Any:
        """Return the JSON that ``ask(buffer, capacity)`` writes; it is asked again when cut."""
        import json

        capacity = 1 << 16
        while True:
            out = self.ffi.new("char[]", capacity)
            size = int(ask(out, capacity))
            if size < 0:
                text = self.string(out) or f"{what}: the library gave no answer"
                raise from_code(-size, text)
            if size < capacity:
                return json.loads(self.ffi.buffer(out, size)[:].decode("utf-8"))
            capacity = size + 1


_lock = threading.Lock()
_library: Library | None = None


def library() -> Library:
    """Return the library, loading it on the first call."""
    global _library
    if _library is None:
        with _lock:
            if _library is None:
                _library = Library(str(find()))
    return _library


def find() -> Path:
    """Return where the library lies: ``HCCOMM_PY_LIBRARY``, else beside this file."""
    from pathlib import Path

    override = os.environ.get("HCCOMM_PY_LIBRARY")
    if override:
        if not os.path.isfile(override):
            raise Unavailable(f'HCCOMM_PY_LIBRARY="{override}" is no file; unset it or mend it')
        return Path(override).resolve()
    folders = _folders()
    for folder in folders:
        if (folder / "libhccomm.so").is_file():
            return folder / "libhccomm.so"
    raise Unavailable(
        f"load libhccomm.so: it is not in {', '.join(map(str, folders))}; install the package "
        "(pip install .) or set HCCOMM_PY_LIBRARY to a library built with cmake"
    )


def _folders() -> list[Path]:
    """Return the folders of this package: an editable install has two.

    So has a program that is started inside a checkout (``python -c``, ``python -m``): its Python
    files are found first, what was compiled lies in the installed package further down the path.
    """
    import sys
    from pathlib import Path

    import hccomm

    installed = [os.path.join(each, "hccomm") for each in sys.path if each]
    built = [each for each in installed if os.path.isfile(os.path.join(each, "libhccomm.so"))]
    folders = [Path(each).absolute() for each in [*hccomm.__path__, *built]]
    return list(dict.fromkeys(folders))


def _declarations() -> Any:
    """Return cffi's view of hccomm.h: made by the build, else parsed from the source tree."""
    try:
        from hccomm._abi import ffi
    except ImportError:
        return _parsed_declarations()
    return ffi


def _parsed_declarations() -> Any:
    from hccomm._header import declarations

    for folder in _folders():
        header = folder.parent / "csrc" / "capi" / "hccomm.h"
        if header.is_file():
            from cffi import FFI

            ffi = FFI()
            ffi.cdef(declarations(header.read_text(encoding="utf-8")))
            return ffi
    raise Unavailable("load hccomm._abi: the package was not built; run pip install .")

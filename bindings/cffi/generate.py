# SPDX-License-Identifier: Apache-2.0
"""Make hccomm/_abi.py, the cffi declarations of the C ABI, from csrc/capi/hccomm.h.

CMake runs this when it builds the wheel: ``python generate.py HEADER OUTPUT``. The result is plain
Python for every version (cffi's out-of-line ABI mode): nothing is compiled, and importing it parses
no C.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from cffi import FFI

ROOT = Path(__file__).resolve().parents[2]


def main(header: str, output: str) -> None:
    """Write the declarations of ``header`` to ``output``."""
    spec = importlib.util.spec_from_file_location("_header", ROOT / "hccomm" / "_header.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    ffi = FFI()
    ffi.set_source("hccomm._abi", None)
    ffi.cdef(module.declarations(Path(header).read_text(encoding="utf-8")))
    ffi.emit_python_code(output)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])

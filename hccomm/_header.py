# SPDX-License-Identifier: Apache-2.0
"""Turn hccomm.h into declarations that cffi reads.

The header is the only description of the C ABI. bindings/cffi/generate.py calls this when a wheel
is built; _native calls it in a source tree that was not built by pip. Reads text, returns text.
"""

from __future__ import annotations

import re

_NUMBER = re.compile(r"#define\s+(HCCOMM_\w+)\s+\(?(-?\d+)u?\)?\s*(?:/\*.*)?$")


def declarations(header: str) -> str:
    """Return the declarations of ``header`` without its preprocessor directives.

    Numeric macros stay; conditional parts for C++ and the export macro go.
    """
    lines = []
    in_cpp = False
    for line in header.splitlines():
        if line.startswith("#"):
            in_cpp = line.startswith("#ifdef __cplusplus") or (in_cpp and line != "#endif")
            number = _NUMBER.match(line)
            if number:
                lines.append(f"#define {number[1]} {number[2]}")
        elif not in_cpp:
            lines.append(line.replace("HCCOMM_API ", ""))
    return "\n".join(lines) + "\n"

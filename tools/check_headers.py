# SPDX-License-Identifier: Apache-2.0
"""What every source file owes: an SPDX line, a head comment, the size limits; headers stand alone.

Each header is compiled by itself (-fsyntax-only), so that no file depends on the order of its
includes. Exit status 1 and one line per breach. ``--quick`` leaves the compiling out.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sources import CPP, ROOT, files, read

COLUMNS = 100
LINES = {".cpp": 500, ".hpp": 200, ".py": 600, ".c": 500}
# The C ABI is one page by intent; its length is the number of its functions.
LONG = {"csrc/capi/hccomm.h"}
SPDX = "SPDX-License-Identifier: Apache-2.0"
SCRIPTS = {"Makefile", "CMakeLists.txt", "run"}


def is_source(path: Path) -> bool:
    """Tell whether the house rules hold for this file."""
    return path.suffix in (*CPP, ".py", ".sh") or path.name in SCRIPTS


def has_head(path: Path, text: str) -> bool:
    """Tell whether a file says what it is. A .cpp may leave it to its own header."""
    if path.suffix == ".py":
        if not text.strip() or path.name == "conftest.py":
            return True
        try:
            return ast.get_docstring(ast.parse(text, str(path))) is not None
        except SyntaxError:
            return True  # ruff says it better
    first = re.search(r'#include "([^"]+)"', text)
    if path.suffix == ".cpp" and first is not None and Path(first.group(1)).stem == path.stem:
        return True  # beside, or the tests of, a header that says it
    mark = r"//|/\*|\*" if path.suffix in CPP else "#"
    head = re.match(rf"(?:\s*(?:{mark}).*\n)+", text)
    body = re.sub(rf"#!.*|{SPDX}|[/*#\s]", "", head.group()) if head else ""
    return len(body) > 20


def check_text(path: Path) -> list[str]:
    """Check one file as text."""
    text = read(path)
    lines = text.splitlines()
    wrong = []
    if text.strip() and SPDX not in "\n".join(lines[:2]):
        wrong.append(f"{path}:1: no line `{SPDX}` at the top")
    if not has_head(path, text):
        wrong.append(
            f"{path}:1: no head comment: what is this, when would one choose it, who calls"
        )
    if path.suffix == ".hpp" and not re.search(r"^#pragma once$", text, re.MULTILINE):
        wrong.append(f"{path}:1: no #pragma once")
    limit = LINES.get(path.suffix, 0)
    if limit and len(lines) > limit and path.as_posix() not in LONG:
        wrong.append(f"{path}: {len(lines)} lines, at most {limit}: it holds two things; part them")
    for number, line in enumerate(lines, 1):
        wide = len(re.sub(r"  # (type: ignore|noqa).*", "", line))  # pragmas cannot be wrapped
        if wide > COLUMNS:
            wrong.append(f"{path}:{number}: {wide} columns, at most {COLUMNS}")
        if line != line.rstrip():
            wrong.append(f"{path}:{number}: blanks at the end of the line")
    if text and not text.endswith("\n"):
        wrong.append(f"{path}: no newline at the end")
    return wrong


def stands_alone(path: Path) -> bool:
    """Tell whether a header can be compiled here: those on torch need its headers."""
    return path.parts[0] in ("csrc", "tests") and not re.search(
        r"#include <(c10|torch)/", read(path)
    )


def compile_alone(compiler: str, header: Path) -> list[str]:
    """Compile one header by itself."""
    command = [
        compiler,
        "-std=c++20",
        "-fsyntax-only",
        "-Wall",
        "-Wextra",
        "-Icsrc",
        "-Itests/cpp",
        "-isystem",
        "third_party/libfabric/include",
    ]
    command += ["-x", "c++", "-", "-Wno-missing-field-initializers"]
    done = subprocess.run(
        command,
        check=False,
        cwd=ROOT,
        input=f'#include "{(ROOT / header).as_posix()}"\nint hccomm_alone;\n',
        capture_output=True,
        text=True,
        timeout=120,
    )
    if done.returncode == 0 and not done.stderr:
        return []
    return [f"{header}: does not compile alone:\n{done.stderr.rstrip()}"]


def main() -> int:
    """Check every file; print the breaches."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="do not compile the headers")
    quick = parser.parse_args().quick
    sources = [path for path in files() if is_source(path)]
    wrong = [line for path in sources for line in check_text(path)]
    headers = [p for p in sources if p.suffix in (".hpp", ".h") and stands_alone(p)]
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if not quick and compiler is not None:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for found in pool.map(lambda header: compile_alone(compiler, header), headers):
                wrong += found
    elif not quick:
        wrong.append("no C++ compiler: set CXX, or pass --quick to leave the headers uncompiled")
    print("\n".join(wrong) if wrong else f"headers: {len(sources)} files, {len(headers)} headers")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

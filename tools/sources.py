# SPDX-License-Identifier: Apache-2.0
"""Which files are ours, and how to read C++ without its comments: shared by the checks.

The files are git's: tracked, or new and not ignored. Build output and caches never count, nor does
what others wrote (third_party/).
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

CPP = (".cpp", ".hpp", ".h", ".c", ".inc")
_TOKEN = re.compile(
    r"//[^\n]*|/\*.*?\*/"  # comments
    r"|R\"(?P<tag>[^(]*)\(.*?\)(?P=tag)\"|\"(?:\\.|[^\"\\\n])*\""  # strings
    r"|'(?:\\[^\n]{1,8}?|[^'\\\n])'",  # one character (not the ' of 1'000)
    re.DOTALL,
)


def files(*suffixes: str, under: str = "") -> list[Path]:
    """List our files with one of ``suffixes`` (all when none), relative to the root, sorted."""
    listed = subprocess.run(
        [
            "git",
            "ls-files",
            "--cached",
            "--others",
            "--exclude-standard",
            "-z",
            "--",
            under or ".",
        ],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    paths = {Path(name) for name in listed.split("\0") if name}
    return sorted(
        path
        for path in paths
        if (not suffixes or path.suffix in suffixes)
        and path.parts[0] != "third_party"
        and (ROOT / path).is_file()
    )


def read(path: Path) -> str:
    """Return the text of a file given relative to the root."""
    return (ROOT / path).read_text(encoding="utf-8")


def code_of(text: str) -> str:
    """Blank comments and string contents of C or C++, keeping the line numbers."""

    def blank(match: re.Match[str]) -> str:
        lines = "\n" * match.group().count("\n")
        return f'""{lines}' if match.group()[0] in "\"'R" else f" {lines}"

    includes = re.compile(r'^(\s*#\s*include\s*)"([^"\n]+)"', re.MULTILINE)
    return _TOKEN.sub(blank, includes.sub(r"\1<\2>", text))


def includes_of(text: str) -> Iterator[tuple[int, str]]:
    """Yield (line number, included name) of a C or C++ text."""
    for number, line in enumerate(text.splitlines(), 1):
        if match := re.match(r'\s*#\s*include\s*[<"]([^>"]+)[>"]', line):
            yield number, match.group(1)

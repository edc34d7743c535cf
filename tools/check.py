# SPDX-License-Identifier: Apache-2.0
"""Run every check of the house: format, lint, types, layers, headers, generated pages.

One command for people, for pre-commit (``--quick``) and for .ci/run. ``--fix`` lets the formatters
write. Each check prints one line; a failed one prints what its tool said. Exit status 1 when any
fails. Tools come from the environment of the Python that runs this (`make check` makes it).
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sources import CPP, ROOT, files

TIMEOUT = 900.0


@dataclass(frozen=True)
class Outcome:
    """What a check found: its text, and whether it is a failure."""

    ok: bool
    text: str


def tool(name: str) -> str:
    """Find a tool beside this Python first, then on the PATH."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise FileNotFoundError(f"{name} is not installed: run `make check`, which installs it")
    return found


def run(*command: str) -> Outcome:
    """Run one tool in the root."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tools")}
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT,
    )
    return Outcome(done.returncode == 0, done.stdout.strip())


def clang_format(fix: bool) -> Outcome:
    """Format of C and C++."""
    sources = [str(path) for path in files(*CPP) if path.suffix != ".inc"]
    if fix:
        return run(tool("clang-format"), "-i", *sources)
    found = run(tool("clang-format"), "--dry-run", "-Werror", *sources)
    places = re.findall(r"^(\S+):\d+:\d+: error", found.text, re.MULTILINE)
    wrong = [f"{path}: {places.count(path)} places" for path in dict.fromkeys(places)]
    hint = "`make check CHECK_ARGS=--fix` formats them"
    return Outcome(found.ok, "\n".join([*wrong, hint]) if wrong else found.text)


def ruff_format(fix: bool) -> Outcome:
    """Format of Python."""
    return run(
        tool("ruff"), "format", "--exclude=*.md", *([] if fix else ["--check", "--diff"]), "."
    )


def ruff_lint(fix: bool) -> Outcome:
    """Lint of Python."""
    return run(tool("ruff"), "check", *(["--fix"] if fix else []), ".")


def types(fix: bool) -> Outcome:
    """Types of the Python package, strictly."""
    if not (ROOT / "hccomm" / "__init__.py").exists():
        return Outcome(True, "no package yet")
    return run(tool("mypy"), "--strict", "hccomm")


def layers(fix: bool) -> Outcome:
    """Who may include whom."""
    return run(sys.executable, "tools/check_layers.py")


def headers(fix: bool) -> Outcome:
    """Head comments, sizes, and headers that compile alone."""
    return run(sys.executable, "tools/check_headers.py")


def heads(fix: bool) -> Outcome:
    """Head comments and sizes alone: what needs no compiler."""
    return run(sys.executable, "tools/check_headers.py", "--quick")


def config(fix: bool) -> Outcome:
    """docs/config.md is what the table says."""
    return run(sys.executable, "tools/gen_config.py", *([] if fix else ["--check"]))


def docs(fix: bool) -> Outcome:
    """Links of the pages lead somewhere; every algorithm is in its table."""
    return run(sys.executable, "tools/check_docs.py")


QUICK: list[Callable[[bool], Outcome]] = [
    clang_format,
    ruff_format,
    ruff_lint,
    layers,
    heads,
    config,
    docs,
]
ALL = [check for check in QUICK if check is not heads] + [types, headers]


def main() -> int:
    """Run the checks that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="leave out types and compiling")
    parser.add_argument("--fix", action="store_true", help="let the formatters write")
    parser.add_argument("names", nargs="*", help="only these checks")
    asked = parser.parse_args()
    checks = QUICK if asked.quick else ALL
    if asked.names:
        checks = [check for check in ALL if check.__name__ in asked.names]
        if len(checks) != len(asked.names):
            known = " ".join(check.__name__ for check in ALL)
            parser.error(f"{' '.join(asked.names)}: the checks are {known}")
    failed = 0
    for check in checks:
        begin = time.monotonic()
        try:
            outcome = check(asked.fix)
        except (FileNotFoundError, subprocess.TimeoutExpired) as error:
            outcome = Outcome(False, str(error))
        word = "ok" if outcome.ok else "FAILED"
        print(
            f"{check.__name__:<14} {word:<7} {time.monotonic() - begin:6.1f} s",
            flush=True,
        )
        if not outcome.ok:
            failed += 1
            print("    " + outcome.text[-8000:].replace("\n", "\n    "), flush=True)
    print(f"checks: {len(checks) - failed} ok, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

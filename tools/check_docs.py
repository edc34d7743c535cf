# SPDX-License-Identifier: Apache-2.0
"""The Markdown pages: relative links lead to files, and every built-in has its place in a page.

Exit status 1 and one line per breach.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from sources import ROOT, files, read

LINK = re.compile(r"!?\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
ALGORITHMS = Path("csrc/algorithm/builtins.inc")


def dead_links() -> list[str]:
    """Find links to files that are not there."""
    wrong = []
    for page in files(".md"):
        for target in LINK.findall(FENCE.sub("", read(page))):
            if "://" in target or target.startswith("mailto:"):
                continue
            if not (ROOT / page.parent / target).exists():
                wrong.append(f"{page}: links to {target}, which is not there")
    return wrong


def untold_algorithms() -> list[str]:
    """Find algorithms that docs/algorithms.md does not list, and rows of none."""
    built = {tuple(name.split("_", 1)) for name in re.findall(r"\((\w+)\)", read(ALGORITHMS))}
    told = set()
    collective = ""
    for row in re.findall(
        r"^\| ?(\w*) \| (\w+) \|", read(Path("docs/algorithms.md")), re.MULTILINE
    ):
        collective = row[0] or collective
        told.add((collective, row[1]))
    told.discard(("collective", "name"))
    return [f"docs/algorithms.md: no row for {' '.join(each)}" for each in sorted(built - told)] + [
        f"docs/algorithms.md: {' '.join(each)} is no built-in" for each in sorted(told - built)
    ]


def main() -> int:
    """Check every page; print what is wrong."""
    wrong = dead_links() + untold_algorithms()
    print("\n".join(wrong) if wrong else "docs: links lead somewhere, algorithms are listed")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

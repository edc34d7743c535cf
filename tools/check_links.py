# SPDX-License-Identifier: Apache-2.0
"""Every relative link of our Markdown pages leads to a file; exit status 1 if one does not."""

from __future__ import annotations

import re
import sys

from sources import ROOT, files, read

LINK = re.compile(r"!?\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def main() -> int:
    """Check every page; print the dead links."""
    wrong = []
    pages = files(".md")
    for page in pages:
        for target in LINK.findall(FENCE.sub("", read(page))):
            if "://" in target or target.startswith("mailto:"):
                continue
            if not (ROOT / page.parent / target).exists():
                wrong.append(f"{page}: links to {target}, which is not there")
    print("\n".join(wrong) if wrong else f"links: {len(pages)} pages lead nowhere wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

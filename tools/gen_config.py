# SPDX-License-Identifier: Apache-2.0
"""Write docs/config.md from the table in csrc/base/config.cpp. ``--check`` only compares.

The table is read as text, so that the page can be made and checked with nothing built.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from pathlib import Path

from sources import ROOT, read

TABLE = Path("csrc/base/config.cpp")
PAGE = Path("docs/config.md")
HEAD = """\
<!-- Made by tools/gen_config.py from csrc/base/config.cpp: change that table, then run it. -->
# Settings

Every setting is an environment variable, read once when the first communicator of a process is
made. An unknown `HCCOMM_*` name and a value that cannot be read are `InvalidArgument` errors that
name the variable, the value and what it may be: a typing error never passes in silence. Names that
begin with `HCCOMM_TEST_` or `HCCOMM_PY_` belong to the tests and the Makefile and are ignored.

`hccomm info --config` prints this table with the values in force.

| setting | value | default | meaning |
|---|---|---|---|
"""
TAIL = """
Kinds of values: `bytes` is a number with an optional `K`, `M` or `G` (powers of 1024); `seconds`
is a positive number, fractions allowed; `list` is comma separated; words with `\\|` are the only
ones accepted. Where the default is `auto`, the word `auto` may be given too.

Settings should be the same on all ranks, except `HCCOMM_HOST`, `HCCOMM_SOCKET_IFNAME` and
`HCCOMM_LOG`, which may differ. Those that decide which algorithm runs (`HCCOMM_ALGO`,
`HCCOMM_SEGMENT`) must not differ: ranks that chose differently fail with `Mismatch`.
"""


def settings() -> list[tuple[str, str, str, str]]:
    """Read (name, kind, default, meaning) of every setting."""
    text = read(TABLE)
    table = re.search(r"kSettings\[\] = \{(.*?)\n\};", text, re.DOTALL)
    if table is None:
        raise SystemExit(f"{TABLE}: no kSettings table; mend tools/gen_config.py")
    entry = re.compile(r"\{((?:\s*\"(?:\\.|[^\"\\])*\"\s*,?)+)\s*\}")
    rows = []
    for match in entry.finditer(table.group(1)):
        # Neighbouring literals are one string in both languages; commas part the fields.
        fields = ast.literal_eval("(" + match.group(1).replace("\n", " ") + ",)")
        if len(fields) != 4:
            raise SystemExit(f"{TABLE}: {fields} has {len(fields)} fields, not 4")
        rows.append(fields)
    return rows


def page() -> str:
    """Return the whole page."""
    rows = []
    for name, kind, fallback, meaning in settings():
        default = f"`{fallback}`" if fallback else "(none)"
        kinds = kind.replace("|", " \\| ")
        rows.append(f"| `{name}` | {kinds} | {default} | {meaning} |\n")
    return HEAD + "".join(rows) + TAIL


def main() -> int:
    """Write the page, or compare it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare only; exit 1 if it differs")
    path = ROOT / PAGE
    if not parser.parse_args().check:
        path.write_text(page(), encoding="utf-8")
        return 0
    if path.exists() and path.read_text(encoding="utf-8") == page():
        print(f"config: {PAGE} is current")
        return 0
    print(f"{PAGE} differs from the table in {TABLE}: run python tools/gen_config.py")
    return 1


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: Apache-2.0
"""Count machine instructions of fixed cases under callgrind; compare with what was committed.

``python tools/check_instructions.py build/release/tests/cpp/instructions`` runs each case twice,
with different numbers of repetitions, so that warming up and thread starts cancel out. More than
TOLERANCE above bench/instructions.json is a failure: the path got longer. Much less is told, too:
then ``--update`` writes the new counts, to be committed with the change that earned them. Counts
belong to a compiler's major version and an architecture; for another one they are printed only.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMMITTED = ROOT / "bench" / "instructions.json"
CASES = (
    *("alone", "sendrecv_8B", "allreduce_8B", "allreduce_512K", "plan"),
    *("c_broadcast_8B", "c_sendrecv_8B"),
)
TOLERANCE = 0.08


def compiler() -> str:
    """Return the compiler's name and major version, the architecture and its vectors."""
    said = subprocess.run(
        [os.environ.get("CXX", "c++"), "--version"], capture_output=True, text=True, check=True
    ).stdout
    name = "clang" if "clang" in said else "gcc"
    version = re.search(r"\b(\d+)\.\d+\.\d+", said)
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    simd = " avx2" if " avx2 " in flags else ""  # what the reduction kernels use under valgrind
    return f"{name} {version.group(1) if version else '?'} {platform.machine()}{simd}"


def collected(program: Path, case: str, times: int) -> int:
    """Return the instructions inside measured()."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [
                # Threads in turn: else the one that asks may starve those that still connect.
                *("valgrind", "--tool=callgrind", "--fair-sched=yes"),
                "--toggle-collect=measured",
                *(f"--callgrind-out-file={folder}/out", str(program), case, str(times)),
            ],
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
    found = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode != 0 or found is None:
        raise SystemExit(f"instructions: {case}: valgrind failed:\n{done.stderr[-2000:]}")
    return int(found.group(1))


def per_call(program: Path, case: str) -> int:
    """Return the instructions of one repetition."""
    few, many = (20, 40) if case == "plan" else (200, 600)
    return (collected(program, case, many) - collected(program, case, few)) // (many - few)


def main() -> int:
    """Count, compare, print; exit status 1 when a case has got longer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program", type=Path)
    parser.add_argument("--update", action="store_true", help="write the counts to be committed")
    options = parser.parse_args()
    if shutil.which("valgrind") is None:
        print("instructions: left out: valgrind is not installed")
        return 0
    committed = json.loads(COMMITTED.read_text()) if COMMITTED.exists() else {}
    key = compiler()
    known = committed.get(key, {})
    counts = {case: per_call(options.program, case) for case in CASES}
    longer = False
    for case, count in counts.items():
        before = known.get(case)
        change = "" if not before else f"{100.0 * (count - before) / before:+6.1f} %"
        print(f"{case:16} {count:12,} instructions  {change}")
        longer = longer or bool(before and count > before * (1 + TOLERANCE))
    if options.update:
        COMMITTED.write_text(json.dumps(committed | {key: counts}, indent=2) + "\n")
    elif not known:
        print(f"no counts are committed for {key}: nothing to compare with")
    elif longer:
        print(f"more than {100 * TOLERANCE:.0f} % above {COMMITTED.name}: shorten the path, or")
        print("commit the new counts with the reason (--update)")
    return 1 if longer and not options.update else 0


if __name__ == "__main__":
    sys.exit(main())

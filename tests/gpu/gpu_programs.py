# SPDX-License-Identifier: Apache-2.0
"""Where the C++ suites lie, and how a program of this folder becomes a group of ranks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SUITES = ROOT / "build" / os.environ.get("PRESET", "release") / "tests" / "cpp"


def run_ranks(program: str, ranks: int, **environment: str) -> str:
    """Run ``program`` of this folder as ``ranks`` processes; return what they said."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", str(ranks), str(Path(__file__).with_name(program))),
        ],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout

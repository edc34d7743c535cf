# SPDX-License-Identifier: Apache-2.0
"""Namespaces for a storm that needs a machine of its own: nothing it makes there can outlive it.

storm.py starts itself again in them, as root or, where the system lets a user be root of his own
namespaces, as anybody.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence

MARK = "HCCOMM_TEST_PRIVATE"
_KINDS = ("-mniu", "-Urmniu")  # mounts, network, System V IPC, host name


def inside() -> bool:
    """Whether this process was started by enter()."""
    return bool(os.environ.get(MARK))


def command(setup: str) -> list[str] | None:
    """Return what to put before a command to run it after ``setup`` there, or None."""
    if shutil.which("unshare") is None:
        return None
    setup = f"ip link set lo up && {setup}"
    for kind in _KINDS:
        asked = ["unshare", kind, "sh", "-c", setup]
        if subprocess.run(asked, capture_output=True, timeout=30, check=False).returncode == 0:
            return ["unshare", kind, "sh", "-c", f'{setup} && {MARK}=1 exec "$0" "$@"']
    return None


def enter(argv: Sequence[str], setup: str) -> bool:
    """Start this program again in namespaces of its own. Returns, False, where it may not."""
    if inside():
        return True
    before = command(setup)
    if before is not None:
        os.execvp(before[0], [*before, sys.executable, *argv])
    return False

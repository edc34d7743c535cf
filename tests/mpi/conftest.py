# SPDX-License-Identifier: Apache-2.0
"""Which MPIs this environment has; the tests run under each."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))
for _name in [each for each in os.environ if each.startswith("HCCOMM_")]:
    if not _name.startswith("HCCOMM_PY_"):
        del os.environ[_name]  # the tests say themselves what they set

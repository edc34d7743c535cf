# SPDX-License-Identifier: Apache-2.0
"""Tests that need an NVIDIA GPU; without one each is skipped, with the reason hccomm itself gives.

From a bare machine with the driver, a compiler, Python and git: ``make test``, which makes .venv
with torch and builds the C++ suites, then ``.venv/bin/pytest tests/gpu``. The driver alone has no
libcudart; torch brings one, which is found once torch is imported.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

import hccomm


def why_no_gpu() -> str:
    """Say why there is no NVIDIA GPU here, or "" when there is one."""
    with contextlib.suppress(ImportError):
        import torch  # noqa: F401  # loads its libcudart
    cuda = next(row for row in hccomm.info()["devices"] if row["name"] == "cuda")
    return "" if cuda["available"] else str(cuda["reason"])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip everything here where there is no GPU."""
    reason = why_no_gpu()
    for item in items:
        if reason and Path(str(item.fspath)).parent == Path(__file__).parent:
            item.add_marker(pytest.mark.skip(reason=reason))

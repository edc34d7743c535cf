# SPDX-License-Identifier: Apache-2.0
"""Tests that need an NVIDIA GPU; without one each is skipped, with the reason hccomm itself gives.

``pytest tests/gpu`` after ``make test`` (they use the C++ suites and the installed package).
"""

from __future__ import annotations

from pathlib import Path

import pytest

import hccomm


def why_no_gpu() -> str:
    """Say why there is no NVIDIA GPU here, or "" when there is one."""
    cuda = next(row for row in hccomm.info()["devices"] if row["name"] == "cuda")
    return "" if cuda["available"] else str(cuda["reason"])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip everything here where there is no GPU."""
    reason = why_no_gpu()
    for item in items:
        if reason and Path(str(item.fspath)).parent == Path(__file__).parent:
            item.add_marker(pytest.mark.skip(reason=reason))

# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the torch tests: process groups that stay up from test to test."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is not installed")
sys.path.insert(0, str(Path(__file__).parent))

from ranks import Ranks, environment


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave the deadlines to the ranks: they print every rank's stack, pytest's own cannot."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(500))


@pytest.fixture(scope="session", autouse=True)
def _glue() -> None:
    """Have the glue ready before any rank's deadline counts; it may have to be compiled."""
    load = "from hccomm import _torch_glue; import torch; _torch_glue.load()"
    done = subprocess.run(
        [sys.executable, "-c", load], env=environment(), capture_output=True, text=True, timeout=600
    )
    if done.returncode != 0:
        pytest.fail(f"the torch glue does not load:\n{done.stderr[-2000:]}", pytrace=False)


@pytest.fixture(scope="session")
def simulated() -> None:
    """Have the simulated accelerator ready before any rank's deadline counts."""
    done = subprocess.run(
        [sys.executable, "-c", "import simdevice; simdevice.library()"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
    )
    if done.returncode != 0:
        pytest.fail(f"the simulated accelerator:\n{done.stderr[-2000:]}", pytrace=False)


@pytest.fixture(scope="session")
def ranks_of() -> Iterator[Callable[[int], Ranks]]:
    """Return the group of so many ranks, made on first use and again after it broke."""
    groups: dict[int, Ranks] = {}

    def of(size: int) -> Ranks:
        if size in groups and not groups[size].alive:
            groups.pop(size).close()
        if size not in groups:
            groups[size] = Ranks(size)
        return groups[size]

    yield of
    for group in groups.values():
        group.close()


@pytest.fixture
def two(ranks_of: Callable[[int], Ranks]) -> Ranks:
    return ranks_of(2)


@pytest.fixture
def three(ranks_of: Callable[[int], Ranks]) -> Ranks:
    return ranks_of(3)

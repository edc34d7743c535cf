# SPDX-License-Identifier: Apache-2.0
"""Ranks for the tests: processes that are started once and serve many tests.

``ranks(n)`` returns a group of n local ranks; ``ranks.fresh(n)`` one that this test may spoil. The
functions that run on ranks live in rank_programs.py, which imports no pytest.
"""

from __future__ import annotations

import faulthandler
import os
from collections.abc import Iterator

import hypothesis
import pytest

from hccomm.local import Ranks

hypothesis.settings.register_profile(
    "hccomm",
    deadline=None,  # a busy machine is no failure
    max_examples=60,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
hypothesis.settings.load_profile("hccomm")
faulthandler.enable()
for _name in [each for each in os.environ if each.startswith("HCCOMM_")]:
    if not _name.startswith("HCCOMM_PY_"):
        del os.environ[_name]  # the tests say themselves what they set
# Another way for all: HCCOMM_PY_SET="HCCOMM_TRANSPORTS=ofi HCCOMM_OFI_PROVIDER=net" pytest ...
for _pair in os.environ.get("HCCOMM_PY_SET", "").split():
    os.environ.__setitem__(*_pair.split("=", 1))


class RanksFactory:
    """Hands out groups of ranks, one for each size, hosts and environment."""

    def __init__(self) -> None:
        self._kept: dict[tuple[object, ...], Ranks] = {}
        self._fresh: list[Ranks] = []

    def __call__(self, size: int, *, hosts: int = 1, **environ: str) -> Ranks:
        key = (size, hosts, *sorted(environ.items()))
        found = self._kept.get(key)
        if found is None or not found.usable:
            if found is not None:
                found.close()
            self._drop_others()
            found = self._kept[key] = Ranks(size, hosts=hosts, environ=environ, timeout=60.0)
        return found

    def fresh(self, size: int, *, hosts: int = 1, **environ: str) -> Ranks:
        made = Ranks(size, hosts=hosts, environ=environ, timeout=60.0)
        self._fresh.append(made)
        return made

    def end_fresh(self) -> None:
        while self._fresh:
            self._fresh.pop().close()

    def close(self) -> None:
        self.end_fresh()
        for each in self._kept.values():
            each.close()

    def _drop_others(self) -> None:
        """Keep at most four groups: idle processes still take memory."""
        while len(self._kept) >= 4:
            self._kept.pop(next(iter(self._kept))).close()


@pytest.fixture(scope="session")
def _factory() -> Iterator[RanksFactory]:
    factory = RanksFactory()
    yield factory
    factory.close()


@pytest.fixture
def ranks(_factory: RanksFactory) -> Iterator[RanksFactory]:
    yield _factory
    _factory.end_fresh()

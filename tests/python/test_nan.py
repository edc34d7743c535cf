# SPDX-License-Identifier: Apache-2.0
"""A NaN of one rank is a NaN on all, by every algorithm, type and operation that has one."""

from __future__ import annotations

from typing import Any

import nan_programs as programs
import pytest

import hccomm

NAMES = {"all_reduce": "allreduce", "reduce": "reduce", "reduce_scatter": "reducescatter"}
ALGORITHMS = [
    (name, each["name"])
    for name, collective in NAMES.items()
    for each in hccomm.info()["algorithms"]
    if each["collective"] == collective
]


@pytest.mark.parametrize("transport", ["shm", "tcp"])
@pytest.mark.parametrize(("name", "algorithm"), ALGORITHMS)
def test_a_nan_of_one_rank_is_one_on_all(
    ranks: Any, name: str, algorithm: str, transport: str
) -> None:
    hosts = 2 if algorithm == "two_level" else 1
    settings = {"HCCOMM_ALGO": f"{name}:{algorithm}", "HCCOMM_TRANSPORTS": f"{transport},tcp"}
    group = ranks.fresh(4, hosts=hosts, **settings)

    outcome = group.run(programs.lost_nans, name)

    assert [wrong for wrong, _ in outcome] == [[]] * 4
    assert len({bits for _, bits in outcome}) == 1

# SPDX-License-Identifier: Apache-2.0
"""all_reduce over islands: two fake vendors with fake libraries of theirs, and the host."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import island_programs as programs
import pytest
from fake_arrays import VENDORS, ccl_library, library


@pytest.fixture(scope="session")
def islands(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Fake runtimes and libraries as settings: HCCOMM_CUDA_LIB, HCCOMM_CCL_CUDA_LIB and so on."""
    folder: Path = tmp_path_factory.mktemp("fakes")
    settings = {"HCCOMM_TEST_FAKE": "devices=3"}
    try:
        for kind in VENDORS:
            settings[f"HCCOMM_{kind.upper()}_LIB"] = str(library(kind, folder))
            settings[f"HCCOMM_CCL_{kind.upper()}_LIB"] = str(ccl_library(kind, folder))
    except FileNotFoundError as error:
        pytest.skip(str(error))
    return settings


def test_islands_of_any_sizes_reduce_as_one_group(ranks: Any, islands: dict[str, str]) -> None:
    """Three, two and one rank: sizes around a block, and such that do not divide."""
    told = ranks.fresh(6, **islands).run(programs.over_islands, [16384, 100_001, 1_200_003])
    for each in told:
        assert [(one["kind"], one["ranks"]) for one in each["islands"]] == [
            ("cuda", [0, 2, 5]),
            ("musa", [1, 4]),
            ("host", [3]),
        ]
    assert told[0]["library"].startswith("nccl")
    assert told[4]["library"].startswith("mccl")
    assert told[3]["library"].startswith("none")


def test_an_array_off_the_promised_device_is_refused(ranks: Any, islands: dict[str, str]) -> None:
    said = ranks.fresh(6, **islands).run(programs.wrong_array)
    assert "not on the device that use_islands was told" in said[0]


def test_a_rank_that_aborts_ends_the_call_on_all(ranks: Any, islands: dict[str, str]) -> None:
    said = ranks.fresh(6, **islands).run(programs.leaves)
    assert said.pop(2) == "left"
    assert all(each.startswith("Aborted: ") and "enough" in each for each in said), said

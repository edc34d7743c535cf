# SPDX-License-Identifier: Apache-2.0
"""Ranks of one vendor in one host copy from device to device, over strict fake runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ipc_programs as programs
import pytest
from fake_arrays import library


@pytest.fixture(scope="session")
def vendors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two fake runtimes as settings."""
    folder: Path = tmp_path_factory.mktemp("fakes")
    try:
        return {
            f"HCCOMM_{kind.upper()}_LIB": str(library(kind, folder)) for kind in ("cuda", "musa")
        }
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("size", [2, 3, 4])
def test_what_only_moves_goes_from_device_to_device(
    ranks: Any, vendors: dict[str, str], size: int
) -> None:
    """Parts of larger allocations, on two devices; what one rank sends is not staged."""
    for right, across, misuses, staged, paths in ranks.fresh(size, **vendors).run(
        programs.moves, 200_000
    ):
        assert right
        assert across >= 3 * (3 + size - 1), paths
        assert misuses == 0
        assert staged <= 3 * 2 * 1_600_000 * size  # copies within a rank, at most
        assert all("direct (IPC) where data only move" in each["how"] for each in paths), paths


def test_sums_are_made_on_the_host(ranks: Any, vendors: dict[str, str]) -> None:
    """What is to be reduced there is not offered from the device."""
    for right, _ in ranks.fresh(3, **vendors).run(programs.sums, 100_000):
        assert right


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ({"HCCOMM_DEVICE_IPC": "off"}, None),
        ({"HCCOMM_CMA": "off"}, None),
        ({"HCCOMM_TEST_FAKE": "vmm=1"}, None),
        ({"HCCOMM_TEST_FAKE": "ipc=0"}, "peer access is not supported"),
        ({"HCCOMM_TEST_FAKE": "ipc=2"}, "what it names has 4096"),
        ({"HCCOMM_INTEGRITY": "crc32c"}, None),
    ],
    ids=[
        "off",
        "no single copies",
        "exported by nobody",
        "opened by nobody",
        "shorter than told",
        "checked copies",
    ],
)
def test_without_it_all_is_staged(
    ranks: Any, vendors: dict[str, str], how: dict[str, str], why: str | None
) -> None:
    for right, across, misuses, staged, paths in ranks.fresh(2, **how, **vendors).run(
        programs.moves, 200_000
    ):
        assert right
        assert across <= 0
        assert misuses == 0
        assert staged > 3 * 3 * 1_600_000
        assert not any("direct (IPC)" in each["how"] for each in paths), paths
        if why is not None:
            assert all(why in each["why_not_better"] for each in paths), paths


def test_a_rank_whose_array_lies_elsewhere_for_once_gets_it_all_the_same(
    ranks: Any, vendors: dict[str, str]
) -> None:
    for right, _ in ranks.fresh(3, **vendors).run(programs.mixed, 100_000):
        assert right


def test_who_cannot_export_its_memory_opens_that_of_others_all_the_same(
    ranks: Any, vendors: dict[str, str]
) -> None:
    there, back = ranks.fresh(2, **vendors).run(programs.one_sided, 30_000)

    assert there[0]
    assert back[0]
    assert there[1] == 20
    assert back[1] == 0


def test_what_comes_from_a_device_and_what_is_staged_do_not_mix(
    ranks: Any, vendors: dict[str, str]
) -> None:
    """Slow devices: the copies of both kinds wait for each other."""
    group = ranks.fresh(4, HCCOMM_TEST_FAKE="latency_us=300", **vendors)

    assert all(group.run(programs.beside_another_vendor, 30_000))


def test_new_memory_in_the_place_of_old_is_not_mistaken_for_it(
    ranks: Any, vendors: dict[str, str]
) -> None:
    """What is open of the old one stays within bounds."""
    for right, opened, misuses in ranks.fresh(2, **vendors).run(programs.reopened, 100_000):
        assert right
        assert opened <= 32
        assert misuses == 0


def test_what_is_not_used_is_closed(ranks: Any, vendors: dict[str, str]) -> None:
    for before, after, misuses in ranks.fresh(2, **vendors).run(programs.left_open, 100_000):
        assert before > 0
        assert after == 0
        assert misuses == 0


@pytest.mark.parametrize("victim", [0, 1], ids=["sender", "receiver"])
def test_a_rank_that_dies_amid_a_copy_is_named_and_nothing_stays_open(
    ranks: Any, vendors: dict[str, str], victim: int
) -> None:
    group = ranks.fresh(3, HCCOMM_SILENCE="6", **vendors)
    survivors = [rank for rank in range(3) if rank != victim]
    group.start(programs.killed, victim)
    told = group.collect(ranks=survivors)

    for said, opened, misuses in told:
        assert said.startswith("PeerLost"), told
        assert f"rank {victim}" in said, told
        assert opened == 0, told
        assert misuses == 0, told

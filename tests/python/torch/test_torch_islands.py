# SPDX-License-Identifier: Apache-2.0
"""torch over islands: a simulated vendor with a fake library of its own, and a rank on the CPU."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import RankError, Ranks
from test_torch_devices import here

BROADCAST = 4  # as tests/fakes/ccl.h numbers the calls
SETTLED = 4  # calls after which islands are


@pytest.fixture(scope="module")
def library(simulated: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from fake_arrays import ccl_library

    return ccl_library("musa", tmp_path_factory.mktemp("fakes"))


@pytest.fixture
def island(library: Path) -> Iterator[Ranks]:
    """Two ranks of one vendor that has a library, and one without an accelerator."""
    environ = {"HCCOMM_CCL_MUSA_LIB": str(library)}
    with Ranks(3, vendors=["musa:native", "musa:native", ""], environ=environ) as ranks:
        yield ranks


def sums(calls: int) -> None:
    """Reduce, with every result checked."""
    size = dist.get_world_size()
    if here() != "cpu":
        import simdevice

        os.environ["HCCOMM_MUSA_LIB"] = str(simdevice.native_library())  # for the fake library
    for turn in range(calls):
        tensor = torch.full((100_003,), dist.get_rank() + 1.0).to(here())
        dist.all_reduce(tensor)
        assert torch.all(tensor.cpu() == size * (size + 1) / 2), turn


def gathers(calls: int) -> None:
    """Gather likewise; inside the island each piece is a broadcast of the library's."""
    for turn in range(calls):
        parts = [torch.zeros(50_000).to(here()) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, torch.full((50_000,), float(dist.get_rank())).to(here()))
        assert all(torch.all(part.cpu() == rank) for rank, part in enumerate(parts)), turn


def settled() -> dict[str, Any]:
    import hccomm.torch

    sums(SETTLED + 3)
    gathers(2)
    told: dict[str, Any] = hccomm.torch.describe()["islands"]
    return told


def test_tensors_of_one_vendor_are_reduced_by_its_library(island: Ranks) -> None:
    for told in island.run(settled):
        assert told["state"] == "on"
        assert [(each["kind"], each["ranks"]) for each in told["islands"]] == [
            ("musa", [0, 1]),
            ("host", [2]),
        ]


def killed() -> str:
    """Let rank 1 be killed in the midst of its library's work; return what the others are told."""
    sums(SETTLED + 3)
    if dist.get_rank() == 1:
        fake = ctypes.CDLL(os.environ["HCCOMM_CCL_MUSA_LIB"])
        fake.fake_ccl_end(BROADCAST, 4, signal.SIGKILL)
    try:
        gathers(20)
    except dist.DistBackendError as error:
        return str(error)
    return "nothing was raised"


def test_a_rank_that_is_killed_in_its_library_is_named(island: Ranks) -> None:
    with pytest.raises(RankError) as caught:
        island.run(killed)

    assert set(caught.value.kinds) == {1}, caught.value
    for rank in (0, 2):
        assert "rank 1" in caught.value.values[rank], caught.value.values

# SPDX-License-Identifier: Apache-2.0
"""Which way torch's device tensors take: a vendor's own runtime, or torch's streams and copies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import RankError, Ranks
from test_torch_devices import (
    dropped,
    empties,
    every_operation,
    futures,
    here,
    stream_order,
    works,
)


def ways() -> list[dict[str, Any]]:
    import hccomm.torch

    return hccomm.torch.devices()


def test_a_vendor_without_an_adapter_goes_through_torch(simulated: None) -> None:
    with Ranks(1, backend="", vendors=["alder"]) as ranks:
        ((way,),) = ranks.run(ways)

    assert way["type"] == way["adapter"] == "alder"
    assert way["devices"] == 2
    assert way["native"] is False
    assert 'no adapter of its own for torch\'s "alder"' in way["why"]


def test_an_adapter_that_does_not_work_here_is_passed_over(simulated: None) -> None:
    with Ranks(1, backend="", vendors=["musa"]) as ranks:
        ((way,),) = ranks.run(ways)

    assert way["adapter"] == "torch-musa"
    assert way["native"] is False
    assert "musa" in way["why"]
    assert "libmusart" in way["why"]


@pytest.fixture(scope="module")
def native(simulated: None) -> Iterator[Ranks]:
    """Four ranks: a vendor with its own runtime, another without, no accelerator, the first."""
    with Ranks(4, vendors=["musa:native", "alder", "", "musa:native"]) as ranks:
        yield ranks


def taken(count: int) -> dict[str, Any]:
    """Reduce once in place; tell which way was named, and who made the copies."""
    import hccomm.torch

    device, rank, size = here(), dist.get_rank(), dist.get_world_size()
    tensor = torch.full((count,), rank + 1.0).to(device)
    if device == "cpu":
        dist.all_reduce(tensor)
        return {}
    import simdevice

    torch.accelerator.synchronize(rank % 2)
    torch.accelerator.set_device_index(1 - rank % 2)  # not the tensor's: it stays what it is
    before = simdevice.stats()
    dist.all_reduce(tensor)
    after = simdevice.stats()
    assert torch.accelerator.current_device_index() == 1 - rank % 2
    torch.accelerator.set_device_index(rank % 2)
    assert tensor.tolist() == [size * (size + 1) / 2.0] * count
    told = hccomm.torch.describe()
    return {
        "way": told["tensors"],
        "staged": told["devices"],
        **{who: after[who] - before[who] for who in ("torch_copies", "native_copies")},
        "streams": after["native_streams"],
    }


def test_tensors_go_through_the_vendors_own_adapter_where_it_works(native: Ranks) -> None:
    for count in (100, 300_000):
        own, through_torch, _, other = native.run(taken, count)

        for rank in (own, other):
            ((way,),) = (rank["way"],)
            assert (way["type"], way["adapter"], way["native"]) == ("musa", "musa", True)
            assert "the vendor's own runtime works here" in way["why"]
            assert "libmusart.so.4" in rank["staged"][0]["how"]
            assert rank["native_copies"] >= 2
            assert rank["torch_copies"] == 0
            assert rank["streams"] == 2  # staging's own: one each way
        assert through_torch["way"][0]["native"] is False
        assert through_torch["torch_copies"] >= 2
        assert through_torch["native_copies"] == 0


@pytest.mark.parametrize("count", [1000, 200_000])
def test_every_operation_equals_the_cpus_through_an_own_adapter(native: Ranks, count: int) -> None:
    native.run(every_operation, count)


@pytest.fixture(scope="module")
def native_pair(simulated: None) -> Iterator[Ranks]:
    with Ranks(2, vendors=["musa:native", "musa:native"]) as ranks:
        yield ranks


@pytest.mark.parametrize("program", [stream_order, futures, works, dropped, empties])
def test_an_own_adapter_keeps_torchs_order_and_lifetimes(
    native_pair: Ranks, program: Callable[[], None]
) -> None:
    native_pair.run(program)


def test_an_own_adapter_can_be_passed_over(simulated: None) -> None:
    environ = {"HCCOMM_PY_TORCH_DEVICES": "generic"}
    with Ranks(1, backend="", vendors=["musa:native"], environ=environ) as ranks:
        ((way,),) = ranks.run(ways)

    assert way["adapter"] == "torch-musa"
    assert way["why"] == "HCCOMM_PY_TORCH_DEVICES=generic"


def use_device() -> None:
    dist.all_reduce(torch.ones(1, device=here()))


def test_a_native_adapter_can_be_demanded(simulated: None) -> None:
    environ = {"HCCOMM_PY_TORCH_DEVICES": "native"}
    with Ranks(1, vendors=["musa"], environ=environ) as ranks, pytest.raises(RankError) as caught:
        ranks.run(use_device)

    assert "HCCOMM_PY_TORCH_DEVICES=native, but musa: " in caught.value.texts[0]

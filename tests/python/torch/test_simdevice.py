# SPDX-License-Identifier: Apache-2.0
"""The simulated accelerator keeps its promises, so that what runs on it proves something."""

from __future__ import annotations

import gc
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
import torch
from ranks import RankError, Ranks, environment
from torch import nn


@pytest.fixture(scope="module")
def one(simulated: None) -> Iterator[Ranks]:
    with Ranks(1, backend="", vendors=["alder"]) as ranks:
        yield ranks


def streams() -> None:
    import simdevice

    with simdevice.held():
        behind = torch.zeros(4, device="alder").fill_(3)
        assert not torch.alder.current_stream().query()
    assert behind.tolist() == [3.0] * 4

    main, side = torch.alder.current_stream(), torch.Stream(device="alder")
    with torch.alder.stream(side), simdevice.held():
        produced = torch.full((3,), 7.0, device="alder")
        event = side.record_event()
        assert not event.query()
        main.wait_event(event)
    assert (produced + 1).tolist() == [8.0] * 3


def test_streams_run_behind_the_host_and_events_order_them(one: Ranks) -> None:
    one.run(streams)


def between() -> None:
    here = torch.arange(12.0, device="alder:0").view(3, 4)
    there = here.t().to("alder:1")
    assert there.device.index == 1
    assert there.tolist() == torch.arange(12.0).view(3, 4).t().tolist()
    assert here.to(torch.int32).cpu().tolist() == torch.arange(12).view(3, 4).tolist()
    assert torch.equal((here @ here.t()).cpu(), here.cpu() @ here.cpu().t())
    pinned = torch.empty(5, pin_memory=True)
    assert pinned.is_pinned()
    pinned.copy_(torch.full((5,), 2.0, device="alder"), non_blocking=True)
    torch.alder.synchronize()
    assert pinned.tolist() == [2.0] * 5


def test_devices_exchange_tensors_in_any_layout(one: Ranks) -> None:
    one.run(between)


def training() -> None:
    def run(device: str) -> list[torch.Tensor]:
        torch.manual_seed(1)
        net = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 3)).to(device)
        optimizer = torch.optim.AdamW(net.parameters())
        for _ in range(3):
            optimizer.zero_grad()
            inputs, labels = torch.randn(8, 10), torch.randint(0, 3, (8,))
            loss = nn.functional.cross_entropy(net(inputs.to(device)), labels.to(device))
            loss.backward()
            optimizer.step()
        return [parameter.detach().cpu() for parameter in net.parameters()]

    for got, wanted in zip(run("alder"), run("cpu"), strict=True):
        assert torch.equal(got, wanted)


def test_training_on_it_equals_the_cpu(one: Ranks) -> None:
    one.run(training)


def leaks() -> None:
    import simdevice

    gc.collect()
    torch.alder.synchronize()
    before = simdevice.stats()
    tensors = [torch.ones(100, device="alder") for _ in range(10)]
    event = torch.Event(device="alder")
    event.record()
    pinned = torch.empty(10, pin_memory=True)
    during = simdevice.stats()
    assert during["blocks"] == before["blocks"] + 10
    assert during["events"] > before["events"]
    assert during["pinned"] == before["pinned"] + 1
    del tensors, event, pinned
    torch.alder.synchronize()
    assert simdevice.stats() == before


def test_what_is_alive_is_counted(one: Ranks) -> None:
    one.run(leaks)


def unrecorded() -> None:
    import simdevice

    home, side = torch.alder.current_stream(), torch.Stream(device="alder")
    outcomes = []
    for recorded in (True, False):
        tensor = torch.full((4,), 5.0, device="alder")
        torch.alder.synchronize()
        with torch.alder.stream(side), simdevice.held():
            copy = torch.empty_like(tensor)
            copy.copy_(tensor)
            if recorded:
                tensor.record_stream(side)
            del tensor
            if not recorded:
                home.synchronize()  # the memory is given back before the copy has begun
        torch.alder.synchronize()
        outcomes.append(copy.tolist() == [5.0] * 4)
    assert outcomes == [True, False]


def test_memory_freed_without_record_stream_is_overwritten(one: Ranks) -> None:
    one.run(unrecorded)


def paced() -> float:
    import simdevice

    simdevice.fault("slow", 1.0)
    tensor = torch.ones(1 << 20, device="alder")  # 4 MiB at 1 GB/s
    start = time.monotonic()
    tensor.cpu()
    return time.monotonic() - start


def test_copies_take_the_vendors_time(simulated: None) -> None:
    with Ranks(1, backend="", vendors=["alder:100:1"]) as ranks:
        (seconds,) = ranks.run(paced)

    assert seconds >= 4.2e-3


HOST_READ = """
import ctypes, simdevice
simdevice.start("alder")
import torch
tensor = torch.ones(4, device="alder")
print(tensor.sum().item(), flush=True)
ctypes.string_at(tensor.data_ptr(), 4)
"""


def test_the_host_cannot_touch_device_memory(simulated: None) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HOST_READ],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )

    assert done.stdout == "4.0\n"
    assert done.returncode == -signal.SIGSEGV


def refused() -> None:
    import simdevice

    with pytest.raises(torch.OutOfMemoryError, match="alder:0: out of memory"):
        torch.empty(1 << 40, device="alder")
    simdevice.fault("allocation", 1)
    torch.empty(1, device="alder")
    with pytest.raises(torch.OutOfMemoryError, match="ordered"):
        torch.empty(1, device="alder")
    torch.empty(1, device="alder")
    simdevice.fault("pinned", 0)
    with pytest.raises(torch.OutOfMemoryError, match="page-locked"):
        torch.empty(1, pin_memory=True)


def test_memory_runs_out_where_ordered(one: Ranks) -> None:
    one.run(refused)


def lost() -> None:
    import simdevice

    tensor = torch.ones(4, device="alder:1")
    simdevice.fault("lose", 1, device=1)
    tensor.cpu()
    with pytest.raises(RuntimeError, match="alder:1: the device is lost"):
        tensor.cpu()
    with pytest.raises(RuntimeError, match="the device is lost"):
        torch.ones(1, device="alder:1")
    assert torch.ones(2, device="alder:0").tolist() == [1.0, 1.0]


def test_a_lost_device_stays_lost_and_the_other_works(simulated: None) -> None:
    with Ranks(1, backend="", vendors=["alder"]) as ranks:
        ranks.run(lost)


def test_a_process_has_one_vendor(one: Ranks) -> None:
    with pytest.raises(RankError, match=r"already|in use"):
        one.run(second_vendor)


def second_vendor() -> None:
    import simdevice

    torch.ones(1, device="alder")
    simdevice.start("birch")

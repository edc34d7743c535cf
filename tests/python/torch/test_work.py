# SPDX-License-Identifier: Apache-2.0
"""The Work of an asynchronous operation: waiting, asking, futures, lifetimes."""

from __future__ import annotations

import json
import tempfile
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ranks import Ranks


def waits() -> None:
    size = dist.get_world_size()
    tensor = torch.ones(1000)
    work = dist.all_reduce(tensor, async_op=True)
    assert work.wait(timedelta(seconds=30))
    assert work.is_completed()
    assert work.is_success()
    if torch.__version__ >= "2.13":  # before, Python cannot take what torch returns
        assert work.exception() is None
    assert torch.equal(tensor, torch.full((1000,), float(size)))
    assert work.wait()


def test_wait_leaves_a_finished_work(two: Ranks) -> None:
    two.run(waits)


def polls() -> None:
    tensor = torch.ones(3, 2).t()
    work = dist.all_reduce(tensor, async_op=True)
    deadline = time.monotonic() + 30
    while not work.is_completed():
        assert time.monotonic() < deadline
    assert torch.equal(tensor, torch.full((2, 3), float(dist.get_world_size())))


def test_results_are_there_when_is_completed_says_so(two: Ranks) -> None:
    two.run(polls)


def drives_in_the_background() -> None:
    tensors = [torch.ones(1 << 16) for _ in range(8)]
    works = [dist.all_reduce(tensor, async_op=True) for tensor in tensors]
    for work in reversed(works):
        work.wait()
    for tensor in tensors:
        assert torch.equal(tensor, torch.full((1 << 16,), float(dist.get_world_size())))


def test_many_in_flight_waited_for_in_any_order(two: Ranks) -> None:
    two.run(drives_in_the_background)


def futures() -> None:
    rank, size = dist.get_rank(), dist.get_world_size()
    tensor = torch.full((4,), rank + 1.0)
    future = dist.all_reduce(tensor, async_op=True).get_future()
    doubled = future.then(lambda done: [2 * each for each in done.value()])
    assert torch.equal(future.wait()[0], tensor)
    assert torch.equal(doubled.wait()[0], 2 * tensor)
    assert tensor[0] == size * (size + 1) / 2

    outputs = [torch.zeros(2) for _ in range(size)]
    got = dist.all_gather(outputs, torch.full((2,), float(rank)), async_op=True).get_future().wait()
    assert [each[0].item() for each in got] == list(range(size))

    # A callback may start the next operation.
    first = dist.all_reduce(torch.ones(2), async_op=True).get_future()
    second = first.then(lambda done: dist.all_reduce(done.value()[0], async_op=True).get_future())
    assert torch.equal(second.wait().wait()[0], torch.full((2,), float(size * size)))

    work = dist.all_reduce(torch.ones(2), async_op=True)
    work.wait()
    assert torch.equal(work.get_future().wait()[0], torch.full((2,), float(size)))
    assert work.get_future_result().wait() == 0


def test_futures_hold_the_results_and_run_callbacks(two: Ranks) -> None:
    two.run(futures)


def waiting_callbacks() -> None:
    size = dist.get_world_size()

    for _ in range(3):
        total = dist.all_reduce(torch.ones(1), async_op=True).get_future()
        nested = total.then(
            lambda done: (
                dist.all_reduce(done.value()[0], async_op=True)
                .get_future()
                .then(
                    lambda inner: (
                        dist.all_reduce(inner.value()[0], async_op=True).get_future().wait()
                    )
                )
                .wait()
            )
        )
        assert nested.wait()[0].item() == size**3


def test_a_callback_may_wait_for_other_futures(two: Ranks) -> None:
    two.run(waiting_callbacks)


def batch_future() -> None:
    tensors = [torch.ones(4), torch.ones(200000)]
    with dist._coalescing_manager(async_ops=True) as batch:
        for tensor in tensors:
            dist.all_reduce(tensor)
    value = batch.works[0].get_future().wait()
    assert [each.numel() for each in value] == [4, 200000]
    assert all(torch.equal(each, torch.full_like(each, dist.get_world_size())) for each in value)


def test_a_batch_has_one_future(two: Ranks) -> None:
    two.run(batch_future)


def dropped() -> None:
    size = dist.get_world_size()
    tensor = torch.ones(3, 2).t()
    dist.all_reduce(tensor, async_op=True)
    dist.barrier()
    deadline = time.monotonic() + 30
    while not torch.equal(tensor, torch.full((2, 3), float(size))):
        assert time.monotonic() < deadline


def test_a_dropped_work_still_delivers(two: Ranks) -> None:
    two.run(dropped)


def own_timeout() -> str:
    if dist.get_rank() == 1:
        time.sleep(3)
        dist.all_reduce(torch.ones(1))
        return ""
    work = dist.all_reduce(torch.ones(1), async_op=True)
    with pytest.raises(dist.DistBackendError, match="Timed out waiting 200ms") as caught:
        work.wait(timedelta(seconds=0.2))
    assert not work.is_completed()
    assert work.wait()
    return str(caught.value)


def test_wait_that_times_out_leaves_the_operation_running(two: Ranks) -> None:
    text = two.run(own_timeout)[0]

    assert "Timeout" in text


def sequence() -> tuple[int, int]:
    backend = dist.group.WORLD._get_backend(torch.device("cpu"))
    before = backend._get_sequence_number_for_group()
    for _ in range(3):
        dist.all_reduce(torch.ones(1))
    return before, backend._get_sequence_number_for_group()


def test_sequence_numbers_count_and_agree(two: Ranks) -> None:
    (first, after), other = two.run(sequence)

    assert after == first + 3
    assert other == (first, after)


def two_threads() -> None:
    groups = [dist.new_group(), dist.new_group()]
    sums: list[float] = [0.0, 0.0]

    def work(which: int) -> None:
        for _ in range(50):
            tensor = torch.ones(100)
            dist.all_reduce(tensor, group=groups[which])
            sums[which] += tensor[0].item()

    threads = [threading.Thread(target=work, args=(which,)) for which in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert sums == [50.0 * dist.get_world_size()] * 2


def test_two_groups_from_two_threads(two: Ranks) -> None:
    two.run(two_threads)


def profiled() -> None:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as recorded:
        dist.all_reduce(torch.ones(12))
        dist.broadcast(torch.ones(3, dtype=torch.float64), 0, async_op=True).wait()
    names = [event.name for event in recorded.events()]
    assert "hccomm:all_reduce" in names
    assert "hccomm:broadcast" in names
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        recorded.export_chrome_trace(file.name)
        trace = json.loads(Path(file.name).read_text())["traceEvents"]
    told = [each["args"] for each in trace if each["name"] == "record_param_comms"]
    fields = ("Collective name", "dtype", "In msg nelems", "Out msg nelems", "Group size")
    assert [tuple(each[field] for field in fields) for each in told] == [
        ("all_reduce", "Float", 12, 12, 2),
        ("broadcast", "Double", 3, 3, 2),
    ]


def test_the_profiler_sees_each_collective_and_its_size(two: Ranks) -> None:
    two.run(profiled)

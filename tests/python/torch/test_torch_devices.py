# SPDX-License-Identifier: Apache-2.0
"""Device tensors in every operation: ranks of two simulated vendors and of none, in one group."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import RankError, Ranks

VENDORS = ["alder", "birch", "", "alder", "birch"]


@pytest.fixture(scope="module")
def mixed(simulated: None) -> Iterator[Ranks]:
    """Five ranks: vendor A, vendor B, no accelerator, A, B."""
    with Ranks(len(VENDORS), vendors=VENDORS) as ranks:
        yield ranks


@pytest.fixture(scope="module")
def pair(simulated: None) -> Iterator[Ranks]:
    """Two ranks of different vendors."""
    with Ranks(2, vendors=["alder", "birch"]) as ranks:
        yield ranks


def here() -> str:
    """Return the device of this rank."""
    vendor = os.environ["SIMDEVICE"].split(":")[0]
    return f"{vendor}:{dist.get_rank() % 2}" if vendor else "cpu"


# ---- every operation -----------------------------------------------------------------------------


def value(rank: int, count: int) -> torch.Tensor:
    """Return rank's input: small whole numbers, so that sums are exact in any order."""
    return ((torch.arange(count) * 7 + rank * 3) % 5 + 1).float()


def reductions(device: str, count: int) -> Iterator[torch.Tensor]:
    rank, size = dist.get_rank(), dist.get_world_size()
    for op in ("SUM", "AVG", "MAX"):
        tensor = value(rank, count).to(device)
        dist.all_reduce(tensor, op=getattr(dist.ReduceOp, op))
        yield tensor
    bits = value(rank, count).to(torch.int64).to(device)
    dist.all_reduce(bits, op=dist.ReduceOp.BXOR)
    yield bits
    tensor = value(rank, count).to(torch.bfloat16).to(device)
    dist.all_reduce(tensor)
    yield tensor
    tensor = value(rank, count).to(device)
    dist.reduce(tensor, 1)
    if rank == 1:
        yield tensor
    whole = value(rank, count * size).to(device)
    output = torch.empty(count, device=device)
    dist.reduce_scatter_tensor(output, whole)
    yield output
    dist.reduce_scatter(output, [part.clone() for part in whole.split(count)])
    yield output
    uneven = [torch.full((r + 1,), float(rank), device=device) for r in range(size)]
    output = torch.empty(rank + 1, device=device)
    dist.reduce_scatter(output, uneven)
    yield output


def movements(device: str, count: int) -> Iterator[torch.Tensor]:
    rank, size = dist.get_rank(), dist.get_world_size()
    mine = value(rank, count).to(device)
    tensor = mine.clone()
    dist.broadcast(tensor, size - 1)
    yield tensor
    output = torch.empty(size * count, device=device)
    dist.all_gather_into_tensor(output, mine)
    yield output
    outputs = [torch.empty(count, device=device) for _ in range(size)]
    dist.all_gather(outputs, mine)
    yield from outputs
    outputs = [torch.empty(count, device=device) for _ in range(size)]
    dist.gather(mine, outputs if rank == 0 else None, 0)
    if rank == 0:
        yield from outputs
    output = torch.empty(count, device=device)
    inputs = [value(r, count).to(device) for r in range(size)] if rank == 1 else None
    dist.scatter(output, inputs, 1)
    yield output


def exchanges(device: str, count: int) -> Iterator[torch.Tensor]:
    rank, size = dist.get_rank(), dist.get_world_size()
    mine = value(rank, count).to(device)
    output = torch.empty(size * count, device=device)
    dist.all_to_all_single(output, mine.repeat(size))
    yield output
    outputs = [torch.empty(count, device=device) for _ in range(size)]
    dist.all_to_all(outputs, [(mine + r) for r in range(size)])
    yield from outputs
    splits = [(rank + peer) % 3 for peer in range(size)]
    output = torch.empty(sum(splits), device=device)
    dist.all_to_all_single(
        output, torch.full((sum(splits),), 1.0 + rank, device=device), splits, splits
    )
    yield output
    following, previous = (rank + 1) % size, (rank - 1) % size
    output = torch.empty(count, device=device)
    for work in dist.batch_isend_irecv(
        [dist.P2POp(dist.isend, mine, following), dist.P2POp(dist.irecv, output, previous)]
    ):
        work.wait()
    yield output
    if rank == 0:
        for _ in range(size - 1):
            dist.recv(output)
    else:
        dist.send(torch.ones(count, device=device), 0)
    if rank == 0:
        yield output


def layouts(device: str, count: int) -> Iterator[torch.Tensor]:
    """Strided tensors, coalesced calls, and tensors that share storage with others."""
    rank = dist.get_rank()
    square = value(rank, 4 * count).view(4, count).to(device).t()
    dist.all_reduce(square)
    yield square
    row = value(rank, 4 * count).view(4, count).to(device)
    dist.broadcast(row[:, ::2], 1)
    yield row
    offset = value(rank, count + 3).to(device)
    dist.all_reduce(offset[3:])
    yield offset
    several = [value(rank, count + i).to(device) for i in range(3)]
    with dist._coalescing_manager(device=torch.device(device)):
        for tensor in several:
            dist.all_reduce(tensor)
    yield from several
    work = dist.all_reduce_coalesced(several, async_op=True)
    work.wait()
    yield from several


def every_operation(count: int) -> None:
    device = here()
    for operations in (reductions, movements, exchanges, layouts):
        wanted = list(operations("cpu", count))
        got = list(operations(device, count))
        assert len(got) == len(wanted)
        for index, (one, other) in enumerate(zip(got, wanted, strict=True)):
            assert one.device == torch.device(device)
            assert torch.equal(one.cpu(), other), f"{operations.__name__}, result {index}"


@pytest.mark.parametrize("count", [1, 1000, 200_000])
def test_every_operation_equals_the_cpus(mixed: Ranks, count: int) -> None:
    mixed.run(every_operation, count)


def empties() -> None:
    device = here()
    nothing = torch.empty(0, device=device)
    dist.all_reduce(nothing)
    dist.broadcast(nothing, 0)
    dist.all_gather_into_tensor(torch.empty(0, device=device), nothing)
    dist.barrier()


def test_empty_tensors_and_barriers(mixed: Ranks) -> None:
    mixed.run(empties)


def objects() -> None:
    rank, size = dist.get_rank(), dist.get_world_size()
    everyone: list[Any] = [None] * size
    dist.all_gather_object(everyone, {"rank": rank})
    assert everyone == [{"rank": r} for r in range(size)]
    group = dist.new_group([0, 2, 4])
    if rank in (0, 2, 4):
        tensor = torch.full((5,), float(rank), device=here())
        dist.all_reduce(tensor, group=group)
        assert tensor.tolist() == [6.0] * 5


def test_objects_and_subgroups_of_mixed_ranks(mixed: Ranks) -> None:
    mixed.run(objects)


# ---- streams -------------------------------------------------------------------------------------


def stream_order() -> None:
    import simdevice

    device, index = here(), dist.get_rank() % 2
    torch.accelerator.set_device_index(index)
    side = torch.Stream(device=device)
    for stream in (torch.accelerator.current_stream(), side):
        with torch.get_device_module(device).stream(stream):
            tensor = torch.zeros(1000, device=device)
            with simdevice.held(index):
                tensor.fill_(2.0)  # still to come when the operation starts
                work = dist.all_reduce(tensor, async_op=True)
                assert not stream.query(), "starting waited for the stream"
            work.wait()
            result = tensor + 1  # ordered behind the collective by wait()
            assert result.tolist() == [5.0] * 1000


def test_operations_follow_the_callers_stream(pair: Ranks) -> None:
    pair.run(stream_order)


def futures() -> None:
    device = here()
    tensor = torch.full((100,), 1.0, device=device)
    future = dist.all_reduce(tensor, async_op=True).get_future()
    doubled = future.then(lambda done: done.value()[0] * 2)
    assert doubled.wait().tolist() == [4.0] * 100
    works = [dist.all_reduce(torch.ones(10, device=device), async_op=True) for _ in range(20)]
    assert all(work.result()[0].tolist() == [2.0] * 10 for work in works if work.wait())


def test_futures_give_device_tensors(pair: Ranks) -> None:
    pair.run(futures)


def works() -> None:
    rank, device = dist.get_rank(), here()
    backend = dist.group.WORLD._get_backend(torch.device(device))
    work = dist.all_reduce(torch.full((4000,), 1.0 + rank, device=device), async_op=True)
    work.block_current_stream()
    doubled = work.result()[0] * 2  # ordered behind the operation, whatever the host did
    assert doubled.tolist() == [6.0] * 4000
    assert work.is_completed()
    assert work.is_success()
    if torch.__version__ >= "2.13":  # before, Python cannot take what torch returns
        assert work.exception() is None
    batch = torch.ones(3, device=device), torch.ones(4, device=device)
    with dist._coalescing_manager(device=torch.device(device), async_ops=True) as manager:
        for tensor in batch:
            dist.all_reduce(tensor)
    manager.wait()
    assert [tensor.sum().item() for tensor in batch] == [6.0, 8.0]
    before = backend._get_sequence_number_for_group()
    got = torch.empty(2, device=device)
    pending = dist.irecv(got)  # from anybody
    dist.send(torch.full((2,), 5.0 + rank, device=device), 1 - rank)
    pending.wait()
    assert pending._source_rank() == 1 - rank
    assert got.tolist() == [6.0 - rank] * 2
    assert backend._get_sequence_number_for_group() == before + 2
    backend.monitored_barrier(timedelta(seconds=30))
    dist.group.WORLD._enable_collectives_timing()
    timed = dist.all_reduce(torch.ones(1000, device=device), async_op=True)
    timed.wait()
    assert timed._get_duration() > 0


def test_works_of_device_tensors_answer_everything(pair: Ranks) -> None:
    pair.run(works)


def failing_work() -> tuple[str, bool]:
    """Receive what nobody sends: the work tells why it failed, however it is asked."""
    device = here()
    got = torch.empty(3, device=device)
    backend = dist.group.WORLD._get_backend(torch.device(device))
    backend.set_timeout(timedelta(seconds=1))
    work = backend.recv([got], 1 - dist.get_rank(), 0)
    future, result = work.get_future(), work.get_future_result()
    with pytest.raises(dist.DistBackendError, match="Timed out waiting 1000ms") as caught:
        work.wait()
    assert work.is_completed()
    assert not work.is_success()
    with pytest.raises(dist.DistBackendError, match="Timeout"):
        future.wait()
    assert result.wait() != 0
    # Before 2.13 Python cannot take what exception() returns.
    told = torch.__version__ < "2.13" or "Timeout" in str(work.exception())
    return str(caught.value), told


def test_a_failed_work_of_device_tensors_tells_why(simulated: None) -> None:
    with Ranks(2, vendors=["alder", "birch"]) as ranks:
        texts = ranks.run(failing_work)

    assert all(told for _, told in texts), texts


def dropped() -> None:
    import simdevice

    device, index = here(), dist.get_rank() % 2
    torch.accelerator.set_device_index(index)
    outputs = []
    with simdevice.held(index):
        for step in range(10):
            mine = torch.full((5000,), float(step + dist.get_rank()), device=device)
            output = torch.empty(10000, device=device)
            outputs.append((output, dist.all_gather_into_tensor(output, mine, async_op=True)))
            del mine  # its memory is overwritten as soon as torch believes that nobody uses it
            torch.full((5000,), -1.0, device=device)
    for step, (output, work) in enumerate(outputs):
        work.wait()
        assert output.view(2, -1)[:, 0].tolist() == [float(step), step + 1.0]
        assert output.view(2, -1).std(1).tolist() == [0.0, 0.0]


def test_tensors_live_until_the_operation_is_over(pair: Ranks) -> None:
    pair.run(dropped)


def leak_round() -> dict[str, int]:
    import gc

    import simdevice

    device = here()
    for _ in range(5):
        tensor = torch.ones(10_000, device=device)
        works = [dist.all_reduce(tensor, async_op=True) for _ in range(4)]
        for work in works:
            work.wait()
        dist.all_reduce(torch.ones(3, device=device), async_op=True)  # nobody waits
    dist.barrier()
    del tensor, works, work
    gc.collect()
    deadline = time.monotonic() + 20
    while simdevice.stats()["blocks"] and time.monotonic() < deadline:
        torch.accelerator.synchronize(0)
        torch.accelerator.synchronize(1)
        time.sleep(0.01)
    return simdevice.stats()


def test_nothing_leaks(simulated: None) -> None:
    with Ranks(2, vendors=["alder", "birch"]) as ranks:
        first = ranks.run(leak_round)
        for _ in range(4):
            last = ranks.run(leak_round)

    for before, after in zip(first, last, strict=True):
        assert (after["blocks"], after["bytes"]) == (0, 0)
        # Both pools keep as many as were ever in use at once, at most one for each of the five
        # operations of a step; whoever loses one in each of the 100 operations shows here.
        for pool in ("pinned", "events"):
            assert after[pool] - before[pool] < 25, (before, after)


# ---- how groups are made -------------------------------------------------------------------------


def sums() -> None:
    for device in ("cpu", here()):
        tensor = torch.ones(3, device=device)
        dist.all_reduce(tensor)
        assert tensor.tolist() == [2.0] * 3
    kinds = [None, None]
    dist.all_gather_object(kinds, here())
    assert len(set(kinds)) == 2


@pytest.mark.parametrize(
    "backends",
    [("cpu:hccomm,alder:hccomm", "cpu:hccomm,birch:hccomm"), ("cpu:hccomm", "birch:hccomm")],
    ids=["each names its own", "cpu meets device"],
)
def test_ranks_of_different_devices_meet(simulated: None, backends: tuple[str, str]) -> None:
    vendors = ["alder" if "alder" in backends[0] else "", "birch"]
    with Ranks(2, vendors=vendors, backends=backends) as ranks:
        ranks.run(sums if "alder" in backends[0] else device_sum)


def device_sum() -> None:
    tensor = torch.ones(3, device=here())
    dist.all_reduce(tensor)
    assert tensor.tolist() == [2.0] * 3


# ---- faults --------------------------------------------------------------------------------------


def lost_in_mid_collective() -> None:
    import simdevice

    if dist.get_rank() == 0:
        simdevice.fault("lose", 3)
    tensor = torch.full((1 << 20,), 1.0, device=here())
    for _ in range(100):
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)


def test_a_lost_device_is_an_error_on_all_ranks(simulated: None) -> None:
    with Ranks(3, vendors=["alder", "", "birch"]) as ranks, pytest.raises(RankError) as caught:
        ranks.run(lost_in_mid_collective)

    assert set(caught.value.kinds.values()) == {"DistBackendError"}
    assert len(caught.value.kinds) == 3
    for text in caught.value.texts.values():
        assert "rank 0" in text
        assert "alder:0: the device is lost" in text


def no_pinned_memory() -> None:
    import simdevice

    if dist.get_rank() == 1:
        simdevice.fault("pinned", 0)
    dist.all_reduce(torch.ones(10, device=here()))


def test_no_page_locked_memory_is_an_error_on_all_ranks(simulated: None) -> None:
    with Ranks(3, vendors=["alder", "birch", ""]) as ranks, pytest.raises(RankError) as caught:
        ranks.run(no_pinned_memory)

    assert len(caught.value.kinds) == 3
    for text in caught.value.texts.values():
        assert "out of page-locked memory" in text
        assert "rank 1" in text


def larger_than_the_pool() -> None:
    device = here()
    for _ in range(3):
        tensors = [torch.full((1 << 20,), 1.0, device=device) for _ in range(3)]
        works = [dist.all_reduce(tensor, async_op=True) for tensor in tensors]
        for tensor, work in zip(tensors, works, strict=True):
            work.wait()
            assert torch.equal(tensor.cpu(), torch.full((1 << 20,), 2.0))


def test_tensors_larger_than_the_pinned_pool_pass(simulated: None) -> None:
    with Ranks(2, vendors=["alder", "birch"], environ={"HCCOMM_STAGING": "4M"}) as ranks:
        ranks.run(larger_than_the_pool)


def slow() -> None:
    import simdevice

    simdevice.fault("slow", 50.0, dist.get_rank() % 2)
    every_operation(1000)


def test_a_slow_device_changes_no_result(simulated: None) -> None:
    with Ranks(2, vendors=["alder:100:1", "birch:20:2"]) as ranks:
        ranks.run(slow)


def two_devices_at_once() -> None:
    name = here().split(":")[0]
    both = [torch.ones(1, device=f"{name}:{index}") for index in (0, 1)]
    with pytest.raises(RuntimeError, match=r"InvalidArgument.*same device"):
        dist.all_gather(both, torch.ones(1, device=f"{name}:0"))
    for tensor in both:
        dist.all_reduce(tensor)
        assert tensor.item() == 2.0


def test_tensors_of_two_devices_in_one_list_are_refused(pair: Ranks) -> None:
    pair.run(two_devices_at_once)


def two_types_at_once() -> None:
    device = here()
    both = [torch.ones(1), torch.ones(1, device=device)]
    mine = torch.ones(1, device=device)
    calls = {
        "all_gather": lambda: dist.all_gather(both, mine),
        "reduce_scatter": lambda: dist.reduce_scatter(mine, both),
        "all_to_all": lambda: dist.all_to_all(both, [mine, mine]),
    }
    for name, call in calls.items():
        with pytest.raises((RuntimeError, ValueError), match=r"device") as caught:
            call()
        assert "InvalidArgument" in str(caught.value) or "cpu" in str(caught.value), (name, caught)
    dist.all_reduce(mine)
    assert mine.item() == 2.0  # nothing of it has been sent


def test_device_types_mixed_in_one_list_are_refused_on_all_ranks(pair: Ranks) -> None:
    pair.run(two_types_at_once)

# SPDX-License-Identifier: Apache-2.0
"""Messages between two ranks: order, tags, any source, batches."""

from __future__ import annotations

import torch
import torch.distributed as dist
from ranks import Ranks


def ring() -> None:
    rank, size = dist.get_rank(), dist.get_world_size()
    for count in (0, 1, 1 << 20):
        sent, got = torch.full((count,), float(rank)), torch.empty(count)
        works = [dist.isend(sent, (rank + 1) % size), dist.irecv(got, (rank - 1) % size)]
        for work in works:
            work.wait()
        assert torch.equal(got, torch.full((count,), float((rank - 1) % size)))


def test_both_send_before_they_receive(three: Ranks) -> None:
    three.run(ring)


def blocking() -> None:
    rank = dist.get_rank()
    tensor = torch.full((5,), float(rank))
    if rank == 0:
        dist.send(tensor, 1)
        dist.recv(tensor, 1)
    else:
        got = torch.empty(5)
        assert dist.recv(got, 0) == 0
        dist.send(got + 1, 0)
    if rank == 0:
        assert torch.equal(tensor, torch.ones(5))


def test_send_and_recv(two: Ranks) -> None:
    two.run(blocking)


def tags() -> None:
    if dist.get_rank() == 0:
        for tag in (7, 3, 7):
            dist.isend(torch.tensor([float(tag)]), 1, tag=tag).wait()
        return
    third, first, second = torch.zeros(1), torch.zeros(1), torch.zeros(1)
    works = [dist.irecv(third, 0, tag=3), dist.irecv(first, 0, tag=7), dist.irecv(second, 0, tag=7)]
    for work in works:
        work.wait()
    assert [first.item(), second.item(), third.item()] == [7, 7, 3]


def test_tags_tell_messages_apart(two: Ranks) -> None:
    two.run(tags)


def any_source() -> None:
    rank, size = dist.get_rank(), dist.get_world_size()
    if rank:
        dist.send(torch.tensor([float(rank)]), 0)
        return
    heard = []
    for _ in range(size - 1):
        got = torch.zeros(1)
        source = dist.recv(got)
        assert got.item() == source
        heard.append(source)
    assert sorted(heard) == list(range(1, size))


def test_receive_from_anyone_says_from_whom(three: Ranks) -> None:
    three.run(any_source)


def batches() -> None:
    rank, size = dist.get_rank(), dist.get_world_size()
    got = [torch.empty(3) for _ in range(size)]
    operations = [dist.P2POp(dist.irecv, got[peer], peer) for peer in range(size) if peer != rank]
    operations += [
        dist.P2POp(dist.isend, torch.full((3,), float(rank)), peer)
        for peer in range(size)
        if peer != rank
    ]
    works = dist.batch_isend_irecv(operations)
    assert len(works) == 1
    for work in works:
        work.wait()
    for peer in range(size):
        if peer != rank:
            assert torch.equal(got[peer], torch.full((3,), float(peer)))


def test_a_batch_of_messages_is_one_work(three: Ranks) -> None:
    three.run(batches)


def forgotten() -> None:
    rank = dist.get_rank()
    if rank == 0:
        for value in range(20):
            dist.isend(torch.full((50000,), float(value)), 1)  # work and tensor are dropped
    else:
        for value in range(20):
            got = torch.empty(50000)
            dist.recv(got, 0)
            assert torch.equal(got, torch.full((50000,), float(value)))
    dist.barrier()


def test_a_dropped_work_keeps_its_tensor_until_it_is_sent(two: Ranks) -> None:
    two.run(forgotten)


def strided_message() -> None:
    grid = torch.arange(12.0).view(3, 4)
    if dist.get_rank() == 0:
        dist.send(grid[:, 1], 1)
    else:
        target = torch.zeros(3, 4)
        dist.recv(target[:, 2], 0)
        assert torch.equal(target[:, 2], grid[:, 1])
        assert target.sum() == grid[:, 1].sum()


def test_strided_messages(two: Ranks) -> None:
    two.run(strided_message)


def object_messages() -> None:
    if dist.get_rank() == 0:
        dist.send_object_list([{"a": 1}, "b"], dst=1)
    else:
        got: list[object] = [None, None]
        assert dist.recv_object_list(got, src=0) == 0
        assert got == [{"a": 1}, "b"]


def test_object_messages(two: Ranks) -> None:
    two.run(object_messages)

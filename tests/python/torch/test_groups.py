# SPDX-License-Identifier: Apache-2.0
"""Subgroups, meshes, several lives of one group, options."""

from __future__ import annotations

import time
from datetime import timedelta

import torch
import torch.distributed as dist
from ranks import Ranks


def total(group: dist.ProcessGroup | None, value: float = 1.0) -> float:
    tensor = torch.tensor([value])
    dist.all_reduce(tensor, group=group)
    return float(tensor.item())


def subgroups() -> None:
    rank = dist.get_rank()
    pairs = [dist.new_group([0, 1]), dist.new_group([0, 2]), dist.new_group([2, 1])]
    everyone = dist.new_group()
    for group, members in zip(pairs, ([0, 1], [0, 2], [2, 1]), strict=True):
        if rank in members:
            assert total(group) == 2
            tensor = torch.tensor([float(rank)])
            dist.broadcast(tensor, src=members[0], group=group)
            assert tensor.item() == members[0]
    assert total(everyone) == dist.get_world_size()


def test_subgroups_of_some_ranks(three: Ranks) -> None:
    three.run(subgroups)


def different_order() -> None:
    first, second = dist.new_group(), dist.new_group()
    groups = [first, second] if dist.get_rank() == 0 else [second, first]
    tensors = [torch.ones(100000), torch.ones(100000)]
    works = [
        dist.all_reduce(t, group=g, async_op=True) for t, g in zip(tensors, groups, strict=True)
    ]
    for work in works:
        work.wait()
    for tensor in tensors:
        assert torch.equal(tensor, torch.full((100000,), float(dist.get_world_size())))


def test_two_groups_used_in_different_order(two: Ranks) -> None:
    two.run(different_order)


def local_synchronization() -> None:
    rank = dist.get_rank()
    mine = [0, 1] if rank < 2 else [2]
    group = dist.new_group(mine, use_local_synchronization=True)
    assert total(group) == len(mine)
    again = dist.new_group(mine, use_local_synchronization=True)
    assert total(again) == len(mine)


def test_groups_that_only_their_members_make(three: Ranks) -> None:
    three.run(local_synchronization)


def many_groups() -> None:
    size = dist.get_world_size()
    groups = [dist.new_group() for _ in range(100)]
    assert total(groups[50]) == size
    for group in groups:
        dist.destroy_process_group(group)
    assert total(None) == size


def test_a_hundred_groups(two: Ranks) -> None:
    two.run(many_groups)


def megatron_groups() -> float:
    """Make 200 groups as Megatron and FlagScale do; say how many seconds that took."""
    began = time.monotonic()
    rank, groups = dist.get_rank(), []
    # ranks = (pipeline, expert, tensor), each of two; every rank calls new_group for every group
    grid = torch.arange(8).view(2, 2, 2)
    shapes = [
        grid.permute(1, 2, 0).reshape(-1, 2),  # pipeline
        grid.permute(0, 1, 2).reshape(-1, 2),  # tensor
        grid.permute(0, 2, 1).reshape(-1, 2),  # expert
        grid.permute(1, 0, 2).reshape(-1, 4),  # tensor-pipeline
        grid.permute(2, 0, 1).reshape(-1, 4),  # expert-pipeline
        grid.reshape(1, 8),  # tensor-expert-pipeline: everyone
    ]
    while len(groups) < 200:
        for shape in shapes:
            for members in shape.tolist():
                group = dist.new_group(members)
                if rank in members:
                    groups.append((group, members))
                else:
                    groups.append((None, members))
    groups = groups[:200]
    seconds = time.monotonic() - began
    for group, members in groups[::7]:
        if group is not None:
            assert total(group, rank) == sum(members)
    return seconds


def test_two_hundred_groups_of_a_megatron_job(ranks_of: object) -> None:
    seconds = ranks_of(8).run(megatron_groups)  # type: ignore[operator]

    print(f"200 groups over 8 ranks: {max(seconds):.2f} s")


def mesh() -> None:
    from torch.distributed.device_mesh import init_device_mesh

    rank = dist.get_rank()
    grid = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    assert total(grid.get_group("tp"), float(rank)) == (1 if rank < 2 else 5)
    assert total(grid.get_group("dp"), float(rank)) == (2 if rank % 2 == 0 else 4)


def test_a_device_mesh(ranks_of: object) -> None:
    ranks_of(4).run(mesh)  # type: ignore[operator]


def lives(folder: str) -> None:
    import os

    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    for life in range(3):
        # The same store each time: the keys of the life before are still there.
        store = dist.FileStore(f"{folder}/again", size)
        dist.init_process_group("hccomm", store=store, rank=rank, world_size=size)
        group = dist.new_group([1, 0])
        assert total(None, life) == life * size
        assert total(group) == 2
        dist.destroy_process_group()


def test_init_destroy_init_on_one_store(tmp_path: object) -> None:
    with Ranks(2, backend="") as ranks:
        ranks.run(lives, str(tmp_path))


def mixed() -> None:
    import os

    import hccomm.torch

    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    # Each rank names other devices, as ranks of different vendors do; they meet all the same.
    name = "cpu:hccomm" if rank == 0 else "cpu:hccomm,cuda:hccomm"
    dist.init_process_group(name, init_method=os.environ["TEST_INIT"], rank=rank, world_size=size)
    assert total(None) == size
    assert hccomm.torch.describe()["size"] == size
    dist.destroy_process_group()

    store = dist.FileStore(f"{os.environ['TEST_INIT'][7:]}2", size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    inside = dist.new_group(backend="hccomm")
    assert total(inside) == size
    assert total(None) == size
    dist.destroy_process_group()


def test_ranks_of_different_devices_and_mixed_backends_meet() -> None:
    with Ranks(2, backend="") as ranks:
        ranks.run(mixed)


def innocents() -> None:
    import os

    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group(
        "cpu:gloo", init_method=os.environ["TEST_INIT"], rank=rank, world_size=size
    )
    assert dist.group.WORLD.name() == "gloo"
    assert dist.Backend.default_device_backend_map["cpu"] == "gloo"
    assert "hccomm" not in dist.Backend.default_device_backend_map.values()
    dist.destroy_process_group()


def test_other_backends_are_left_alone() -> None:
    with Ranks(1, backend="") as ranks:
        ranks.run(innocents)


def options() -> None:
    import os

    import pytest

    import hccomm.torch

    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group(
        "hccomm",
        init_method=os.environ["TEST_INIT"],
        rank=rank,
        world_size=size,
        pg_options=hccomm.torch.Options(timeout=timedelta(seconds=44)),
    )
    assert total(None) == size
    group = dist.group.WORLD
    group.set_timeout(timedelta(seconds=33))
    assert total(None) == size
    with pytest.raises(TypeError, match=r"hccomm\.torch\.Options, not dict"):
        dist.new_group(pg_options={"a": 1})
    with pytest.raises(ValueError, match="timeout must be positive"):
        hccomm.torch.Options(timeout=timedelta(0))
    dist.destroy_process_group()


def test_options_of_a_group() -> None:
    with Ranks(2, backend="") as ranks:
        ranks.run(options)


def options_everywhere() -> None:
    import copy
    import os

    from hccomm.torch import Options, describe

    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group(
        "hccomm",
        init_method=os.environ["TEST_INIT"],
        rank=rank,
        world_size=size,
        pg_options=Options(timeout=timedelta(seconds=41), algorithms={"allreduce": "ring"}),
    )
    assert total(None) == size
    assert describe()["timeout"] == 41
    assert describe()["algorithms"] == "allreduce:ring"
    rules = "allreduce:0-8K tree,8K- ring;broadcast:chain"
    own = copy.deepcopy(Options(algorithms=rules, islands="cpu"))
    assert repr(own) == f"Options(algorithms={rules!r}, islands=device(type='cpu'))"
    group = dist.new_group(pg_options=own, timeout=timedelta(seconds=17))
    assert (describe(group)["timeout"], describe(group)["algorithms"]) == (17, rules)
    assert describe(group)["islands"]["islands"] == []  # host memory needs no vendor's library
    large = torch.ones(1 << 18)
    dist.all_reduce(large, group=group)
    assert torch.equal(large, torch.full((1 << 18,), float(size)))
    assert total(group) == size
    part = group.split_group([0, 1], timedelta(seconds=9))
    mine = torch.ones(1)
    part.allreduce([mine]).wait()
    assert mine.item() == 2
    assert describe(part)["algorithms"] == rules  # a part is set up as the whole is
    plain = dist.new_group()
    assert describe(plain)["algorithms"] == ""
    assert describe(plain)["islands"]["state"] == "off"
    dist.destroy_process_group()


def test_options_reach_the_default_group_new_groups_and_splits() -> None:
    with Ranks(2, backend="") as ranks:
        ranks.run(options_everywhere)


def options_that_are_wrong() -> list[str]:
    import pytest

    from hccomm.torch import Options

    texts = []
    for rules in ("allreduce:zigzag", f"allreduce:{'ring' if dist.get_rank() else 'tree'}"):
        with pytest.raises(RuntimeError) as caught:
            dist.new_group(pg_options=Options(algorithms=rules))
        texts.append(str(caught.value))
    return texts


def test_wrong_rules_are_refused_on_every_rank(ranks_of: object) -> None:
    for unknown, different in ranks_of(2).run(options_that_are_wrong):  # type: ignore[operator]
        assert '"zigzag" is no algorithm for allreduce' in unknown
        assert "Mismatch: set HCCOMM_ALGO: rank 1" in different


def splits() -> None:
    rank = dist.get_rank()
    world = dist.group.WORLD
    own = world.split_group([0, 2] if rank != 1 else [1], timedelta(seconds=60))
    tensor = torch.ones(1)
    own.allreduce([tensor]).wait()
    assert tensor.item() == (2 if rank != 1 else 1)
    assert own.size() == (2 if rank != 1 else 1)


def test_a_group_splits(three: Ranks) -> None:
    three.run(splits)

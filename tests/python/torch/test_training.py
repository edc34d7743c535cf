# SPDX-License-Identifier: Apache-2.0
"""Training on top: the result equals that of one process, or of Gloo."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
from ranks import Ranks
from torch import nn
from torch.nn.parallel import DistributedDataParallel

STEPS, BATCH = 4, 12


def model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3)
    )


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(STEPS, BATCH, 10, generator=generator)
    return inputs, torch.randint(0, 3, (STEPS, BATCH), generator=generator)


def train(net: nn.Module, share: slice) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for inputs, labels in zip(*data(), strict=True):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(inputs[share]), labels[share]).backward()
        optimizer.step()


def mine() -> slice:
    rank, size = dist.get_rank(), dist.get_world_size()
    return slice(rank * BATCH // size, (rank + 1) * BATCH // size)


def reference() -> nn.Module:
    net = model()
    train(net, slice(None))
    return net


def close(got: nn.Module, wanted: nn.Module, tolerance: float = 1e-5) -> None:
    for (name, one), two in zip(got.named_parameters(), wanted.parameters(), strict=True):
        assert torch.allclose(one, two, atol=tolerance, rtol=tolerance), name


def ddp(arguments: dict[str, object]) -> None:
    net = DistributedDataParallel(model(), **arguments)
    train(net, mine())
    close(net.module, reference())
    flat = torch.cat([p.detach().flatten() for p in net.parameters()])
    everyone = [torch.empty_like(flat) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, flat)
    assert all(torch.equal(flat, other) for other in everyone), "ranks differ by some bits"


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"bucket_cap_mb": 0.002},
        {"find_unused_parameters": True},
        {"static_graph": True},
        {"gradient_as_bucket_view": True},
    ],
    ids=lambda arguments: ",".join(arguments) or "default",
)
def test_ddp_equals_one_process(three: Ranks, arguments: dict[str, object]) -> None:
    three.run(ddp, arguments)


def hooks() -> None:
    from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook

    for hook, state in (
        (default_hooks.allreduce_hook, None),
        (default_hooks.fp16_compress_hook, None),
        (powerSGD_hook.powerSGD_hook, powerSGD_hook.PowerSGDState(None, start_powerSGD_iter=2)),
    ):
        net = DistributedDataParallel(model())
        net.register_comm_hook(state, hook)
        train(net, mine())
        exact = hook is default_hooks.allreduce_hook
        close(net.module, reference(), 1e-5 if exact else 0.1)


def test_ddp_communication_hooks(two: Ranks) -> None:
    two.run(hooks)


def uneven() -> None:
    net = DistributedDataParallel(model())
    with net.join():
        for step in range(2 + dist.get_rank()):
            net(torch.full((2, 10), float(step))).sum().backward()
    accumulating = DistributedDataParallel(model())
    inputs, labels = (each[0] for each in data())
    half = mine()
    middle = (half.start + half.stop) // 2
    with accumulating.no_sync():
        nn.functional.cross_entropy(
            accumulating(inputs[half.start : middle]), labels[half.start : middle]
        ).backward()
    nn.functional.cross_entropy(
        accumulating(inputs[middle : half.stop]), labels[middle : half.stop]
    ).backward()
    alone = model()
    nn.functional.cross_entropy(alone(inputs), labels).backward()
    for got, wanted in zip(accumulating.module.parameters(), alone.parameters(), strict=True):
        assert torch.allclose(got.grad, 2 * wanted.grad, atol=1e-5)


def test_ddp_join_and_gradient_accumulation(two: Ranks) -> None:
    two.run(uneven)


def zero() -> None:
    from torch.distributed.optim import ZeroRedundancyOptimizer

    net = DistributedDataParallel(model())
    optimizer = ZeroRedundancyOptimizer(
        net.parameters(), optimizer_class=torch.optim.SGD, lr=0.1, momentum=0.9
    )
    for inputs, labels in zip(*data(), strict=True):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(inputs[mine()]), labels[mine()]).backward()
        optimizer.step()
    close(net.module, reference())


def test_zero_redundancy_optimizer_equals_one_process(two: Ranks) -> None:
    two.run(zero)


def fsdp2() -> None:
    from torch.distributed.fsdp import fully_shard

    net = model()
    for layer in net:
        if isinstance(layer, nn.Linear):
            fully_shard(layer)
    fully_shard(net)
    train(net, mine())
    wanted = reference()
    for (name, one), two in zip(net.named_parameters(), wanted.parameters(), strict=True):
        assert torch.allclose(one.full_tensor(), two, atol=1e-5), name


def test_fsdp2_equals_one_process(two: Ranks) -> None:
    two.run(fsdp2)


def tensor_parallel() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    size = dist.get_world_size()
    mesh = init_device_mesh("cpu", (size,))
    whole = torch.arange(48.0).view(8, 6)
    sharded = distribute_tensor(whole, mesh, [Shard(0)])
    assert torch.equal(sharded.redistribute(mesh, [Shard(1)]).full_tensor(), whole)
    assert torch.equal(sharded.redistribute(mesh, [Replicate()]).to_local(), whole)
    assert torch.allclose(
        (sharded @ distribute_tensor(whole.t(), mesh, [Replicate()])).full_tensor(),
        whole @ whole.t(),
    )

    net = model()
    parallel = parallelize_module(
        copy.deepcopy(net), mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()}
    )
    inputs = data()[0][0]
    assert torch.allclose(parallel(inputs), net(inputs), atol=1e-5)


def test_dtensor_and_tensor_parallel(two: Ranks) -> None:
    two.run(tensor_parallel)


def functional() -> None:
    import torch.distributed._functional_collectives as funcol

    rank, size = dist.get_rank(), dist.get_world_size()
    group = dist.group.WORLD
    mine = torch.full((2, 2), rank + 1.0)
    total = size * (size + 1) / 2
    assert torch.equal(funcol.all_reduce(mine, "sum", group) + 0, torch.full((2, 2), total))
    gathered = funcol.all_gather_tensor(mine, 0, group) + 0
    assert gathered[:, 0].tolist() == [r + 1.0 for r in range(size) for _ in range(2)]
    scattered = funcol.reduce_scatter_tensor(torch.ones(size * 2), "sum", 0, group) + 0
    assert torch.equal(scattered, torch.full((2,), float(size)))
    swapped = funcol.all_to_all_single(torch.full((size,), float(rank)), None, None, group) + 0
    assert torch.equal(swapped, torch.arange(float(size)))
    both = funcol.all_reduce_coalesced([mine, mine[0]], "sum", group)
    assert all((each + 0)[..., 0].flatten()[0] == total for each in both)


def test_functional_collectives(two: Ranks) -> None:
    two.run(functional)


def differentiable() -> None:
    import torch.distributed.nn.functional as differentiable

    size = dist.get_world_size()
    value = torch.ones(3, requires_grad=True)
    differentiable.all_reduce(value * 2).sum().backward()
    assert torch.equal(value.grad, torch.full((3,), 2.0 * size))
    value = torch.ones(2, requires_grad=True)
    torch.stack(differentiable.all_gather(value)).sum().backward()
    assert torch.equal(value.grad, torch.full((2,), float(size)))


def test_differentiable_collectives(two: Ranks) -> None:
    two.run(differentiable)


def pipeline() -> None:
    from torch.distributed.pipelining import PipelineStage, Schedule1F1B

    rank, size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(3)
    layers = [nn.Linear(4, 4) for _ in range(size)]
    alone = copy.deepcopy(nn.Sequential(*layers))
    stage = PipelineStage(layers[rank], rank, size, torch.device("cpu"))
    schedule = Schedule1F1B(stage, n_microbatches=4, loss_fn=nn.functional.mse_loss)
    inputs, target = torch.ones(8, 4), torch.zeros(8, 4)
    losses: list[torch.Tensor] = []
    if rank == 0:
        schedule.step(inputs)
    elif rank == size - 1:
        schedule.step(target=target, losses=losses)
    else:
        schedule.step()
    nn.functional.mse_loss(alone(inputs), target).backward()
    assert torch.allclose(layers[rank].weight.grad, alone[rank].weight.grad, atol=1e-5)


def test_a_pipeline_of_stages(two: Ranks) -> None:
    two.run(pipeline)


def checkpoint(folder: str) -> None:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.fsdp import fully_shard

    net = model()
    fully_shard(net)
    train(net, mine())
    dcp.save({"net": net.state_dict()}, checkpoint_id=folder)
    fresh = model()
    fully_shard(fresh)
    state = {"net": fresh.state_dict()}
    dcp.load(state, checkpoint_id=folder)
    for name, value in state["net"].items():
        assert torch.equal(value.full_tensor(), net.state_dict()[name].full_tensor()), name


def test_a_distributed_checkpoint(two: Ranks, tmp_path: object) -> None:
    two.run(checkpoint, str(tmp_path))

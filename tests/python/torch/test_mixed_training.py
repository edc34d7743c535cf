# SPDX-License-Identifier: Apache-2.0
"""Training in groups of mixed vendors, in the rank order A, B, CPU, A, B, equals one process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ranks import Ranks, environment
from torch import nn
from torch.nn.parallel import DistributedDataParallel

VENDORS = ["alder", "birch", "", "alder", "birch"]
STEPS, BATCH = 3, 20


@pytest.fixture(scope="module")
def mixed(simulated: None) -> Iterator[Ranks]:
    with Ranks(len(VENDORS), vendors=VENDORS) as ranks:
        yield ranks


def device() -> torch.device:
    vendor = os.environ["SIMDEVICE"].split(":")[0]
    return torch.device(f"{vendor}:{dist.get_rank() % 2}" if vendor else "cpu")


def model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(10, 40), nn.ReLU(), nn.Linear(40, 20), nn.ReLU(), nn.Linear(20, 5)
    )


def train(net: nn.Module, where: torch.device, share: slice) -> None:
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(STEPS, BATCH, 10, generator=generator)
    labels = torch.randint(0, 5, (STEPS, BATCH), generator=generator)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for step in range(STEPS):
        optimizer.zero_grad()
        outputs = net(inputs[step, share].to(where))
        nn.functional.cross_entropy(outputs, labels[step, share].to(where)).backward()
        optimizer.step()


def mine() -> slice:
    rank, size = dist.get_rank(), dist.get_world_size()
    return slice(rank * BATCH // size, (rank + 1) * BATCH // size)


def reference() -> list[torch.Tensor]:
    net = model()
    train(net, torch.device("cpu"), slice(None))
    return [parameter.detach() for parameter in net.parameters()]


def close(got: list[torch.Tensor]) -> None:
    for one, two in zip(got, reference(), strict=True):
        assert torch.allclose(one.detach().cpu(), two, atol=1e-5, rtol=1e-5)


def identical(got: list[torch.Tensor]) -> None:
    flat = torch.cat([each.detach().cpu().flatten() for each in got])
    everyone = [torch.empty_like(flat) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, flat)
    assert all(torch.equal(flat, other) for other in everyone), "ranks differ by some bits"


def set_device() -> torch.device:
    where = device()
    if where.type != "cpu":
        torch.accelerator.set_device_index(where.index)
    return where


def ddp(arguments: dict[str, object]) -> None:
    where = set_device()
    net = DistributedDataParallel(model().to(where), **arguments)
    train(net, where, mine())
    close(list(net.parameters()))
    identical(list(net.parameters()))


@pytest.mark.parametrize(
    "arguments",
    [{}, {"bucket_cap_mb": 0.002}, {"gradient_as_bucket_view": True}],
    ids=lambda arguments: ",".join(arguments) or "default",
)
def test_ddp_of_mixed_vendors_equals_one_process(
    mixed: Ranks, arguments: dict[str, object]
) -> None:
    mixed.run(ddp, arguments, timeout=200.0)


def fsdp2() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    where = set_device()
    mesh = init_device_mesh(where.type, (dist.get_world_size(),))
    net = model().to(where)
    for layer in net:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    fully_shard(net, mesh=mesh)
    train(net, where, mine())
    whole = [parameter.full_tensor() for parameter in net.parameters()]
    close(whole)
    identical(whole)


def test_fsdp2_of_mixed_vendors_equals_one_process(mixed: Ranks) -> None:
    mixed.run(fsdp2, timeout=200.0)


def dtensor() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    where, size = set_device(), dist.get_world_size()
    mesh = init_device_mesh(where.type, (size,))
    whole = torch.arange(2.0 * size * 3 * size).view(2 * size, 3 * size)
    rows = distribute_tensor(whole.to(where), mesh, [Shard(0)])
    full = rows.redistribute(mesh, [Replicate()])
    assert torch.equal(full.to_local().cpu(), whole)
    columns = rows.redistribute(mesh, [Shard(1)])
    assert torch.equal(columns.full_tensor().cpu(), whole)
    turned = distribute_tensor(whole.t().contiguous().to(where), mesh, [Shard(0)])
    product = columns @ turned  # a partial sum on every rank
    assert torch.equal(product.full_tensor().cpu(), whole @ whole.t())
    part = product.redistribute(mesh, [Shard(0)])  # a reduce-scatter
    assert torch.equal(part.full_tensor().cpu(), whole @ whole.t())


def test_dtensor_of_mixed_vendors_equals_one_process(mixed: Ranks) -> None:
    mixed.run(dtensor, timeout=200.0)


def test_the_example_of_mixed_vendors_runs(simulated: None) -> None:
    example = Path(__file__).parents[3] / "examples" / "torch_mixed.py"
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3"]

    done = subprocess.run(
        [sys.executable, *torchrun, str(example), "--simulate", "alder,cpu,birch"],
        env={**environment(), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )

    assert done.returncode == 0, done.stderr[-3000:]
    assert "rank 2 on birch:0" in done.stdout
    assert "all ranks hold the same bits" in done.stdout

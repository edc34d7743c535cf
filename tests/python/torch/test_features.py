# SPDX-License-Identifier: Apache-2.0
"""More of torch on top: sharded training, pipelines, checkpoints, compilation, elastic restarts."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import test_training as training
import torch
import torch.distributed as dist
from ranks import Ranks, environment
from torch import nn
from torch.nn.parallel import DistributedDataParallel

OfSize = Callable[[int], Ranks]


# ---- sharded data parallel -----------------------------------------------------------------------


def hsdp() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    net = training.model()
    for layer in net:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    fully_shard(net, mesh=mesh)
    training.train(net, training.mine())
    wanted = training.reference()
    for (name, one), two in zip(net.named_parameters(), wanted.parameters(), strict=True):
        assert torch.allclose(one.full_tensor(), two, atol=1e-5), name


def test_hybrid_sharding_equals_one_process(ranks_of: OfSize) -> None:
    ranks_of(4).run(hsdp)


def fsdp1() -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy

    for strategy in (ShardingStrategy.FULL_SHARD, ShardingStrategy.SHARD_GRAD_OP):
        net = FullyShardedDataParallel(
            training.model(), device_id=torch.device("cpu"), sharding_strategy=strategy
        )
        training.train(net, training.mine())
        with FullyShardedDataParallel.summon_full_params(net):
            training.close(net.module, training.reference())


@pytest.mark.filterwarnings("ignore")
def test_the_first_fsdp_equals_one_process(two: Ranks) -> None:
    two.run(fsdp1)


def sparse_gradients() -> None:
    rank = dist.get_rank()
    torch.manual_seed(4)
    table = nn.Embedding(10, 3, sparse=True)
    alone = copy.deepcopy(table)
    indices = torch.tensor([[1, 2], [2, 5]])
    net = DistributedDataParallel(table)
    net(indices[rank]).sum().backward()
    alone(indices).sum().backward()
    assert torch.allclose(table.weight.grad.to_dense(), alone.weight.grad.to_dense() / 2)


def test_ddp_sums_sparse_gradients(two: Ranks) -> None:
    two.run(sparse_gradients)


def sampled() -> None:
    from torch.utils.data import DataLoader, TensorDataset
    from torch.utils.data.distributed import DistributedSampler

    data = TensorDataset(torch.arange(11.0)[:, None])
    sampler = DistributedSampler(data, shuffle=True, seed=5)
    sampler.set_epoch(1)
    seen = torch.cat([batch[:, 0] for (batch,) in DataLoader(data, batch_size=3, sampler=sampler)])
    everyone = [torch.empty_like(seen) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, seen)
    assert set(torch.cat(everyone).tolist()) == set(range(11))


def test_a_distributed_sampler_shares_the_data_out(two: Ranks) -> None:
    two.run(sampled)


# ---- pipelines, differentiable and compiled collectives ------------------------------------------


def interleaved() -> None:
    from torch.distributed.pipelining import PipelineStage, ScheduleInterleaved1F1B

    rank, size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(3)
    layers = [nn.Linear(4, 4) for _ in range(2 * size)]
    alone = copy.deepcopy(nn.Sequential(*layers))
    stages = [
        PipelineStage(layers[which], which, 2 * size, torch.device("cpu"))
        for which in (rank, rank + size)
    ]
    schedule = ScheduleInterleaved1F1B(stages, n_microbatches=4, loss_fn=nn.functional.mse_loss)
    inputs, target = torch.ones(8, 4), torch.zeros(8, 4)
    if rank == 0:
        schedule.step(inputs)
    else:
        schedule.step(target=target)
    nn.functional.mse_loss(alone(inputs), target).backward()
    for which in (rank, rank + size):
        assert torch.allclose(layers[which].weight.grad, alone[which].weight.grad, atol=1e-5)


def test_an_interleaved_pipeline(two: Ranks) -> None:
    two.run(interleaved)


def differentiable() -> None:
    import torch.distributed.nn.functional as differentiable

    rank, size = dist.get_rank(), dist.get_world_size()

    def gradient(function: Callable[[torch.Tensor], torch.Tensor], count: int) -> torch.Tensor:
        value = torch.full((count,), rank + 1.0, requires_grad=True)
        function(value).sum().backward()
        assert value.grad is not None
        return value.grad

    pieces = differentiable.all_to_all_single
    assert torch.equal(gradient(lambda x: pieces(torch.empty(size), x), size), torch.ones(size))
    grad = gradient(lambda x: differentiable.reduce_scatter(torch.empty(1), list(x.split(1))), size)
    assert torch.equal(grad, torch.ones(size))
    grad = gradient(lambda x: differentiable.broadcast(x, 0), 2)
    assert torch.equal(grad, torch.full((2,), float(size if rank == 0 else 0)))
    grad = gradient(lambda x: torch.stack(list(differentiable.gather(x, dst=0))), 2)
    assert torch.equal(grad, torch.ones(2))
    grad = gradient(lambda x: differentiable.reduce(x, 0), 2)
    assert torch.equal(grad, torch.ones(2))


def test_gradients_flow_through_every_differentiable_collective(two: Ranks) -> None:
    two.run(differentiable)


def compiled() -> None:
    import torch.distributed._functional_collectives as funcol

    rank, size = dist.get_rank(), dist.get_world_size()
    group = dist.group.WORLD

    @torch.compile(backend="aot_eager", fullgraph=True)
    def step(value: torch.Tensor) -> torch.Tensor:
        total = funcol.all_reduce(value * 2, "sum", group)
        return funcol.all_gather_tensor(total + 1, 0, group)

    got = step(torch.full((2,), rank + 1.0))
    assert torch.equal(got, torch.full((2 * size,), size * (size + 1.0) + 1))

    net = DistributedDataParallel(training.model())
    faster = torch.compile(net, backend="aot_eager")
    training.train(faster, training.mine())
    training.close(net.module, training.reference())


@pytest.mark.slow
def test_compiled_functions_hold_collectives(two: Ranks) -> None:
    two.run(compiled, timeout=300.0)


# ---- checkpoints ---------------------------------------------------------------------------------


def save_sharded(folder: str) -> dict[str, list[float]]:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.fsdp import fully_shard

    net = training.model()
    fully_shard(net)
    training.train(net, training.mine())
    dcp.async_save({"net": net.state_dict()}, checkpoint_id=folder).result(120)
    return {name: value.full_tensor().flatten().tolist() for name, value in net.named_parameters()}


def load_sharded(folder: str, wanted: dict[str, list[float]]) -> None:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.fsdp import fully_shard

    net = training.model()
    fully_shard(net)
    dcp.load({"net": (state := net.state_dict())}, checkpoint_id=folder)
    for name, value in state.items():
        assert value.full_tensor().flatten().tolist() == wanted[name], name


def test_a_checkpoint_of_two_ranks_opens_on_three(two: Ranks, three: Ranks, tmp_path: Path) -> None:
    wanted = two.run(save_sharded, str(tmp_path))[0]

    three.run(load_sharded, str(tmp_path), wanted)


ELASTIC = """
    import os, pathlib, signal, time, torch, torch.distributed as dist
    import hccomm.torch_backend
    folder, attempt = os.environ["FOLDER"], int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    dist.init_process_group("hccomm")
    rank, size = dist.get_rank(), dist.get_world_size()
    path = f"{folder}/state.pt"
    state = torch.load(path) if os.path.exists(path) else {"step": 0, "sum": torch.zeros(1)}
    print(f"attempt {attempt} rank {rank} starts at step {state['step']}", flush=True)
    killed = pathlib.Path(folder, "killed")
    while state["step"] < 6:
        tensor = torch.ones(1)
        dist.all_reduce(tensor)
        state["sum"] += tensor
        state["step"] += 1
        if rank == 0 and attempt == 1 and state["step"] == 5:
            seconds = time.monotonic() - float(killed.read_text())
            print(f"step 5 is done again {seconds:.2f} s after the kill", flush=True)
        if rank == 0 and state["step"] % 2 == 0:
            torch.save(state, path + ".new")
            os.replace(path + ".new", path)
        dist.barrier()
        if attempt == 0 and rank == 1 and state["step"] == 5:
            killed.write_text(str(time.monotonic()))
            os.kill(os.getpid(), signal.SIGKILL)
    assert state["sum"].item() == 6 * size, state
    print(f"attempt {attempt} rank {rank} is done", flush=True)
    dist.destroy_process_group()
"""


def test_torchrun_restarts_a_job_from_its_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "train.py"
    path.write_text(textwrap.dedent(ELASTIC))

    arguments = ["--standalone", "--nproc-per-node", "2", "--max-restarts", "1", str(path)]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *arguments],
        env={**environment(), "OMP_NUM_THREADS": "1", "FOLDER": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    again = re.search(r"step 5 is done again .* after the kill", done.stdout)
    assert again
    print(again[0])
    for rank in range(2):
        assert f"attempt 0 rank {rank} starts at step 0" in done.stdout
        assert f"attempt 1 rank {rank} starts at step 4" in done.stdout
        assert f"attempt 1 rank {rank} is done" in done.stdout

# SPDX-License-Identifier: Apache-2.0
"""The flight recorder in torch's format: what it holds, when it is written, what reads it."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import Ranks, environment

import hccomm.torch

FIELDS = {
    "frames",
    "record_id",
    "pg_id",
    "process_group",
    "thread_name",
    "thread_id",
    "collective_seq_id",
    "p2p_seq_id",
    "op_id",
    "profiling_name",
    "time_created_ns",
    "duration_ms",
    "input_sizes",
    "input_dtypes",
    "output_sizes",
    "output_dtypes",
    "state",
    "time_discovered_started_ns",
    "time_discovered_completed_ns",
    "retired",
    "timeout_ms",
    "is_p2p",
}


def every_operation(folder: str) -> list[dict[str, Any]]:
    rank, size = dist.get_rank(), dist.get_world_size()
    mine, parts = torch.ones(4), [torch.ones(4) for _ in range(size)]
    dist.all_reduce(torch.ones(2, 3))
    dist.all_reduce(torch.ones(5, dtype=torch.int64), async_op=True).wait()
    dist.broadcast(mine, 1)
    dist.reduce(mine, 0)
    dist.all_gather(parts, mine)
    dist.all_gather_into_tensor(torch.ones(4 * size), mine)
    dist.reduce_scatter(mine, parts)
    dist.reduce_scatter_tensor(mine, torch.ones(4 * size))
    dist.gather(mine, parts if rank == 0 else None, 0)
    dist.scatter(mine, parts if rank == 0 else None, 0)
    dist.all_to_all_single(torch.ones(size), torch.ones(size))
    dist.barrier()
    other = dist.new_group([1, 0], group_desc="pair")
    if rank == 0:
        dist.send(mine, 1)
    elif rank == 1:
        dist.recv(mine, 0)
    if rank < 2:
        dist.all_reduce(torch.ones(7), group=other)
    hccomm.torch.write_flight_recorder(f"{folder}/trace_{rank}")
    entries: list[dict[str, Any]] = hccomm.torch.flight_recorder()["entries"]
    return entries


def analyse(folder: Path, prefix: str) -> tuple[str, Any]:
    """Run the analyser that ships in torch; return what it says, and its database."""
    module = "torch.distributed.flight_recorder.fr_trace"
    done = subprocess.run(
        [sys.executable, "-m", module, str(folder), "--prefix", prefix, "-o", f"{folder}/db.out"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    with open(folder / "db.out", "rb") as file:
        _, database = pickle.load(file)
    return done.stdout + done.stderr, database


def test_torchs_analyser_matches_the_traces_of_all_ranks(tmp_path: Path) -> None:
    with Ranks(3) as ranks:
        entries = ranks.run(every_operation, str(tmp_path))[0]

    assert set(entries[0]) == FIELDS
    first = entries[0]
    known = "gloo" if torch.__version__ >= "2.12" else "nccl"  # to torch's analyser
    assert first["profiling_name"] == f"{known}:all_reduce"
    assert (first["input_sizes"], first["input_dtypes"]) == ([[2, 3]], ["Float"])
    assert (first["state"], first["retired"], first["is_p2p"]) == ("completed", True, False)
    assert [each["profiling_name"] for each in entries if each["is_p2p"]] == [f"{known}:send 0->1"]
    said, database = analyse(tmp_path, "trace_")
    assert {each.desc for each in database.groups} == {"default_pg", "pair"}
    unmatched = [each.collective_name for each in database.collectives if not each.pass_check]
    assert not unmatched, said
    assert len(database.collectives) >= 13, said


def one_is_late_and_elsewhere(folder: str) -> None:
    dist.all_reduce(torch.ones(2))
    if dist.get_rank() == 0:
        with pytest.raises(dist.DistBackendError):
            dist.all_reduce(torch.ones(2))
    else:
        wait_for(Path(f"{folder}/torch_trace_rank_0"))
        with pytest.raises(dist.DistBackendError):
            broadcast_until_it_fails()


def broadcast_until_it_fails() -> None:
    for _ in range(100):  # a root is done as soon as its bytes are on their way
        dist.broadcast(torch.ones(2), 1)


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} was not written"
        time.sleep(0.02)


def test_a_timeout_leaves_a_trace_on_every_rank(tmp_path: Path) -> None:
    with Ranks(2, environ={"HCCOMM_DUMP": str(tmp_path)}, timeout=1.5) as ranks:
        ranks.run(one_is_late_and_elsewhere, str(tmp_path))

    for rank in range(2):
        with open(tmp_path / f"torch_trace_rank_{rank}", "rb") as file:
            trace = pickle.load(file)
        states = [each["state"] for each in trace["entries"]]
        assert states[0] == "completed"
        assert trace["pg_config"]["0"]["ranks"] == "[0, 1]"
        assert trace["pg_status"]["0"]["last_completed_collective"] < len(states)
    said, _ = analyse(tmp_path, "torch_trace_rank_")
    assert "all_reduce" in said


def signalled(folder: str) -> list[str]:
    work = dist.irecv(torch.ones(3), 1 - dist.get_rank())  # nobody sends yet
    path = Path(f"{folder}/torch_trace_rank_{dist.get_rank()}")
    os.kill(os.getpid(), signal.SIGUSR1)
    wait_for(path)
    with open(path, "rb") as file:
        states = [each["state"] for each in pickle.load(file)["entries"]]
    dist.send(torch.ones(3), 1 - dist.get_rank())
    work.wait(timedelta(seconds=30))
    return states


def test_sigusr1_leaves_a_trace_of_what_is_in_flight(tmp_path: Path) -> None:
    environ = {"HCCOMM_DUMP": str(tmp_path), "HCCOMM_DUMP_SIGNAL": "1"}
    with Ranks(2, environ=environ) as ranks:
        for states in ranks.run(signalled, str(tmp_path)):
            assert states[-1] == "started"


def switched_off() -> int:
    dist.all_reduce(torch.ones(2))
    return len(hccomm.torch.flight_recorder()["entries"])


def test_a_buffer_of_none_records_nothing() -> None:
    with Ranks(1, environ={"TORCH_FR_BUFFER_SIZE": "0"}) as ranks:
        assert ranks.run(switched_off) == [0]

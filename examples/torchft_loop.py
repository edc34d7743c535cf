# SPDX-License-Identifier: Apache-2.0
"""Train under torchft, lose a worker and get another: both end with the same weights.

    python examples/torchft_loop.py

torchft's lighthouse and managers say who takes part in each step; its process group is hccomm's.
This process is the lighthouse; it starts the two workers, and a third when one has died.
"""

from __future__ import annotations

import datetime
import os
import signal
import subprocess
import sys
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torchft import DistributedDataParallel, Manager, Optimizer
from torchft.coordination import LighthouseServer
from torchft.process_group import ProcessGroupWrapper

from hccomm import _torch_glue

STEPS, DIES_AT = 30, 15
WAIT = 300.0  # seconds for a worker to start: it imports torch


class ProcessGroupHccomm(ProcessGroupWrapper):
    """What torchft makes anew for each quorum."""

    def _create_pg(self, store: Any, rank: int, world_size: int) -> Any:
        _torch_glue.load()
        group = dist.ProcessGroup(store, rank, world_size)
        torch.ops.hccomm.attach(
            group.boxed(), list(range(world_size)), f"quorum {self._quorum_id}", "hccomm",
            self._timeout.total_seconds(), [], None,
        )  # fmt: skip
        return group

    def getBackendName(self) -> str:  # noqa: N802, torchft's name
        """Return the name that torchft logs."""
        return "torchft-hccomm"


def work(name: str, dies_at: int) -> None:
    """Train as one worker, with the same batches as the other one."""
    torch.manual_seed(0)
    net = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    manager = Manager(
        pg=ProcessGroupHccomm(timeout=datetime.timedelta(seconds=10)),
        min_replica_size=2,
        use_async_quorum=False,
        load_state_dict=lambda state: (
            net.load_state_dict(state["net"]),
            optimizer.load_state_dict(state["optimizer"]),
        ),
        state_dict=lambda: {"net": net.state_dict(), "optimizer": optimizer.state_dict()},
        replica_id=name,
        rank=0,
        world_size=1,
        timeout=datetime.timedelta(seconds=10),
        quorum_timeout=datetime.timedelta(seconds=WAIT),
        store_addr="127.0.0.1",
        store_port=int(os.environ["STORE_PORT"]),
        lighthouse_addr=os.environ["LIGHTHOUSE"],
    )
    ddp, step = DistributedDataParallel(manager, net), Optimizer(manager, optimizer)
    while manager.current_step() < STEPS:
        if manager.current_step() == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        data = torch.Generator().manual_seed(manager.current_step())
        x = torch.randn(8, 4, generator=data)
        step.zero_grad()
        loss = ((ddp(x) - x.sum(1, keepdim=True)) ** 2).mean()
        loss.backward()
        step.step()
    weights = [each.detach().sum().item() for each in net.parameters()]
    print(f"worker ended at step {manager.current_step()} with {weights}", flush=True)
    os._exit(0)  # the managers' threads wait for nobody


def main() -> int:
    """Start the workers; the one that dies is replaced."""
    lighthouse = LighthouseServer(
        bind="127.0.0.1:0", min_replicas=2, join_timeout_ms=300, heartbeat_timeout_ms=1500
    )
    stores = []

    def start(name: str, dies_at: int) -> subprocess.Popen[bytes]:
        stores.append(dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False))
        told = {"STORE_PORT": str(stores[-1].port), "LIGHTHOUSE": lighthouse.address()}
        return subprocess.Popen(
            [sys.executable, __file__, name, str(dies_at)], env={**os.environ, **told}
        )

    first, second = start("first", -1), start("second", DIES_AT)
    print(f"the second worker ended with {second.wait(WAIT)}", flush=True)
    third = start("second", -1)
    return third.wait(WAIT) or first.wait(WAIT)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        work(sys.argv[1], int(sys.argv[2]))
    status = main()
    sys.stdout.flush()
    os._exit(status)

# SPDX-License-Identifier: Apache-2.0
"""torch's collectives and DDP with nothing but RDMA writes of libfabric between the ranks.

A short form: HCCOMM_PY_SET="HCCOMM_TRANSPORTS=ofi HCCOMM_OFI_PROVIDER=net" runs all of these tests
over one provider.
"""

from __future__ import annotations

from typing import Any

import pytest
import test_collectives as collectives
import torch
import torch.distributed as dist
from ranks import Ranks
from test_training import ddp

COUNT = 300_000  # of float32: several writes, and parts of the ring


def large() -> None:
    rank, size = dist.get_rank(), dist.get_world_size()
    mine = torch.arange(COUNT, dtype=torch.float32) % 97 + rank
    everyone = [torch.empty_like(mine) for _ in range(size)]
    dist.all_gather(everyone, mine)
    for peer, got in enumerate(everyone):
        assert torch.equal(got, mine - rank + peer)
    total = mine.clone()
    dist.all_reduce(total)
    assert torch.equal(total, sum(everyone[1:], everyone[0]))
    if rank == 0:
        dist.send(mine, 1)
    elif rank == 1:
        dist.recv(total, 0)
        assert torch.equal(total, everyone[0])


@pytest.mark.parametrize(
    ("library", "provider"),
    [("system", "net"), ("system", "shm"), ("mpich", "tcp")],
)
def test_collectives_and_ddp_over_ofi_alone(library: str, provider: str) -> None:
    from test_ofi import environment  # the ranks load this module and have no path to it

    environ: dict[str, Any] = {**environment(library, provider), "HCCOMM_TRANSPORTS": "ofi"}

    with Ranks(3, environ=environ) as three:
        three.run(large)
        three.run(collectives.all_reduce, "float32", "SUM")
        three.run(collectives.reduce_scatter_forms, "bfloat16")
        three.run(collectives.all_to_all_forms)
        three.run(collectives.objects)
        three.run(ddp, {"bucket_cap_mb": 0.002})

# SPDX-License-Identifier: Apache-2.0
"""Run torch's own DistributedTest against hccomm; one program, a process per rank and test.

    python tests/python/torch/suite.py --ranks 4 --gates gloo [--only PATTERN] > outcome.jsonl

``torch.testing._internal.distributed.distributed_test`` ships in the torch wheel. Many of its tests
ask for the backend's *name* before they run, so ``--gates`` says which name they hear:

none  "hccomm"; they are skipped
gloo  "gloo", through ``hccomm.install(as_="gloo")``: torch says "gloo" and hccomm does the work
mpi   "mpi", in the tests' own checks alone; only so all_to_all and small groups are let in
real  "gloo", and it is Gloo, to compare with

torch's own runner starts Python anew for every rank of every test, which takes most of an hour on a
small machine. This one imports torch once and forks: before any group exists that is safe.
One line of JSON per test: its name, "passed", "skipped" or "failed", and the reason.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import json
import os
import select
import signal
import sys
import tempfile
import time
import traceback
import unittest
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

_TEST_SECONDS = 240.0
_GRACE_SECONDS = 20.0  # for the other ranks, once one has failed


def outcomes(size: int, gates: str, only: str) -> Iterator[dict[str, str]]:
    """Run every test that matches, and say how each ended."""
    suite = _suite(size, gates)
    for name in unittest.TestLoader().getTestCaseNames(suite):
        if fnmatch.fnmatch(name, only):
            began = time.monotonic()
            outcome = _test(suite, name, size)
            yield {"test": name, **outcome, "seconds": f"{time.monotonic() - began:.1f}"}


def _suite(size: int, gates: str) -> Any:
    os.environ.update(
        BACKEND={"none": "hccomm", "mpi": "mpi"}.get(gates, "gloo"),
        TEST_BACKEND="hccomm" if gates in ("none", "mpi") else "gloo",
        WORLD_SIZE=str(size),
        INIT_METHOD="env://",
        MASTER_ADDR="127.0.0.1",
        OMP_NUM_THREADS="1",
        GLOO_SOCKET_IFNAME="lo",
    )
    import torch

    torch.set_num_threads(1)
    if gates != "real":
        import hccomm.torch_backend
    if gates == "gloo":
        hccomm.install(as_="gloo")
    from torch.testing._internal.distributed import distributed_test

    # The base class alone: torch's MultiProcessTestCase would start processes.
    return type("Suite", (distributed_test.TestDistBackend, _base(distributed_test)), {})


def _base(distributed_test: Any) -> Any:
    return distributed_test.DistributedTest._DistTestBase


def _test(suite: Any, name: str, size: int) -> dict[str, str]:
    skip = getattr(getattr(suite, name), "__unittest_skip_why__", None)
    if skip is not None:
        return {"outcome": "skipped", "reason": skip}
    with tempfile.TemporaryDirectory() as folder:
        for part in ("barrier", "test_dir", "init_dir"):
            (Path(folder) / part).mkdir()
        sys.stdout.flush()
        sys.stderr.flush()
        children: dict[int, tuple[int, int]] = {}  # by descriptor: rank, process
        for rank in range(size):
            mine, its = os.pipe()
            pid = os.fork()
            if pid == 0:
                os.close(mine)
                _be_rank(suite, name, rank, folder, its)
            os.close(its)
            children[mine] = (rank, pid)
        return _judge(_collect(children))


def _be_rank(suite: Any, name: str, rank: int, folder: str, answer: int) -> None:
    """Run the test as one rank and end the process."""
    says = {"outcome": "failed", "reason": "it ended the process"}
    try:
        os.environ.update(TEMP_DIR=folder, RANK=str(rank))
        log = os.open(f"{folder}/{rank}.log", os.O_CREAT | os.O_WRONLY)
        os.dup2(log, 1)
        os.dup2(log, 2)
        says = _run(suite, name, rank, folder)
    except BaseException:
        says = {"outcome": "failed", "reason": traceback.format_exc()}
    finally:
        with contextlib.suppress(OSError):
            os.write(answer, json.dumps(says).encode()[-60000:])
        os._exit(0)


def _run(suite: Any, name: str, rank: int, folder: str) -> dict[str, str]:
    import torch.distributed as dist
    from torch.testing._internal.common_distributed import TEST_SKIPS
    from torch.testing._internal.distributed.distributed_test import CUSTOM_PG_TIMEOUT

    case = suite(name)
    case.rank, case.file_name = rank, f"{folder}/store"
    dist.init_process_group(
        init_method=f"file://{folder}/store",
        backend=os.environ["TEST_BACKEND"],
        world_size=int(os.environ["WORLD_SIZE"]),
        rank=rank,
        timeout=timedelta(seconds=CUSTOM_PG_TIMEOUT.get(name, 60)),
    )
    try:
        case._barrier()  # a rank that leaves at once must not be missed by one that still starts
        getattr(case, name)()
        case._barrier()
    except unittest.SkipTest as skip:
        return {"outcome": "skipped", "reason": str(skip)}
    except SystemExit as leaving:
        skips = {each.exit_code: each.message for each in TEST_SKIPS.values()}
        why = skips.get(int(leaving.code or 0))
        return {"outcome": "skipped" if why else "failed", "reason": why or f"exit {leaving.code}"}
    if dist.is_initialized():
        dist.destroy_process_group()
    return {"outcome": "passed", "reason": ""}


def _collect(children: dict[int, tuple[int, int]]) -> dict[int, dict[str, str]]:
    """Wait for every rank's answer; kill those that are late."""
    says: dict[int, dict[str, str]] = {}
    texts = dict.fromkeys(children, b"")
    waiting = set(children)
    deadline = time.monotonic() + _TEST_SECONDS
    while waiting and time.monotonic() < deadline:
        ready, _, _ = select.select(list(waiting), [], [], 1.0)
        for pipe in ready:
            piece = os.read(pipe, 65536)
            texts[pipe] += piece
            if piece:
                continue
            waiting.discard(pipe)
            rank = children[pipe][0]
            died = {"outcome": "failed", "reason": "the process died"}
            says[rank] = json.loads(texts[pipe]) if texts[pipe] else died
            if says[rank]["outcome"] == "failed":
                deadline = min(deadline, time.monotonic() + _GRACE_SECONDS)
    for pipe, (rank, pid) in children.items():
        if pipe in waiting:
            says[rank] = {"outcome": "failed", "reason": "no answer in time"}
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(pipe)
    return says


def _judge(says: dict[int, dict[str, str]]) -> dict[str, str]:
    worst = max(
        says.values(), key=lambda one: ["passed", "skipped", "failed"].index(one["outcome"])
    )
    if worst["outcome"] != "failed":
        return worst
    reasons = [
        f"rank {rank}: {one['reason']}" for rank, one in sorted(says.items()) if one["reason"]
    ]
    return {"outcome": "failed", "reason": "\n".join(reasons)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--gates", choices=("none", "gloo", "mpi", "real"), default="none")
    parser.add_argument("--only", default="*", metavar="PATTERN")
    given = parser.parse_args()
    for outcome in outcomes(given.ranks, given.gates, given.only):
        print(json.dumps(outcome), flush=True)


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""torch's own DistributedTest: everything that is not skipped for a reason known here passes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ranks import environment

# Why torch does not run a test at all; docs/torch.md lists them.
SKIPS = {
    "no GPU here": r"CUDA|Nccl supports|NCCL|'nccl'|nccl metadata|[Hh]igh priority",
    "too few ranks": r"small world size|world size of 4|odd world size",
    "only MPI is let in": r"Only MPI supports",
    "only Gloo is let in": r"backend (mpi|hccomm) to be one of|[Gg]loo|GLOO",
    "torch has switched it off": r"github\.com/pytorch|flak|failing|MPI backend does not",
    "the machine lacks torchvision": r"torchvision",
    "it wants another way to meet": r"file:// initialization",
    "torch knows no such group of this name": (
        r"does(n't| not) support|not support creating subgroups"
    ),
}
# What fails, and why it must.
FAILURES = {
    # torch's C++ calls every third-party backend "custom"; the test asks for the name. Under Gloo's
    # it would go on to read a member of Gloo's class from our object.
    "gloo": {"test_ddp_logging_data_cpu"},
    # Also: the test's own name, "mpi", is not the group's.
    "mpi": {"test_ddp_logging_data_cpu", "test_get_backend"},
}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("ranks", "gates"), [(2, "gloo"), (4, "gloo"), (4, "mpi")])
def test_torchs_own_suite(ranks: int, gates: str) -> None:
    pytest.importorskip("expecttest", reason="torch's test utilities need expecttest")
    suite = str(Path(__file__).with_name("suite.py"))
    done = subprocess.run(
        [sys.executable, suite, "--ranks", str(ranks), "--gates", gates],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=850,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    tests = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]

    failed = {each["test"]: each["reason"] for each in tests if each["outcome"] == "failed"}
    unexplained = {
        each["test"]: each["reason"]
        for each in tests
        if each["outcome"] == "skipped"
        and not any(re.search(known, each["reason"]) for known in SKIPS.values())
    }
    passed = sum(each["outcome"] == "passed" for each in tests)

    print(f"{passed} of {len(tests)} tests passed, {len(failed)} failed, the others are skipped")
    assert set(failed) <= FAILURES[gates], json.dumps(failed, indent=1)
    assert not unexplained, json.dumps(unexplained, indent=1)
    assert passed >= 80

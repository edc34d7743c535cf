# SPDX-License-Identifier: Apache-2.0
"""The real CUDA runtime through every rule of the device seam, and groups that mix GPU and CPU."""

from __future__ import annotations

import os
import re
import subprocess

import pytest
from gpu_programs import SUITES, run_ranks

import hccomm

FAKES = SUITES.parent / "fakes"
MIXER = SUITES.parents[1] / "bench" / "micro" / "staging"


def cuda_library() -> str:
    """Return the libcudart that hccomm found: that of torch may be the only one."""
    row = next(row for row in hccomm.info()["devices"] if row["name"] == "cuda")
    return str(row["library"])


def test_the_adapter_keeps_every_rule_on_the_real_runtime() -> None:
    """The conformance suite, on the libcudart that hccomm finds by itself."""
    program = SUITES / "conformance_device"
    if not program.exists():
        pytest.skip(f"{program} is not built; run make test")

    done = subprocess.run(
        [program, "--gtest_filter=*cuda*"],
        env={**os.environ, "HCCOMM_CUDA_LIB": cuda_library()},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )

    assert done.returncode == 0, done.stdout[-4000:]
    assert re.search(r"\[  PASSED  \] \d+ tests", done.stdout)


def test_a_group_of_gpu_and_cpu_ranks_agrees() -> None:
    """One GPU rank and one CPU rank."""
    pytest.importorskip("torch")

    assert run_ranks("torch_ranks.py", 2).count("all right") == 2


def test_two_ranks_share_one_gpu() -> None:
    """GPU, CPU, GPU, CPU, interleaved; both GPU ranks on cuda:0."""
    pytest.importorskip("torch")

    assert run_ranks("torch_ranks.py", 4).count("all right") == 4


@pytest.mark.parametrize(
    ("other", "setting", "library"),
    [("opencl", "", ""), ("musa", "HCCOMM_MUSA_LIB", "musa/libmusart.so")],
)
def test_a_gpu_works_with_other_vendors(other: str, setting: str, library: str) -> None:
    """Two ranks each: on one GPU both, of the other vendor both, and mixed; every sum is checked.

    OpenCL is a real one where it is installed (PoCL will do), the other vendor a fake.
    """
    if not MIXER.exists():
        pytest.skip(f"{MIXER} is not built; run make test")
    row = next(row for row in hccomm.info()["devices"] if row["name"] == other)
    if not setting and not row["available"]:
        pytest.skip(str(row["reason"]))

    done = subprocess.run(
        [MIXER, "allreduce", "cuda", other, "1024", "16777216", "2"],
        env={
            **os.environ,
            "HCCOMM_CUDA_LIB": cuda_library(),
            **({setting: str(FAKES / library)} if setting else {}),
        },
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )

    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    groups = ("cuda+cuda", f"{other}+{other}", f"cuda+{other}")
    lines = [done.stdout.count(f"\n{group} ") for group in groups]
    assert lines[0] > 0, done.stdout
    assert lines == lines[:1] * 3, done.stdout  # a line per size in each

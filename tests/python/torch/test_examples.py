# SPDX-License-Identifier: Apache-2.0
"""The examples run, and frameworks over hccomm learn; those not installed are named."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ranks import environment

EXAMPLES = Path(__file__).parents[3] / "examples"


def run(*arguments: str) -> str:
    """Return what the program printed; fail with what it said if it failed."""
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**environment(), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=450,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    return done.stdout


def torchrun(name: str, ranks: int = 2) -> str:
    path = str(EXAMPLES / name)
    return run("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), path)


def needs(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed here: pip install {package}")


def learned(output: str) -> None:
    """Assert that every line with two losses shows one that fell to less than half."""
    losses = re.findall(r"loss ([\d.]+) -> ([\d.]+) over hccomm", output)
    assert losses, output
    for first, last in losses:
        assert float(last) < 0.5 * float(first), output


def test_a_small_gpt_learns_text_under_fsdp2() -> None:
    losses = [float(each) for each in re.findall(r"loss ([\d.]+)", torchrun("torch_gpt.py"))]

    assert losses[0] > 5.0  # knows nothing: about ln 256
    assert losses[-1] < 3.2  # knows more than how often each byte occurs


@pytest.mark.parametrize("name", ["torch_ddp.py", "torch_groups.py"])
def test_the_torch_examples_run(name: str) -> None:
    torchrun(name)


@pytest.mark.slow
def test_accelerate_trains_over_hccomm() -> None:
    needs("accelerate")

    learned(torchrun("accelerate_training.py"))


@pytest.mark.slow
def test_lightning_trains_over_hccomm() -> None:
    needs("lightning")

    learned(run(str(EXAMPLES / "lightning_training.py")))


@pytest.mark.slow
def test_ray_train_starts_ranks_over_hccomm() -> None:
    needs("ray")

    learned(run(str(EXAMPLES / "ray_train.py")))


@pytest.mark.slow
def test_deepspeed_shards_over_hccomm() -> None:
    needs("deepspeed")

    output = torchrun("deepspeed_zero.py")

    learned(output)
    assert "ZeRO-1" in output
    assert "ZeRO-2" in output


@pytest.mark.slow
def test_torchft_loses_a_worker_and_gets_another() -> None:
    needs("torchft")

    output = run(str(EXAMPLES / "torchft_loop.py"))

    ends = re.findall(r"worker ended at step (\d+) with (\[.*\])", output)
    assert len(ends) == 2
    assert ends[0] == ends[1]
    assert ends[0][0] == "30"

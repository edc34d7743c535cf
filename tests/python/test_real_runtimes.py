# SPDX-License-Identifier: Apache-2.0
"""The vendors' own libraries, where they are installed: what they say without a device.

They are the real ones, loaded in the way that a user's are. On a machine that has such a device
there is nothing to see here; tests/gpu has the rest.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_arrays import library

# By name: where it is looked for, and what its reason has to hold.
RUNTIMES = {
    "cuda": ("libcudart.so.12", ("CUDA",)),
    "hip": ("libamdhip64.so.5", ("hipErrorNoDevice",)),
    "level_zero": ("libze_loader.so.1", ("zeInit",)),
}


def in_wheel(package: str, name: str) -> str:
    """Return the path of a library that a package from PyPI brings; "" where it is not there."""
    try:
        wheel = importlib.util.find_spec(package)
    except ModuleNotFoundError:
        return ""
    places = wheel.submodule_search_locations if wheel is not None else None
    found = [Path(each) / "lib" / name for each in places or []]
    return next((str(each) for each in found if each.exists()), "")


def place_of(kind: str, name: str) -> str:
    """Return the path or the name of the real runtime; "" where it is not installed."""
    if kind == "cuda":
        return in_wheel("nvidia.cuda_runtime", name)
    try:
        ctypes.CDLL(name)
    except OSError:
        return ""
    return name


def told(**settings: str) -> tuple[dict[str, Any], str]:
    """Return what `hccomm info` tells in a fresh process, and what it printed beside."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("HCCOMM_TEST_FAKE")}
    done = subprocess.run(
        [sys.executable, "-m", "hccomm", "info", "--json"],
        env={**environ, **settings},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return json.loads(done.stdout), done.stderr


@pytest.mark.parametrize("kind", RUNTIMES)
def test_a_real_runtime_without_a_device_says_why(kind: str) -> None:
    name, words = RUNTIMES[kind]
    place = place_of(kind, name)
    if not place:
        pytest.skip(f"{name} is not installed here")

    all_of_it, beside = told(**{f"HCCOMM_{kind.upper()}_LIB": place})
    row = next(each for each in all_of_it["devices"] if each["name"] == kind)

    if row["available"]:
        pytest.skip(f"this machine has a device for {name}: {row}")
    assert name.split(".so")[0] in row["reason"], row
    assert all(word in row["reason"] for word in words), row
    assert beside == ""


def test_the_real_nccl_has_all_functions_that_an_island_calls(tmp_path: Path) -> None:
    """Beside a fake runtime: a library that lacks a function is not available, for that reason."""
    nccl = in_wheel("nvidia.nccl", "libnccl.so.2")
    if not nccl:
        pytest.skip("NCCL is not installed here: pip install nvidia-nccl-cu12")
    try:
        runtime = library("cuda", tmp_path)
    except FileNotFoundError as error:
        pytest.skip(str(error))

    all_of_it, _ = told(HCCOMM_CUDA_LIB=str(runtime), HCCOMM_CCL_CUDA_LIB=nccl)

    row = next(each for each in all_of_it["collective_libraries"] if each["name"] == "nccl")
    assert row["available"], row
    assert row["version"].startswith("2."), row

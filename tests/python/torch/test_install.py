# SPDX-License-Identifier: Apache-2.0
"""How the backend gets into torch: by itself, by import, compiled on the spot, and how it fails."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from ranks import environment

TRAIN = """
    import os, torch, torch.distributed as dist
    dist.init_process_group("hccomm")
    tensor = torch.ones(3)
    dist.all_reduce(tensor)
    assert tensor[0] == dist.get_world_size(), tensor
    dist.destroy_process_group()
    print(f"rank {os.environ['RANK']} is done\\n", end="")  # in one write: ranks share the pipe
"""


def script(folder: Path, text: str) -> str:
    path = folder / "train.py"
    path.write_text(textwrap.dedent(text))
    return str(path)


def python(
    *arguments: str, timeout: float = 120, **environ: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env={**environment(), "OMP_NUM_THREADS": "1", **environ},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def torchrun(path: str, size: int = 2, **environ: str) -> subprocess.CompletedProcess[str]:
    arguments = ["--standalone", "--nproc-per-node", str(size), path]
    return python("-m", "torch.distributed.run", *arguments, **environ)


def test_torchrun_needs_no_import_of_hccomm(tmp_path: Path) -> None:
    done = torchrun(script(tmp_path, TRAIN))

    assert done.returncode == 0, done.stderr
    assert "rank 0 is done" in done.stdout
    assert "rank 1 is done" in done.stdout


def test_importing_the_module_registers_where_autoload_is_off(tmp_path: Path) -> None:
    path = script(tmp_path, "    import hccomm.torch_backend" + TRAIN)

    done = torchrun(path, TORCH_DEVICE_BACKEND_AUTOLOAD="0")

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", ["hccomm.torch", "hccomm.torch_backend", "hccomm"])
def test_any_import_order_works(module: str) -> None:
    text = f"import {module}, torch; assert 'HCCOMM' in torch.distributed.Backend._plugins"

    done = python("-W", "error::RuntimeWarning", "-c", text)

    assert done.returncode == 0, done.stderr


def test_import_torch_loads_no_library_of_ours() -> None:
    text = """if True:
        import torch, hccomm.torch_backend
        loaded = open("/proc/self/maps").read()
        assert "libhccomm" not in loaded
        hccomm.torch_backend.register()
    """

    done = python("-c", text)

    assert done.returncode == 0, done.stderr


def test_a_broken_installation_never_breaks_import_torch(tmp_path: Path) -> None:
    broken = tmp_path / "hccomm"
    broken.mkdir()
    real = Path(sys.modules["hccomm"].__file__ or "").parent
    for file in real.glob("*.py"):
        (broken / file.name).write_text(file.read_text())
    (broken / "torch_backend.py").write_text("raise OSError('half an installation')\n")
    environ = environment()

    done = python(
        "-c",
        "import torch; print(torch.ones(2).sum())",
        PYTHONPATH=os.pathsep.join([str(tmp_path), environ["PYTHONPATH"]]),
        PYTHONSAFEPATH="1",
    )

    assert done.returncode == 0, done.stderr
    assert "half an installation" in done.stderr


def test_detail_mode_of_torch_works(tmp_path: Path) -> None:
    text = TRAIN.replace("dist.destroy", "dist.new_group(); dist.barrier()\n    dist.destroy")

    done = torchrun(script(tmp_path, text), TORCH_DISTRIBUTED_DEBUG="DETAIL")

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("settings", "talks"),
    [
        ({}, False),
        ({"TORCH_CPP_LOG_LEVEL": "INFO"}, True),
        ({"TORCH_LOGS": "distributed"}, True),
        ({"TORCH_CPP_LOG_LEVEL": "INFO", "HCCOMM_LOG": "warn"}, False),
    ],
    ids=["default", "C++", "Python", "ours first"],
)
def test_torchs_settings_for_logs_are_heard(
    tmp_path: Path, settings: dict[str, str], talks: bool
) -> None:
    alone = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}

    done = python(script(tmp_path, TRAIN), **alone, **settings)

    assert done.returncode == 0, done.stderr
    assert ("hccomm[0] info:" in done.stderr) == talks, done.stderr


def test_no_compiler_is_said_clearly(tmp_path: Path) -> None:
    done = python(
        script(tmp_path, TRAIN),
        HCCOMM_PY_TORCH_GLUE="compile",
        HCCOMM_CACHE_DIR=str(tmp_path),
        CXX="no-such-compiler",
        RANK="0",
        WORLD_SIZE="1",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT="0",
    )

    assert done.returncode != 0
    assert "there is no C++ compiler to make it (CXX=no-such-compiler not found)" in done.stderr
    assert "install one" in done.stderr


def test_a_failing_compiler_is_quoted(tmp_path: Path) -> None:
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\necho 'glue.cpp:1: error: I am no compiler' >&2; exit 1\n")
    compiler.chmod(0o755)

    done = python(
        script(tmp_path, TRAIN),
        HCCOMM_PY_TORCH_GLUE="compile",
        HCCOMM_CACHE_DIR=str(tmp_path / "cache"),
        CXX=str(compiler),
        RANK="0",
        WORLD_SIZE="1",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT="0",
    )

    assert done.returncode != 0
    assert "error: I am no compiler" in done.stderr
    assert not list((tmp_path / "cache").glob("*.so"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_one_of_several_ranks_compiles_the_glue(tmp_path: Path) -> None:
    log = tmp_path / "calls"
    compiler = tmp_path / "c++"
    compiler.write_text(f'#!/bin/sh\necho call >> {log}\nexec c++ -O0 "$@"\n')
    compiler.chmod(0o755)

    done = python(
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        script(tmp_path, TRAIN),
        timeout=800,
        HCCOMM_PY_TORCH_GLUE="compile",
        HCCOMM_CACHE_DIR=str(tmp_path / "cache"),
        CXX=str(compiler),
    )

    assert done.returncode == 0, done.stderr
    assert log.read_text().split() == ["call"]
    assert len(list((tmp_path / "cache").glob("*.so"))) == 1


UNDER_ANOTHER_NAME = """
    import datetime, sys, torch, torch.distributed as dist
    import hccomm, hccomm.torch
    name = sys.argv[1]
    hccomm.install(as_=name)
    hccomm.install(as_=name)
    backend = name if name == "nccl" else "cpu:gloo"
    dist.init_process_group(backend, timeout=datetime.timedelta(seconds=60))
    assert dist.get_backend() == backend, dist.get_backend()
    assert hccomm.torch.describe()["size"] == dist.get_world_size()
    half = dist.new_group([0, 1], backend=name)
    assert dist.get_backend(half) == name
    net = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 2), process_group=half)
    net(torch.full((2, 4), 1.0 + dist.get_rank())).sum().backward()
    assert torch.equal(net.module.weight.grad, torch.full((2, 4), 3.0))
    if name == "gloo":
        dist.monitored_barrier(half)
    hccomm.uninstall()
    hccomm.uninstall()
    if name == "gloo":
        real = dist.new_group(backend="gloo")
        assert real._get_backend(torch.device("cpu")).name() == "gloo"
    total = torch.ones(2)
    dist.all_reduce(total, group=half)
    assert total[0] == 2
    dist.destroy_process_group()
"""


@pytest.mark.parametrize("name", ["gloo", "nccl"])
def test_another_backends_name_gives_hccomm_when_asked(tmp_path: Path, name: str) -> None:
    path = script(tmp_path, UNDER_ANOTHER_NAME)
    arguments = ["--standalone", "--nproc-per-node", "2", path, name]

    done = python("-m", "torch.distributed.run", *arguments)

    assert done.returncode == 0, done.stderr


def test_only_known_names_can_be_taken() -> None:
    import hccomm

    with pytest.raises(hccomm.InvalidArgument, match='"gloo" or "nccl", not \'tcp\''):
        hccomm.install(as_="tcp")

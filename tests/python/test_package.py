# SPDX-License-Identifier: Apache-2.0
"""The package: what importing costs, the header's numbers, launchers, the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import hccomm
from hccomm import _header, bench, buffers, launchers, requests
from hccomm._native import library
from hccomm.cli import app


def test_importing_loads_no_torch_no_numpy_and_no_library() -> None:
    code = (
        "import sys, hccomm\n"
        "print([m for m in ('torch', 'numpy', '_cffi_backend', 'ctypes', 'typer', 'mpi4py',"
        " 'multiprocessing', 'inspect') if m in sys.modules])\n"
        "print(any('libhccomm' in line for line in open('/proc/self/maps')))"
    )

    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )

    assert said.stdout.split("\n")[:2] == ["[]", "False"]


def test_the_numbers_of_python_are_the_numbers_of_the_header() -> None:
    lib = library().lib
    names = {"f8e4m3fn": "F8E4M3FN", "f8e5m2": "F8E5M2"}
    for number, name in enumerate(buffers.DTYPES):
        assert getattr(lib, f"HCCOMM_{names.get(name, name.upper())}") == number
    for number, op in enumerate(requests.OPS):
        assert getattr(lib, f"HCCOMM_{op.upper()}") == number
    for collective, number in requests.COLLECTIVES.items():
        assert getattr(lib, f"HCCOMM_{collective.upper()}") == number
    for error in hccomm.Error.__subclasses__():
        words = "".join(f"_{c}" if c.isupper() else c.upper() for c in error.__name__)
        assert getattr(lib, f"HCCOMM{words.upper()}") == error.code
    assert lib.HCCOMM_ANY_SOURCE == hccomm.ANY_SOURCE


def test_declarations_keep_numbers_and_drop_directives() -> None:
    header = (
        '#ifndef H\n#define H\n#ifdef __cplusplus\nextern "C" {\n#endif\n#define HCCOMM_A (-1)\n'
        "#define HCCOMM_B 2u\n#define HCCOMM_API __attribute__\nHCCOMM_API int f(void);\n#endif\n"
    )

    assert _header.declarations(header) == "#define HCCOMM_A -1\n#define HCCOMM_B 2\nint f(void);\n"


@pytest.mark.parametrize(
    ("environ", "launcher", "rank", "size", "one_host"),
    [
        ({}, "none", 0, 1, True),
        ({"RANK": "2", "WORLD_SIZE": "4", "MASTER_ADDR": "a", "MASTER_PORT": "9"},
         "environment", 2, 4, False),
        ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "a",
          "MASTER_PORT": "9", "TORCHELASTIC_USE_AGENT_STORE": "True"}, "torchrun", 1, 2, True),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "3",
          "OMPI_COMM_WORLD_LOCAL_SIZE": "3", "PMIX_NAMESPACE": "j"}, "Open MPI", 1, 3, True),
        ({"PMI_RANK": "1", "PMI_SIZE": "3", "MPI_LOCALNRANKS": "1"},
         "MPICH or Intel MPI", 1, 3, False),
        ({"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "2",
          "SLURM_STEP_NODELIST": "n[07-08]"}, "Slurm", 5, 8, False),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, "none", 0, 1, True),
    ],
)  # fmt: skip
def test_the_launcher_is_known_by_its_variables(
    environ: dict[str, str], launcher: str, rank: int, size: int, one_host: bool
) -> None:
    found = launchers.detect(environ)

    assert (found.launcher, found.rank, found.size, found.one_host) == (
        launcher, rank, size, one_host
    )  # fmt: skip


def test_slurm_ranks_of_several_nodes_meet_at_the_first() -> None:
    environ = {"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "2",
               "SLURM_STEP_NODELIST": "n[07-08],m1", "SLURM_JOB_ID": "7"}  # fmt: skip

    assert launchers.detect(environ).url.startswith("tcp://n07:")


def test_a_python_store_can_bring_ranks_together() -> None:
    class Fails:
        def set(self, key: str, value: bytes) -> None:
            raise KeyError("the store is on fire")

        def get(self, key: str, timeout: float) -> bytes | None:
            return None

    with pytest.raises(KeyError, match="on fire"):
        hccomm.init(rank=0, size=2, store=Fails(), timeout=2.0)


# ---- the command line ----------------------------------------------------------------------


def _run(*arguments: str) -> str:
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, f"{done.output} {done.exception}"
    return done.output


def test_info_lists_transports_and_their_reasons() -> None:
    found = json.loads(_run("info", "--json"))

    assert {"shm", "tcp"} <= {each["name"] for each in found["transports"]}
    assert found["version"] == hccomm.version()
    assert "tcp" in _run("info")


def test_info_says_of_every_device_runtime_what_it_found_or_why_nothing() -> None:
    found = {row["name"]: row for row in json.loads(_run("info", "--json"))["devices"]}

    assert {"cuda", "hip", "ascend", "cnrt", "level_zero", "opencl"} <= set(found)
    for row in found.values():
        assert (row["count"] > 0) == row["available"]
        assert bool(row["reason"]) != row["available"]


def test_info_config_is_the_table_of_all_settings() -> None:
    said = _run("info", "--config")

    for each in hccomm.settings():
        assert f"`{each['name']}`" in said


def test_explain_says_which_algorithm_and_why() -> None:
    found = json.loads(_run("explain", "allreduce", "--ranks", "4", "--bytes", "64K", "--json"))

    assert found["algorithm"]
    assert found["why"]
    assert "send" in _run("explain", "all_reduce", "--plan", "--rank", "1").lower()


def test_explain_says_how_a_call_goes_over_islands() -> None:
    found = hccomm.explain("all_reduce", count=12, size=6, islands="cuda:0,2,5;musa:1,4")["islands"]
    large = hccomm.explain("all_reduce", count=1 << 20, size=6, islands="cuda:0,2,5;musa:1,4")

    assert found["way"] == "hccomm's own way: below 64 KiB one staged hop is quicker"
    over = large["islands"]
    assert over["way"] == "the libraries inside islands, rails between them"
    assert [each["ranks"] for each in over["islands"]] == [[0, 2, 5], [1, 4], [3]]
    assert [each["ranks"] for each in over["rails"]] == [[0, 1, 3], [2, 1, 3], [2, 4, 3], [5, 4, 3]]
    assert sum(each["count"] for each in over["rails"]) == (2 << 20) // 4 // 6 * 6
    assert "no data" in _run("explain", "barrier", "--islands", "cuda:0-3")


@pytest.mark.parametrize(
    ("islands", "words"),
    [("0-2", "names no kind"), ("cuda:0-2;musa:2", "two islands"), ("cuda:3-9", "outside 0..3"),
     ("gpu:0,1", "gpu"), ("cuda:0--1", "no list of ranks"), ("cuda:1,1", "twice")],
)  # fmt: skip
def test_explain_refuses_islands_that_cannot_be(islands: str, words: str) -> None:
    with pytest.raises(hccomm.InvalidArgument, match=words):
        hccomm.explain("all_reduce", count=1, size=4, islands=islands)


@pytest.mark.parametrize(("collective", "words"), [("allsum", "allsum"), ("send", "no collective")])
def test_explain_refuses_what_is_no_collective(collective: str, words: str) -> None:
    with pytest.raises(hccomm.InvalidArgument, match=words):
        hccomm.explain(collective, count=1, size=2)


def test_bench_prints_the_table_and_writes_what_it_found(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hccomm", "bench", "all", "--ranks", "2", "--min", "8", "--max",
         "4K", "--factor", "16", "--seconds", "0.01", "--json", str(tmp_path / "b.jsonl"),
         "--csv", str(tmp_path / "b.csv")],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr

    rows = [json.loads(line) for line in (tmp_path / "b.jsonl").read_text().splitlines()]
    assert {row["collective"] for row in rows} == set(bench.BENCHES)
    assert all(row["wrong"] == 0 for row in rows)
    assert len((tmp_path / "b.csv").read_text().splitlines()) == len(rows) + 1
    assert "#wrong" in done.stdout
    assert "out-of-place" in done.stdout


def test_keygen_writes_a_key_for_the_owner_alone(tmp_path: Path) -> None:
    _run("keygen", str(tmp_path / "key"))

    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    assert len((tmp_path / "key").read_text().strip()) == 44


@pytest.mark.parametrize(
    ("text", "size"), [("8", 8), ("64K", 65536), ("2g", 2 << 30), ("1MB", 1 << 20)]
)
def test_sizes_are_read_with_their_units(text: str, size: int) -> None:
    assert bench.parse_bytes(text) == size


def test_bus_factors_are_those_of_nccl_tests() -> None:
    factors: dict[str, Any] = {name: bench.bus_factor(name, 4) for name in bench.BENCHES}

    assert factors["all_reduce"] == 1.5
    assert factors["all_gather"] == factors["reduce_scatter"] == factors["all_to_all"] == 0.75
    assert factors["broadcast"] == factors["reduce"] == factors["sendrecv"] == 1.0


_MEETS = """
import sys
rank, where = int(sys.argv[1]), sys.argv[2]
if rank == 1:
    sys.modules["torch"] = None  # importing it fails, as where it is not installed
import hccomm, numpy
values = numpy.full(100_000, rank + 1, numpy.float32)
if rank == 0:
    import torch
    values = torch.from_numpy(values)
with hccomm.init(rank=rank, size=2, rendezvous=where, timeout=100) as comm:
    comm.all_reduce(values)
    print(hccomm.version(), comm.size, float(values.min()), float(values.max()))
"""


def test_ranks_of_different_builds_meet(tmp_path: Path) -> None:
    """One rank has torch, the other has none and a library of another version; the wire is one."""
    pytest.importorskip("torch", reason="one of the ranks is to have torch")
    version = hccomm.version().encode() + b"\0"
    other = version[:-2] + (b"9" if version[-2:-1] != b"9" else b"8") + b"\0"
    build = Path(library().path).read_bytes()
    assert version in build
    (tmp_path / "libhccomm.so").write_bytes(build.replace(version, other))
    libraries = [library().path, str(tmp_path / "libhccomm.so")]

    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", _MEETS, str(rank), f"file://{tmp_path}/store"],
            env=os.environ | {"HCCOMM_PY_LIBRARY": path},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank, path in enumerate(libraries)
    ]  # fmt: skip
    try:
        said = [each.communicate(timeout=120) for each in ranks]
    finally:
        for each in ranks:
            each.kill()

    assert [each.returncode for each in ranks] == [0, 0], said
    assert [out.split() for out, _ in said] == [
        [hccomm.version(), "2", "3.0", "3.0"],
        [other[:-1].decode(), "2", "3.0", "3.0"],
    ]

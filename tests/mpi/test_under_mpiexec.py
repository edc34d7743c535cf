# SPDX-License-Identifier: Apache-2.0
"""hccomm under the mpiexec of Open MPI and MPICH, against what mpi4py computes."""

from __future__ import annotations

import ctypes.util
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import mpis
import pytest

COMPARE = Path(__file__).with_name("compare.py")


def _run(
    name: str, ranks: int, *argv: str, environ: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program under an MPI; everything it started ends with it."""
    found = mpis.find(name)
    if isinstance(found, str):
        pytest.skip(found)
    process = subprocess.Popen(
        found.command(ranks, sys.executable, *argv),
        env=os.environ | found.environ | (environ or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGABRT)
        out, err = process.communicate(timeout=30)
        pytest.fail(f"{name} with {ranks} ranks did not end: {out}\n{err}")
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("name", ["openmpi", "mpich"])
def test_every_collective_equals_mpis_own(name: str, ranks: int) -> None:
    how = ("alone", "comm", "initialised")[ranks % 3]

    done = _run(name, ranks, str(COMPARE), how)

    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("equal "), done.stdout + done.stderr
    assert int(done.stdout.split()[1]) > 500


@pytest.mark.parametrize(
    ("name", "how"), [("openmpi", "initialised"), ("mpich", "comm"), ("mpich", "initialised")]
)
def test_every_collective_over_ofi_equals_mpis_own(name: str, how: str) -> None:
    """Where the MPI has loaded a libfabric that one serves hccomm, too; else the system's."""
    if name != "mpich" and ctypes.util.find_library("fabric") is None:
        pytest.skip("no libfabric of the system here")
    ofi = {"HCCOMM_TRANSPORTS": "ofi", "HCCOMM_OFI_PROVIDER": "tcp"}

    done = _run(name, 3, str(COMPARE), how, environ=ofi)

    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.split()[1]) > 500, done.stdout + done.stderr


@pytest.mark.parametrize("how", ["alone", "comm", "initialised"])
@pytest.mark.parametrize("name", ["openmpi", "mpich"])
def test_ranks_meet_with_and_without_mpi4py(name: str, how: str) -> None:
    code = (
        "import sys, numpy\n"
        f"how = {how!r}\n"
        "if how != 'alone':\n    from mpi4py import MPI\n"
        "import hccomm\n"
        "with hccomm.init(**({'comm': MPI.COMM_WORLD} if how == 'comm' else {})) as comm:\n"
        "    total = comm.all_reduce(numpy.array([comm.rank + 1]))[0]\n"
        "    if comm.rank == 0: print('total', total, comm.size)\n"
        "if how == 'alone': assert 'mpi4py' not in sys.modules\n"
    )

    done = _run(name, 3, "-c", code)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "total 6 3" in done.stdout, done.stdout + done.stderr


def test_hccomm_bench_runs_under_mpiexec() -> None:
    options = ("--min", "64", "--max", "1K", "--seconds", "0.01")

    done = _run("mpich", 2, "-m", "hccomm", "bench", "all_reduce", *options)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "hccomm" in done.stdout
    assert "2 ranks" in done.stdout


@pytest.mark.parametrize("which", ["mpi's own", "the system's beside it"])
def test_hccomm_and_mpich_use_libfabric_in_one_process(which: str) -> None:
    """MPICH brings a libfabric; hccomm takes that one, or with a path a second one."""
    system = ctypes.util.find_library("fabric")
    if which != "mpi's own" and system is None:
        pytest.skip("no libfabric of the system here")
    place = f"/lib/{platform.machine()}-linux-gnu/{system}" if which != "mpi's own" else ""
    code = (
        "import os, numpy\n"
        "from mpi4py import MPI\n"
        "os.environ['HCCOMM_TRANSPORTS'] = 'ofi'\n"
        "os.environ['HCCOMM_OFI_PROVIDER'] = 'tcp'\n"
        f"if {place!r}: os.environ['HCCOMM_OFI_LIB'] = {place!r}\n"
        "import hccomm\n"
        "with hccomm.init(comm=MPI.COMM_WORLD) as comm:\n"
        "    for n in (1, 5000, 400_000):\n"
        "        mine, theirs = numpy.full(n, comm.rank + 1.0), numpy.empty(n)\n"
        "        MPI.COMM_WORLD.Allreduce(mine, theirs)\n"
        "        assert (comm.all_reduce(mine) == theirs).all()\n"
        "    loaded = {l.split()[-1] for l in open('/proc/self/maps') if 'libfabric.so' in l}\n"
        "    if comm.rank == 0: print('libraries', len(loaded), comm.describe()['peers'][0])\n"
    )

    done = _run("mpich", 2, "-c", code)

    assert done.returncode == 0, done.stdout + done.stderr
    assert f"libraries {1 if not place else 2}" in done.stdout, done.stdout + done.stderr
    assert "'ofi'" in done.stdout

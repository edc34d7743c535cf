# SPDX-License-Identifier: Apache-2.0
"""Who started this process, as which rank of how many, and how the ranks can agree on a place.

rendezvous.init() asks detect(). A launcher is told by its environment variables; the first that
matches wins: torchrun (and anything that sets RANK and WORLD_SIZE), Open MPI, MPICH and Intel MPI
(PMI), Slurm. ``share`` hands one short text from rank 0 to all, by whatever the launcher offers:
torch's agent store, MPI, PMI's key-value space. Where it offers nothing, ``key`` is a text that all
ranks of the job know and no other job has, from which a folder of one host can be named.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from hccomm.errors import InvalidArgument, System, Unavailable

Share = Callable[[str], str]  # rank 0's text in, rank 0's text out; collective


class Launched(NamedTuple):
    """What the launcher says about this process."""

    launcher: str
    rank: int
    size: int
    one_host: bool  # whether all ranks run on this host; False when it cannot tell
    key: str = ""  # names the job on this host
    url: str = ""  # where to meet, when the launcher says so
    share: Share | None = None
    private: bool = False  # what is shared goes through MPI itself, fit for a job key


def detect(environ: Mapping[str, str] | None = None) -> Launched:
    """Return what launched this process; no launcher gives a group of one."""
    environ = os.environ if environ is None else environ
    for probe in (_torchrun, _open_mpi, _pmi, _slurm):
        found = probe(environ)
        if found is not None:
            return found
    return Launched("none", 0, 1, True, key=f"single-{os.getpid()}")


def from_mpi4py(comm: Any) -> Launched:
    """Return what an mpi4py communicator says."""
    rank, size = int(comm.Get_rank()), int(comm.Get_size())
    hosts = set(comm.allgather(_host_identity()))
    share: Share = lambda text: _bcast(comm, text)  # noqa: E731
    return Launched("mpi4py", rank, size, len(hosts) == 1, share=share, private=True)


def _bcast(comm: Any, text: str) -> str:
    return str(comm.bcast(text, root=0))


def _host_identity() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/mnt')}"
    except OSError:
        return os.uname().nodename


def _number(environ: Mapping[str, str], name: str) -> int:
    text = environ.get(name, "")
    try:
        return int(text)
    except ValueError:
        raise InvalidArgument(
            f'init: {name}="{text}" is no whole number; mend the launcher, or pass rank and size'
        ) from None


def _torchrun(environ: Mapping[str, str]) -> Launched | None:
    """RANK, WORLD_SIZE and MASTER_*: torchrun, or a script that follows its convention.

    torchrun's agent already listens on MASTER_PORT, with torch's own store. Ranks of one host need
    none of it: they meet in a folder named after the run and the agent's process. Ranks of several
    hosts use the agent's store, through torch, to agree on an address of rank 0.
    """
    if "RANK" not in environ or "WORLD_SIZE" not in environ:
        return None
    rank, size = _number(environ, "RANK"), _number(environ, "WORLD_SIZE")
    one_host = environ.get("LOCAL_WORLD_SIZE") == environ["WORLD_SIZE"]
    address, port = environ.get("MASTER_ADDR", ""), environ.get("MASTER_PORT", "")
    if environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        parts = (
            environ.get("TORCHELASTIC_RUN_ID", ""),
            environ.get("TORCHELASTIC_RESTART_COUNT", ""),
            address,
            port,
            str(os.getppid()),  # the agent: tells this run from an earlier one of the same name
        )
        return Launched(
            "torchrun", rank, size, one_host, key="torchrun " + " ".join(parts),
            share=lambda text: _agent_share(address, port, rank, text),
        )  # fmt: skip
    url = f"tcp://{address}:{port}" if address and port else ""
    return Launched("environment", rank, size, one_host, url=url)


def _agent_share(address: str, port: str, rank: int, text: str) -> str:
    try:
        from torch.distributed import TCPStore  # type: ignore[attr-defined,unused-ignore]
    except ImportError as error:
        raise Unavailable(
            "init: torchrun's ranks are on several hosts and torch cannot be imported, so they "
            "have no way to meet; set HCCOMM_RENDEZVOUS=tcp://<host of rank 0>:<free port>"
        ) from error
    store = TCPStore(address, int(port), is_master=False)
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    key = f"hccomm/{restart}/{next_of('agent')}"
    if rank == 0:
        store.set(key, text)
    return bytes(store.get(key)).decode()


def _open_mpi(environ: Mapping[str, str]) -> Launched | None:
    if "OMPI_COMM_WORLD_RANK" not in environ or "OMPI_COMM_WORLD_SIZE" not in environ:
        return None
    rank, size = (_number(environ, f"OMPI_COMM_WORLD_{each}") for each in ("RANK", "SIZE"))
    local = environ.get("OMPI_COMM_WORLD_LOCAL_SIZE", "")
    job = environ.get("PMIX_NAMESPACE") or environ.get("OMPI_MCA_ess_base_jobid", "")
    server = next((environ[each] for each in sorted(environ) if "PMIX_SERVER_URI" in each), "")
    key = f"openmpi {job} {server}" if job else ""
    share = _mpi_share()
    return Launched(
        "Open MPI", rank, size, local == str(size), key=key, share=share, private=share is not None
    )


def _pmi(environ: Mapping[str, str]) -> Launched | None:
    if "PMI_RANK" not in environ or "PMI_SIZE" not in environ:
        return None
    rank, size = _number(environ, "PMI_RANK"), _number(environ, "PMI_SIZE")
    one_host = environ.get("MPI_LOCALNRANKS") == environ["PMI_SIZE"]
    share = _mpi_share()
    private = share is not None
    if share is None and environ.get("PMI_FD"):
        descriptor = _number(environ, "PMI_FD")
        share = lambda text: _pmi_share(descriptor, rank, text)  # noqa: E731
    return Launched("MPICH or Intel MPI", rank, size, one_host, share=share, private=private)


def _slurm(environ: Mapping[str, str]) -> Launched | None:
    """Ranks of ``srun`` without PMI. A batch script itself is no rank: it has no step's tasks."""
    if "SLURM_STEP_NUM_TASKS" not in environ or "SLURM_PROCID" not in environ:
        return None
    rank, size = _number(environ, "SLURM_PROCID"), _number(environ, "SLURM_STEP_NUM_TASKS")
    job = f"{environ.get('SLURM_JOB_ID', '')}.{environ.get('SLURM_STEP_ID', '')}"
    one_host = environ.get("SLURM_STEP_NUM_NODES") == "1"
    first = _first_host(environ.get("SLURM_STEP_NODELIST", ""))
    port = 20000 + hash_of(job) % 20000
    url = f"tcp://{first}:{port}" if first and not one_host else ""
    return Launched("Slurm", rank, size, one_host, key=f"slurm {job}", url=url)


def _first_host(nodes: str) -> str:
    """Return the first name of a Slurm list: ``n[07-09,12],m1`` gives ``n07``."""
    head, bracket, rest = nodes.partition("[")
    if "," in head or not bracket:
        return nodes.split(",")[0]
    return head + rest.split("]")[0].split(",")[0].split("-")[0]


def hash_of(text: str) -> int:
    """Return a number that is the same for ``text`` in every process."""
    import hashlib

    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _mpi_share() -> Share | None:
    """Return a share through mpi4py where the program has already started MPI."""
    mpi = sys.modules.get("mpi4py.MPI")
    if mpi is None or not mpi.Is_initialized() or mpi.Is_finalized():
        return None
    return lambda text: _bcast(mpi.COMM_WORLD, text)


_counts: dict[str, int] = {}


def next_of(what: str) -> int:
    """Return 0, 1, ... for each call: ranks call in the same order, so they agree."""
    _counts[what] = _counts.get(what, -1) + 1
    return _counts[what]


def _pmi_share(descriptor: int, rank: int, text: str) -> str:
    """Put rank 0's text into PMI's key-value space: the PMI-1 protocol over PMI_FD.

    It leaves the session open until the process ends, so that MPI may still be initialised.
    """
    import socket

    with socket.socket(fileno=os.dup(descriptor)) as wire, wire.makefile("rb") as lines:
        wire.settimeout(120.0)
        try:
            pmi = _Pmi(wire, lines)
            number = next_of("pmi")
            if number == 0:
                pmi.ask("init pmi_version=1 pmi_subversion=1", "response_to_init")
                atexit.register(_pmi_end, descriptor, os.getpid())
            space = pmi.ask("get_my_kvsname", "my_kvsname")["kvsname"]
            key = f"hccomm.{number}"
            if rank == 0:
                pmi.ask(f"put kvsname={space} key={key} value={text}", "put_result")
            pmi.ask("barrier_in", "barrier_out")
            return pmi.ask(f"get kvsname={space} key={key}", "get_result")["value"]
        finally:
            wire.setblocking(True)  # MPI shares the connection, and the flag with it


def _pmi_end(descriptor: int, pid: int) -> None:
    """End the session: Intel MPI's launcher kills a job of which a rank just leaves."""
    import socket

    mpi = sys.modules.get("mpi4py.MPI")
    if os.getpid() != pid or (mpi is not None and mpi.Is_initialized()):
        return  # another process, or MPI has ended it
    try:
        with socket.socket(fileno=os.dup(descriptor)) as wire, wire.makefile("rb") as lines:
            wire.settimeout(5.0)
            _Pmi(wire, lines).ask("finalize", "finalize_ack")
    except (OSError, System):
        pass  # the launcher is gone


class _Pmi:
    """The PMI-1 wire: one line for a question, one for its answer."""

    def __init__(self, wire: Any, lines: Any) -> None:
        self._wire, self._lines = wire, lines

    def ask(self, question: str, answer: str) -> dict[str, str]:
        try:
            self._wire.sendall(f"cmd={question}\n".encode())
            line = self._lines.readline().decode("utf-8", "replace").strip()
        except OSError as error:
            raise System(f"init: the process manager does not answer on PMI_FD: {error}") from error
        words = dict(word.split("=", 1) for word in line.split(" ") if "=" in word)
        if words.get("cmd") != answer or words.get("rc", "0") != "0":
            raise System(
                f'init: PMI "{question}" was answered by "{line[:200]}"; set HCCOMM_RENDEZVOUS='
                "tcp://<host of rank 0>:<free port> to meet without PMI"
            )
        return words

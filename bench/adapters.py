# SPDX-License-Identifier: Apache-2.0
"""The peers, dressed as hccomm.bench.Adapter so that one loop measures them all.

bench/peers.py starts each under its own launcher and calls make(). The adapters add as little as
they can: arguments are prepared once for each pair of buffers, not on every call.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from oneccl_adapter import OneCcl

import hccomm

PEERS = ("hccomm", "hccomm-torch", "gloo", "openmpi", "mpich", "impi", "oneccl")


def make(name: str) -> Any:
    """Return the adapter called ``name``; the launcher's environment says who we are."""
    if name == "hccomm":
        return hccomm.init()
    if name in ("hccomm-torch", "gloo"):
        return Torch("hccomm" if name == "hccomm-torch" else "gloo")
    if name == "oneccl":
        return OneCcl()
    return Mpi()


class Mpi:
    """mpi4py, over whichever MPI MPI4PY_LIBMPI names."""

    def __init__(self) -> None:
        from mpi4py import MPI

        self._mpi, self._comm = MPI, MPI.COMM_WORLD
        self.rank, self.size = self._comm.Get_rank(), self._comm.Get_size()
        self.version = MPI.Get_library_version().split("\n")[0].split(",")[0].strip()
        self._ops = {"sum": MPI.SUM, "prod": MPI.PROD, "min": MPI.MIN, "max": MPI.MAX}

    def all_reduce(self, buffer: Any, op: str, *, out: Any) -> None:
        source = self._mpi.IN_PLACE if out is buffer else buffer
        self._comm.Allreduce(source, out, self._ops[op])

    def reduce_scatter(self, buffer: Any, op: str, *, out: Any) -> None:
        self._comm.Reduce_scatter_block(buffer, out, self._ops[op])

    def reduce(self, buffer: Any, op: str, *, root: int, out: Any) -> None:
        in_place = out is buffer and self.rank == root
        self._comm.Reduce(self._mpi.IN_PLACE if in_place else buffer, out, self._ops[op], root)

    def broadcast(self, buffer: Any, root: int) -> None:
        self._comm.Bcast(buffer, root)

    def all_gather(self, buffer: Any, *, out: Any) -> None:
        self._comm.Allgather(buffer, out)

    def gather(self, buffer: Any, *, root: int, out: Any) -> None:
        self._comm.Gather(buffer, out, root)

    def scatter(self, buffer: Any, *, root: int, out: Any) -> None:
        self._comm.Scatter(buffer, out, root)

    def all_to_all(self, buffer: Any, *, out: Any) -> None:
        self._comm.Alltoall(buffer, out)

    def barrier(self) -> None:
        self._comm.Barrier()

    def sendrecv(self, buffer: Any, dest: int, out: Any, source: int) -> None:
        self._comm.Sendrecv(buffer, dest, recvbuf=out, source=source)


class Torch:
    """torch.distributed with one of its backends, on tensors that share NumPy's memory."""

    def __init__(self, backend: str) -> None:
        import torch
        import torch.distributed as dist

        if backend == "hccomm":
            import hccomm.torch_backend  # noqa: F401  # where no wheel is installed
        torch.set_num_threads(1)
        dist.init_process_group(backend)
        self._torch, self._dist = torch, dist
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.version = f"{backend} of torch {torch.__version__}"
        names = {"sum": "SUM", "prod": "PRODUCT", "min": "MIN", "max": "MAX"}
        self._ops = {ours: getattr(dist.ReduceOp, theirs) for ours, theirs in names.items()}
        self._tensors: dict[tuple[int, int, str], Any] = {}

    def _of(self, array: Any) -> Any:
        key = (array.ctypes.data, array.size, array.dtype.char) if array.size < 65536 else None
        found = self._tensors.get(key) if key else None
        if found is None:
            found = self._torch.from_numpy(array)
            if key:
                self._tensors = {key: found, **dict(list(self._tensors.items())[:3])}
        return found

    def all_reduce(self, buffer: Any, op: str, *, out: Any) -> None:
        if out is not buffer:  # torch reduces in place only
            out[...] = buffer
        self._dist.all_reduce(self._of(out), self._ops[op])

    def reduce_scatter(self, buffer: Any, op: str, *, out: Any) -> None:
        self._dist.reduce_scatter_tensor(self._of(out), self._of(buffer), self._ops[op])

    def reduce(self, buffer: Any, op: str, *, root: int, out: Any) -> None:
        if out is not buffer:
            out[...] = buffer
        self._dist.reduce(self._of(out), root, self._ops[op])

    def broadcast(self, buffer: Any, root: int) -> None:
        self._dist.broadcast(self._of(buffer), root)

    def all_gather(self, buffer: Any, *, out: Any) -> None:
        self._dist.all_gather_into_tensor(self._of(out), self._of(buffer))

    def gather(self, buffer: Any, *, root: int, out: Any) -> None:
        parts = list(self._of(out).chunk(self.size)) if self.rank == root else None
        self._dist.gather(self._of(buffer), parts, root)

    def scatter(self, buffer: Any, *, root: int, out: Any) -> None:
        parts = list(self._of(buffer).chunk(self.size)) if self.rank == root else None
        self._dist.scatter(self._of(out), parts, root)

    def all_to_all(self, buffer: Any, *, out: Any) -> None:
        self._dist.all_to_all_single(self._of(out), self._of(buffer))

    def barrier(self) -> None:
        self._dist.barrier()

    def sendrecv(self, buffer: Any, dest: int, out: Any, source: int) -> None:
        works = [self._dist.isend(self._of(buffer), dest), self._dist.irecv(self._of(out), source)]
        for work in works:
            work.wait()


def version(adapter: Any) -> str:
    """Return what was measured, for the table's foot."""
    found: str = getattr(adapter, "version", f"hccomm {hccomm.version()}")
    # A source tree has none until somebody builds it: 25 to 40 us a call that no wheel takes.
    lacks = isinstance(adapter, hccomm.Communicator) and not find_spec("hccomm._fast")
    return f"{found}, without its fast path" if lacks else found


def end(adapter: Any) -> None:
    """Leave the group in good order."""
    if isinstance(adapter, hccomm.Communicator):
        adapter.close()
    elif isinstance(adapter, Torch):
        adapter._dist.destroy_process_group()
    elif isinstance(adapter, OneCcl):
        adapter.leave()

# SPDX-License-Identifier: Apache-2.0
"""oneCCL on host memory as a peer, through a small C++ shim.

The wheels hold a C++ library, so the shim (oneccl_shim.cpp) is compiled at first use, next to them.
They lack libfabric, which oneCCL's own transport needs: MPICH's wheel has one. bench/peers.py asks
environ(), which says why not where something is missing; the ranks use OneCcl.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_name("oneccl_shim.cpp")
_WAIT = 60.0  # seconds for rank 0 to say its address


def environ(ranks: int) -> dict[str, str] | str:
    """Return the environment of a rank, or why oneCCL cannot run here."""
    base = os.environ.get("HCCOMM_PY_MPI") or str(Path(sys.prefix) / "mpi")
    prefix = Path(base) / "oneccl"
    fabric = Path(base) / "mpich" / "lib" / "mpich" / "libfabric.so.1"
    for needed in (prefix / "lib" / "libccl.so.1", prefix / "lib" / "libccl.so.2", fabric):
        if not needed.is_file():
            return f"{needed} is missing; python bench/mpis.py install oneccl mpich"
    try:
        shim = _compiled(prefix)
    except (OSError, subprocess.SubprocessError) as error:
        return f"its shim does not compile: {getattr(error, 'stderr', error)}"
    cores = os.cpu_count() or 1
    return {
        "HCCOMM_PY_ONECCL": str(shim),
        "LD_LIBRARY_PATH": str(prefix / "lib"),
        "CCL_OFI_LIBRARY_PATH": str(fabric),
        "CCL_ATL_TRANSPORT": "ofi",
        "CCL_PROCESS_LAUNCHER": "none",
        "CCL_LOCAL_SIZE": str(ranks),
        "CCL_LOG_LEVEL": "error",
        # its worker threads poll: spread them, and let them yield where ranks outnumber cores
        "CCL_WORKER_AFFINITY": ",".join(str(rank % cores) for rank in range(ranks)),
        "CCL_YIELD": "sched_yield",
    }


def _compiled(prefix: Path) -> Path:
    shim = prefix / "lib" / "libshim.so"
    if not shim.is_file() or shim.stat().st_mtime < SOURCE.stat().st_mtime:
        subprocess.run(
            [
                *("c++", "-O2", "-std=c++17", "-shared", "-fPIC", str(SOURCE), "-o", str(shim)),
                *(f"-I{prefix}/include", f"-L{prefix}/lib", "-lccl"),
            ],
            check=True, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
    return shim


class OneCcl:
    """The shim, as hccomm.bench.Adapter; it has no reduce, gather, scatter and sendrecv."""

    def __init__(self) -> None:
        self.rank, self.size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self.version = "oneCCL over libfabric tcp"
        self._shim = ctypes.CDLL(os.environ["HCCOMM_PY_ONECCL"])
        self._check(self._shim.shim_init(self.rank, self.size, self._meet()))

    def _meet(self) -> Any:
        """Return the address of rank 0, handed over in a file."""
        address = ctypes.create_string_buffer(256)
        file = Path(os.environ["HCCOMM_RENDEZVOUS"].removeprefix("file://") + ".oneccl")
        if self.rank == 0:
            self._check(self._shim.shim_address(address))
            draft = file.with_suffix(".draft")
            draft.write_bytes(address.raw)
            draft.rename(file)
            return address
        deadline = time.monotonic() + _WAIT
        while not file.is_file():
            if time.monotonic() > deadline:
                raise TimeoutError(f"rank 0 wrote no {file} in {_WAIT} s")
            time.sleep(0.02)
        address.raw = file.read_bytes()
        return address

    def leave(self) -> None:
        """End this process: oneCCL's own teardown crashes after its libraries are gone."""
        if self.rank == 0:
            address = os.environ["HCCOMM_RENDEZVOUS"].removeprefix("file://") + ".oneccl"
            Path(address).unlink(missing_ok=True)
        sys.stdout.flush()
        os._exit(0)

    @staticmethod
    def _check(code: int) -> None:
        if code != 0:
            raise RuntimeError("oneCCL failed; see stderr")

    def _call(self, name: str, source: Any, target: Any, count: int) -> None:
        function = getattr(self._shim, name)
        self._check(
            function(
                ctypes.c_void_p(source.ctypes.data), ctypes.c_void_p(target.ctypes.data),
                ctypes.c_size_t(count), source.dtype.itemsize,
            )
        )  # fmt: skip

    def all_reduce(self, buffer: Any, op: str, *, out: Any) -> None:
        self._call("shim_all_reduce", buffer, out, buffer.size)

    def reduce_scatter(self, buffer: Any, op: str, *, out: Any) -> None:
        self._call("shim_reduce_scatter", buffer, out, out.size)

    def broadcast(self, buffer: Any, root: int) -> None:
        size = ctypes.c_size_t(buffer.size)
        data = ctypes.c_void_p(buffer.ctypes.data)
        self._check(self._shim.shim_broadcast(data, size, buffer.dtype.itemsize, root))

    def all_gather(self, buffer: Any, *, out: Any) -> None:
        self._call("shim_all_gather", buffer, out, buffer.size)

    def all_to_all(self, buffer: Any, *, out: Any) -> None:
        self._call("shim_all_to_all", buffer, out, buffer.size // self.size)

    def barrier(self) -> None:
        self._check(self._shim.shim_barrier())

    def sendrecv(self, *_: Any) -> None:
        raise NotImplementedError("the shim has no send and recv")

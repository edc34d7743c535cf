# SPDX-License-Identifier: Apache-2.0
"""How soon others notice a kill: torch's Gloo and Open MPI's ULFM beside hccomm, in turn.

Run by hand: ``python tests/faults/peers.py --count 20``. Each trial is a job of its own that sums
1 MiB again and again until one rank kills itself; each survivor writes down when its call failed.
All reads the monotonic clock, which the processes of a host share. Open MPI comes from
bench/mpis.py (HCCOMM_PY_MPI).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]
WAIT = 10.0  # seconds: the timeout of a call where it has one
COUNT = (1 << 20) // 4


def work(peer: str, folder: Path, victim: int, after: float) -> None:
    """Be one rank: sum until a call fails, then write when and how."""
    rank, once, on_error = {"gloo": _gloo, "ulfm": _ulfm}.get(peer, _hccomm)(folder)
    once()
    (folder / f"up-{rank}").touch()
    until = time.monotonic() + 30.0
    while len(list(folder.glob("up-*"))) < int(os.environ["PEERS_SIZE"]):
        if time.monotonic() > until:
            os._exit(3)
        time.sleep(0.01)
    death = time.monotonic() + after
    try:
        while True:
            once()
            if rank == victim and time.monotonic() > death:
                (folder / "died").write_text(json.dumps(time.monotonic()))
                os.kill(os.getpid(), signal.SIGKILL)
    except Exception as error:
        at = time.monotonic()
        on_error()
        draft = folder / f"draft-{rank}"
        draft.write_text(json.dumps({"at": at, "error": f"{type(error).__name__}: {error}"[:200]}))
        draft.rename(folder / f"saw-{rank}")
        time.sleep(1.0)
        os._exit(0)


def _gloo(folder: Path) -> tuple[int, Callable[[], Any], Callable[[], Any]]:
    import datetime

    import torch
    import torch.distributed as dist

    rank, size = int(os.environ["PEERS_RANK"]), int(os.environ["PEERS_SIZE"])
    limit = datetime.timedelta(seconds=WAIT)
    dist.init_process_group("gloo", f"file://{folder}/meet", limit, size, rank)
    data = torch.ones(COUNT)
    return rank, lambda: dist.all_reduce(data), lambda: None


def _ulfm(folder: Path) -> tuple[int, Callable[[], Any], Callable[[], Any]]:
    import numpy as np
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    comm.Set_errhandler(MPI.ERRORS_RETURN)
    data = np.ones(COUNT, np.float32)
    return comm.rank, lambda: comm.Allreduce(MPI.IN_PLACE, data), comm.Revoke


def _hccomm(folder: Path) -> tuple[int, Callable[[], Any], Callable[[], Any]]:
    import numpy as np

    import hccomm

    rank, size = int(os.environ["PEERS_RANK"]), int(os.environ["PEERS_SIZE"])
    comm = hccomm.init(rank=rank, size=size, rendezvous=f"file://{folder}/meet", timeout=WAIT)
    data = np.ones(COUNT, np.float32)
    return rank, lambda: comm.all_reduce(data), lambda: None


# ---- the driver -------------------------------------------------------------------------------


def trial(peer: str, ranks: int, victim: int, after: float) -> list[float]:
    """Run one job; return the milliseconds until each survivor's call had failed."""
    folder = Path(tempfile.mkdtemp(prefix="peers-"))
    argv = [sys.executable, __file__, "--work", peer, str(folder), str(victim), str(after)]
    environ = os.environ | {"PEERS_SIZE": str(ranks), "OMP_NUM_THREADS": "1"}
    if peer.startswith("hccomm"):
        environ["HCCOMM_TRANSPORTS"] = peer.partition(" ")[2]
    commands = [(argv, environ | {"PEERS_RANK": str(rank)}) for rank in range(ranks)]
    if peer == "ulfm":
        import mpis

        mpi = mpis.find("openmpi")
        if isinstance(mpi, str):
            raise SystemExit(mpi)
        launcher = [mpi.launcher[0], "--with-ft", "ulfm", *mpi.launcher[1:], "-n", str(ranks)]
        commands = [([*launcher, *argv], environ | mpi.environ)]
    jobs = [
        subprocess.Popen(
            line, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )
        for line, env in commands
    ]  # fmt: skip
    try:
        until = time.monotonic() + 60.0
        while len(list(folder.glob("saw-*"))) < ranks - 1 and time.monotonic() < until:
            time.sleep(0.05)
        died = float(json.loads((folder / "died").read_text()))
        saw = [json.loads(path.read_text()) for path in sorted(folder.glob("saw-*"))]
        return [(each["at"] - died) * 1e3 for each in saw]
    finally:
        for job in jobs:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(job.pid, signal.SIGKILL)
            job.wait(30.0)
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """Measure all, in turn, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--peers", default="hccomm shm,hccomm tcp,gloo,ulfm")
    parser.add_argument("--work", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        peer, folder, victim, after = options.work
        work(peer, Path(folder), int(victim), float(after))
    chance, found = random.Random(1), {each: [] for each in options.peers.split(",")}
    for _ in range(options.count):
        victim, after = chance.randrange(options.ranks), chance.uniform(0.05, 0.35)
        for peer, times in found.items():
            times += trial(peer, options.ranks, victim, after)
    asked = options.count * (options.ranks - 1)
    print(f"{'':12}{'asked':>7}{'noticed':>9}{'median ms':>11}{'p90 ms':>9}{'slowest ms':>12}")
    for peer, times in found.items():
        times.sort()
        middle, p90 = statistics.median(times), times[int(len(times) * 0.9)]
        print(f"{peer:12}{asked:7}{len(times):9}{middle:11.1f}{p90:9.1f}{times[-1]:12.1f}")


if __name__ == "__main__":
    main()

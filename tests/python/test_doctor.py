# SPDX-License-Identifier: Apache-2.0
"""The flight recorder of real ranks, and what `hccomm doctor` makes of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hccomm
from hccomm import doctor
from hccomm.local import run_local


def _absent_rank(comm: hccomm.Communicator, until: float) -> dict[str, Any]:
    """Rank 1 does not call the second all_reduce; the others run into their deadline."""
    comm.all_reduce(np.ones(4, "f4"))
    if comm.rank != 1:
        with pytest.raises(hccomm.Timeout):
            comm.all_reduce(np.ones(4, "f4"), timeout=1.0)
    while time.time() < until and "failure" not in (found := comm.dump()):
        time.sleep(0.02)
    return found


def _many(comm: hccomm.Communicator) -> dict[str, Any]:
    for _ in range(1100):
        comm.all_reduce(np.ones(1, "f4"))
    if comm.rank == 0:
        comm.send(np.ones(3, "f8"), 1, tag=5)
    else:
        comm.recv(np.zeros(3, "f8"), 0, tag=5)
    return comm.dump()


def _signalled(comm: hccomm.Communicator, folder: str, until: float) -> dict[str, Any]:
    """Rank 1 signals rank 0, which waits in an all_reduce, and calls it once the dump is there."""
    peer = int(comm.all_gather(np.array([os.getpid()], "i8")).ravel()[0])
    found: dict[str, Any] = {}
    while comm.rank == 1 and not found and time.time() < until:
        os.kill(peer, signal.SIGUSR1)
        time.sleep(0.2)
        for path in Path(folder).glob(f"*-{peer}.json"):
            with contextlib.suppress(ValueError):  # it is being written
                found = json.loads(path.read_text())
    comm.all_reduce(np.ones(4, "f4"))
    return found


def test_a_signal_makes_a_rank_that_waits_write_its_dump(tmp_path: Path) -> None:
    """SIGUSR1 in mid-collective: the dump shows the operation in flight, and the job goes on."""
    environ = {"HCCOMM_DUMP": str(tmp_path), "HCCOMM_DUMP_SIGNAL": "1"}

    _, found = run_local(_signalled, 2, str(tmp_path), time.time() + 30.0, environ=environ)

    last = found["entries"][-1]
    assert last["profiling_name"] == "hccomm:allreduce"
    assert last["state"] != "completed"


def test_the_recorder_keeps_the_last_thousand_operations() -> None:
    """More operations than it holds: the latest are there, in order, with their outcome."""
    for dump in run_local(_many, 2):
        entries = dump["entries"]

        assert len(entries) == 1000
        assert [each["record_id"] for each in entries] == list(range(101, 1101))
        assert {each["state"] for each in entries} == {"completed"}
        last = entries[-1]
        assert (last["is_p2p"], last["bytes"], last["tag"]) == (True, 24, 5)
        assert entries[-2]["profiling_name"] == "hccomm:allreduce"
        assert entries[-2]["collective_seq_id"] == 1099
        assert entries[-2]["time_discovered_completed_ns"] >= entries[-2]["time_created_ns"]


def test_doctor_names_the_rank_that_has_not_called(tmp_path: Path) -> None:
    """Every rank writes its dump when the group fails; the paragraph names the absent rank."""
    environ = {"HCCOMM_DUMP": str(tmp_path)}

    run_local(_absent_rank, 3, time.time() + 30.0, environ=environ)

    written = sorted(tmp_path.glob("*.json"))
    assert len(written) == 3
    told = doctor.diagnose(doctor.load(written))
    assert "The cause is rank 1 " in told, told
    assert "waiting for" in told


def test_doctor_takes_a_rank_without_a_dump_for_the_cause(tmp_path: Path) -> None:
    """The dump of the rank that others wait for is missing: it has died."""
    dumps = run_local(_absent_rank, 3, time.time() + 30.0)

    told = doctor.diagnose([dumps[0], dumps[2]])

    assert "The cause is rank 1 " in told, told
    assert "left no dump" in told


def test_doctor_refuses_what_is_no_dump(tmp_path: Path) -> None:
    """A file of something else is named."""
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"a": 1}))

    with pytest.raises(hccomm.InvalidArgument, match=r"other\.json"):
        doctor.load([other])

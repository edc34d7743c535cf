# SPDX-License-Identifier: Apache-2.0
"""A rank that has done its part may close and end: what it sent still comes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_arrays import library
from test_ofi import environment

from hccomm.rendezvous import unique_url

# Rank 0 leaves while the others have hardly begun; their beats lie unread in its sockets.
ROOT_GOES = """
import os, sys, time
import hccomm, numpy as np

messages = int(sys.argv[1])
comm = hccomm.init(timeout=60)
comm.barrier()
if comm.rank > 0:
    time.sleep(0.4)
wrong = 0
for number in range(messages):
    data = np.full(4096, number if comm.rank == 0 else -1, "i4")
    comm.broadcast(data, root=0)
    wrong += int((data != number).any())
if comm.rank == 0:
    comm.close()
    os._exit(0)  # nothing tidies up behind it
print("wrong", wrong)
comm.close()
"""


# The receiver lies on a device, which takes its time.
SENDER_GOES = """
import os, sys, time
import hccomm, numpy as np
from fake_arrays import FakeArray

late = sys.argv[1] == "late"
comm = hccomm.init(timeout=60)
comm.barrier()
if comm.rank == 0:
    comm.send(np.arange(1000, dtype="i4"), 1)
    comm.close()
    os._exit(0)
got = FakeArray("cuda", np.zeros(1000, "i4"))
if late:
    time.sleep(0.4)
comm.recv(got, 0)
print("wrong", int((got.numpy() != np.arange(1000)).sum()))
comm.close()
"""


def outcomes(program: str, argument: str, size: int, settings: dict[str, str]) -> list[Any]:
    """Run the program on ``size`` ranks; return what each printed and its exit status."""
    url = unique_url()
    jobs = [
        subprocess.Popen(
            [sys.executable, "-c", program, argument],
            env=os.environ | settings | {
                "RANK": str(rank), "WORLD_SIZE": str(size), "HCCOMM_RENDEZVOUS": url,
                "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(size),
            },
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(size)
    ]  # fmt: skip
    try:
        return [(job.communicate(timeout=120)[0].strip(), job.returncode) for job in jobs]
    finally:
        for job in jobs:
            job.kill()
            job.wait(timeout=10)


@pytest.mark.parametrize("transport", ["shm", "tcp", "ofi"])
@pytest.mark.parametrize("messages", [20, 2000])
def test_what_a_rank_sent_before_it_ended_is_there(transport: str, messages: int) -> None:
    settings = {"HCCOMM_TRANSPORTS": transport, "HCCOMM_LOG": "error"}
    if transport == "ofi":
        settings |= environment("system", "net")  # or skips

    found = outcomes(ROOT_GOES, str(messages), 3, settings)

    assert found == [("", 0), ("wrong 0", 0), ("wrong 0", 0)]


@pytest.mark.parametrize("when", ["late", "waiting"])
@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_a_device_takes_what_came_before_its_sender_ended(
    transport: str, when: str, tmp_path: Path
) -> None:
    try:
        fake = library("cuda", tmp_path)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    settings = {
        "HCCOMM_TRANSPORTS": transport, "HCCOMM_LOG": "error", "HCCOMM_CUDA_LIB": str(fake),
        "HCCOMM_TEST_FAKE": "latency_us=100000", "PYTHONPATH": os.pathsep.join(sys.path),
    }  # fmt: skip

    assert outcomes(SENDER_GOES, when, 2, settings) == [("", 0), ("wrong 0", 0)]

# SPDX-License-Identifier: Apache-2.0
"""Job keys, authentication and encryption, as a job sees them: whole processes, whole errors."""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

# One rank: its result, or its error, and what became of the key in its environment.
PROGRAM = """
import json, os, sys
import hccomm, numpy
found = {}
try:
    comm = hccomm.init(rank=int(sys.argv[1]), size=int(sys.argv[2]), rendezvous=sys.argv[3],
                       timeout=float(sys.argv[4]))
    found["sum"] = [float(each) for each in comm.all_reduce(numpy.arange(1 << 16)*1.0)[:3]]
    found["links"] = [peer["link"] for peer in comm.describe()["peers"]]
    comm.barrier()  # who leaves takes the link along
    comm.close()
except hccomm.Error as error:
    found["error"], found["text"] = type(error).__name__, str(error)
block = open("/proc/self/environ", "rb").read()
found["key"] = [os.environ.get("HCCOMM_KEY"), os.getenv("HCCOMM_KEY"),
                os.popen("echo $HCCOMM_KEY").read().strip(),
                block.split(b"HCCOMM_KEY=")[1].split(b"\\0")[0].decode()
                if b"HCCOMM_KEY=" in block else None]
print(json.dumps(found))
"""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _job(
    *environ: Mapping[str, str], where: str = "", hosts: bool = True, timeout: float = 20.0
) -> list[dict[str, Any]]:
    """Run one rank for each environment, each on a host of its own; return what they found."""
    place = where or f"tcp://127.0.0.1:{_free_port()}"
    ranks = []
    for rank, extra in enumerate(environ):
        variables = {**os.environ, **extra}
        if hosts:
            variables["HCCOMM_HOST"] = f"host{rank}"
        command = [sys.executable, "-c", PROGRAM, str(rank), str(len(environ)), place]
        ranks.append(
            subprocess.Popen(
                [*command, str(timeout)], env=variables, stdout=subprocess.PIPE, text=True
            )
        )
    try:
        return [json.loads(rank.communicate(timeout=90)[0]) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()


@pytest.fixture
def key_file(tmp_path: Path) -> str:
    path = tmp_path / "job.key"
    path.touch(0o600)
    path.write_text(base64.b64encode(os.urandom(32)).decode() + "\n")
    return str(path)


def _key() -> str:
    return base64.b64encode(os.urandom(32)).decode()


def test_an_encrypted_job_computes_the_same_and_says_that_it_is_encrypted(key_file: str) -> None:
    secret = {"HCCOMM_KEY_FILE": key_file, "HCCOMM_ENCRYPT": "1", "HCCOMM_AUTH": "require"}

    found = _job(secret, secret, secret)

    for each in found:
        assert each.get("sum") == [0.0, 3.0, 6.0], each
        assert any("encrypted" in link for link in each["links"]), each


def test_encryption_on_some_ranks_only_is_an_error_on_all(key_file: str, tmp_path: Path) -> None:
    secret = {"HCCOMM_KEY_FILE": key_file, "HCCOMM_ENCRYPT": "1"}
    for where in ("", f"file://{tmp_path}/meet"):
        for each in _job(secret, {"HCCOMM_KEY_FILE": key_file}, where=where, timeout=2.5):
            assert each.get("error") in ("Mismatch", "Unavailable", "Timeout"), each
            assert each["error"] != "Timeout" or "rank 1" in each["text"]
        if where:
            assert "HCCOMM_ENCRYPT" in each["text"], each


@pytest.mark.parametrize(
    ("value", "over"), [("crc32c", "frames checked"), ("crc32c-all", ", checked")]
)
def test_checked_links_compute_the_same_and_say_what_is_checked(value: str, over: str) -> None:
    """512 KiB: where the kernel permits it they are copied, but not with crc32c-all."""
    checked = {"HCCOMM_INTEGRITY": value, "HCCOMM_TRANSPORTS": "shm,tcp"}

    for each in _job(checked, checked, hosts=False):
        assert each.get("sum") == [0.0, 2.0, 4.0], each
        links = [link for link in each["links"] if "single copy" in link]
        assert all(over in link for link in links), each
        assert all(", checked" in link for link in each["links"] if link not in links), each


def test_ranks_that_check_different_things_are_told_so() -> None:
    """All frames, or copies, too: each rank would wait for what the other does not send."""
    for each in _job({"HCCOMM_INTEGRITY": "crc32c"}, {"HCCOMM_INTEGRITY": "crc32c-all"}):
        assert each.get("error") == "Mismatch", each
        assert "HCCOMM_INTEGRITY" in each["text"]


def test_encryption_without_a_key_is_refused_with_the_remedy() -> None:
    for each in _job({"HCCOMM_ENCRYPT": "1"}, {"HCCOMM_ENCRYPT": "1"}):
        assert each["error"] == "InvalidArgument"
        assert "hccomm keygen" in each["text"]


def test_encryption_and_no_authentication_contradict_each_other(key_file: str) -> None:
    odd = {"HCCOMM_ENCRYPT": "1", "HCCOMM_AUTH": "off", "HCCOMM_KEY_FILE": key_file}

    for each in _job(odd, odd):
        assert each["error"] == "InvalidArgument"
        assert "HCCOMM_AUTH=off" in each["text"]


def test_a_fabric_is_not_used_where_all_is_to_be_encrypted(key_file: str) -> None:
    odd = {"HCCOMM_ENCRYPT": "1", "HCCOMM_TRANSPORTS": "ofi", "HCCOMM_KEY_FILE": key_file}

    for each in _job(odd, odd, timeout=2.5):
        if each["error"] == "Unavailable":
            assert "in clear" in each["text"], each


def test_authentication_can_be_required() -> None:
    for each in _job({"HCCOMM_AUTH": "require"}, {"HCCOMM_AUTH": "require"}):
        assert each["error"] == "InvalidArgument"
        assert "hccomm keygen" in each["text"]


def test_the_key_leaves_the_environment_once_it_is_read() -> None:
    key = {"HCCOMM_KEY": _key()}

    for each in _job(key, key):
        assert each.get("sum") == [0.0, 2.0, 4.0], each
        assert [bool(value and value.strip("\0")) for value in each["key"]] == [False] * 4, each


def test_a_rank_without_the_key_stays_outside_and_both_are_told_why() -> None:
    key = _key()

    with_key, without = _job({"HCCOMM_KEY": key}, {}, timeout=2.5)

    assert without["error"] == "Unavailable", without
    assert "HCCOMM_KEY_FILE" in without["text"]
    assert with_key["error"] == "Timeout"
    assert "rank 1" in with_key["text"]
    assert key not in json.dumps([with_key["text"], without])


def test_another_key_stays_outside() -> None:
    ours, theirs = _job({"HCCOMM_KEY": _key()}, {"HCCOMM_KEY": _key()}, timeout=2.5)

    assert theirs["error"] == "Unavailable", theirs
    assert "different job keys" in theirs["text"]
    assert ours["error"] == "Timeout"


ONE_HOST = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}


def test_ranks_of_one_host_get_a_key_from_rank_0_where_they_have_none() -> None:
    asked = {**ONE_HOST, "HCCOMM_AUTH": "require", "HCCOMM_ENCRYPT": "1"}

    found = _job(asked, asked)

    for each in found:
        assert each.get("sum") == [0.0, 2.0, 4.0], each
        assert any("encrypted" in link for link in each["links"]), each


def test_a_key_of_rank_0_alone_is_not_handed_out(key_file: str, tmp_path: Path) -> None:
    with_key, without = _job(
        {**ONE_HOST, "HCCOMM_KEY_FILE": key_file}, ONE_HOST, where=f"file://{tmp_path}/meet"
    )

    for each in (with_key, without):
        assert each["error"] == "PeerLost", each
        assert "HCCOMM_KEY_FILE" in each["text"], each


def test_ranks_of_one_host_that_want_no_authentication_have_none() -> None:
    bare = {**ONE_HOST, "HCCOMM_AUTH": "off"}

    for each in _job(bare, bare):
        assert each.get("sum") == [0.0, 2.0, 4.0], each


# What mpi4py's communicator is to hccomm; the file stands for MPI's own broadcast.
UNDER_MPI = (
    """
import pathlib, time
class Comm:
    calls = 0
    def Get_rank(self): return int(sys.argv[1])
    def Get_size(self): return int(sys.argv[2])
    def allgather(self, value): return [value] * 2
    def bcast(self, value, root):
        self.calls += 1
        path = pathlib.Path(sys.argv[3], f"bcast-{self.calls}")
        if self.Get_rank() == root:
            path.with_suffix(".new").write_text(value)
            path.with_suffix(".new").rename(path)
        until = time.monotonic() + 30
        while not path.exists() and time.monotonic() < until: time.sleep(0.01)
        return path.read_text()
"""
    + PROGRAM
)


def test_mpi_broadcasts_a_key_where_the_ranks_have_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = UNDER_MPI.replace(
        "hccomm.init(rank=int(sys.argv[1]), size=int(sys.argv[2]), rendezvous=sys.argv[3],\n"
        "                       timeout=",
        "hccomm.init(comm=Comm(), timeout=",
    )
    assert "comm=Comm()" in program
    monkeypatch.setattr(sys.modules[__name__], "PROGRAM", program)
    asked = {"HCCOMM_AUTH": "require", "HCCOMM_ENCRYPT": "1"}

    found = _job(asked, asked, where=str(tmp_path))

    for each in found:
        assert each.get("sum") == [0.0, 2.0, 4.0], each
        assert any("encrypted" in link for link in each["links"]), each
        assert each["key"][:3] == [None, None, ""], each

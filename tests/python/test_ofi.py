# SPDX-License-Identifier: Apache-2.0
"""The ofi transport over each libfabric that is here: the system's, and that of the mpich wheel.

Their tcp, net and shm providers stand in for a fabric. Where there is no libfabric the tests skip
and say so; a libfabric that is there and does not serve is a failure.
"""

from __future__ import annotations

import functools
import json
import os
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import hccomm
from hccomm.rendezvous import unique_url

pytest.importorskip("numpy")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

import fake_arrays
import mpis
import rank_programs as on_ranks

WAYS = [("system", name) for name in ("tcp", "net", "shm")]
WAYS += [("mpich", name) for name in ("tcp", "tcp;ofi_rxm", "shm")]


def environment(library: str, provider: str) -> dict[str, str]:
    """Return what makes a rank use that provider of that libfabric; skip where it is not here."""
    made = {"HCCOMM_OFI_PROVIDER": provider}
    if library != "system":
        place = Path("lib", "mpich", "libfabric.so.1")
        found = [each / place for each in mpis._prefixes(library) if (each / place).is_file()]
        if not found:
            pytest.skip(
                "no mpich wheel here, which brings libfabric 2: bench/mpis.py install mpich"
            )
        made["HCCOMM_OFI_LIB"] = str(found[0])
    reason = why_not(tuple(made.items()))
    if "no libfabric here" in reason:
        pytest.skip(reason)
    assert not reason
    return made


@functools.cache
def why_not(environ: tuple[tuple[str, str], ...]) -> str:
    """Ask a process of its own: what is loaded stays loaded."""
    code = "import hccomm, json; print(json.dumps(hccomm.info()['transports']))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **dict(environ)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    found = next(each for each in json.loads(done.stdout) if each["name"] == "ofi")
    return str(found["reason"])


def carriers(provider: str) -> list[str]:
    """Return the cards of a provider that is asked for."""
    code = "import hccomm, json; print(json.dumps(hccomm.info()['fabrics']))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment("system", provider)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    names = [each["way"].split(",")[0] for each in json.loads(done.stdout)]
    return sorted({name for name in names if name.startswith(f"{provider} on ")})


@pytest.mark.parametrize(("library", "provider"), WAYS)
def test_ofi_alone_carries_every_collective(ranks: Any, library: str, provider: str) -> None:
    group = ranks(3, HCCOMM_TRANSPORTS="ofi", **environment(library, provider))

    # 8-byte elements: within a small slot, and in several parts.
    for name, counts in (("all_reduce", [20_000]), ("reduce_scatter", [300]), ("reduce", [300])):
        for wrong in group.run(on_ranks.wrong_reductions, name, counts):
            assert wrong == []
    for name in ("broadcast", "all_gather", "gather", "scatter", "all_to_all"):
        for wrong in group.run(on_ranks.wrong_copies, name, [20_000]):
            assert wrong == []
    for found in group.run(on_ranks.describe):
        assert {peer["transport"] for peer in found["peers"]} == {"ofi"}


@pytest.mark.parametrize(("library", "provider"), [("system", "net"), ("mpich", "tcp")])
def test_shm_within_hosts_and_ofi_between_them(ranks: Any, library: str, provider: str) -> None:
    group = ranks(4, hosts=2, **environment(library, provider))

    for wrong in group.run(on_ranks.wrong_reductions, "all_reduce", [5, 40_000]):
        assert wrong == []
    for rank, found in enumerate(group.run(on_ranks.describe)):
        carried = {peer["rank"]: peer["transport"] for peer in found["peers"]}
        assert carried == {
            peer: "shm" if peer // 2 == rank // 2 else "ofi" for peer in range(4) if peer != rank
        }


# ---- ranks that differ: each is a program of its own ---------------------------------------------

SUM = """
import json, numpy, hccomm
with hccomm.init(timeout=30.0) as comm:
    total = comm.all_reduce(numpy.full(50_000, comm.rank + 1))
    assert (total == comm.size * (comm.size + 1) // 2).all()
    comm.all_to_all(numpy.arange(comm.size))
    print(json.dumps({peer["rank"]: peer["transport"] for peer in comm.describe()["peers"]}))
    comm.barrier()  # who leaves takes the link along
"""


def start(code: str, each: Sequence[dict[str, str]]) -> list[subprocess.Popen[str]]:
    """Start one rank for each environment."""
    url = unique_url()
    common = {"WORLD_SIZE": str(len(each)), "HCCOMM_RENDEZVOUS": url}
    return [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, **common, "RANK": str(rank), **environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, environ in enumerate(each)
    ]


def finish(processes: Sequence[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Return exit code and output of each; nothing outlives the test."""
    try:
        return [(each.wait(90), *each.communicate(timeout=10)) for each in processes]
    finally:
        for each in processes:
            each.kill()


def test_shm_ofi_and_tcp_serve_one_communicator() -> None:
    """Rank 2 has no ofi, and is on another host than ranks 0 and 1, as rank 3 is."""
    ofi = environment("system", "net")
    hosts = [{"HCCOMM_HOST": name} for name in ("a", "a", "b", "c")]
    without = {"HCCOMM_TRANSPORTS": "shm,tcp"}

    told = finish(
        start(SUM, [{**host, **(without if i == 2 else ofi)} for i, host in enumerate(hosts)])
    )

    assert [code for code, _, _ in told] == [0] * 4, told
    carried = [json.loads(out) for _, out, _ in told]
    assert carried[0] == {"1": "shm", "2": "tcp", "3": "ofi"}
    assert carried[2] == {"0": "tcp", "1": "tcp", "3": "tcp"}


def test_ranks_with_other_providers_take_tcp_and_say_why() -> None:
    net, rxm = environment("system", "net"), environment("system", "tcp")
    more = {"HCCOMM_TRANSPORTS": "ofi,tcp", "HCCOMM_LOG": "info"}

    told = finish(start(SUM, [{**net, **more}, {**rxm, **more}]))

    assert [json.loads(out) for _, out, _ in told] == [{"1": "tcp"}, {"0": "tcp"}]


def test_ranks_with_other_providers_and_no_way_out_name_both() -> None:
    net, rxm = environment("system", "net"), environment("system", "tcp")
    alone = {"HCCOMM_TRANSPORTS": "ofi"}

    told = finish(start(SUM, [{**net, **alone}, {**rxm, **alone}]))

    for code, _, err in told:
        assert code != 0
        assert "provider net" in err or "provider tcp;ofi_rxm" in err
        assert "tcp;ofi_rxm" in err
        assert "net" in err
        assert "HCCOMM_OFI_PROVIDER alike" in err


def test_an_unknown_provider_is_named_with_those_there_are(ranks: Any) -> None:
    environment("system", "net")

    told = finish(start(SUM, [{"HCCOMM_OFI_PROVIDER": "pigeon"}] * 2))
    alone = finish(start(SUM, [{"HCCOMM_OFI_PROVIDER": "pigeon", "HCCOMM_TRANSPORTS": "ofi"}]))

    for code, out, err in told:
        assert code == 0
        assert "ofi" not in json.loads(out).values()
        assert "pigeon" in err
        assert "net" in err
        assert "another transport" in err
    assert alone[0][0] != 0
    assert "Unavailable" in alone[0][2]
    assert "pigeon" in alone[0][2]
    assert "ofi: ofi" not in alone[0][2], "the transport is named once"


def test_no_fabric_and_no_provider_asked_for_says_what_there_is() -> None:
    environment("system", "net")

    told = finish(start(SUM, [{"HCCOMM_TRANSPORTS": "ofi"}] * 2))

    for code, _, err in told:
        assert code != 0
        assert "Unavailable" in err
        assert "no RDMA fabric here" in err
        assert "net" in err


def test_a_rank_whose_libfabric_is_gone_is_reached_by_tcp() -> None:
    here = {**environment("system", "net"), "HCCOMM_TRANSPORTS": "ofi,tcp", "HCCOMM_LOG": "info"}

    told = finish(start(SUM, [here, {**here, "HCCOMM_OFI_LIB": "/nowhere/libfabric.so.1"}]))

    assert [json.loads(out) for _, out, _ in told] == [{"1": "tcp"}, {"0": "tcp"}], told
    assert "/nowhere/libfabric.so.1" in told[1][2]


PINNED = {"HCCOMM_TRANSPORTS": "ofi", "HCCOMM_TEST_OFI_PIN": "1"}


def run_limited(code: str, most: int) -> subprocess.CompletedProcess[str]:
    """Run one rank whose registered memory is locked, as cards do, and that may lock so much."""
    low = {**environment("system", "net"), **PINNED}
    privileged = os.geteuid() == 0
    if privileged and shutil.which("setpriv") is None:
        pytest.skip("root's limits do not bind, and there is no setpriv to give that up")
    bounded = ["setpriv", "--bounding-set", "-ipc_lock"] if privileged else []

    def lower() -> None:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (most, most))

    return subprocess.run(
        [*bounded, sys.executable, "-c", code],
        env={**os.environ, **low, "RANK": "0", "WORLD_SIZE": "1"},
        preexec_fn=lower,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_too_little_locked_memory_says_what_to_raise() -> None:
    done = run_limited(SUM, 1 << 20)

    assert done.returncode != 0
    assert "register" in done.stderr
    assert "may lock 1024 KiB" in done.stderr
    assert "ulimit -l" in done.stderr


# ---- memory that the program registers -----------------------------------------------------------


def test_a_buffer_too_large_to_lock_cannot_be_registered_and_smaller_ones_can() -> None:
    code = (
        "import hccomm\n"
        "with hccomm.init() as comm:\n"
        "    try:\n"
        "        comm.register(bytearray(64 << 20))\n"
        "    except hccomm.System as error:\n"
        "        print(error)\n"
        "    with comm.register(bytearray(1 << 16)) as kept:\n"
        "        print(kept.active)\n"
    )

    done = run_limited(code, 6 << 20)

    assert done.returncode == 0, done.stderr
    error, kept = done.stdout.splitlines()
    assert "register" in error
    assert "may lock 6144 KiB" in error
    assert "ulimit -l" in error
    assert kept == "True"


REGISTERS = """
import re, numpy, hccomm
def locked():
    return int(re.search(r"VmLck:\\s+(\\d+)", open("/proc/self/status").read())[1])
comm = hccomm.init(timeout=30.0)
other = 1 - comm.rank
data, out = numpy.arange(1 << 17) + comm.rank, numpy.zeros(1 << 17, dtype=int)
comm.barrier()  # the connection needs memory of its own
small = locked()
first, second = comm.register(data), comm.register(out)
with comm.register(out):
    both = locked()
for _ in range(3):
    assert (comm.sendrecv(data, other, out, other) == numpy.arange(1 << 17) + other).all()
assert both - small >= 2 << 10, (small, both)  # KiB
assert locked() >= both, "what was registered has gone with its use"
first.deregister()
first.deregister()
assert not first.active and second.active
comm.barrier()
comm.close()
second.deregister()
assert locked() <= small, (small, locked())
"""


def test_registered_buffers_are_locked_until_they_are_deregistered() -> None:
    """Nothing is kept by itself, and each message is shorter than what is registered."""
    alone = {**environment("system", "net"), **PINNED, "HCCOMM_OFI_CACHE": "0"}

    told = finish(start(REGISTERS, [alone] * 2))

    assert [code for code, _, _ in told] == [0, 0], told


def test_large_messages_go_over_both_rails() -> None:
    rails = {"HCCOMM_OFI_RAILS": "2", "HCCOMM_TRANSPORTS": "ofi"}
    if len(carriers("net")) < 2:
        pytest.skip("one network interface alone")
    code = (
        "import numpy, hccomm\n"
        "with hccomm.init(timeout=30.0) as comm:\n"
        "    data = numpy.arange(3_000_000) + comm.rank\n"
        "    got = comm.all_gather(data)\n"
        "    assert (got.reshape(2, -1)[1 - comm.rank] == data + 1 - 2 * comm.rank).all()\n"
        "    print(comm.describe()['peers'][0])\n"
        "    comm.barrier()\n"  # who leaves takes the link along
    )

    told = finish(start(code, [{**environment("system", "net"), **rails}] * 2))

    for status, out, err in told:
        assert status == 0, err
        sent = [int(each) for each in re.findall(r"(\d+) bytes over", out)]
        assert len(sent) == 2, out
        assert min(sent) > 1_000_000, out


CARDS = """
import json, numpy, hccomm
before = hccomm.info()["fabrics"]
with hccomm.init(timeout=60.0) as comm:
    data = numpy.arange(3_000_000) + comm.rank
    got = comm.all_gather(data).reshape(2, -1)
    assert (got[1 - comm.rank] == data + 1 - 2 * comm.rank).all()
    assert (comm.all_reduce(data) == 2 * numpy.arange(3_000_000) + 1).all()
    for size in range(1, 300, 7):
        assert (comm.all_reduce(numpy.ones(size)) == 2).all()
    print(json.dumps({"before": before, "peers": comm.describe()["peers"]}))
    comm.barrier()
"""


@pytest.mark.parametrize("provider", ["verbs;ofi_rxm", "cxi"])
def test_two_ranks_use_both_of_their_cards_and_not_the_one_without_a_link(
    tmp_path: Path, provider: str
) -> None:
    """The cards are fakes over net, as strict as cards are; a third one's link is down."""
    environment("system", "net")
    told_by_cards = tmp_path / "cards"
    with_cards = {
        "HCCOMM_OFI_LIB": str(fake_arrays.cards_fabric(tmp_path)),
        "HCCOMM_TRANSPORTS": "ofi",
        "FAKE_CARDS": "mlx5_0 0000:01:00.0 up, mlx5_1 0000:81:00.0 up, mlx5_2 0000:c1:00.0 down",
        "FAKE_CARDS_PROVIDER": provider,
        "FAKE_CARDS_FILE": str(told_by_cards),
        "HCCOMM_OFI_RAILS": "2",
    }

    told = finish(start(CARDS, [with_cards] * 2))

    for status, out, err in told:
        assert status == 0, err
        found = json.loads(out)
        assert {peer["transport"] for peer in found["peers"]} == {"ofi"}
        rows = {each["way"].split(",")[0]: each for each in found["before"]}
        used = {name for name, each in rows.items() if each["used"]}
        assert used == {f"{provider} on mlx5_0", f"{provider} on mlx5_1"}
        down = rows[f"{provider} on mlx5_2"]
        assert down["reason"] == "its link is down"
        assert down["capabilities"].startswith("PCI 0000:c1:00.0, 200 Gbit/s, link down")
        assert any(name.startswith("net on ") for name in rows)
    seen = told_by_cards.read_bytes()
    card_bytes, injected = struct.unpack_from("4Q", seen, 32), struct.unpack_from("4Q", seen, 64)
    (refused,) = struct.unpack_from("Q", seen, 96)
    assert refused == 0, seen[104:360]
    assert min(card_bytes[:2]) > 2 * 8_000_000, card_bytes
    assert card_bytes[2:] == (0, 0)
    assert (injected[0] > 0) == (provider == "cxi")


def test_signal_handlers_of_the_program_stay() -> None:
    """Providers install their own; a Ctrl-C must still be Python's."""
    code = (
        "import signal\n"
        "signal.signal(2, signal.default_int_handler)  # a background shell ignores it\n"
        "import hccomm\n"
        "before = [signal.getsignal(each) for each in (2, 15, 11)]\n"
        "hccomm.init().close()\n"
        "status = open('/proc/self/status').read()\n"
        "caught = int(status.split('SigCgt:')[1].split()[0], 16)\n"
        "print([each for each in range(1, 32) if caught >> each - 1 & 1])\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment("system", "net")},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    assert done.stdout.strip() == "[2]", done.stderr


LOOP = """
import itertools, numpy, hccomm, os, signal, sys
comm = hccomm.init(timeout=60.0)
print("up", flush=True)
data = numpy.ones({count})
try:
    for call in itertools.count():
        if comm.rank == 1 and call == {last}:
            os.kill(os.getpid(), signal.SIGKILL)
        comm.all_reduce(data)
except hccomm.PeerLost as lost:
    print("lost", lost.rank, flush=True)
    sys.exit(7)
"""


@pytest.mark.parametrize(("library", "provider"), WAYS)
@pytest.mark.parametrize("count", [4, 3_000_000])
def test_a_rank_that_is_killed_is_named(library: str, provider: str, count: int) -> None:
    """At any moment; over the shm provider of 1.17 between two calls.

    That provider locks in shared memory: who is killed within leaves others waiting for the lock
    inside of libfabric, for ever (docs/rdma.md).
    """
    between = (library, provider) == ("system", "shm")
    environ = {**environment(library, provider), "HCCOMM_TRANSPORTS": "ofi"}
    before = set(Path("/dev/shm").iterdir())  # another program's may bear any number
    processes = start(LOOP.format(count=count, last=20 if between else -1), [environ] * 3)
    try:
        for each in processes:
            assert each.stdout is not None
            assert each.stdout.readline() == "up\n"
        if not between:
            time.sleep(0.5)
            processes[1].send_signal(signal.SIGKILL)

        for rank in (0, 2):
            # A survivor is told long before its operation's own deadline, which would say Timeout.
            out, err = processes[rank].communicate(timeout=90)
            assert out == "lost 1\n", (processes[rank].returncode, err)
            assert processes[rank].returncode == 7, err
        # What libfabric's shm provider leaves of who is killed, the survivors sweep.
        assert not set(Path("/dev/shm").glob(f"{processes[1].pid}:*")) - before
    finally:
        for each in processes:
            each.kill()
            each.communicate()


FAILS = """
import numpy, hccomm, sys
comm = hccomm.init(timeout=60.0)
data = numpy.ones({count})
comm.all_reduce(data)  # it connects them
comm.all_to_all(numpy.arange(3))
print("up", flush=True)
try:
    while True:
        comm.all_reduce(data)
except (hccomm.PeerLost, hccomm.System) as lost:
    print(lost, flush=True)
    sys.exit(7)
"""


@pytest.mark.parametrize("failing", [(1,), (0, 1, 2)])
@pytest.mark.parametrize("count", [4, 300_000])
def test_a_provider_that_vanishes_fails_all_ranks_with_its_text(
    tmp_path: Path, count: int, failing: tuple[int, ...]
) -> None:
    gone = tmp_path / "gone"
    environ = {**environment("system", "net"), "HCCOMM_TRANSPORTS": "ofi"}
    environ["HCCOMM_OFI_LIB"] = str(fake_arrays.failing_fabric(tmp_path))
    each = [environ | ({"FAILING_FABRIC": str(gone)} if i in failing else {}) for i in range(3)]
    processes = start(FAILS.format(count=count), each)
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "up\n"

        gone.touch()

        told = [process.communicate(timeout=90) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert [process.returncode for process in processes] == [7] * 3, told
    # Who is told by the control connection first hears no more than that.
    assert any("Input/output error" in out for out, _ in told), told
    for out, _ in told:
        assert "Input/output error" in out or "given up the connection" in out, told


def test_info_says_for_each_device_and_card_whether_its_memory_is_reached(tmp_path: Path) -> None:
    """One card of two refuses: the device is staged, and that card named."""
    environment("system", "net")
    code = "import hccomm, json; print(json.dumps(hccomm.info()['fabrics']))"
    with_fakes = {
        "HCCOMM_OFI_LIB": str(fake_arrays.cards_fabric(tmp_path)),
        "HCCOMM_TRANSPORTS": "ofi",
        "HCCOMM_CUDA_LIB": str(fake_arrays.library("cuda", tmp_path)),
        "HCCOMM_MUSA_LIB": str(fake_arrays.library("musa", tmp_path)),
        "HCCOMM_OFI_RAILS": "2",
        "FAKE_CARDS_FILE": str(tmp_path / "cards"),
    }
    told: dict[str, dict[str, str]] = {}
    for second in ("up+hmem", "up+hmem+refuses"):
        cards = f"mlx5_0 0000:01:00.0 up+hmem, mlx5_1 0000:81:00.0 {second}"
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, **with_fakes, "FAKE_CARDS": cards},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        used = [each for each in json.loads(done.stdout) if each["used"]]
        assert len(used) == 2, done.stderr
        for each in used:
            found = {one["device"]: one for one in each["devices"]}
            assert "no name for the memory of musa:0" in found["musa:0"]["reason"]
            told[second] = found["cuda:0"]

    assert told["up+hmem"]["memory"] == "direct", told
    assert told["up+hmem+refuses"]["memory"] == "staged"
    assert "mlx5_1" in told["up+hmem+refuses"]["reason"]


def test_info_lists_fabrics_with_reasons() -> None:
    environment("system", "net")

    fabrics = hccomm.info()["fabrics"]

    assert fabrics
    for each in fabrics:
        assert each["used"] or each["reason"]
        assert "progress" in each["capabilities"]
        assert "device memory staged" in each["capabilities"]

# SPDX-License-Identifier: Apache-2.0
"""The storms in short: ranks die, stop, disagree, fork, and strangers knock; nothing may hang.

Times are not asserted closer than ten seconds: storm.py measures them. Every storm ends what it
started, in any state, and a rank that does not answer is reported with its stacks.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("numpy")
sys.path.insert(0, str(Path(__file__).resolve().parent))

import endings
import forks
import kills
import limits
import mismatches
import rejoins
import shrinks
import soaks
import steps
import stops
import strays
from pool import Nursery
from report import Report, Trial

HERE = Path(__file__).resolve().parent
LATE = 10.0  # seconds in which a busy machine must have noticed a death
pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the storms need pidfds"),
    pytest.mark.timeout(170),
]


@pytest.fixture(autouse=True, scope="module")
def nursery() -> Iterator[None]:
    """Keep the process that forks ranks for all tests: it takes a while to start."""
    kept = Nursery.share()
    yield
    kept.leave()


def assert_calm(trials: Iterable[Trial]) -> Report:
    """Run the trials; fail with everything that was amiss."""
    report = Report()
    report.run(trials)
    text = "\n".join(report.faults)
    assert not report.faults, f"{text}\n{report.table()}"
    assert sum(each.hung for each in report.trials) == 0
    return report


@pytest.mark.parametrize("phase", ["init", "idle", "collective", "teardown"])
def test_every_survivor_names_the_rank_that_died(phase: str) -> None:
    """A rank ends in any phase, by any way: all others say so, and serve the next job."""
    count = 4 if phase == "init" else 10

    report = assert_calm(
        kills.trials(
            count, seed=3, ranks=(2, 3, 4), phases=(phase,), sizes=(64, 1 << 20), late=LATE
        )
    )

    assert len(report.trials) == count + 2  # and what the survivors of either transport hold


def test_large_messages_do_not_hide_a_death() -> None:
    """A rank ends while 16 MiB are on their way."""
    assert_calm(
        kills.trials(4, seed=5, ranks=(3,), phases=("collective",), sizes=(16 << 20,), late=LATE)
    )


def test_a_death_is_named_while_vendors_libraries_work_in_their_islands() -> None:
    """Ranks of two fake vendors, whose libraries would wait for the dead for ever."""
    try:
        assert_calm(
            kills.trials(
                6, seed=4, transports=("islands",), ranks=(3, 4, 5), phases=("collective", "idle"),
                sizes=(64, 1 << 20), late=LATE,
            )
        )  # fmt: skip
    except FileNotFoundError as error:
        pytest.skip(str(error))


def test_a_death_amid_copies_out_of_its_memory_is_named_and_leaves_nothing() -> None:
    """Devices of two fake vendors copy from where their peers have staged, at 1 GB/s."""
    try:
        report = assert_calm(
            kills.trials(
                6, seed=5, transports=("mirrors",), ranks=(2, 3, 4), phases=("collective",),
                sizes=(1 << 20, 4 << 20), late=LATE,
            )
        )  # fmt: skip
    except FileNotFoundError as error:
        pytest.skip(str(error))
    assert len(report.trials) == 7  # and what a survivor of all holds
    assert sum(each.what.get("copied", 0) for each in report.trials) > 0


def test_a_rank_that_the_kernel_kills_for_want_of_memory_is_named() -> None:
    """The OOM killer in a control group of 64 MiB; where there is none, SIGKILL (see cages.py)."""
    phases, sizes = ("idle", "collective"), (64, 1 << 20)

    assert_calm(
        kills.trials(4, 11, ranks=(3,), phases=phases, sizes=sizes, ways=("hunger",), late=LATE)
    )


@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_short_stops_and_slow_ranks_disturb_nobody(transport: str) -> None:
    """Silence of less than a second, or a long step between two calls, is no death."""
    kinds = ("pulses", "slow")

    assert_calm(stops.trials(2, 2, transports=(transport,), ranks=(3,), pulses=3, kinds=kinds))


def test_a_rank_that_stays_stopped_is_lost() -> None:
    """SIGSTOP that lasts: the others lose the rank, and it learns of that when it goes on."""
    assert_calm(stops.trials(2, 4, ranks=(3,), late=LATE + stops.SILENCE, kinds=("long",)))


@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_a_rank_that_was_taken_for_lost_joins_the_next_job(transport: str) -> None:
    """The same processes meet again, the one that was stopped and given up among them."""
    assert_calm(
        stops.trials(
            1,
            7,
            transports=(transport,),
            ranks=(3,),
            pulses=1,
            late=LATE + stops.SILENCE,
            kinds=("back",),
        )
    )


def test_ranks_that_call_different_things_are_told_who_called_what() -> None:
    """The published matrix of twelve disagreements: at least ten are named on every rank."""
    report = Report()

    report.run(mismatches.trials(1, transports=("shm",), ranks=(3,), late=LATE))

    matrix = [each for each in report.trials if " matrix " in each.row]
    named = [each for each in matrix if each.named == each.asked]
    assert len(matrix) == 12
    assert len(named) >= 10, "\n".join(report.faults)
    assert sum(each.hung for each in report.trials) == 0
    assert not [each for each in report.faults if "wrote where it may not" in each]


@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_strangers_stop_nobody(transport: str) -> None:
    """Scanners, garbage, half handshakes on every listener while ranks work, rest and leave."""
    moments = ("working", "idle", "ending")

    assert_calm(strays.trials(1, transports=(transport,), seconds=1.0, moments=moments))


def test_strangers_do_not_keep_ranks_from_meeting() -> None:
    """A flood of connections on every listener before all ranks are there."""
    moments = ("meeting", "tcp store")

    assert_calm(strays.trials(1, transports=("tcp",), seconds=0.5, moments=moments))


def test_children_do_not_hide_a_death_nor_use_a_communicator() -> None:
    """In every phase forked children outlive a dead rank; one that uses its sockets is told off."""
    assert_calm(forks.trials(8, 6, ranks=(2, 3), late=LATE))


def test_survivors_go_on_without_the_dead_and_new_ranks_join() -> None:
    """One or two ranks die, the rest shrink and sum right; the next job fills up with others."""
    assert_calm(shrinks.trials(6, 8, ranks=(3, 4, 5), late=LATE))


def test_training_that_loses_and_regains_a_worker_ends_where_it_would_have() -> None:
    """Survivors reconfigure in their processes, a new one joins; the loss does not tell."""
    assert_calm(rejoins.trials(2, 10, ranks=(3,), late=LATE))


def test_ranks_go_on_through_stops_and_deaths() -> None:
    """The soak in short: one job by each transport, killed down to half its ranks."""
    report = assert_calm(soaks.trials(0.1, 9, ranks=6))

    assert sum(each.what.get("deaths", 0) for each in report.trials) == 4


def test_a_rank_killed_at_any_call_of_init_is_named() -> None:
    """Its peers are told in the meeting, at the deadline, or by their first operation."""
    if not steps.permitted():
        pytest.skip("ptrace is not permitted here, or the machine is not an x86-64 one")

    assert_calm(steps.trials(3, first=25, step=33, late=LATE))


def test_a_wait_ends_when_somebody_aborts_interrupts_or_leaves() -> None:
    """By a thread, a signal handler, Ctrl-C, SIGTERM and the interpreter's exit."""
    assert_calm(endings.trials(1, late=LATE))


def test_a_rank_without_descriptors_says_so_and_the_others_end() -> None:
    """At its limit of open files a rank names the limit; a little more is enough."""
    assert_calm(limits.trials(more=(2, 24), each=(), mib=(), transports=("shm",)))
    assert_calm(limits.trials(more=(6, 24), each=(), mib=(), transports=("tcp",)))


@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_a_rank_without_memory_says_so_or_ends_and_so_do_the_others(transport: str) -> None:
    """Its address space is at its limit, or nearly, or large enough: nobody hangs."""
    assert_calm(limits.trials(more=(), each=(), mib=(0, 40, 1024), transports=(transport,)))


@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_ranks_that_run_out_of_descriptors_at_work_all_name_the_limit(transport: str) -> None:
    """Each may open 10 or 64 more, an all_to_all of 16 takes up to 15 connections."""
    assert_calm(limits.trials(more=(), each=(10, 64), mib=(), transports=(transport,)))


def test_many_ranks_fit_into_few_ports_and_need_no_folder_of_their_own() -> None:
    """64 ranks on 512 ports; a home and a TMPDIR that are read-only, and a meeting there."""
    run_apart("tight")


def test_nothing_is_left_behind() -> None:
    """All ranks and their launcher are killed at work; communicators are made and closed."""
    run_apart("leaks", "--count", "2", "--cycles", "40", "--at-work")


def test_a_broken_network_is_noticed_on_both_sides() -> None:
    """Cable pulled, one direction dropped, reset, bytes flipped; a slow line is fine."""
    kinds = "down,deaf,reset in,flip,slow"

    run_apart(
        "link", "--count", "5", "--kinds", kinds, "--ranks", "3", "--silence", "1.5",
        "--seconds", "3", "--late", str(LATE),
    )  # fmt: skip


def test_a_line_that_is_away_for_moments_disturbs_nobody() -> None:
    """Breaks of 0.15 to 0.75 s, with 1.2 s between them in which TCP comes back."""
    run_apart(
        "link", "--count", "2", "--kinds", "pulses", "--ranks", "3", "--seconds", "5", "--seed", "3"
    )  # fmt: skip


def test_ranks_connect_whatever_interfaces_and_names_there_are() -> None:
    """Either family, link-local alone, decoy bridges; what cannot work says so."""
    run_apart("address", "--kinds", "v4,v6,link-local,decoys,no such interface")


def test_a_slow_rail_between_islands_bears_less() -> None:
    """Cables of 400 and 50 Mbit/s: shares follow what was measured."""
    run_apart("rails", "--count", "1")


def run_apart(*words: str) -> None:
    """Run storm.py in namespaces of its own; skip where the system does not permit them."""
    done = subprocess.run(
        [sys.executable, str(HERE / "storm.py"), *words],
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    if done.returncode == 77:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]

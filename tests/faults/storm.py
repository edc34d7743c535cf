# SPDX-License-Identifier: Apache-2.0
"""Do harm to jobs and count what comes of it: `python tests/faults/storm.py kill --count 200`.

Every storm prints one JSON line a trial and a closing table; the exit status is 1 when anything was
amiss. The same seed gives the same harm. HCCOMM_PY_LIBRARY names the libhccomm.so to test.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import addresses
import endings
import forks
import kills
import leaks
import limits
import links
import mismatches
import networks
import private
import rails
import rejoins
import shrinks
import soaks
import steps
import stops
import strays
import tight
from report import Report, Trial

NETWORKED = ("link", "address", "rails")
SKIPPED = 77


def _kill(options: argparse.Namespace) -> Iterator[Trial]:
    return kills.trials(
        options.count,
        options.seed,
        transports=_names(options),
        ranks=_range(options.ranks),
        phases=options.phases.split(",") if options.phases else kills.PHASES,
        sizes=[int(each) for each in options.sizes.split(",")],
        ways=options.ways.split(",") if options.ways else kills.WAYS,
        late=options.late,
        children=options.children,
    )


def _stop(options: argparse.Namespace) -> Iterator[Trial]:
    return stops.trials(
        options.count, options.seed, transports=_names(options), ranks=_range(options.ranks)
    )


def _mismatch(options: argparse.Namespace) -> Iterator[Trial]:
    return mismatches.trials(options.count, transports=_names(options))


def _strays(options: argparse.Namespace) -> Iterator[Trial]:
    return strays.trials(options.count, transports=_names(options))


def _leaks(options: argparse.Namespace) -> Iterator[Trial]:
    return leaks.trials(
        options.count,
        options.seed,
        transports=_names(options),
        cycles=options.cycles,
        delays=(0.2,) if options.at_work else (0.0, 0.005, 0.02, 0.2),
    )


def _link(options: argparse.Namespace) -> Iterator[Trial]:
    return links.trials(
        options.count,
        options.seed,
        ranks=[each for each in _range(options.ranks) if each > 1],
        kinds=options.kinds.split(",") if options.kinds else links.KINDS,
        silence=options.silence,
        seconds=options.seconds,
        pause=options.pause,
        late=options.late,
        control=options.control,
    )


def _address(options: argparse.Namespace) -> Iterator[Trial]:
    kinds = options.kinds.split(",") if options.kinds else list(addresses.KINDS)
    return addresses.trials(options.count, kinds=kinds)


def _step(options: argparse.Namespace) -> Iterator[Trial]:
    return steps.trials(options.count, first=options.first, step=options.step, late=options.late)


def _ending(options: argparse.Namespace) -> Iterator[Trial]:
    return endings.trials(options.count, transports=_names(options), late=options.late)


def _limit(options: argparse.Namespace) -> Iterator[Trial]:
    return limits.trials(transports=_names(options))


def _fork(options: argparse.Namespace) -> Iterator[Trial]:
    return forks.trials(
        options.count, options.seed, transports=_names(options), ranks=_range(options.ranks)
    )


def _shrink(options: argparse.Namespace) -> Iterator[Trial]:
    return shrinks.trials(
        options.count,
        options.seed,
        transports=_names(options),
        ranks=[each for each in _range(options.ranks) if each > 2],
    )


def _soak(options: argparse.Namespace) -> Iterator[Trial]:
    return soaks.trials(options.count, options.seed, transports=_names(options))


def _rejoin(options: argparse.Namespace) -> Iterator[Trial]:
    ranks = [each for each in _range(options.ranks) if each > 1]
    return rejoins.trials(options.count, options.seed, transports=_names(options), ranks=ranks)


def _tight(options: argparse.Namespace) -> Iterator[Trial]:
    return tight.trials(_range(options.ranks)[-1])


def _rails(options: argparse.Namespace) -> Iterator[Trial]:
    return rails.trials(options.count)


def _names(options: argparse.Namespace) -> list[str]:
    return str(options.transports).split(",")


def _range(text: str) -> list[int]:
    first, _, last = text.partition("-")
    return list(range(int(first), int(last or first) + 1))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    storms = parser.add_subparsers(dest="storm", required=True)

    def add(
        name: str, run: Callable[[argparse.Namespace], Iterator[Trial]], count: int, text: str
    ) -> Any:
        one = storms.add_parser(name, help=text)
        one.set_defaults(run=run)
        one.add_argument("--count", type=int, default=count, help=f"trials (default {count})")
        one.add_argument("--seed", type=int, default=1)
        one.add_argument("--ranks", default="2-8", help="a number, or from-to")
        one.add_argument(
            "--transports",
            default="shm,tcp",
            help="of shm, tcp, ofi, ofi:PROVIDER, islands, mirrors",
        )
        one.add_argument("--out", type=Path, help="write the JSON lines here")
        return one

    one = add("kill", _kill, 200, "one rank dies, the others must say so")
    one.add_argument("--phases", help=f"of {', '.join(dict.fromkeys(kills.PHASES))}")
    one.add_argument("--ways", help=f"of {', '.join(dict.fromkeys(kills.WAYS))}, hunger")
    one.add_argument("--sizes", default=",".join(str(each) for each in kills.SIZES))
    one.add_argument("--late", type=float, default=2.0, help="seconds after which it is a fault")
    one.add_argument("--children", type=int, default=0, help="that every rank forks")
    add("stop", _stop, 24, "one rank is stopped for a moment, for good, or merely slow")
    add("mismatch", _mismatch, 1, "one rank calls something else (count: whole matrices)")
    add("strays", _strays, 1, "strangers talk to every listener")
    one = add("leaks", _leaks, 50, "all are killed; then communicators are made and closed")
    one.add_argument("--cycles", type=int, default=200)
    one.add_argument("--at-work", action="store_true", help="kill none while they meet")
    one = add("link", _link, 20, "the network between hosts breaks, or is merely bad")
    one.add_argument("--kinds", help=f"of {', '.join(links.KINDS)}")
    one.add_argument("--silence", type=float, default=3.0, help="HCCOMM_SILENCE")
    one.add_argument("--seconds", type=float, default=10.0, help="on a line that is merely bad")
    one.add_argument("--pause", type=float, default=links.PAUSE, help="between two short breaks")
    one.add_argument("--control", default="", help="TCP's congestion control: cubic, bbr")
    one.add_argument("--late", type=float, default=0.0, help="seconds after it: a fault")
    one = add("address", _address, 1, "machines with odd interfaces, names and address families")
    one.add_argument("--kinds", help=f"of {', '.join(addresses.KINDS)}")
    one = add("step", _step, 40, "a rank is killed at the Nth system call of its init")
    one.add_argument("--first", type=int, default=1, help="N of the first trial")
    one.add_argument("--step", type=int, default=7, help="how much larger N is in the next")
    one.add_argument("--late", type=float, default=1.0, help="seconds after the timeout: a fault")
    one = add("ending", _ending, 3, "somebody aborts, interrupts, terminates or leaves")
    one.add_argument("--late", type=float, default=0.2, help="seconds after which it is a fault")
    add("limit", _limit, 1, "one rank has few descriptors, or little memory")
    one = add("tight", _tight, 1, "many ranks on few ports; folders where nobody may write")
    one.set_defaults(ranks="64")
    add("shrink", _shrink, 40, "ranks die, the rest go on, and new ones join")
    one = add("fork", _fork, 24, "children live on when a rank dies, and use its communicator")
    one.set_defaults(ranks="2-4")
    add("rejoin", _rejoin, 12, "training loses a worker and gets another; the loss must not tell")
    add("rails", _rails, 2, "one of two cables between islands is slow")
    one = add("soak", _soak, 1800, "stops, deaths and shrinking without end")
    one.description = "Here --count is seconds."
    return parser


def main() -> int:
    """Run one storm."""
    options = _parser().parse_args()
    if options.storm == "leaks":
        private.enter(sys.argv, leaks.SETUP)
    if options.storm == "tight" and not private.enter(sys.argv, tight.SETUP):
        print("skipped: namespaces are not permitted here")
        return SKIPPED
    if options.storm in NETWORKED:
        refusal = networks.refusal(lambda: private.enter(sys.argv, networks.SETUP))
        if refusal:
            print(f"skipped: {refusal}")
            return SKIPPED
    if options.storm == "step" and not steps.permitted():
        print("skipped: ptrace is not permitted here, or the machine is not an x86-64 one")
        return SKIPPED
    out = options.out.open("w") if options.out else sys.stdout
    report, began = Report(out), time.monotonic()
    try:
        report.run(options.run(options))
    finally:
        print(
            f"\n{report.table()}\n{len(report.trials)} trials in {time.monotonic() - began:.0f} s"
        )
        for fault in report.faults:
            print(f"amiss: {fault[:600]}")
    return 1 if report.faults else 0


if __name__ == "__main__":
    sys.exit(main())

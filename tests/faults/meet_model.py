# SPDX-License-Identifier: Apache-2.0
"""A model of the rendezvous with deaths (csrc/rendezvous/meet.cpp and its stores).

Ranks are small machines around one store; one step is one store operation of one rank, one death,
or the deadline, which comes when nothing else can. The store sees the end of a process that had it
open. walk() takes every interleaving. In every end state each rank that lives has the book, or an
error that blames a rank which did die (or had left before it came); nobody waits for ever; where
nobody died all have the book, and where rank 0 lives all have it or none. (It was written when the
stores told every rank who had died, and found that some then met and others did not.)
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

AWAY, OPEN, WAITS, LATE, GRACE = "away", "open", "waits", "late", "grace"
MET, LOST, TIMEOUT, DEAD = "met", "lost", "timeout", "dead"
ENDS = (MET, LOST, TIMEOUT, DEAD)


@dataclass(frozen=True)
class Rank:
    """Where one rank stands, and whom its error blames."""

    state: str = AWAY
    blames: int = -1


@dataclass(frozen=True)
class World:
    """All ranks, what is in the store, and who died with it open."""

    ranks: tuple[Rank, ...]
    job: bool = False
    cards: int = 0  # bits
    book: str = ""  # "", whole, or the rank that a failure blames
    served: bool = False  # rank 0 has opened the store and not left it
    fallen: int = 0  # bits: died with the store open
    deaths: int = 0  # that may still come
    died: int = 0  # bits: all that died


def start(size: int, deaths: int) -> World:
    """Return the beginning: nobody has opened the store."""
    return World((Rank(),) * size, deaths=deaths)


def _put(world: World, me: int, state: str, blames: int = -1) -> World:
    ranks = (*world.ranks[:me], Rank(state, blames), *world.ranks[me + 1 :])
    world = replace(world, ranks=ranks)
    return replace(world, served=False) if me == 0 and state in ENDS else world


def _first(bits: int) -> int:
    return (bits & -bits).bit_length() - 1


def steps(world: World, me: int) -> Iterator[World]:
    """Yield what may come of this rank's next store operation; nothing while it must wait."""
    state = world.ranks[me].state
    if state in ENDS:
        return
    if me == 0:
        yield from _steps_of_zero(world)
    elif state == AWAY:
        if world.served:  # otherwise it looks again until the deadline
            yield _put(world, me, OPEN)
    elif state == OPEN:
        yield from _awaits(world, me, world.job, _put(_with_card(world, me), me, WAITS))
    elif world.book:
        blames = -1 if world.book == "whole" else int(world.book)
        yield _put(world, me, MET if blames < 0 else LOST, blames)
    else:
        yield from _awaits(world, me, False, world)


def _with_card(world: World, me: int) -> World:
    return replace(world, cards=world.cards | 1 << me)


def _awaits(world: World, me: int, there: bool, then: World) -> Iterator[World]:
    """Go on when the value is there; else learn of rank 0's end. Only rank 0 judges the others."""
    if there:
        yield then
    elif not world.served:
        yield _put(world, me, LOST, 0)


def _steps_of_zero(world: World) -> Iterator[World]:
    state, size = world.ranks[0].state, len(world.ranks)
    everybody = (1 << size) - 2
    if state == AWAY:
        yield replace(_put(world, 0, OPEN), served=True)
    elif state == OPEN:
        yield replace(_put(world, 0, WAITS), job=True)
    elif state == WAITS:
        if world.cards & everybody == everybody:
            yield replace(_put(world, 0, LATE), book="whole")
        elif world.fallen:
            lost = _first(world.fallen)
            yield replace(_put(world, 0, GRACE, lost), book=str(lost))
    elif state == GRACE:  # it waits a moment for cards that lack, and may wait in vain
        yield _put(world, 0, LATE, world.ranks[0].blames)
    elif all(each.state in (*ENDS, AWAY) for each in world.ranks[1:]):
        blames = world.ranks[0].blames  # finish(): all that live and had the store open have left
        yield _put(world, 0, MET if blames < 0 else LOST, blames)


def deaths(world: World) -> Iterator[World]:
    """Let one more rank die."""
    if world.deaths == 0:
        return
    for me, rank in enumerate(world.ranks):
        if rank.state in ENDS:
            continue
        after = replace(_put(world, me, DEAD), deaths=world.deaths - 1, died=world.died | 1 << me)
        if rank.state != AWAY:
            after = replace(after, fallen=after.fallen | 1 << me)
        yield after


def deadline(world: World) -> World:
    """Let the deadline pass: whoever waits has an error that names who is missing."""
    for me, rank in enumerate(world.ranks):
        if rank.state in ENDS:
            continue
        missing = [each for each in range(1, len(world.ranks)) if not world.cards >> each & 1]
        blames = rank.blames if rank.blames >= 0 else missing[0] if me == 0 and missing else 0
        world = _put(world, me, TIMEOUT, blames)
    return world


def fault(world: World) -> str:
    """Return what is wrong with an end state, or ""."""
    for me, rank in enumerate(world.ranks):
        if rank.state in (LOST, TIMEOUT) and not world.died:
            return f"rank {me} failed though nobody died: {world}"
        left = world.ranks[0].state in ENDS and rank.blames == 0
        if rank.state in (LOST, TIMEOUT) and not (world.died >> rank.blames & 1 or left):
            return f"rank {me} blames one who lives: {world}"
        if rank.state == LOST and not world.died >> rank.blames & 1:
            return f"rank {me} calls a rank lost that lives: {world}"
    states = {rank.state for rank in world.ranks} - {DEAD}
    if MET in states and (LOST in states or TIMEOUT in states) and not world.died & 1:
        return f"some have met, others have not: {world}"
    return ""


def walk(world: World) -> int:
    """Take every interleaving; return how many states there are. Raises AssertionError."""
    seen, stack = {world}, [world]
    while stack:
        here = stack.pop()
        moves = [each for me in range(len(here.ranks)) for each in steps(here, me)]
        if not moves:
            end = deadline(here)
            assert not fault(end), fault(end)
        for after in itertools.chain(moves, deaths(here)):
            if after not in seen:
                seen.add(after)
                stack.append(after)
    return len(seen)

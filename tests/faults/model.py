# SPDX-License-Identifier: Apache-2.0
"""A model of the survivors' agreement (csrc/comm/agreement.cpp), with the same transitions.

Ranks are small machines joined by queues; one step is one word sent, one word heard, or one death.
explore() walks every interleaving of a small case, wander() random ones of a larger. A death may
take any words with it that nobody has heard yet. In every end state all survivors must have
decided, on the same set, and on nobody who lives.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

ROUND, DECIDED, EXPELLED = "round", "decided", "expelled"
Word = tuple[str, int]  # kind, set of the lost (bits)


@dataclass(frozen=True)
class Rank:
    """Where one rank stands. `state`: speaks, hears, ends; then done, expelled or dead."""

    state: str
    lost: int
    mine: int = 0  # what it held for lost when the round began
    ear: int = 0  # whom it hears next
    alike: bool = True
    more: int = 0
    decision: int = -1
    outbox: tuple[tuple[int, Word], ...] = ()


@dataclass(frozen=True)
class World:
    """All ranks, and the words on their way: queues[from][to]."""

    ranks: tuple[Rank, ...]
    queues: tuple[tuple[tuple[Word, ...], ...], ...]
    deaths: int  # that may still come


def start(size: int, dead: int, known: tuple[int, ...], deaths: int) -> World:
    """Return the beginning: ``dead`` ranks are dead, rank r knows of known[r], more may die."""
    ranks = []
    for me in range(size):
        if dead >> me & 1:
            ranks.append(Rank("dead", 0))
        else:
            outbox = tuple(
                (each, (EXPELLED, known[me])) for each in range(size) if known[me] >> each & 1
            )
            ranks.append(_round(me, size, Rank("speaks", known[me], outbox=outbox)))
    empty: tuple[tuple[Word, ...], ...] = ((),) * size
    return World(tuple(ranks), (empty,) * size, deaths)


def _to_all(me: int, size: int, lost: int, word: Word) -> tuple[tuple[int, Word], ...]:
    return tuple((each, word) for each in range(size) if each != me and not lost >> each & 1)


def _round(me: int, size: int, rank: Rank) -> Rank:
    words = _to_all(me, size, rank.lost, (ROUND, rank.lost))
    begun = replace(rank, state="speaks", mine=rank.lost, ear=0, alike=True, more=0, decision=-1)
    return replace(begun, outbox=rank.outbox + words)


def _end_round(me: int, size: int, rank: Rank) -> Rank:
    decision = rank.decision if rank.decision >= 0 else rank.mine if rank.alike else -1
    if decision >= 0:
        if decision >> me & 1:
            return replace(rank, state="expelled")
        words = _to_all(me, size, rank.lost, (DECIDED, decision))
        return replace(rank, state="ends", lost=decision, outbox=words)
    if rank.more >> me & 1:
        return replace(rank, state="expelled")
    lost, outbox = rank.lost, rank.outbox
    for each in range(size):
        if rank.more >> each & 1 and not lost >> each & 1:
            lost |= 1 << each
            outbox += ((each, (EXPELLED, lost)),)
    return _round(me, size, replace(rank, lost=lost, outbox=outbox))


def _hear(me: int, size: int, rank: Rank, word: Word | None) -> Rank:
    """Take the word of rank.ear, or its loss."""
    other = rank.ear
    if word is None:
        return replace(rank, ear=other + 1, alike=False, more=rank.more | 1 << other)
    kind, lost = word
    if kind == EXPELLED:
        return replace(rank, state="expelled")
    decision = lost if kind == DECIDED else rank.decision
    more = rank.more | (lost & ~rank.mine)
    alike = rank.alike and lost == rank.mine
    return replace(rank, ear=other + 1, decision=decision, more=more, alike=alike)


def _put(world: World, me: int, rank: Rank) -> World:
    return replace(world, ranks=(*world.ranks[:me], rank, *world.ranks[me + 1 :]))


def _queue(world: World, source: int, to: int, words: tuple[Word, ...]) -> World:
    row = world.queues[source]
    row = (*row[:to], words, *row[to + 1 :])
    return replace(world, queues=(*world.queues[:source], row, *world.queues[source + 1 :]))


def step(world: World, me: int) -> World | None:
    """Let one rank do its next thing; None when it must wait or has ended."""
    rank, size = world.ranks[me], len(world.ranks)
    if rank.outbox and rank.state in ("speaks", "ends"):
        to, word = rank.outbox[0]
        world = _queue(world, me, to, (*world.queues[me][to], word))
        return _put(world, me, replace(rank, outbox=rank.outbox[1:]))
    if rank.state == "speaks":
        return _put(world, me, replace(rank, state="hears"))
    if rank.state == "ends":
        return _put(world, me, replace(rank, state="done"))
    if rank.state != "hears":
        return None
    while rank.ear < size and (rank.ear == me or rank.mine >> rank.ear & 1):
        rank = replace(rank, ear=rank.ear + 1)
    if rank.ear == size:
        return _put(world, me, _end_round(me, size, rank))
    queue = world.queues[rank.ear][me]
    if queue:
        world = _queue(world, rank.ear, me, queue[1:])
        return _put(world, me, _hear(me, size, rank, queue[0]))
    if world.ranks[rank.ear].state in ("dead", "done", "expelled"):  # its link has ended
        return _put(world, me, _hear(me, size, rank, None))
    return None


def deaths(world: World) -> Iterator[World]:
    """Let one more rank die, taking any of the words with it that nobody has heard."""
    if world.deaths == 0:
        return
    size = len(world.ranks)
    for me, rank in enumerate(world.ranks):
        if rank.state in ("dead", "done", "expelled"):
            continue
        after = replace(_put(world, me, Rank("dead", 0)), deaths=world.deaths - 1)
        lengths = [range(len(world.queues[me][to]) + 1) for to in range(size)]
        for kept in itertools.product(*lengths):
            one = after
            for to in range(size):
                one = _queue(one, me, to, world.queues[me][to][: kept[to]])
            yield one


def fault(world: World) -> str:
    """Return what is wrong with an end state, or ""."""
    alive = [rank for rank in world.ranks if rank.state != "dead"]
    dead = sum(1 << me for me, rank in enumerate(world.ranks) if rank.state == "dead")
    if any(rank.state != "done" for rank in alive):
        return f"a survivor did not decide: {world}"
    if len({rank.lost for rank in alive}) > 1:
        return f"survivors differ: {world}"
    if any(rank.lost & ~dead for rank in alive):
        return f"a living rank was given up: {world}"
    return ""


def explore(world: World, most: int = 2_000_000) -> int:
    """Walk every interleaving; return how many states there are. Raises AssertionError."""
    seen, stack = {world}, [world]
    while stack:
        here = stack.pop()
        moves = [each for me in range(len(here.ranks)) if (each := step(here, me)) is not None]
        if not moves:
            assert not fault(here), fault(here)
        for after in itertools.chain(moves, deaths(here)):
            if after not in seen:
                assert len(seen) < most, "too large to walk"
                seen.add(after)
                stack.append(after)
    return len(seen)


def wander(world: World, chance: random.Random) -> None:
    """Walk one random interleaving to its end. Raises AssertionError."""
    for _ in range(100_000):
        moves = [each for me in range(len(world.ranks)) if (each := step(world, me)) is not None]
        if not moves:
            assert not fault(world), fault(world)
            return
        world = chance.choice(moves)
        if chance.random() < 0.03:
            world = chance.choice([world, *itertools.islice(deaths(world), 200)])
    raise AssertionError(f"it does not end: {world}")

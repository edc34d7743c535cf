# SPDX-License-Identifier: Apache-2.0
"""The models of agreement and rendezvous: every interleaving of small cases, many of larger."""

from __future__ import annotations

import itertools
import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

import meet_model
import model


@pytest.mark.parametrize("known", list(itertools.product((0, 4), repeat=2)))
def test_two_survivors_agree_whatever_each_knows(known: tuple[int, int]) -> None:
    """Three ranks, one dead; the others know it or not; another may die at any moment."""
    states = model.explore(model.start(3, 0b100, (*known, 0), 1))

    assert states > 100


def test_three_ranks_agree_whoever_dies_when() -> None:
    """Three ranks that live: any one may die between any two words."""
    assert model.explore(model.start(3, 0, (0, 0, 0), 1)) > 1000


def test_many_ranks_agree_in_random_orders() -> None:
    """Four to seven ranks, up to three of them dying, each knowing some of the dead."""
    chance = random.Random(12)
    for _ in range(500):
        size = chance.randint(4, 7)
        dead = 1 << chance.randrange(size) if chance.random() < 0.7 else 0
        known = tuple(chance.choice((0, dead)) for _ in range(size))

        model.wander(model.start(size, dead, known, chance.randint(0, 2)), chance)


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("deaths", [0, 1, 2])
def test_ranks_that_meet_all_have_the_book_or_know_who_died(size: int, deaths: int) -> None:
    """Every interleaving of store operations and deaths, those of rank 0 among them."""
    assert meet_model.walk(meet_model.start(size, deaths)) > 5

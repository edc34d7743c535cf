# SPDX-License-Identifier: Apache-2.0
"""A model small enough to check: least squares by gradient descent on batches made of the step."""

from __future__ import annotations

import numpy as np

FEATURES, SAMPLES, RATE = 16, 48, 0.05


class Model:
    """Weights after some steps.

    Owns:   the weights.
    Thread: one.
    Fails:  never.
    """

    def __init__(self) -> None:
        self.step = 0
        self.weights = np.zeros(FEATURES)

    def state(self) -> np.ndarray:
        """Return all that another process needs to go on from here."""
        return np.append(self.weights, float(self.step))

    def load(self, state: np.ndarray) -> None:
        """Go on from there."""
        self.weights, self.step = state[:-1].copy(), int(state[-1])

    def gradient(self, rank: int, size: int) -> np.ndarray:
        """Return this rank's part of the gradient of the step's whole batch."""
        inputs, wanted = _batch(self.step)
        mine = slice(rank, None, size)
        wrong = inputs[mine] @ self.weights - wanted[mine]
        return np.asarray(inputs[mine].T @ wrong / SAMPLES)

    def apply(self, gradient: np.ndarray) -> None:
        """Take one step along the sum of all parts."""
        self.weights = self.weights - RATE * gradient
        self.step += 1

    def loss(self) -> float:
        """Return the mean square on a batch that nobody trains with."""
        inputs, wanted = _batch(-1)
        return float(np.mean((inputs @ self.weights - wanted) ** 2))


def undisturbed(steps: int) -> Model:
    """Return the model as one process trains it."""
    model = Model()
    for _ in range(steps):
        model.apply(model.gradient(0, 1))
    return model


def _batch(step: int) -> tuple[np.ndarray, np.ndarray]:
    chance = np.random.default_rng(step + 1)
    inputs = chance.standard_normal((SAMPLES, FEATURES))
    return inputs, inputs @ np.arange(FEATURES) + chance.standard_normal(SAMPLES)

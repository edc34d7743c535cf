# SPDX-License-Identifier: Apache-2.0
"""Train a small classifier on scikit-learn's digits with DistributedDataParallel.

An ordinary torch program: hccomm appears only as the name of the backend, and nothing is imported
from it. `torchrun --nproc-per-node 4 demo/train.py` runs it alone; demo/run.py runs it over two
emulated hosts and compares the weights with those of fit() in a single process.

Everything is double precision, so that the order in which gradients are summed shows only in the
last bits, and a mistake in communication shows as a mistake.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.parallel import DistributedDataParallel

Report = Callable[[dict[str, object]], None]


@dataclass(frozen=True)
class Recipe:
    """All that decides the outcome, so that two runs can be the same."""

    epochs: int = 30
    batch: int = 128
    rate: float = 0.1
    hidden: int = 64
    seed: int = 7


class Digits(NamedTuple):
    """Pictures of 8 x 8 pixels, scaled to 0..1, and which digit each one shows."""

    train_x: torch.Tensor
    train_y: torch.Tensor
    test_x: torch.Tensor
    test_y: torch.Tensor


def load() -> Digits:
    """Read the data set out of scikit-learn's wheel; every fifth picture is for the test."""
    bunch = load_digits()
    pixels = torch.from_numpy(bunch.data).double() / 16
    labels = torch.from_numpy(bunch.target).long()
    test = torch.arange(len(labels)) % 5 == 0
    return Digits(pixels[~test], labels[~test], pixels[test], labels[test])


def network(recipe: Recipe) -> nn.Module:
    """Make the classifier with the same first weights everywhere."""
    torch.manual_seed(recipe.seed)
    layers = nn.Sequential(nn.Linear(64, recipe.hidden), nn.ReLU(), nn.Linear(recipe.hidden, 10))
    return layers.double()


def batches(recipe: Recipe, examples: int) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield (epoch, indices of one whole batch): the same sequence in every process."""
    shuffle = torch.Generator().manual_seed(recipe.seed)
    for epoch in range(recipe.epochs):
        order = torch.randperm(examples, generator=shuffle)
        for begin in range(0, examples - recipe.batch + 1, recipe.batch):
            yield epoch, order[begin : begin + recipe.batch]


def steps(recipe: Recipe, examples: int) -> int:
    """Return how many batches() there are."""
    return recipe.epochs * (examples // recipe.batch)


def fit(model: nn.Module, data: Digits, recipe: Recipe, rank: int, size: int, say: Report) -> None:
    """Train on this rank's share of every batch: pictures rank, rank + size, ... of it.

    The model's device gets each share as it is needed.
    """
    where = next(model.parameters()).device
    optimizer = torch.optim.SGD(model.parameters(), lr=recipe.rate, momentum=0.9)
    total = steps(recipe, len(data.train_y))
    for step, (epoch, indices) in enumerate(batches(recipe, len(data.train_y)), 1):
        mine = indices[rank::size]
        optimizer.zero_grad()
        pictures, digits = data.train_x[mine].to(where), data.train_y[mine].to(where)
        loss = nn.functional.cross_entropy(model(pictures), digits)
        loss.backward()
        optimizer.step()
        say({"event": "step", "step": step, "of": total, "epoch": epoch, "loss": loss.item()})


def accuracy(model: nn.Module, data: Digits) -> float:
    """Return the share of test pictures that are read right."""
    where = next(model.parameters()).device
    with torch.no_grad():
        found = model(data.test_x.to(where)).argmax(1).cpu()
        return (found == data.test_y).double().mean().item()


def fingerprint(model: nn.Module) -> str:
    """Return a digest of all weights: equal digests are equal bits."""
    digest = hashlib.sha256()
    for weight in model.state_dict().values():
        digest.update(weight.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def run(recipe: Recipe, say: Report, where: str = "cpu") -> nn.Module:
    """Train on all ranks of the default group, this one on ``where``; return the network."""
    dist.init_process_group("hccomm")
    rank, size = dist.get_rank(), dist.get_world_size()
    if recipe.batch % size != 0:
        raise SystemExit(f"a batch of {recipe.batch} does not divide among {size} ranks")
    data = load()
    model = network(recipe).to(where)
    fit(DistributedDataParallel(model), data, recipe, rank, size, say)
    say({"event": "trained", "accuracy": accuracy(model, data), "weights": fingerprint(model)})
    return model


def _print(event: dict[str, object]) -> None:
    if dist.get_rank() == 0 and (event["event"] != "step" or event["step"] == event["of"]):
        print(event)


if __name__ == "__main__":
    run(Recipe(), _print)
    dist.destroy_process_group()

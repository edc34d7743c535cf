# SPDX-License-Identifier: Apache-2.0
"""Draw bandwidth and time against size from the demo's table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

# Okabe and Ito's colours: told apart by every eye; the markers also in print.
LOOKS = [
    ("#0072B2", "o"),
    ("#D55E00", "s"),
    ("#009E73", "^"),
    ("#CC79A7", "D"),
    ("#E69F00", "v"),
]


def _size(value: float, _position: int = 0) -> str:
    for unit in ("B", "K", "M"):
        if value < 1024:
            return f"{value:.0f}{unit}"
        value /= 1024
    return f"{value:.0f}G"


def _axes(axes: Axes, title: str, unit: str) -> None:
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(_size))
    axes.set_xlabel("bytes per rank")
    axes.set_ylabel(unit)
    axes.set_title(title, loc="left")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def draw(rows: list[dict[str, Any]], path: Path, title: str) -> None:
    """Write the picture of ``rows`` to ``path``."""
    figure, (rate, latency) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    for name, (color, marker) in zip(
        dict.fromkeys(row["collective"] for row in rows), LOOKS, strict=False
    ):
        own = [row for row in rows if row["collective"] == name]
        sizes = [row["bytes"] for row in own]
        look = {"color": color, "marker": marker, "markersize": 4, "linewidth": 1.6, "label": name}
        rate.plot(sizes, [row["gbps"] for row in own], **look)
        latency.plot(sizes, [row["us"] for row in own], **look)
    _axes(rate, "Bus bandwidth", "GB/s")
    rate.set_ylim(bottom=0)
    _axes(latency, "Time", "microseconds")
    latency.set_yscale("log")
    rate.legend(frameon=False, loc="upper left")
    figure.suptitle(title)
    figure.savefig(path, dpi=130)
    plt.close(figure)

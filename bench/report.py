# SPDX-License-Identifier: Apache-2.0
"""Draw what `hccomm bench --json` or bench/peers.py wrote: bandwidth and latency against size.

``python bench/report.py FILE.jsonl... --out PICTURE.png [--collective all_reduce]``: one column for
each collective, bus bandwidth above, time of a call below, one line for each library; several
measurements of one point are drawn as their median.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

Points = dict[str, dict[str, dict[int, list[tuple[float, float]]]]]  # collective, label, size


def main() -> None:
    """Read the rows and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("files", nargs="+")
    parser.add_argument("--out", default="bench.png")
    parser.add_argument("--collective", action="append", default=[])
    parser.add_argument("--title", default="")
    options = parser.parse_args()
    points = read(options.files, options.collective)
    if not points:
        raise SystemExit(f"report: no measurements in {', '.join(options.files)}")
    draw(points, options.out, options.title)
    print(f"wrote {options.out}")


def read(files: list[str], wanted: list[str]) -> Points:
    """Return (busbw in GB/s, time in us) by collective, label and size."""
    points: Points = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for file in files:
        for line in Path(file).read_text(encoding="utf-8").splitlines():
            row: dict[str, Any] = json.loads(line)
            if not row.get("size") or (wanted and row["collective"] not in wanted):
                continue
            label = f"{row.get('library', 'hccomm')}, {row.get('ranks', '?')} ranks"
            if row.get("hosts", 1) > 1:
                label += f" on {row['hosts']} hosts"
            if row.get("mode") == "in" and row["collective"] not in ("broadcast", "all_reduce"):
                continue
            points[row["collective"]][label][row["size"]].append((row["busbw"], row["time_us"]))
    return points


def draw(points: Points, out: str, title: str) -> None:
    """Write the picture."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        2, len(points), figsize=(4.2 * len(points) + 1, 7), squeeze=False, sharex="col",
        layout="constrained",
    )  # fmt: skip
    for column, (collective, labels) in enumerate(points.items()):
        above, below = axes[0][column], axes[1][column]
        for label, sizes in labels.items():
            at = sorted(sizes)
            for axis, which in ((above, 0), (below, 1)):
                heights = [statistics.median(each[which] for each in sizes[size]) for size in at]
                axis.plot(at, heights, marker="o", markersize=3, linewidth=1.4, label=label)
        above.set(title=collective)
        above.set_xscale("log", base=2)  # the columns share it
        below.set(yscale="log", xlabel="size (bytes)")
        below.xaxis.set_major_formatter(lambda value, _: _bytes(value))
        for axis in (above, below):
            axis.grid(visible=True, alpha=0.3)
    axes[0][0].set_ylabel("bus bandwidth (GB/s)")
    axes[1][0].set_ylabel("time of a call (us)")
    axes[0][0].legend(fontsize=8)
    if title:
        figure.suptitle(title)
    figure.savefig(out, dpi=120)
    plt.close(figure)


def _bytes(value: float) -> str:
    for unit, factor in (("G", 1 << 30), ("M", 1 << 20), ("K", 1 << 10)):
        if value >= factor:
            return f"{value / factor:.3g}{unit}"
    return f"{value:.3g}"


if __name__ == "__main__":
    main()

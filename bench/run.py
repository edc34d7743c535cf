# SPDX-License-Identifier: Apache-2.0
"""`make bench`: hccomm and its peers on this machine, from C and from Python, as one report.

Runs bench/peers.py and bench/imb.py for each number of ranks and puts their tables together as
bench/results/<machine>.md, with the rows in <machine>.jsonl and a picture for each number of ranks.
About a quarter of an hour on two cores; ``--rounds 1 --ranks 2`` is a look. Peers that are not
installed are named (``python bench/mpis.py install`` puts the MPIs in).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import peers

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Measure everything; write the report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--ranks", default="2,3,4,8", help="numbers of ranks, like 2,4")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.05, help="per collective and size")
    parser.add_argument("--sizes", default="8,1K,64K,1M,16M", help="of the runs from Python")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    name = peers.machine()
    report = [f"# {name}\n"]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for ranks in options.ranks.split(","):
            common = ["--ranks", ranks, "--rounds", str(options.rounds), "--out", folder]
            common += ["--seconds", str(options.seconds)]
            for program, arguments in (
                ("peers.py", [*common, "--sizes", options.sizes]),
                ("imb.py", common),
            ):
                done = subprocess.run(
                    [sys.executable, str(HERE / program), *arguments], check=False, timeout=7200
                )
                if done.returncode != 0:
                    sys.exit(f"{program} {' '.join(arguments)}: exit status {done.returncode}")
            stem = Path(folder) / f"{name}-{ranks}ranks"
            picture = options.out / f"{name}-{ranks}ranks.png"
            subprocess.run(
                [
                    *(sys.executable, str(HERE / "report.py"), f"{stem}.jsonl"),
                    *("--out", str(picture), "--title", f"{ranks} ranks, from Python"),
                ],
                check=True,
                timeout=300,
            )
            for part in (f"{stem}", f"{stem}-c"):
                text = Path(f"{part}.md").read_text(encoding="utf-8")
                report.append("#" + text)  # one level down
                rows.append(Path(f"{part}.jsonl").read_text(encoding="utf-8"))
            report.append(f"![bandwidth and latency, {ranks} ranks]({picture.name})\n")
    stem = options.out / name
    stem.with_suffix(".md").write_text("\n".join(report), encoding="utf-8")
    stem.with_suffix(".jsonl").write_text("".join(rows), encoding="utf-8")
    print(f"# wrote {stem}.md, .jsonl and the pictures")


if __name__ == "__main__":
    main()

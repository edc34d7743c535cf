# SPDX-License-Identifier: Apache-2.0
"""What safety costs: all_reduce of two ranks with each protection and without, in turn.

    python bench/safety.py build/release/bench/micro/collectives --rounds 7

Every round runs every way once, so that what else the machine does hits all alike; the table has
the best of all rounds, their median, and how much more the best is than without any protection.
"""

from __future__ import annotations

import argparse
import os
import secrets
import statistics
import subprocess
import tempfile
from pathlib import Path

SIZES = (8, 64 << 10, 1 << 20, 16 << 20)


def ways(key: str) -> dict[str, dict[str, str]]:
    """Return the settings of each way; the first has no protection."""
    keyed = {"HCCOMM_KEY_FILE": key, "HCCOMM_AUTH": "require"}
    return {
        "off": {"HCCOMM_AUTH": "off"},
        "authentication": keyed,
        "crc32c": {"HCCOMM_AUTH": "off", "HCCOMM_INTEGRITY": "crc32c"},
        "encryption": keyed | {"HCCOMM_ENCRYPT": "1"},
    }


def measure(program: Path, transport: str, size: int, settings: dict[str, str]) -> float:
    """Return the microseconds of a call, the median of the program's repetitions."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HCCOMM_")}
    done = subprocess.run(
        [program, "allreduce", "2", str(size), str(size), "11"],
        env=clean | settings | {"HCCOMM_TRANSPORTS": transport},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return float(done.stdout.split()[-2])


def main() -> None:
    """Print a table for each transport."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--transports", default="tcp,shm")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        key = Path(folder) / "key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(32))
        for transport in options.transports.split(","):
            names = [each for each in ways(str(key)) if transport == "tcp" or each != "encryption"]
            print(f"all_reduce, {transport}, us: best (median), more than off")
            print(f"{'bytes':>10}" + "".join(f"{each:>28}" for each in names))
            for size in SIZES:
                times: dict[str, list[float]] = {each: [] for each in names}
                for _ in range(options.rounds):
                    for each in names:
                        settings = ways(str(key))[each]
                        times[each].append(measure(options.program, transport, size, settings))
                off = min(times["off"])
                cells = (
                    f"{min(took):.2f} ({statistics.median(took):.2f}) {min(took) / off - 1:+6.1%}"
                    for took in times.values()
                )
                print(f"{size:>10}" + "".join(f"{each:>28}" for each in cells), flush=True)


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""`hccomm tune`: the table is what was quickest, and all ranks go by it or say that they differ."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import rank_programs as on_ranks

import hccomm
from hccomm import tune


def timings(**rows: list[float]) -> list[tune.Timing]:
    sizes = (100, 400, 1600)
    return [
        tune.Timing("allreduce", name, size, us)
        for name, times in rows.items()
        for size, us in zip(sizes, times, strict=True)
    ]


def test_each_size_has_its_quickest_algorithm() -> None:
    lines = list(tune.choose(timings(direct=[1, 5, 20], ring=[3, 3, 9]), "shared", 4))

    assert [str(each) for each in lines] == [
        "allreduce shared 4 200 direct",
        "allreduce shared 4 any ring",
    ]


def test_a_neighbour_keeps_its_choice_unless_another_is_clearly_better() -> None:
    lines = list(tune.choose(timings(direct=[1, 5.1, 20], ring=[3, 5, 19.5]), "shared", 4))

    assert [str(each) for each in lines] == ["allreduce shared 4 any direct"]


def test_of_two_passes_the_quicker_counts() -> None:
    disturbed = timings(direct=[50, 50, 50], ring=[2, 2, 2])

    lines = list(tune.choose([*disturbed, *timings(direct=[1, 1, 1], ring=[9, 9, 9])], "shared", 2))

    assert [each.algorithm for each in lines] == ["direct"]


def test_a_measured_table_is_read_back_by_the_core(ranks: Any, tmp_path: Path) -> None:
    found = ranks(2).run(on_ranks.tuned, (64, 4096))
    assert found[0] == found[1]
    lines, remarks = found[0]
    assert {each.collective for each in lines} == set(tune.COLLECTIVES)
    assert "alpha" in remarks[0]
    path = tmp_path / "table"
    path.write_text(tune.table([found[0]], "made by a test"))

    said = explained(path, 2)

    assert "measured, HCCOMM_TABLE" in said["why"]
    assert said["algorithm"] in [each.algorithm for each in lines if each.most_bytes < 0]


def explained(path: Path, ranks: int) -> dict[str, Any]:
    code = (
        "import hccomm, json; print(json.dumps(hccomm.explain('all_reduce', count=10**6,"
        f" size={ranks})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"HCCOMM_TABLE": str(path)},
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_ranks_with_different_tables_are_told_so(tmp_path: Path) -> None:
    code = (
        "import hccomm, sys\ntry: hccomm.init(rank=int(sys.argv[1]), size=2, timeout=20.0,"
        f" rendezvous='file://{tmp_path}/meet')\nexcept hccomm.Error as e:"
        " print(type(e).__name__, e)"
    )
    started = []
    for rank, algorithm in enumerate(("ring", "tree")):
        path = tmp_path / algorithm
        path.write_text(f"allreduce shared any any {algorithm}\n")
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", code, str(rank)],
                env=os.environ | {"HCCOMM_TABLE": str(path)}, stdout=subprocess.PIPE, text=True,
            )
        )  # fmt: skip
    try:
        said = [process.communicate(timeout=60)[0] for process in started]
    finally:
        for process in started:
            process.kill()

    assert all(each.startswith("Mismatch") and "HCCOMM_TABLE" in each for each in said), said


def test_a_table_that_is_not_there_is_named() -> None:
    code = "import hccomm\ntry: hccomm.init()\nexcept hccomm.Error as e: print(type(e).__name__, e)"

    said = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"HCCOMM_TABLE": "/nowhere/table"},
        capture_output=True, text=True, timeout=60, check=True,
    ).stdout  # fmt: skip

    assert said.startswith("InvalidArgument")
    assert "/nowhere/table" in said
    assert "hccomm tune" in said


@pytest.mark.parametrize("asked", ["1", "two", "2,x"])
def test_wrong_ranks_are_refused(asked: str) -> None:
    from hccomm import cli

    with pytest.raises(hccomm.InvalidArgument, match="--ranks"):
        cli._tune_ranks(asked)


def test_one_launched_rank_has_nothing_to_measure(tmp_path: Path) -> None:
    table = tmp_path / "table"
    one = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "hccomm", "tune", str(table)],
        capture_output=True, text=True, check=False, timeout=60, env=os.environ | one,
    )  # fmt: skip
    assert done.returncode != 0
    assert "started 1 rank" in done.stderr
    assert not table.exists()

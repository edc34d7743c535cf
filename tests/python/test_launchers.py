# SPDX-License-Identifier: Apache-2.0
"""hccomm.init() under torchrun, with nothing said; and the picture that the bench draws."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.torch
def test_ranks_of_torchrun_meet_without_importing_torch(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    program = tmp_path / "program.py"
    program.write_text(
        "import sys, hccomm\n"
        "with hccomm.init() as comm, hccomm.init(name='second') as second:\n"
        "    mine = bytearray([comm.rank + 1])\n"
        "    second.all_reduce(mine)\n"
        "    assert 'torch' not in sys.modules\n"
        "    open(f'{sys.argv[1]}/{comm.rank}', 'w').write(f'{comm.size} {mine[0]}')\n"
    )

    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3",
         str(program), str(tmp_path)],
        capture_output=True, text=True, timeout=150, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip

    assert done.returncode == 0, done.stdout + done.stderr
    assert [(tmp_path / str(rank)).read_text() for rank in range(3)] == ["3 6"] * 3


def test_the_report_draws_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = [
        {"collective": name, "library": "hccomm", "ranks": 2, "size": size, "mode": "out",
         "busbw": 0.1, "time_us": 10.0}
        for name in ("all_reduce", "all_gather") for size in (64, 4096)
    ]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))

    subprocess.run(
        [sys.executable, str(ROOT / "bench" / "report.py"), str(tmp_path / "rows.jsonl"), "--out",
         str(tmp_path / "picture.png")],
        check=True, timeout=120,
    )  # fmt: skip

    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")

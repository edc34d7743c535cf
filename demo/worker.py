# SPDX-License-Identifier: Apache-2.0
"""One rank of the demo: trains (train.py), measures (measure.py), says what it saw.

demo/run.py starts it with the variables that torchrun would set. Rank 0 prints one JSON object per
line; every rank leaves rank<k>.json, and rank 0 weights.pt, in the folder given.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
from pathlib import Path

import measure
import torch
import torch.distributed as dist
import train

DEADLINE = 230.0  # a rank that still runs then prints its stacks and leaves


def say(event: dict[str, object]) -> None:
    """Tell the parent; only rank 0 speaks."""
    if os.environ["RANK"] == "0":
        print(json.dumps(event), flush=True)


def device() -> str:
    """Start this rank's simulated accelerator (SIMDEVICE), if it has one; return its device."""
    if not os.environ.get("SIMDEVICE"):
        return "cpu"
    sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "support"))
    import simdevice

    return f"{simdevice.start_from_environment()}:0"


def transports() -> dict[str, object]:
    """Ask hccomm how this rank reaches the others. The training needed no such import."""
    import hccomm.torch

    return dict(hccomm.torch.describe())


def main() -> None:
    """Do the whole work of one rank."""
    faulthandler.dump_traceback_later(DEADLINE, exit=True)
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    where = device()
    model = train.run(train.Recipe(), say, where)
    torch.set_default_device(where)
    rows = measure.table(say)
    torch.set_default_device("cpu")
    rank = dist.get_rank()
    if rank == 0:
        weights = {name: weight.cpu() for name, weight in model.state_dict().items()}
        torch.save(weights, folder / "weights.pt")
    report = {
        "rank": rank,
        "backend": dist.get_backend(),
        "accuracy": train.accuracy(model, train.load()),
        "weights": train.fingerprint(model),
        "transports": transports(),
        "table": rows,
    }
    (folder / f"rank{rank}.json").write_text(json.dumps(report), encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

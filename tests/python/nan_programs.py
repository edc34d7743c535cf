# SPDX-License-Identifier: Apache-2.0
"""What test_nan.py runs on ranks: reductions of which some elements are no number."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from rank_programs import TYPES

import hccomm

KINDS = ("f16", "bf16", "f8e4m3fn", "f8e5m2", "f32", "f64")
OPERATIONS = ("sum", "avg", "prod", "min", "max")
COUNTS = (5, 1000, 70_001)  # of one rank's part: in a line, in a frame, copied at once


def _filled(kind: str, count: int, at: int) -> Any:
    data = np.ones(count, TYPES[kind])
    data[at::997] = np.nan
    return data


def _reduce(comm: hccomm.Communicator, name: str, data: Any, op: str) -> Any:
    """Return this rank's share of the result, and where it begins."""
    if name == "all_reduce":
        return comm.all_reduce(data, op), 0
    if name == "reduce":
        out = comm.reduce(data, root=1, op=op)
        return (out, 0) if comm.rank == 1 else (None, 0)
    return comm.reduce_scatter(data, op=op), comm.rank * (len(data) // comm.size)


def lost_nans(comm: hccomm.Communicator, name: str) -> tuple[list[str], str]:
    """Say where a NaN of some rank is missing or one came from nowhere; and hash all results."""
    wrong, seen = [], hashlib.sha256()
    for kind in KINDS:
        for op in OPERATIONS:
            for part in COUNTS:
                count = part * comm.size
                expected = np.zeros(count, bool)
                for rank in range(comm.size):
                    expected[rank::997] = True
                got, begin = _reduce(comm, name, _filled(kind, count, comm.rank), op)
                if got is None:
                    continue
                found = np.isnan(got.astype(np.float64))
                if (found != expected[begin : begin + len(got)]).any():
                    wrong.append(f"{name} of {count} {kind}, {op}")
                if name == "all_reduce":
                    seen.update(got.tobytes())
    return wrong, seen.hexdigest()

# SPDX-License-Identifier: Apache-2.0
"""Ask the library about itself: what it can do here, its settings, and its choices.

The command line (`hccomm info`, `hccomm explain`) prints these; nothing here moves data.
"""

from __future__ import annotations

from typing import Any

from hccomm._native import library
from hccomm.buffers import DTYPES
from hccomm.errors import InvalidArgument
from hccomm.requests import COLLECTIVES, OP_CODES, OPS


def version() -> str:
    """Return the version of the loaded library, such as ``"0.1.0"``."""
    return library().version()


def info() -> dict[str, Any]:
    """Return version, machine, transports and algorithms, each with why it is not available."""
    loaded = library()
    found: dict[str, Any] = loaded.json(
        lambda out, capacity: int(loaded.lib.hccomm_info(out, capacity)), "info"
    )
    return found


def settings() -> list[dict[str, Any]]:
    """Return every HCCOMM_* setting: name, kind, default, meaning and value."""
    loaded = library()
    found = loaded.json(
        lambda out, capacity: int(loaded.lib.hccomm_settings(out, capacity)), "settings"
    )
    return list(found["settings"] if isinstance(found, dict) else found)


def explain(
    collective: str,
    *,
    count: int,
    size: int,
    dtype: str = "f32",
    op: str = "sum",
    hosts: int = 1,
    rank: int = 0,
    plan: bool = False,
    islands: str = "",
) -> dict[str, Any]:
    """Return which algorithm would serve a call, why, and the alternatives.

    ``count`` is elements as in the C ABI, ``size`` ranks sit on ``hosts`` equal hosts. ``plan``
    adds the steps of ``rank``. Names may be written all_reduce or allreduce. ``islands``, such as
    ``"cuda:0-2;musa:3,4"`` (other ranks hold host memory), adds how the call would go over them:
    the ``algorithm`` serves where ``islands["way"]`` says that it goes hccomm's own way.
    """
    names = {each.replace("_", ""): each for each in COLLECTIVES}
    name = names.get(collective.lower().replace("_", ""))
    if name is None or name in ("send", "recv"):
        known = ", ".join(each for each in COLLECTIVES if each not in ("send", "recv"))
        raise InvalidArgument(f"explain: {collective!r} is no collective; use one of {known}")
    if dtype not in DTYPES:
        raise InvalidArgument(f"explain: {dtype!r} is no type; use one of {', '.join(DTYPES)}")
    if op not in OPS:
        raise InvalidArgument(f"explain: {op!r} is no operation; use one of {', '.join(OPS)}")
    loaded = library()
    arguments = (
        COLLECTIVES[name], DTYPES.index(dtype), OP_CODES[op], count, size, hosts, rank, int(plan)
    )  # fmt: skip
    found: dict[str, Any] = loaded.json(
        lambda out, capacity: int(loaded.lib.hccomm_explain(*arguments, out, capacity)), "explain"
    )
    if islands:
        over = (*arguments[:5], islands.encode())
        found["islands"] = loaded.json(
            lambda out, capacity: int(loaded.lib.hccomm_explain_islands(*over, out, capacity)),
            "explain",
        )
    return found

# SPDX-License-Identifier: Apache-2.0
"""hccomm under another backend's name, for programs that accept only names they know.

``hccomm.install(as_="gloo")`` makes every process group that is asked for as "gloo" from then on an
hccomm group, while torch's Python side goes on calling it "gloo": ``get_backend()``, the profiler
and the checks of frameworks see the name they expect. One function of torch is wrapped,
``_new_process_group_helper``, which makes every group; ``hccomm.uninstall()`` puts it back. Inside
torch's C++ the group is what any third-party backend's is, so nobody takes our object for Gloo's.
Groups that exist already stay what they are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from hccomm.errors import InvalidArgument

_NAMES = ("gloo", "nccl")
_installed: set[str] = set()
_original: Callable[..., Any] | None = None


def install(*, as_: str) -> None:
    """Make later ``init_process_group(as_)`` and ``new_group(backend=as_)`` use hccomm.

    ``as_`` is "gloo" or "nccl"; call it twice for both. Such a group serves every device type.
    Raises InvalidArgument for another name.
    """
    global _original
    if as_ not in _NAMES:
        raise InvalidArgument(f'install: as_ is "gloo" or "nccl", not {as_!r}')
    from torch.distributed import distributed_c10d

    from hccomm import torch_backend

    torch_backend.register()
    _installed.add(as_)
    if _original is None:
        _original = distributed_c10d._new_process_group_helper
        distributed_c10d._new_process_group_helper = _wrapped(_original)


def uninstall() -> None:
    """Give torch its own backends back. Groups made in between stay hccomm's."""
    global _original
    _installed.clear()
    if _original is None:
        return
    from torch.distributed import distributed_c10d

    distributed_c10d._new_process_group_helper, _original = _original, None


def _wrapped(helper: Callable[..., Any]) -> Callable[..., Any]:
    import inspect  # slow to load, and seldom needed

    from torch.distributed import distributed_c10d

    from hccomm import torch_backend

    signature = inspect.signature(helper)

    @functools.wraps(helper)
    def making(*arguments: Any, **named: Any) -> Any:
        call = signature.bind(*arguments, **named)
        asked = str(call.arguments["backend"])
        call.arguments["backend"] = distributed_c10d.Backend(_redirected(asked))
        with torch_backend.profiled_as(_alias(asked)):
            group, store = helper(*call.args, **call.kwargs)
        world = distributed_c10d._world
        if call.arguments["backend"] != asked and group in world.pg_map:
            world.pg_map[group] = (distributed_c10d.Backend(asked), world.pg_map[group][1])
        return group, store

    return making


def _redirected(backend: str) -> str:
    """Return a backend string with the installed names replaced: "gloo", "cpu:gloo,cuda:nccl"."""
    from hccomm.torch_backend import NAME

    parts = [part.rpartition(":") for part in backend.lower().split(",")]
    names = [(device, colon, NAME if name in _installed else name) for device, colon, name in parts]
    return ",".join("".join(each) for each in names)


def _alias(backend: str) -> str:
    """Return the name that groups of this backend string have in the profiler."""
    from hccomm.torch_backend import NAME

    names = [part.rpartition(":")[2] for part in backend.lower().split(",")]
    return next((name for name in names if name in _installed), NAME)

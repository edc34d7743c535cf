# SPDX-License-Identifier: Apache-2.0
"""The torch.distributed backend "hccomm".

``import torch`` registers it by an entry point; where those are off
(TORCH_DEVICE_BACKEND_AUTOLOAD=0), importing this module does. Registering loads nothing: the C
library and the glue come in with the first process group. What must be patched in torch, and only
that, is here; each patch says why.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from hccomm import _torch_dtensor, _torch_glue

NAME = "hccomm"
_profiled = threading.local()  # .name: what the profiler shall call the group being made


def register() -> None:
    """Make "hccomm" a backend of torch.distributed. Calling it again changes nothing."""
    import torch
    import torch.distributed as dist

    if not dist.is_available():
        return
    backend: Any = dist.Backend
    if NAME.upper() in backend._plugins:
        return
    before = dict(backend.default_device_backend_map)
    backend.register_backend(NAME, _create, extended_api=True, devices=_Devices())
    # A device that has no backend yet belongs to its vendor's, which may register after us.
    backend.default_device_backend_map.clear()
    backend.default_device_backend_map.update(before)
    if _torch_glue.minor_of(torch) < (2, 14):
        backend._plugins = _Plugins(backend._plugins)
    _complete_backend_class()


class _Devices(list[str]):
    """The device types that hccomm serves: all that this process knows, the CPU first.

    Ranks of different vendors meet because the first one, which names the store's prefix, is the
    same everywhere. A vendor may name its device after we were registered, so this is asked anew.
    """

    def __iter__(self) -> Iterator[str]:
        import torch

        names = ["cpu", "cuda", "xpu", "hpu", "mtia", torch._C._get_privateuse1_backend_name()]
        return iter(dict.fromkeys(names))

    def __contains__(self, name: object) -> bool:
        return name in list(iter(self))

    def __len__(self) -> int:
        return len(list(iter(self)))


class _Plugins(dict[str, Any]):
    """torch's table of plug-ins, for torch before 2.14.

    There, init_process_group("cpu:gloo") leaves the group without a default backend as soon as any
    plug-in is registered: it compares the plug-in's name in capitals with those of the group. To
    that one question keys() answers with the names the group does use, written as it compares them.
    """

    def keys(self) -> Any:
        config = sys._getframe(1).f_locals.get("backend_config")
        if config is None or not hasattr(config, "device_backend_map"):
            return super().keys()
        return [name for name in config.device_backend_map.values() if name.upper() in self]


def _complete_backend_class() -> None:
    """Give torch's bare Backend class what device_id and split_group ask of a backend object.

    The classes of Gloo and NCCL define both themselves, and theirs win.
    """
    from torch._C import _distributed_c10d

    backend: Any = _distributed_c10d.Backend
    if not hasattr(backend, "options"):
        backend.options = property(lambda _: _default_options())
    if not hasattr(backend, "perform_nocolor_split"):
        backend.perform_nocolor_split = lambda _self, _device: None


def _default_options() -> Any:
    from hccomm.torch import Options

    return Options()


def _create(group: Any, options: Any) -> Any:
    """Make the backend of one process group; torch calls it once per device type."""
    import torch
    import torch.distributed as dist

    _log_as_torch_does()
    _torch_glue.load()
    _torch_dtensor.install()
    own = _options_of(options)
    timeout = group.timeout if own is None or own.timeout is None else own.timeout
    # torch wraps the group's store in a prefix of the device type, by which ranks of different
    # types would never meet.
    store = group.store.underlying_store
    carrier = dist.ProcessGroup(store, group.group_rank, group.group_size)
    torch.ops.hccomm.attach(
        carrier.boxed(),
        list(group.global_ranks_in_group),
        str(group.group_id),
        getattr(_profiled, "name", NAME),
        _seconds(timeout),
        [] if own is None else own._settings(),
        None if own is None else own.islands,
    )
    return carrier._get_backend(torch.device("cpu"))


def _log_as_torch_does() -> None:
    """Where HCCOMM_LOG says nothing, write what torch's settings ask its own backends for.

    TORCH_CPP_LOG_LEVEL is for torch's C++; the logger torch.distributed is set by TORCH_LOGS and
    torch._logging. The core reads HCCOMM_LOG once, when it first writes.
    """
    if os.environ.get("HCCOMM_LOG"):
        return
    cpp = os.environ.get("TORCH_CPP_LOG_LEVEL", "").upper()
    python = logging.getLogger("torch.distributed").getEffectiveLevel()
    if python <= logging.DEBUG:
        os.environ["HCCOMM_LOG"] = "debug"
    elif python <= logging.INFO or cpp in ("INFO", "0"):
        os.environ["HCCOMM_LOG"] = "info"
    elif cpp in ("ERROR", "2", "FATAL", "3"):
        os.environ["HCCOMM_LOG"] = "error"


@contextmanager
def profiled_as(name: str) -> Iterator[None]:
    """Have the profiler call the groups that this thread makes meanwhile ``name``."""
    _profiled.name = name
    try:
        yield
    finally:
        _profiled.name = NAME


def _options_of(options: Any) -> Any:
    """Return the user's pg_options if they are ours, None where there are none for us."""
    from torch._C._distributed_c10d import Backend

    from hccomm.torch import Options

    if options is None or isinstance(options, Options):
        return options
    if isinstance(options, Backend.Options):
        return None  # another backend's, of a mixed group
    raise TypeError(f"pg_options: hccomm takes hccomm.torch.Options, not {type(options).__name__}")


def _seconds(timeout: Any) -> float:
    return timeout.total_seconds() if isinstance(timeout, timedelta) else float(timeout)


register()

# SPDX-License-Identifier: Apache-2.0
"""DTensor's way from one sharded dimension to another, the same on CPUs and accelerators.

torch gathers on a CPU mesh, because Gloo once had no all_to_all, and exchanges on every other. In a
group of CPUs and accelerators the ranks would therefore call different things. A CPU mesh over an
hccomm group exchanges too, which also moves size times fewer bytes.

The function lives in a module that takes long to import, so it is replaced when somebody else
imports it.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.abc import MetaPathFinder
from types import ModuleType
from typing import Any

_MODULE = "torch.distributed.tensor.placement_types"


def install() -> None:
    """Replace the function now, or once its module is imported. Again changes nothing."""
    if _MODULE in sys.modules:
        _replace(sys.modules[_MODULE])
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    """Lets the module be found by others, and replaces the function when it has run."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        if fullname != _MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        loader: Any = spec.loader
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            _replace(module)

        loader.exec_module = exec_module
        return spec


def _replace(module: Any) -> None:
    original = getattr(module, "shard_dim_alltoall", None)
    if original is None or hasattr(original, "of_torch"):
        return

    def shard_dim_alltoall(
        tensor: Any, gather_dim: int, shard_dim: int, mesh: Any, mesh_dim: int
    ) -> Any:
        group = mesh.get_group(mesh_dim) if mesh.device_type == "cpu" else None
        if group is None or not _is_ours(group):
            return original(tensor, gather_dim, shard_dim, mesh, mesh_dim)
        import torch
        import torch.distributed._functional_collectives as functional

        name = getattr(functional, "_group_or_group_name", lambda each: each.group_name)(group)
        return torch.ops._dtensor.shard_dim_alltoall(tensor, gather_dim, shard_dim, name)

    shard_dim_alltoall.of_torch = original  # type: ignore[attr-defined]
    module.shard_dim_alltoall = shard_dim_alltoall


def _is_ours(group: Any) -> bool:
    import torch

    try:
        return str(group._get_backend(torch.device("cpu")).name()) == "hccomm"
    except RuntimeError:  # no backend for the CPU
        return False

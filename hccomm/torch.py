# SPDX-License-Identifier: Apache-2.0
"""What torch programs may want from hccomm besides ``init_process_group("hccomm")``.

::

    import hccomm.torch

    options = hccomm.torch.Options(timeout=timedelta(seconds=60))
    dist.init_process_group("hccomm", pg_options=options)
    print(hccomm.torch.describe()["peers"])
"""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import Backend as _Backend

from hccomm import _torch_glue

__all__ = ["Options", "describe", "devices", "empty", "flight_recorder", "write_flight_recorder"]


class Options(_Backend.Options):  # type: ignore[misc, unused-ignore]
    """Options of one process group, for ``pg_options``; all its ranks give the same.

    ``timeout`` is the deadline of each operation that has none of its own; ``None`` leaves it to
    ``init_process_group`` or ``new_group``.
    ``algorithms`` are rules as HCCOMM_ALGO takes them, for this group alone:
    ``"allreduce:0-8K tree,8K- ring"``, or by collective ``{"allreduce": "ring"}``.
    ``islands`` is the device of this rank's tensors ("cpu": none): which ranks work by their
    vendor's own library is settled now, and not by the first collectives. Where no two ranks can,
    nothing changes, and ``describe()`` says why.
    """

    def __init__(
        self,
        *,
        timeout: timedelta | None = None,
        algorithms: str | Mapping[str, str] | None = None,
        islands: torch.device | str | None = None,
    ) -> None:
        if timeout is not None and timeout <= timedelta(0):
            raise ValueError(f"Options: timeout must be positive, not {timeout}")
        super().__init__("hccomm", *([timeout] if timeout is not None else []))
        self.timeout = timeout
        if isinstance(algorithms, Mapping):
            algorithms = ";".join(f"{name}:{rules}" for name, rules in algorithms.items())
        self.algorithms: str | None = algorithms
        self.islands = None if islands is None else torch.device(islands)

    def __deepcopy__(self, memo: dict[int, Any]) -> Options:
        return Options(timeout=self.timeout, algorithms=self.algorithms, islands=self.islands)

    def __repr__(self) -> str:
        given = {"timeout": self.timeout, "algorithms": self.algorithms, "islands": self.islands}
        shown = [f"{name}={value!r}" for name, value in given.items() if value is not None]
        return f"Options({', '.join(shown)})"

    def _settings(self) -> list[str]:
        """Return what hccomm_set is told."""
        return [] if self.algorithms is None else [f"HCCOMM_ALGO={self.algorithms}"]


def empty(*size: int, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Return a CPU tensor in memory that the other ranks of the host map, as ``hccomm.empty`` does.

    What is sent, gathered or reduced from there is copied plainly and not by the kernel.
    ``dtype`` None is torch's default. Its content is unspecified.
    """
    import hccomm

    kind = torch.get_default_dtype() if dtype is None else dtype
    shape = torch.Size(size)
    flat = torch.from_numpy(hccomm.empty(shape.numel() * kind.itemsize, "u1"))
    return flat.view(kind).reshape(shape)


def describe(group: dist.ProcessGroup | None = None) -> dict[str, Any]:
    """Return rank, size, hosts, options, and per peer host and transport with the reason for it.

    ``tensors`` is what ``devices()`` returns: which way device tensors take here, and why.
    Of the options: ``timeout`` in seconds, ``algorithms`` (the group's own rules, or HCCOMM_ALGO)
    and ``islands`` (which ranks work by their vendor's library, which calls, and why not).

    Raises ValueError when the group does not exist here, RuntimeError when it is no hccomm group.
    """
    chosen = group if group is not None else dist.group.WORLD
    if chosen is None:
        raise ValueError("describe: there is no process group; call init_process_group first")
    text: str = torch.ops.hccomm.describe(chosen.boxed())
    answer: dict[str, Any] = json.loads(text)
    return {**answer, "tensors": devices()}


def flight_recorder(*, only_active: bool = False) -> dict[str, Any]:
    """Return the last operations of this process in the fields of torch's own flight recorder.

    ``TORCH_FR_BUFFER_SIZE`` says how many (2000; 0 switches it off). ``only_active`` leaves out
    those that have completed. Loads the glue.
    """
    _torch_glue.load()
    answer: dict[str, Any] = json.loads(torch.ops.hccomm.flight_recorder(only_active))
    return answer


def write_flight_recorder(path: str | os.PathLike[str]) -> None:
    """Write the flight recorder as a pickle, which torch's analyser reads.

    One file per rank, ``<prefix><rank>``, in one folder; then
    ``python -m torch.distributed.flight_recorder.fr_trace <folder> --prefix <prefix>``.
    """
    with open(path, "wb") as file:
        pickle.dump(flight_recorder(), file, protocol=2)


def devices() -> list[dict[str, Any]]:
    """Return how tensors of each device type present here reach hccomm, and why so.

    Per type: ``type``, ``devices`` (how many), ``adapter``, ``native`` (the vendor's own runtime,
    not torch's streams and copies) and ``why``. Loads the glue.
    """
    _torch_glue.load()
    answer: list[dict[str, Any]] = json.loads(torch.ops.hccomm.devices())
    return answer


from hccomm import torch_backend as _torch_backend  # noqa: E402, F401  registers the backend

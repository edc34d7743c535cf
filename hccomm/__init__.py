# SPDX-License-Identifier: Apache-2.0
"""Collective communication between ranks on chips of different vendors.

::

    import hccomm, numpy

    with hccomm.init() as comm:              # rank and size come from torchrun, mpiexec, srun
        total = comm.all_reduce(numpy.ones(4, "f4"))

Importing this loads neither torch, NumPy nor the C library. The files, in reading order:
rendezvous (init), communicator, operations, requests, buffers, work, errors, _native.
"""

from __future__ import annotations

from hccomm._torch_alias import install, uninstall
from hccomm.asking import explain, info, settings, version
from hccomm.communicator import Batch, Communicator
from hccomm.errors import (
    Aborted,
    Error,
    Integrity,
    Internal,
    InvalidArgument,
    Mismatch,
    PeerLost,
    System,
    Timeout,
    Unavailable,
)
from hccomm.local import run_local
from hccomm.memory import Registration, empty
from hccomm.rendezvous import Store, init
from hccomm.requests import ANY_SOURCE, OPS
from hccomm.work import Work

__version__ = "0.1.0"

__all__ = [
    "init",
    "run_local",
    "Communicator",
    "Batch",
    "Registration",
    "Work",
    "empty",
    "Store",
    "ANY_SOURCE",
    "OPS",
    "info",
    "settings",
    "explain",
    "version",
    "install",
    "uninstall",
    "Error",
    "InvalidArgument",
    "Mismatch",
    "Unavailable",
    "PeerLost",
    "Timeout",
    "Aborted",
    "Integrity",
    "System",
    "Internal",
]


def _torch_autoload() -> None:
    """Register the torch backend: torch up to 2.13 calls this inside ``import torch``.

    It never raises, for that would break ``import torch`` for everybody.
    """
    try:
        import torch

        major, minor = (int(part) for part in torch.__version__.split(".")[:2])
        if (major, minor) < (2, 14):  # later ones ask for _torch_register when they need it
            _torch_register()
    except Exception as error:
        import warnings

        warnings.warn(
            f"hccomm: its torch backend is not registered: {error}; import hccomm.torch_backend "
            "to see why, or set TORCH_DEVICE_BACKEND_AUTOLOAD=0",
            RuntimeWarning,
            stacklevel=2,
        )


def _torch_register(*_: object, **__: object) -> None:
    """Register the torch backend: torch from 2.14 on calls this when "hccomm" is first used."""
    from hccomm.torch_backend import register

    register()

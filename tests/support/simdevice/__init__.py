# SPDX-License-Identifier: Apache-2.0
"""A simulated accelerator for torch, for tests and demonstrations where no real one is at hand.

::

    import simdevice

    simdevice.start("alder")                 # once per process, before any tensor of it
    torch.ones(4, device="alder:1")

Each process has one vendor, by any name; ranks of one job may have different ones. Streams are
asynchronous, device memory faults when the host touches it, copies take the vendor's time, and
``fault`` makes things go wrong. All operators work, mostly by falling back to the CPU. The C++ part
is compiled at first use and cached as the torch glue is.
"""

from __future__ import annotations

import hashlib
import os
import types
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from hccomm import _torch_glue

_HERE = Path(__file__).parent

# The file name of the vendor's runtime whose functions native.cpp has.
_NATIVE = "libmusart.so.4"

# Vendors with a pace of their own: microseconds per copy, gigabytes per second.
PACE = {"alder": (8.0, 24.0), "birch": (15.0, 12.0)}


def library() -> Path:
    """Return the compiled library; compile it where it is not in the cache."""
    home = Path(torch.__file__).parent
    flags = ["-std=c++20", "-O1", "-fPIC", "-shared"]
    flags.append(f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}")
    digest = hashlib.sha256(repr((torch.__version__, torch.version.git_version, flags)).encode())
    for file in sorted(_HERE.glob("*.?pp")):
        digest.update(file.read_bytes())
    folder = _torch_glue.cache_dir()
    target = folder / f"libsimdevice_{torch.__version__}_{digest.hexdigest()[:16]}.so"
    if target.is_file():
        return target
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _torch_glue._only_one(target.with_suffix(".lock")):
        if not target.is_file():
            command = [
                *(*_torch_glue._compiler(), *flags, f"-I{_HERE}"),
                *("-isystem", str(home / "include")),
                *("-isystem", str(home / "include/torch/csrc/api/include")),
                *(str(_HERE / "simdevice.cpp"), f"-L{home / 'lib'}", "-lc10", "-ltorch_cpu"),
            ]
            _torch_glue._compile(command, target, "the simulated accelerator")
    return target


def native_library() -> Path:
    """Return the library under the file name of the vendor's own runtime, for who looks for it."""
    target = library()
    link = target.with_suffix("") / _NATIVE
    link.parent.mkdir(mode=0o700, exist_ok=True)
    with suppress(FileExistsError):
        link.hardlink_to(target)  # torch follows the other kind before it loads
    return link


def start(
    vendor: str,
    *,
    native: bool = False,
    devices: int = 2,
    megabytes: int = 512,
    latency_us: float = 0.0,
    gigabytes_per_second: float = 0.0,
) -> types.ModuleType:
    """Make ``vendor`` a device type of this process and return its module, ``torch.<vendor>``.

    With a rate of 0 copies take no longer than memory does. ``PACE[vendor]`` has the pace that a
    demonstration wants. ``native``: the process also has the vendor's own runtime, with the
    functions of Moore Threads' ("musa"), which hccomm's adapter finds as it would the real one.
    """
    torch.ops.load_library(str(native_library() if native else library()))
    torch.ops.simdevice.configure(vendor, devices, megabytes, latency_us, gigabytes_per_second)
    torch.utils.rename_privateuse1_backend(vendor)
    module = _module(vendor, devices)
    torch._register_device_module(vendor, module)
    torch.utils.generate_methods_for_privateuse1_backend(for_storage=True)
    return module


def start_from_environment() -> str | None:
    """Start the vendor that SIMDEVICE names, if any.

    "alder", "alder:8:24" (latency, rate), or "musa:native" (with its own runtime).
    """
    vendor, *pace = os.environ.get("SIMDEVICE", "").split(":")
    if not vendor:
        return None
    native = "native" in pace
    latency, rate = (*map(float, [] if native else pace), 0.0, 0.0)[:2]
    start(vendor, native=native, latency_us=latency, gigabytes_per_second=rate)
    return vendor


def sleep(seconds: float, device: int = 0) -> None:
    """Keep the current stream of a device busy: what is enqueued next starts so much later."""
    torch.ops.simdevice.sleep(device, seconds)


@contextmanager
def held(device: int = 0) -> Iterator[None]:
    """Keep the current stream of a device from going on until the end of the block (a minute)."""
    torch.ops.simdevice.hold(device)
    try:
        yield
    finally:
        torch.ops.simdevice.open(device)


def fault(what: str, amount: float = 0.0, device: int = 0) -> None:
    """Order a failure.

    ``lose``: the device is lost, now or after ``amount`` more copies. ``allocation``, ``pinned``:
    after ``amount`` more, one is refused for lack of memory. ``slow``: copies take ``amount`` times
    as long.
    """
    torch.ops.simdevice.fault(device, what, amount)


def stats() -> dict[str, int]:
    """Count what is alive: ``blocks`` and ``bytes`` of device memory, ``pinned``, ``events``.

    And copies between host and device so far: ``torch_copies`` through torch, ``native_copies``
    through the vendor's own functions, which have ``native_streams``.
    """
    return dict(torch.ops.simdevice.stats())


def _module(vendor: str, devices: int) -> types.ModuleType:
    """Return what torch and its libraries look for in ``torch.<vendor>``."""
    module: Any = types.ModuleType(f"torch.{vendor}")
    accelerator = torch.accelerator
    module.is_available = lambda: True
    module.is_initialized = lambda: True
    module._is_in_bad_fork = lambda: False
    module._lazy_init = lambda: None
    module.device_count = lambda: devices
    module.current_device = accelerator.current_device_index
    module.set_device = accelerator.set_device_index
    module.synchronize = lambda device=None: accelerator.synchronize(device)
    module.current_stream = lambda device=None: accelerator.current_stream(device)
    module.set_stream = accelerator.set_stream
    module.device = accelerator.device_index
    module.Stream, module.Event = torch.Stream, torch.Event
    module.stream = _on_stream
    module.manual_seed = module.manual_seed_all = lambda _seed: None  # the CPU's generator serves
    module.get_rng_state = lambda device=None: torch.get_rng_state()
    module.set_rng_state = lambda state, device=None: torch.set_rng_state(state)
    module.get_amp_supported_dtype = lambda: [torch.float16, torch.bfloat16]
    return module


@contextmanager
def _on_stream(stream: Any) -> Iterator[None]:
    if stream is None:
        yield
        return
    before = torch.accelerator.current_stream(stream.device)
    torch.accelerator.set_stream(stream)
    try:
        yield
    finally:
        torch.accelerator.set_stream(before)

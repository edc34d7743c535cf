# SPDX-License-Identifier: Apache-2.0
"""Tell the kind of device an array lies on, and the stream that will have made its data.

buffers.view() calls this for arrays off the host. Kinds are numbers of the C ABI, looked up by
name; whether the vendor's runtime is here is found out when an operation starts.
"""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

from hccomm.errors import InvalidArgument

# DLPack's device types, as kinds of hccomm. An extension device says its name itself.
_KINDS = {
    2: "cuda", 13: "cuda", 4: "opencl", 10: "hip", 14: "level_zero",
}  # fmt: skip
_NAMES = {7: "vulkan", 8: "metal", 9: "vpi", 12: "an extension device", 15: "webgpu"}
CUDA_TYPES = (2, 13)
HOST_TYPES = (1, 3, 11)  # host memory, also pinned for CUDA and ROCm
# torch's names of device types, where they are not hccomm's.
_BY_TORCH_NAME = {"npu": "ascend", "mlu": "cnrt", "gcu": "tops", "xpu": "level_zero"}


class Place(NamedTuple):
    """A device in the numbers of the C ABI, and the caller's stream there."""

    kind: int = 0
    number: int = 0  # of the device
    stream: int = 0


HOST = Place()


def of_cuda_interface(array: Any, interface: dict[str, Any], what: str) -> Place:
    """Return the place of an array with ``__cuda_array_interface__``."""
    index = 0
    if hasattr(array, "__dlpack_device__"):
        index = int(array.__dlpack_device__()[1])
    else:
        device = getattr(array, "device", None)
        index = int(getattr(device, "id", getattr(device, "index", None)) or 0)
    stream = interface.get("stream")  # None: the data are there
    if stream == 0:
        raise InvalidArgument(f"{what}: __cuda_array_interface__ gives stream 0, which means none")
    # 1 is the legacy default stream, which the runtime calls 0, and 2 the one of each thread.
    return Place(kind_named("cuda", what), index, 0 if stream in (None, 1) else int(stream))


def of_dlpack(array: Any, kind: int, index: int, what: str) -> Place:
    """Return the place of an array with ``__dlpack_device__``, its data ready in that stream."""
    if _is_torch(array):
        name = str(array.device.type)
        if name == "cuda" and sys.modules["torch"].version.hip:
            name = "hip"
        name = _BY_TORCH_NAME.get(name, name)
        return Place(kind_named(name, what), index, _torch_stream(array))
    name = _KINDS.get(kind) or str(getattr(array, "__hccomm_device__", ""))
    if not name:
        raise InvalidArgument(
            f"{what}: the array lies on {_NAMES.get(kind, f'DLPack device type {kind}')}, of which "
            "hccomm cannot tell the vendor; give the array an attribute __hccomm_device__ with the "
            "kind's name, or pass a host copy"
        )
    return Place(kind_named(name, what), index, 0)


def dlpack_stream(kind: int) -> int | None:
    """Return how DLPack calls the default stream, in which the producer shall have the data."""
    return {2: 1, 13: 1, 10: 0}.get(kind)


def kind_named(name: str, what: str) -> int:
    """Return the number of a kind. Raises InvalidArgument when hccomm has none of that name."""
    from hccomm._native import library

    number = _numbers.get(name)
    if number is None:
        number = int(library().lib.hccomm_device_kind(name.encode()))
        if number < 0:
            raise InvalidArgument(
                f"{what}: the array lies on a device of kind {name!r}, for which hccomm has no "
                f"adapter; HCCOMM_PLUGINS brings further ones{_refused_plugins()}, or pass a host "
                "copy"
            )
        _numbers[name] = number
    return number


def _refused_plugins() -> str:
    """Say which plug-ins were refused, and why; one of them may have been meant."""
    from hccomm.asking import info

    refused = [str(each["reason"]) for each in info()["devices"] if each["name"] == "plug-in"]
    return f" (refused: {'; '.join(refused)})" if refused else ""


_numbers: dict[str, int] = {"host": 0}


def _is_torch(array: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


def _torch_stream(array: Any) -> int:
    """Return torch's current stream for the tensor; waits for it where its handle is not told."""
    torch = sys.modules["torch"]
    stream = torch.get_device_module(array.device).current_stream(array.device)
    for attribute in (f"{array.device.type}_stream", "native_handle", "sycl_queue"):
        handle = getattr(stream, attribute, None)
        if handle is not None:
            return int(handle)
    stream.synchronize()
    return 0

# SPDX-License-Identifier: Apache-2.0
"""The C ABI as a C program uses it, and what it says of calls that make no sense."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from hccomm import _native

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return examples/ring.c, compiled as its head says, strictly."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler (cc) on this machine")
    program = tmp_path_factory.mktemp("c") / "ring"
    library = Path(_native.find())
    subprocess.run(
        [
            *(compiler, "-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror"),
            *(f"-I{ROOT / 'csrc' / 'capi'}", str(ROOT / "examples" / "ring.c")),
            *("-o", str(program), str(library), f"-Wl,-rpath,{library.parent}"),
        ],
        check=True,
        timeout=60,
    )
    return program


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_c_program_passes_numbers_around_a_ring(ring: Path, tmp_path: Path, size: int) -> None:
    meeting = {"WORLD_SIZE": str(size), "HCCOMM_RENDEZVOUS": f"file://{tmp_path}/meet"}
    started = [
        subprocess.Popen(
            [str(ring)],
            env=os.environ | meeting | {"RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    said = [each.communicate(timeout=60)[0] for each in started]

    assert [each.returncode for each in started] == [0] * size
    total = size * sum(range(size))
    assert said == [f"rank {rank} of {size}: {total}\n" for rank in range(size)]


def test_sendrecv_wants_a_send_and_a_recv() -> None:
    library = _native.library()
    ffi: Any = library.ffi
    error = ffi.new("hccomm_error*")
    config = ffi.new("hccomm_config*", {"struct_size": ffi.sizeof("hccomm_config"), "size": 1})
    comm = ffi.new("hccomm_comm**")
    assert library.lib.hccomm_init(config, comm, error) == 0, ffi.string(error.text)
    call = ffi.new("hccomm_call*", {"struct_size": ffi.sizeof("hccomm_call"), "collective": 33})

    code = library.lib.hccomm_sendrecv(comm[0], call, call, ffi.NULL, error)

    assert code == 1
    assert ffi.string(error.text) == (
        b"sendrecv: send and recv must be calls of HCCOMM_SEND and HCCOMM_RECV"
    )
    assert library.lib.hccomm_close(comm[0], 0.0, error) == 0


def test_a_call_that_comes_again_with_other_buffers_is_checked_again() -> None:
    library = _native.library()
    ffi: Any = library.ffi
    error = ffi.new("hccomm_error*")
    config = ffi.new("hccomm_config*", {"struct_size": ffi.sizeof("hccomm_config"), "size": 1})
    comm = ffi.new("hccomm_comm**")
    assert library.lib.hccomm_init(config, comm, error) == 0, ffi.string(error.text)
    values = ffi.new("float[8]", [1, 2, 3, 4, 5, 6, 7, 8])
    call = ffi.new("hccomm_call*", {"struct_size": ffi.sizeof("hccomm_call"), "collective": 1})
    call.dtype, call.count = 13, 4  # HCCOMM_F32
    call.input.data, call.input.count = values, 4
    call.output.data, call.output.count = values + 4, 4

    def run() -> tuple[int, bytes]:
        return library.lib.hccomm_run(comm[0], call, error), ffi.string(error.text)

    assert [run(), run()] == [(0, b"")] * 2
    assert list(values) == [1, 2, 3, 4, 1, 2, 3, 4]
    call.output.count = 3
    assert run()[0] == 1
    call.output.count = 4
    assert run() == (0, b"")
    call.output.data = values + 2
    assert run()[0] == 1
    call.output.data = values + 4
    call.collective += 256
    assert run()[0] == 1
    call.collective -= 256
    call.counts = ffi.new("uint64_t[1]", [4])
    assert run()[0] == 1
    call.counts = ffi.NULL
    assert run() == (0, b"")
    assert library.lib.hccomm_close(comm[0], 0.0, error) == 0

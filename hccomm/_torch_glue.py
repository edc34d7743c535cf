# SPDX-License-Identifier: Apache-2.0
"""Find or compile the torch glue, and load it into torch.

The glue is a C++ library that joins libhccomm.so to one minor version of torch. A wheel brings it
for the torch that was visible when the wheel was built. For any other torch it is compiled here,
once per machine: one local process compiles under a lock file, the others wait for it with a
deadline, and the result stays in HCCOMM_CACHE_DIR. ``HCCOMM_PY_TORCH_GLUE`` names a library to load
instead, or ``compile`` to pass the prebuilt one over.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import importlib
import logging
import os
import shlex
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hccomm import _native
from hccomm.errors import Timeout, Unavailable

OLDEST = (2, 11)  # torch before that has another c10d
_HEADERS = ("hccomm.h", "hccomm_device.h")
_COMPILE_SECONDS = 600.0  # on one slow, busy core it takes a minute

_log = logging.getLogger("hccomm")
_lock = threading.Lock()
_loaded = False


def load() -> None:
    """Make ``torch.ops.hccomm`` work, once per process.

    Raises Unavailable when there is no glue for this torch and none can be made.
    """
    global _loaded
    with _lock:
        if _loaded:
            return
        torch = importlib.import_module("torch")

        core = _native.find()
        ctypes.CDLL(str(core))  # the glue then finds it by its name; neither is ever unloaded
        glue = _find(torch, core)
        try:
            torch.ops.load_library(str(glue))
        except OSError as error:
            raise Unavailable(
                f"load {glue}: {error}; remove it, so that it is compiled anew"
            ) from error
        _loaded = True


def minor_of(torch: Any) -> tuple[int, int]:
    """Return torch's major and minor version."""
    major, minor = torch.__version__.split(".")[:2]
    return int(major), int(minor)


def _find(torch: Any, core: Path) -> Path:
    minor = minor_of(torch)
    if minor < OLDEST:
        raise Unavailable(
            f"torch {torch.__version__} is too old: hccomm's torch backend needs "
            f"{OLDEST[0]}.{OLDEST[1]} or later; update torch"
        )
    wish = os.environ.get("HCCOMM_PY_TORCH_GLUE", "")
    if wish not in ("", "compile"):
        return Path(wish)
    if wish != "compile":
        for folder in [core.parent, *_native._folders()]:
            glue = folder / f"libhccomm_torch_{minor[0]}_{minor[1]}.so"
            if glue.is_file() and _made_for(glue, torch.version.git_version):
                return glue
    return _compiled(torch, core)


def _made_for(glue: Path, git_version: str) -> bool:
    """Say whether a prebuilt glue was built against this very torch and not a fork of it."""
    try:
        return glue.with_suffix(".git").read_text(encoding="utf-8").strip() == git_version
    except OSError:
        return False


# ---- compiling -----------------------------------------------------------------------------------


def _compiled(torch: Any, core: Path) -> Path:
    sources, includes = _sources()
    home = Path(torch.__file__).parent
    flags = [
        "-std=c++20",
        "-O1",
        "-fPIC",
        "-shared",
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
    ]
    digest = hashlib.sha256(repr((torch.__version__, torch.version.git_version, flags)).encode())
    headers = {each / "capi" / name for each in includes for name in _HEADERS}
    for file in sorted({*sources.glob("*.?pp"), *headers}):
        digest.update(file.name.encode())
        digest.update(file.read_bytes())
    folder = cache_dir()
    target = folder / f"libhccomm_torch_{torch.__version__}_{digest.hexdigest()[:16]}.so"
    if target.is_file():
        return target
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _only_one(target.with_suffix(".lock")):
            if not target.is_file():
                for half_done in folder.glob(f"{target.name}.*"):  # of a process that was killed
                    half_done.unlink(missing_ok=True)
                _compile(_command(flags, sources, includes, home, core), target)
    except OSError as error:
        raise Unavailable(
            f"compile the torch glue in {folder}: {error}; set HCCOMM_CACHE_DIR to a folder that "
            "can be written"
        ) from error
    return target


def cache_dir() -> Path:
    """Return where compiled glues are kept."""
    return Path(os.environ.get("HCCOMM_CACHE_DIR") or "~/.cache/hccomm").expanduser()


def _sources() -> tuple[Path, list[Path]]:
    """Return the folder of the sources and the folders of their includes."""
    for folder in _native._folders():
        installed, tree = folder / "src" / "glue", folder.parent / "bindings" / "torch"
        if (installed / "glue.cpp").is_file():
            return installed, [installed]
        if (tree / "glue.cpp").is_file():
            return tree, [folder.parent / "csrc"]
    raise Unavailable("compile the torch glue: its sources are missing; reinstall hccomm")


def _command(
    flags: list[str], sources: Path, includes: list[Path], home: Path, core: Path
) -> list[str]:
    return [
        *_compiler(),
        *flags,
        f"-I{sources}",
        *(f"-I{each}" for each in includes),
        "-isystem",
        str(home / "include"),
        "-isystem",
        str(home / "include/torch/csrc/api/include"),
        str(sources / "glue.cpp"),
        f"-L{home / 'lib'}",
        "-lc10",
        "-ltorch_cpu",
        f"-L{core.parent}",
        f"-l:{core.name}",
    ]


def _compiler() -> list[str]:
    given = shlex.split(os.environ.get("CXX", ""))
    for name in [given[0]] if given else ["c++", "g++", "clang++"]:
        found = shutil.which(name)
        if found:
            return [found, *given[1:]]
    torch = importlib.import_module("torch")

    raise Unavailable(
        f"this hccomm has no prebuilt glue for torch {torch.__version__}, and there is no C++ "
        f"compiler to make it ({'CXX=' + given[0] if given else 'c++, g++, clang++'} not found); "
        "install one (apt install g++), or install hccomm with --no-build-isolation beside this "
        "torch"
    )


def _compile(command: list[str], target: Path, what: str = "the torch glue") -> None:
    _log.warning("hccomm: compiling %s into %s (once; half a minute)", what, target)
    temporary = target.with_name(f"{target.name}.{os.getpid()}")
    try:
        done = subprocess.run(
            [*command, "-o", str(temporary)],
            capture_output=True,
            text=True,
            timeout=_COMPILE_SECONDS,
            check=False,
        )
        if done.returncode != 0:
            errors = [line for line in done.stderr.splitlines() if "error" in line]
            said = "\n".join((errors or done.stderr.splitlines())[:10])
            raise Unavailable(
                f"compile {what}: {command[0]} failed; C++20 is needed (GCC 11 or later); "
                f"it said:\n{said}"
            )
        os.replace(temporary, target)
    except subprocess.TimeoutExpired as error:
        raise Timeout(
            f"compile {what}: {command[0]} took more than {_COMPILE_SECONDS:.0f} s"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _only_one(path: Path) -> Iterator[None]:
    """Hold the lock file; wait for its holder, who is compiling, until the deadline."""
    deadline = time.monotonic() + _COMPILE_SECONDS + 30.0
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise Timeout(
                        f"compile the torch glue: another process holds {path} for too long; "
                        "end it or remove the file"
                    ) from None
                time.sleep(0.1)
        yield  # closing the file gives the lock back

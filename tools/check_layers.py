# SPDX-License-Identifier: Apache-2.0
"""Who may include whom: the folders of csrc/ in the order of the road, and fenced names.

A folder includes only itself and what ALLOWED grants it. Names of torch, pybind11, cffi, libfabric
and the vendors' runtimes each live in exactly one place (FENCED), so that the rest of the library
builds, and can be read, without them. Exit status 1 and one line per breach.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

from sources import CPP, code_of, files, includes_of, read

# folder of csrc/ -> folders it may include besides itself.
ALLOWED: dict[str, set[str]] = {
    "base": set(),
    "dtype": {"base"},
    "wire": {"base"},
    "plan": {"base", "dtype"},
    "algorithm": {"base", "dtype", "plan"},
    "collective": {"base", "dtype", "plan"},
    "select": {"base", "dtype", "plan", "algorithm", "collective"},
    "transport": {"base", "wire"},
    "device": {"base", "capi"},  # capi: the device plug-in's table alone
    "native": {"base", "dtype", "device"},
    "rendezvous": {"base", "wire", "transport"},
    "engine": {"base", "dtype", "wire", "plan", "transport", "device"},
    "comm": {
        *("base", "dtype", "wire", "plan", "algorithm", "collective", "select"),
        *("transport", "device", "native", "rendezvous", "engine"),
    },
    # Calls go to comm; the rest is for hccomm_info and hccomm_explain, which tell what there is.
    "capi": {
        *("base", "dtype", "plan", "algorithm", "collective", "select"),
        *("transport", "rendezvous", "device", "native", "comm"),
    },
}

# Folders that see another one through its seam only: (folder, seam folder) -> headers.
SEAMS: dict[tuple[str, str], set[str]] = {
    ("engine", "transport"): {"transport/transport.hpp"},
    ("engine", "device"): {"device/device.hpp"},
    ("device", "capi"): {"capi/hccomm_device.h"},
    ("comm", "transport"): {
        "transport/transport.hpp",
        "transport/transports.hpp",
        "transport/route_hint.hpp",
    },
    ("comm", "algorithm"): {"algorithm/algorithm.hpp", "algorithm/algorithms.hpp"},
    ("select", "algorithm"): {"algorithm/algorithm.hpp", "algorithm/algorithms.hpp"},
    ("capi", "algorithm"): {"algorithm/algorithm.hpp", "algorithm/algorithms.hpp"},
    ("capi", "transport"): {"transport/transport.hpp", "transport/transports.hpp"},
    ("capi", "rendezvous"): {"rendezvous/store.hpp"},
    # The store's connections are encrypted as links are.
    ("rendezvous", "transport"): {
        "transport/transport.hpp",
        "transport/byte_stream.hpp",
        "transport/handshake_io.hpp",
    },
}

# Folders that only compute: no socket, no thread, no clock.
PURE = {"dtype", "wire", "plan", "algorithm", "collective", "select"}
IMPURE = re.compile(r"^(sys/(socket|epoll|mman|un)\.h|netinet/.*|poll\.h|thread|future)$")

# What is named -> (pattern over code without comments and strings, the places that may name it).
FENCED: dict[str, tuple[re.Pattern[str], tuple[str, ...]]] = {
    "torch": (
        re.compile(r"<(torch|c10|ATen)/|\b(torch|c10d?|at)::"),
        ("bindings/torch/",),
    ),
    "pybind11": (re.compile(r"<pybind11/|\b(pybind11|py)::"), ("bindings/fast/",)),
    "cffi": (re.compile(r"\b_cffi_\w+"), ("bindings/cffi/",)),
    "libfabric": (
        re.compile(r"<rdma/|\bfi_(getinfo|fabric|domain)\b"),
        ("csrc/transport/ofi",),
    ),
    "a vendor's runtime": (
        re.compile(r"<(cuda|hip|acl|cnrt|musa|ze_api|CL/)|\b(cuda|hip|musa|aclrt|cnrt)[A-Z]\w*\("),
        ("csrc/device/", "tests/gpu/"),
    ),
    "a vendor's CCL": (
        re.compile(r"<(nccl|rccl|hccl|cncl)|\b(nccl|rccl|hccl|cncl)[A-Z]\w*\("),
        ("csrc/native/", "tests/gpu/"),
    ),
}

# Python module -> the files of ours that may import it (prefixes). Inside a function anyone may:
# that asks whether it is there, and `import hccomm` stays free of it.
FENCED_IMPORTS: dict[str, tuple[str, ...]] = {
    "torch": ("hccomm/torch", "hccomm/_torch", "bindings/torch/"),
    "cffi": ("hccomm/_native", "bindings/cffi/"),
    "pybind11": ("bindings/fast/",),
    "mpi4py": (),
}


def folder_of(name: str) -> str:
    """Return the folder of a path below csrc/, "." for csrc/ itself."""
    return name.split("/")[0] if "/" in name else "."


def check_includes(path: Path, known: set[str]) -> list[str]:
    """Check the includes of one file below csrc/."""
    inner = path.relative_to("csrc").as_posix()
    own = folder_of(inner)
    wrong = []
    if own not in ALLOWED:
        return [f"{path}:1: folder {own} is not in tools/check_layers.py; give it its place"]
    for number, name in includes_of(read(path)):
        where = f"{path}:{number}: {own} includes {name}"
        if own in PURE and IMPURE.match(name):
            wrong.append(f"{where}: {own} only computes; sockets and threads live further down")
        if name not in known:
            continue
        target = folder_of(name)
        if target != own and target not in ALLOWED[own]:
            wrong.append(f"{where}: it may see {', '.join(sorted(ALLOWED[own])) or 'nothing'}")
        elif (seam := SEAMS.get((own, target))) is not None and name not in seam:
            wrong.append(f"{where}: it sees {target} through {', '.join(sorted(seam))} only")
    return wrong


def check_bindings(path: Path, known: set[str]) -> list[str]:
    """Check that a binding includes the C ABI and nothing else of the core."""
    return [
        f"{path}:{number}: a binding includes {name}; the C ABI capi/hccomm*.h is all it may see"
        for number, name in includes_of(read(path))
        if name in known and name not in ("capi/hccomm.h", "capi/hccomm_device.h")
    ]


def check_fences(path: Path) -> list[str]:
    """Check that a C++ file names no library that lives elsewhere."""
    wrong = []
    place = path.as_posix()
    for number, line in enumerate(code_of(read(path)).splitlines(), 1):
        for what, (pattern, places) in FENCED.items():
            if pattern.search(line) and not place.startswith(places):
                wrong.append(f"{path}:{number}: names {what}, which lives in {' '.join(places)}")
    return wrong


def check_imports(path: Path) -> list[str]:
    """Check the imports of a Python file of the package."""
    wrong = []
    for node in ast.parse(read(path), str(path)).body:
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        for name in names:
            places = FENCED_IMPORTS.get(name.split(".")[0])
            where = f"{path}:{node.lineno}: imports {name}"
            if places is not None and not path.as_posix().startswith(places):
                wrong.append(f"{where}: only {' '.join(places) or 'functions'} may")
    return wrong


def main() -> int:
    """Check every file; print the breaches."""
    core = files(*CPP, under="csrc")
    known = {path.relative_to("csrc").as_posix() for path in core}
    wrong: list[str] = []
    for path in core:
        wrong += check_includes(path, known) + check_fences(path)
    for path in files(*CPP, under="bindings"):
        wrong += check_bindings(path, known) + check_fences(path)
    for path in files(".py", under="hccomm"):
        wrong += check_imports(path)
    print("\n".join(wrong) if wrong else f"layers: {len(core)} files keep to them")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

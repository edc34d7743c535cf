# SPDX-License-Identifier: Apache-2.0
"""One rank of a test's process group: runs the functions that the test sends, until told to stop.

Started by ranks.py with a socket as its only argument; says what each call returned or raised.
"""

import faulthandler
import importlib.util
import os
import signal
import sys
import traceback
from datetime import timedelta
from multiprocessing.connection import Connection


def load(path: str) -> object:
    """Import a test file by its path, once."""
    name = f"ranks_of_{os.path.basename(path)[:-3]}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


def main() -> None:
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    pipe = Connection(int(sys.argv[1]))
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    if "SIMDEVICE" in os.environ:
        import simdevice

        simdevice.start_from_environment()
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if backend := os.environ.get("TEST_BACKEND"):
        dist.init_process_group(
            backend,
            init_method=os.environ["TEST_INIT"],
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=float(os.environ["TEST_TIMEOUT"])),
        )
    pipe.send((True, "ready"))
    while True:
        call = pipe.recv()
        if call is None:
            break
        path, name, args = call
        try:
            pipe.send((True, getattr(load(path), name)(*args)))
        except BaseException as error:
            pipe.send((False, (type(error).__name__, str(error), traceback.format_exc())))
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()

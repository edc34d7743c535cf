# SPDX-License-Identifier: Apache-2.0
"""Make the first communicator of a job: ``hccomm.init()``.

It asks launchers.py who this process is and chooses where the ranks meet:

1. ``rendezvous=`` or HCCOMM_RENDEZVOUS, as given;
2. one host: a private folder (0700), which rank 0 names to the others where the launcher can share
   a text, else named after the job;
3. several hosts: a port of rank 0, shared likewise;
4. no launcher: a group of one.
"""

from __future__ import annotations

import base64
import contextlib
import os
import stat
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from hccomm import launchers
from hccomm._native import Library, library
from hccomm.communicator import Communicator, _seconds
from hccomm.errors import InvalidArgument, System, Unavailable


class Store(Protocol):
    """A key-value store through which ranks meet, where hccomm's own will not do."""

    def set(self, key: str, value: bytes) -> None:
        """Keep ``value`` under ``key`` for all ranks."""

    def get(self, key: str, timeout: float) -> bytes | None:
        """Return the value of ``key``, waiting for it; None when it is not there in time."""


class Place(NamedTuple):
    """Where ranks meet: a URL or a store, and the name that tells meetings there apart."""

    url: str = ""
    store: Store | None = None
    name: str = "world"


def init(
    *,
    comm: Any = None,
    rank: int | None = None,
    size: int | None = None,
    rendezvous: str | None = None,
    store: Store | None = None,
    name: str = "world",
    timeout: float | None = None,
) -> Communicator:
    """Meet the other ranks of the job and return the communicator of all of them. Collective.

    With no arguments, rank and size come from whatever launched the process, and a process that
    nothing launched is a group of one. ``comm`` is an mpi4py communicator whose ranks become this
    one's. ``rank`` and ``size`` go with ``rendezvous`` (``tcp://host:port`` on rank 0's host, or
    ``file:///shared/folder``) or with ``store``. ``name`` tells communicators on one store apart.
    ``timeout`` (seconds) is the deadline of this call and the default of its operations; None asks
    HCCOMM_TIMEOUT.

    Raises InvalidArgument for contradictory arguments or a bad HCCOMM_* variable, Timeout naming
    the ranks that did not come, Mismatch when ranks disagree about size or claim one rank twice.
    """
    seconds = _seconds(timeout, "init")
    given = rendezvous or os.environ.get("HCCOMM_RENDEZVOUS") or ""
    if (rank is None) != (size is None):
        raise InvalidArgument("init: rank and size come together; pass both, or neither")
    if comm is not None:
        if rank is not None:
            raise InvalidArgument("init: comm has rank and size already; pass it alone")
        launched = launchers.from_mpi4py(comm)
    elif rank is not None and size is not None:
        _check_rank(rank, size)
        if not given and store is None and size > 1:
            raise InvalidArgument(
                f"init: rank {rank} of {size} has no place to meet; pass rendezvous="
                '"tcp://<host of rank 0>:<port>" or "file:///<shared folder>", or set '
                "HCCOMM_RENDEZVOUS"
            )
        launched = launchers.Launched("arguments", rank, size, True, key=f"single-{os.getpid()}")
    else:
        launched = launchers.detect()
        _check_rank(launched.rank, launched.size)
    # How often, per place: keeps later communicators apart, and lets a new process join old ones at
    # a place that is new to all of them.
    again = launchers.next_of(f"init {name} {given}")
    label = f"{name}.{again}" if again else name
    _share_key(launched)
    place = "" if store is not None else _meeting_place(launched, given, again)
    made = _make(library(), launched, place, store, label, seconds)
    made._name = name
    return made


def _share_key(launched: launchers.Launched) -> None:
    """Give ranks without a job key one of rank 0's making, through MPI. Collective.

    The core reads it from the environment and removes it there.
    """
    if launched.share is None or not launched.private or launched.size < 2:
        return
    bare = not (os.environ.get("HCCOMM_KEY_FILE") or os.environ.get("HCCOMM_KEY"))
    wanted = bare and os.environ.get("HCCOMM_AUTH") != "off"
    made = base64.b64encode(os.urandom(32)).decode() if wanted and launched.rank == 0 else ""
    key = launched.share(made)
    if key and wanted:
        os.environ["HCCOMM_KEY"] = key


def _check_rank(rank: int, size: int) -> None:
    if size < 1:
        raise InvalidArgument(f"init: size is {size}; a group has at least one rank")
    if not 0 <= rank < size:
        raise InvalidArgument(
            f"init: rank {rank} is outside 0..{size - 1}; pass a rank of the group"
        )


def _make(
    library: Library,
    launched: launchers.Launched,
    url: str,
    store: Store | None,
    name: str,
    seconds: float,
) -> Communicator:
    made, place = library.ffi.new("hccomm_comm**"), Place(url, store, name)
    _meet(library, launched.rank, launched.size, place, seconds, library.lib.hccomm_init, made)
    return Communicator(made[0], name)


def _meet(
    library: Library,
    rank: int,
    size: int,
    place: Place,
    seconds: float,
    function: Callable[..., int],
    target: Any,
) -> None:
    """Call ``function`` (hccomm_init, or with the config first a like one) and check its answer."""
    ffi = library.ffi
    config, error = ffi.new("hccomm_config*"), library.error()
    label, address = ffi.new("char[]", place.name.encode()), ffi.new("char[]", place.url.encode())
    config.struct_size = ffi.sizeof("hccomm_config")
    config.rank, config.size = rank, size
    config.rendezvous = address if place.url else ffi.NULL
    config.name, config.timeout = label, seconds
    callbacks = None
    if place.store is not None:
        callbacks = _Callbacks(library, place.store)
        config.store = callbacks.table
    code = int(function(config, target, error))
    os.environ.pop("HCCOMM_KEY", None)  # Python's own copy: children shall not inherit it
    if callbacks is not None and callbacks.failure is not None:
        raise callbacks.failure
    library.check(code, error)


def meet_again(
    library: Library, handle: Any, rank: int, size: int, place: Place, timeout: float | None
) -> None:
    """Make ``handle`` the communicator of the ranks that meet at ``place``."""
    _check_rank(rank, size)
    if not place.url and place.store is None and size > 1:
        raise InvalidArgument(
            "reconfigure: no place to meet; pass rendezvous= or store=, and a name that has not "
            "been used there"
        )

    def call(config: Any, target: Any, error: Any) -> int:
        return int(library.lib.hccomm_reconfigure(target, config, error))

    _meet(library, rank, size, place, _seconds(timeout, "reconfigure"), call, handle)


class _Callbacks:
    """A Store as the C ABI calls it; keeps the first exception, for Python to raise."""

    def __init__(self, library: Library, store: Store) -> None:
        ffi = library.ffi
        self.failure: BaseException | None = None

        def set_(_: Any, key: Any, value: Any, size: int) -> int:
            return self._guard(
                lambda: store.set(library.string(key), bytes(ffi.buffer(value, size))), 1
            )

        def get(_: Any, key: Any, timeout: float, value: Any, capacity: int) -> int:
            def ask() -> int:
                found = store.get(library.string(key), timeout)
                if found is None:
                    return -1
                ffi.memmove(value, found, min(len(found), capacity))
                return len(found)

            return self._guard(ask, -2)

        self._set = ffi.callback("int(void*, const char*, const void*, size_t)", set_)
        self._get = ffi.callback("int64_t(void*, const char*, double, void*, size_t)", get)
        self.table = ffi.new("hccomm_store*")
        self.table.set, self.table.get = self._set, self._get

    def _guard(self, call: Callable[[], int | None], failed: int) -> int:
        try:
            return call() or 0
        except BaseException as error:  # an exception cannot cross C
            self.failure = self.failure or error
            return failed


def _meeting_place(launched: launchers.Launched, given: str, again: int) -> str:
    """Return the URL at which the ranks meet; rank 0 removes what lies there when all have met."""
    if launched.size == 1:
        return ""
    if given or launched.url:
        url = given or launched.url
        return f"{url}.{again}" if again and url.startswith("file:") else url
    if launched.one_host and launched.key:
        name = f"{launchers.hash_of(launched.key):016x}-{launchers.next_of('folder')}"
        return f"file://{private_folder()}/{name}"
    if launched.share is not None:
        if launched.one_host:
            return launched.share(unique_url())
        return launched.share(f"tcp://{_own_address()}:{_free_port()}")
    raise Unavailable(
        f"init: {launched.launcher} started rank {launched.rank} of {launched.size} on several "
        "hosts and offers no way to meet; set HCCOMM_RENDEZVOUS=tcp://<host of rank 0>:<port>, or "
        "install mpi4py and pass hccomm.init(comm=MPI.COMM_WORLD)"
    )


def private_folder() -> str:
    """Return this user's folder for meetings, made if need be; nobody else may write in it."""
    base = os.environ.get("XDG_RUNTIME_DIR") or os.environ.get("TMPDIR") or "/tmp"
    folder = os.path.join(os.path.abspath(base), f"hccomm-{os.getuid()}")
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder, mode=0o700)
    found = os.lstat(folder)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise System(
            f"init: {folder} is not a folder that only this user can write; remove it, or set "
            "HCCOMM_RENDEZVOUS"
        )
    return folder


def unique_url() -> str:
    """Return a new place on this host for ranks to meet."""
    return f"file://{private_folder()}/{os.urandom(8).hex()}"


def _own_address() -> str:
    """Return the address of this host on its default route, else its name."""
    import socket

    for family, probe in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probing:
            probing.connect((probe, 9))  # sends nothing: it only asks for the route
            address = str(probing.getsockname()[0])
            return f"[{address}]" if ":" in address else address
    return socket.gethostname()


def _free_port() -> int:
    import socket

    with socket.socket() as probing:
        probing.bind(("", 0))
        return int(probing.getsockname()[1])

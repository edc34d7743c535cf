# SPDX-License-Identifier: Apache-2.0
"""One exception for each code of the C ABI, by what the caller can do about it.

Each also derives from the nearest built-in, so that ``except TimeoutError`` works too. Everything
in the package that can fail raises one of these; nobody constructs ``Error`` itself.
"""

from __future__ import annotations

from typing import ClassVar


class Error(Exception):
    """Something hccomm could not do. ``rank`` is the rank to blame, or -1."""

    code: ClassVar[int] = 0

    def __init__(self, text: str, rank: int = -1) -> None:
        super().__init__(text)
        self.text = text
        self.rank = rank

    def __str__(self) -> str:
        return self.text

    def __reduce__(self) -> tuple[type[Error], tuple[str, int]]:
        return type(self), (self.text, self.rank)


class InvalidArgument(Error, ValueError):
    """The call is wrong: mend it."""

    code = 1


class Mismatch(Error, RuntimeError):
    """The ranks called different things: mend the program."""

    code = 2


class Unavailable(Error, NotImplementedError):
    """This build or this machine cannot: choose another way."""

    code = 3


class PeerLost(Error, ConnectionError):
    """A rank died or cannot be reached."""

    code = 4


class Timeout(Error, TimeoutError):
    """The deadline passed: look for the rank that is missing."""

    code = 5


class Aborted(Error, RuntimeError):
    """Somebody called ``abort`` or ``close``."""

    code = 6


class Integrity(Error, OSError):
    """Bytes arrived damaged."""

    code = 7


class System(Error, OSError):
    """The operating system refused."""

    code = 8


class Internal(Error, RuntimeError):
    """A bug of hccomm: please report it with its text."""

    code = 9


_BY_CODE: dict[int, type[Error]] = {
    each.code: each
    for each in (
        InvalidArgument,
        Mismatch,
        Unavailable,
        PeerLost,
        Timeout,
        Aborted,
        Integrity,
        System,
        Internal,
    )
}


def from_code(code: int, text: str, rank: int = -1) -> Error:
    """Return the exception for ``code`` of the C ABI."""
    return _BY_CODE.get(code, Internal)(text, rank)

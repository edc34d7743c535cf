# SPDX-License-Identifier: Apache-2.0
"""A communicator that becomes another one. Several processes: tests/faults/rejoins.py."""

from __future__ import annotations

from pathlib import Path

import pytest

np = pytest.importorskip("numpy")

import hccomm  # noqa: E402


class Shelf:
    """A store in memory."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}

    def set(self, key: str, value: bytes) -> None:
        self.values[key] = value

    def get(self, key: str, timeout: float) -> bytes | None:
        return self.values.get(key)


def test_it_becomes_another_group_and_works() -> None:
    """The same object, with another name, met through a caller's store."""
    with hccomm.init(rank=0, size=1) as comm:
        comm.all_reduce(np.ones(4))

        comm.reconfigure(0, 1, store=Shelf(), name="second")

        assert (comm.rank, comm.size, comm.name) == (0, 1, "second")
        assert (comm.all_reduce(np.ones(4)) == 1).all()
        assert comm.describe()["name"] == "second"


def test_a_meeting_that_fails_leaves_it_to_be_reconfigured_again(tmp_path: Path) -> None:
    """The other rank does not come: the object is in no group, and says so."""
    with hccomm.init(rank=0, size=1) as comm:
        with pytest.raises(hccomm.Timeout, match="rank 1"):
            comm.reconfigure(0, 2, rendezvous=f"file://{tmp_path}/none", timeout=0.3)
        with pytest.raises(hccomm.Aborted, match="reconfigure"):
            comm.all_reduce(np.ones(4))

        comm.reconfigure(0, 1, name="alone")

        assert (comm.all_reduce(np.ones(4)) == 1).all()


def test_it_can_be_closed_while_it_is_in_no_group(tmp_path: Path) -> None:
    """close() frees it, and closing twice is fine."""
    comm = hccomm.init(rank=0, size=1)
    with pytest.raises(hccomm.Timeout):
        comm.reconfigure(0, 2, rendezvous=f"file://{tmp_path}/none", timeout=0.3)

    comm.close()
    comm.close()

    with pytest.raises(hccomm.Aborted, match="closed"):
        comm.reconfigure(0, 1)


def test_it_needs_a_place_where_others_are_to_come() -> None:
    """Two ranks and nowhere to meet is a wrong call, which leaves the object adrift."""
    with (
        hccomm.init(rank=0, size=1) as comm,
        pytest.raises(hccomm.InvalidArgument, match="no place"),
    ):
        comm.reconfigure(0, 2)

"""How many records of a handshake are counted, whichever pieces it comes in."""

from __future__ import annotations

import struct
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from scistream.s2ds.relay.handshake import MOST_RECORDS, Handshake
from scistream.s2ds.relay.leg import ConnectionBrokenError

HANDSHAKE = 22


def records(lengths: list[int]) -> bytes:
    return b"".join(struct.pack("!BHH", HANDSHAKE, 0x0303, length) + bytes(length) for length in lengths)


def new_handshake() -> Handshake:
    return Handshake(cast(Any, SimpleNamespace(peer_name="the other gateway")), Clock(), 10.0)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=20), st.lists(st.integers(1, 30)))
def test_records_are_counted_once_in_pieces_of_any_size(lengths: list[int], cuts: list[int]) -> None:
    handshake, data = new_handshake(), records(lengths)
    for size in [*cuts, len(data)]:
        handshake._count(data[:size])
        data = data[size:]
    assert handshake._records == len(lengths)


@pytest.mark.parametrize("size", [1, 3, 4096])
def test_one_record_more_than_there_may_be_is_too_many(size: int) -> None:
    handshake, data = new_handshake(), records([1] * (MOST_RECORDS + 1))
    most = MOST_RECORDS * 6
    for at in range(0, most, size):
        handshake._count(data[at : min(at + size, most)])
    with pytest.raises(ConnectionBrokenError, match="too many TLS records"):
        handshake._count(data[most:])

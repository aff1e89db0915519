"""The data that a probe sends: a pattern that either end can check."""

from __future__ import annotations

import hashlib

BLOCK = 256 * 1024
_PERIOD = 1024 * 1024 - 1  # odd: what is lost or repeated in round numbers does not fit


class Pattern:
    """The test data of one direction of one channel: endless, of no order, and the same at both ends."""

    def __init__(self, uid: str) -> None:
        period = hashlib.shake_128(uid.encode()).digest(_PERIOD)
        self._bytes = period + period[:BLOCK]

    def at(self, position: int, count: int) -> bytes:
        """`count` bytes, at most `BLOCK`, from a position on."""
        start = position % _PERIOD
        return self._bytes[start : start + count]


def start_of(channel: int, *, to_producer: bool) -> int:
    """Where the data of a channel begins: no two flows of a stream carry the same bytes at the same time."""
    return 2 * 7919 * channel + (7919 if to_producer else 0)

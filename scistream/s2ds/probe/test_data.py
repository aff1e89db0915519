"""The test data of a probe: a pattern that both ends can check."""

from __future__ import annotations

import hashlib

BLOCK = 256 * 1024
_PERIOD = 1024 * 1024 - 1  # odd, so that a lost or repeated block of a round size is noticed


class Pattern:
    """An endless pattern of pseudo-random bytes, the same at both ends of a stream."""

    def __init__(self, uid: str) -> None:
        period = hashlib.shake_128(uid.encode()).digest(_PERIOD)
        self._bytes = period + period[:BLOCK]

    def at(self, position: int, count: int) -> bytes:
        """Return `count` bytes, at most `BLOCK`, from a position on."""
        start = position % _PERIOD
        return self._bytes[start : start + count]


def start_of(channel: int, *, to_producer: bool) -> int:
    """Return the position at which the data of a channel and direction begins, which is different for each."""
    return 2 * 7919 * channel + (7919 if to_producer else 0)

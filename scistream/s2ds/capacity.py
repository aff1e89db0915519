"""How much a gateway has promised, and how fast a stream may go.

`Capacity` belongs to the initiator, which reserves from it when a stream is admitted; `TokenBucket`
belongs to an element, one for each direction of a stream. Neither does any I/O or knows a clock of its own.
"""

from __future__ import annotations

from scistream.protocol.errors import StreamError
from scistream.s2ds.relay.token_bucket import SharedTokenStore


class Capacity:
    """The rate in Mbit/s that a gateway can carry, and what of it is promised to streams."""

    def __init__(self, total_mbit: float) -> None:
        self.total = total_mbit
        self._reserved = 0.0

    @property
    def free(self) -> float:
        """What can still be promised, in Mbit/s."""
        return max(0.0, self.total - self._reserved)

    def reserve(self, rate: float) -> None:
        """Promise `rate` Mbit/s.

        :raises StreamError: ``no-capacity`` when that is more than is free.
        """
        if self._reserved + rate > self.total + self._rounding:
            raise StreamError(
                "no-capacity",
                f"{rate:g} Mbit/s were asked for and {self.free:g} of this gateway's {self.total:g} Mbit/s are free: "
                "ask for a lower rate, or wait until another stream ends",
            )
        self._reserved += rate

    def release(self, rate: float) -> None:
        """Take back a promise of `rate` Mbit/s."""
        self._reserved -= rate
        if self._reserved < self._rounding:
            self._reserved = 0.0

    @property
    def _rounding(self) -> float:
        return 1e-9 * self.total


STREAM_SHARE = 50
"""Percent of the connections, and of the unread bytes, that one stream has at most."""


USUAL = SharedTokenStore()


def has_its_share(has: int, left: int, percent: int) -> bool:
    """Whether so much is as much as one may have: this part of what one has and of what is left together.

    Thus something is left for others, however many there are, and whoever has nothing may begin.
    """
    return has > 0 and has * (100 - percent) >= left * percent

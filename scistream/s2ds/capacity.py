"""What the streams of a gateway share: its capacity, and the limits on their connections and unread bytes.

The initiator reserves capacity when a stream is admitted, and applies the limits to new connections. Nothing here does
input or output.
"""

from __future__ import annotations

from dataclasses import dataclass

from scistream.protocol.errors import StreamError
from scistream.s2ds.settings import OWNER_SHARE


class Capacity:
    """The rate in Mbit/s that a gateway can carry, and the part of it that is reserved for streams."""

    def __init__(self, total_mbit: float) -> None:
        self.total = total_mbit
        self._reserved = 0.0

    @property
    def reserved(self) -> float:
        """The rate that is reserved, in Mbit/s."""
        return self._reserved

    @property
    def free(self) -> float:
        """The rate that can still be reserved, in Mbit/s."""
        return max(0.0, self.total - self._reserved)

    def reserve(self, rate: float) -> None:
        """Reserve `rate` Mbit/s.

        :raises StreamError: ``no-capacity`` if less is free.
        """
        if self._reserved + rate > self.total + self._rounding:
            raise StreamError(
                "no-capacity",
                f"{rate:g} Mbit/s requested, but {self.free:g} of this gateway's {self.total:g} Mbit/s are free: "
                "request a lower rate, or wait until another stream ends",
            )
        self._reserved += rate

    def release(self, rate: float) -> None:
        """Return a reservation of `rate` Mbit/s."""
        self._reserved -= rate
        if self._reserved < self._rounding:
            self._reserved = 0.0

    @property
    def _rounding(self) -> float:
        return 1e-9 * self.total


STREAM_SHARE = 50
"""Percent of the connections, and of the unread bytes, that one stream may have."""


@dataclass(frozen=True)
class SharedLimits:
    """Limits that all streams of a gateway share.

    :param half_open: connections of one channel that are not yet joined to the other side.
    :param connections: connections of all streams together; 0: as many as there are descriptors for.
    :param unread: bytes of all streams together that wait in the gateway and its sockets; 0: no limit.
    :param owner_share: percent of the connections, and of the unread bytes, that all streams of one user may have.
    """

    half_open: int = 64
    connections: int = 0
    unread: int = 0
    owner_share: int = OWNER_SHARE


def has_full_share(used: int, left: int, percent: int) -> bool:
    """Return True if `used` is at least `percent` of `used` and `left` together.

    Some of the resource is therefore always left for others, and whoever uses none of it may begin.
    """
    return used > 0 and used * (100 - percent) >= left * percent

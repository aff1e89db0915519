"""One direction of one channel on an element: what it has carried, and the rate that it shares with its stream."""

from __future__ import annotations

from scistream.s2ds.relay.throttle import Throttle


class Flow:
    """What the connections of a channel share in one direction.

    :ivar bytes: application bytes that the far end's socket has taken.
    """

    __slots__ = ("bytes", "throttle")

    def __init__(self, throttle: Throttle) -> None:
        self.bytes = 0
        self.throttle = throttle

    def moved(self, count: int) -> None:
        """So many bytes more have gone out."""
        self.bytes += count

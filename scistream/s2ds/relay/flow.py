"""One direction of one channel on an element: what it has carried, and the rate that it shares with its stream."""

from __future__ import annotations

from scistream.s2ds.relay.receive_windows import StreamWindows
from scistream.s2ds.relay.throttle import Throttle


class Flow:
    """What the connections of a channel share in one direction.

    :param windows: the large receive windows of the stream at this element.
    :param words: the memory of the gateway's figures.
    :param at: where in it this direction's application bytes are counted.
    """

    __slots__ = ("_at", "_words", "throttle", "windows")

    def __init__(self, throttle: Throttle, windows: StreamWindows, words: memoryview, at: int) -> None:
        self.throttle = throttle
        self.windows = windows
        self._words = words
        self._at = at

    def moved(self, count: int) -> None:
        """So many bytes more have been taken by the far end's socket."""
        self._words[self._at] += count

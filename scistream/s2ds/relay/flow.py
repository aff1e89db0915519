"""One direction of one channel on an element: its byte count and the throttle that it shares with its stream."""

from __future__ import annotations

from scistream.s2ds.relay.receive_windows import StreamWindows
from scistream.s2ds.relay.throttle import Throttle


class Flow:
    """The state that all connections of a channel share in one direction.

    :param throttle: the throttle of the stream in this direction.
    :param windows: the large receive windows of the stream at this element.
    :param words: the words of the gateway's shared figures.
    :param at: the index of the word that counts this direction's application bytes.
    """

    __slots__ = ("_at", "_words", "throttle", "windows")

    def __init__(self, throttle: Throttle, windows: StreamWindows, words: memoryview, at: int) -> None:
        self.throttle = throttle
        self.windows = windows
        self._words = words
        self._at = at

    def moved(self, count: int) -> None:
        """Count `count` more bytes as written to a socket."""
        self._words[self._at] += count

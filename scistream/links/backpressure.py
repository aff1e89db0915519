"""Lines of a peer, cut from its bytes, and the pause of a peer that does not read or says too much."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import (
    IPushProducer,
)
from zope.interface import implementer

MAX_UNREAD = 4 * 2**20
"""Bytes that wait for a peer who does not read, beside what the transport takes before it calls itself full."""


class LineSplitter:
    """Bytes cut into lines. What that costs grows with their number alone, in whatever pieces they come."""

    def __init__(self) -> None:
        self.whole: deque[bytes] = deque()
        """Lines that nobody has taken yet, without their LF."""
        self.rest = bytearray()
        """The beginning of a line."""

    def add(self, data: bytes) -> None:
        """More bytes of the peer."""
        first, *others = data.split(b"\n")
        self.rest += first
        for other in others:
            self.whole.append(bytes(self.rest))
            self.rest = bytearray(other)

    def __len__(self) -> int:
        return sum(map(len, self.whole)) + len(self.rest)


@implementer(IPushProducer)
class ReadThrottle:
    """Stops reading from a peer that does not read what we write to it, or that says too much at once.

    :param go_on: called when the peer has read all that waited for it.
    """

    def __init__(self, transport: Any, go_on: Callable[[], None]) -> None:
        self._transport = transport
        self._go_on = go_on
        self._resting = False
        self.is_full = False
        self.unread = 0
        """Bytes written since the transport was full."""

    def pauseProducing(self) -> None:
        self.is_full = True
        self._transport.pauseProducing()

    def resumeProducing(self) -> None:
        self.is_full = False
        self.unread = 0
        self._resume()
        self._go_on()

    def wrote(self, count: int) -> None:
        """So many bytes are on their way to the peer."""
        if self.is_full:
            self.unread += count

    def stopProducing(self) -> None:
        """The transport is going away, and this with it."""

    def rest(self) -> None:
        """Read nothing until `go_on`."""
        self._resting = True
        self._transport.pauseProducing()

    def go_on(self) -> None:
        """The end of `rest`."""
        self._resting = False
        self._resume()

    def _resume(self) -> None:
        if not self.is_full and not self._resting:
            self._transport.resumeProducing()

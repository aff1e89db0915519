"""Split received bytes into lines, and pause reading from a peer that does not read or sends too much."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import (
    IPushProducer,
)
from zope.interface import implementer

MAX_UNREAD = 4 * 2**20
"""Bytes that may wait for a peer that does not read, in addition to the transport's own buffer."""


class LineSplitter:
    """Splits bytes into lines, in time linear in their number however they are chunked."""

    def __init__(self) -> None:
        self.complete: deque[bytes] = deque()
        """Lines that have not been taken yet, without their LF."""
        self.partial = bytearray()
        """The beginning of an incomplete line."""

    def add(self, data: bytes) -> None:
        """Add bytes that were received."""
        first, *others = data.split(b"\n")
        self.partial += first
        for other in others:
            self.complete.append(bytes(self.partial))
            self.partial = bytearray(other)

    def __len__(self) -> int:
        return sum(map(len, self.complete)) + len(self.partial)


@implementer(IPushProducer)
class ReadThrottle:
    """Stops reading from a peer that does not read what we write to it, or that sends too much at once.

    :param on_drained: called when the peer has read everything that waited for it.
    """

    def __init__(self, transport: Any, on_drained: Callable[[], None]) -> None:
        self._transport = transport
        self._on_drained = on_drained
        self._is_paused = False
        self.is_full = False
        self.unread = 0
        """Bytes written since the transport's buffer became full."""

    def pauseProducing(self) -> None:
        """Stop reading: the transport's write buffer is full."""
        self.is_full = True
        self._transport.pauseProducing()

    def resumeProducing(self) -> None:
        """Read again: the peer has read everything."""
        self.is_full = False
        self.unread = 0
        self._read_if_allowed()
        self._on_drained()

    def wrote(self, count: int) -> None:
        """Count bytes that were written to the transport."""
        if self.is_full:
            self.unread += count

    def stopProducing(self) -> None:
        """Do nothing: the transport is being closed."""

    def pause(self) -> None:
        """Read nothing until `resume` is called."""
        self._is_paused = True
        self._transport.pauseProducing()

    def resume(self) -> None:
        """End a `pause`."""
        self._is_paused = False
        self._read_if_allowed()

    def _read_if_allowed(self) -> None:
        if not self.is_full and not self._is_paused:
            self._transport.resumeProducing()

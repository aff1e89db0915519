"""Notices WAN connections over which nothing comes back any more, while nobody may be reading or writing.

TCP_USER_TIMEOUT would not do: Linux also counts the time in which a living peer keeps its window closed, and so would
cut off a reader that is merely slow. So TCP's own state is looked at.
"""

from __future__ import annotations

import socket
from typing import Any, Protocol

from scistream.s2ds.relay.tcp_info import tcp_info

_LOOKS = 6
"""How many times a connection is checked within its time limit."""


class Watched(Protocol):
    """A connection to watch."""

    @property
    def sock(self) -> socket.socket: ...

    def break_off(self, reason: str) -> None:
        """It was found dead."""


class DeadPeerDetector:
    """Breaks off connections whose bytes have waited too long for an acknowledgement. No timer while there are none.

    :param reactor: an `IReactorTime`.
    :param timeout: for how many seconds nothing may come back.
    """

    def __init__(self, reactor: Any, timeout: float) -> None:
        self._reactor = reactor
        self._timeout = timeout
        self._failing_since: dict[Watched, float | None] = {}
        self._timer: Any = None

    def add(self, watched: Watched) -> None:
        """Watch a connected socket until `remove`, which must come before it is closed."""
        self._failing_since[watched] = None
        if self._timer is None:
            self._timer = self._reactor.callLater(self._timeout / _LOOKS, self._look)

    def remove(self, watched: Watched) -> None:
        """Watch it no longer."""
        del self._failing_since[watched]
        if not self._failing_since and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = self._reactor.callLater(self._timeout / _LOOKS, self._look)
        now = self._reactor.seconds()
        for watched in list(self._failing_since):
            if watched in self._failing_since and self._is_exhausted(watched, now):
                watched.break_off(f"nothing has come back over the WAN for {self._timeout:g} s")

    def _is_exhausted(self, watched: Watched, now: float) -> bool:
        """Whether nothing has come back for too long."""
        info = tcp_info(watched.sock)
        if not info.retransmits and info.probes < 2:  # one probe may be on its way
            self._failing_since[watched] = None
            return False
        since = self._failing_since[watched]
        if since is None:
            self._failing_since[watched] = since = now
        return info.silent >= self._timeout and now - since >= self._timeout * (1 - 1 / _LOOKS)

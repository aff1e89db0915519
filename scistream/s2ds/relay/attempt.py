"""An attempt to open a connection: one socket that the poller watches until something has happened or the time is up.

`plain.py` connects with it, `proxy.py` talks to a proxy.
"""

from __future__ import annotations

import socket
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from scistream.s2ds.relay.poller import Poller


class Attempt(ABC):
    """One socket, which the attempt owns until `detach`; a subclass handles its events."""

    batch_added = 0

    def __init__(self, poller: Poller, sock: socket.socket) -> None:
        self._poller = poller
        self._sock: socket.socket | None = sock
        self._on_timeout: Callable[[], None] | None = None
        self._timer: Any = None
        self._is_polled = False

    def watch(self, reactor: Any, seconds: float, on_timeout: Callable[[], None]) -> None:
        """Wait for events of the socket; call `on_timeout` after some seconds.

        :raises OSError: if the system cannot watch one more descriptor.
        """
        self._poller.add(self)
        self._is_polled = True
        self._on_timeout = on_timeout
        self._timer = reactor.callLater(seconds, self._time_out)

    def detach(self) -> socket.socket | None:
        """Wait no more, and return the socket, which is the caller's; None if it was returned before."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._on_timeout = None
        if self._is_polled:
            self._poller.remove(self)
            self._is_polled = False
        sock, self._sock = self._sock, None
        return sock

    def close(self) -> None:
        """Wait no more, and close the socket unless it was detached. Idempotent."""
        sock = self.detach()
        if sock is not None:
            sock.close()

    def _time_out(self) -> None:
        self._timer = None
        assert self._on_timeout is not None
        self._on_timeout()

    # -- Polled

    def fileno(self) -> int:
        """Return the descriptor of the socket, -1 if it is detached."""
        return -1 if self._sock is None else self._sock.fileno()

    @abstractmethod
    def event(self, mask: int) -> None:
        """Handle an event."""

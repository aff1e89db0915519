"""Detection of WAN connections whose peer no longer answers, even if nothing is read or written.

TCP_USER_TIMEOUT is not suitable: Linux also counts the time in which a live peer keeps its window closed, so a slow
reader would be cut off. The detector reads the state of TCP instead.
"""

from __future__ import annotations

import socket
from typing import Any, Protocol

from scistream.s2ds.relay.tcp_info import tcp_info

_CHECKS = 6
"""The number of times that a connection is checked within the timeout."""


class Watched(Protocol):
    """A connection to watch."""

    @property
    def sock(self) -> socket.socket:
        """The connected socket."""

    def break_off(self, reason: str) -> None:
        """End the connection, whose peer is dead."""


class DeadPeerDetector:
    """A detector that ends connections whose bytes wait too long for an acknowledgement.

    It has no timer while there are no connections.

    :param reactor: an `IReactorTime`.
    :param timeout: the seconds for which a peer may be silent.
    """

    def __init__(self, reactor: Any, timeout: float) -> None:
        self._reactor = reactor
        self._timeout = timeout
        self._failing_since: dict[Watched, float | None] = {}
        self._sooner: dict[Watched, float] = {}
        self._timer: Any = None

    def add(self, watched: Watched) -> None:
        """Watch a connection until `remove`, which must be called before its socket is closed."""
        self._failing_since[watched] = None
        if self._timer is None:
            self._timer = self._reactor.callLater(self._timeout / _CHECKS, self._check_all)

    def set_timeout(self, timeout: float) -> None:
        """Let peers be silent for this many seconds from now on."""
        self._timeout = timeout
        if self._timer is not None:
            self._timer.reset(timeout / _CHECKS)

    def end_sooner(self, watched: Watched, timeout: float | None) -> None:
        """End an idle connection that is watched at the first check after this many seconds of silence.

        :param timeout: None: treat it as any other one again.
        """
        self._sooner.pop(watched, None)
        if timeout is not None:
            self._sooner[watched] = timeout

    def remove(self, watched: Watched) -> None:
        """Stop watching a connection."""
        del self._failing_since[watched]
        self._sooner.pop(watched, None)
        if not self._failing_since and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _check_all(self) -> None:
        self._timer = self._reactor.callLater(self._timeout / _CHECKS, self._check_all)
        now = self._reactor.seconds()
        for watched in list(self._failing_since):
            if watched in self._failing_since and self._is_exhausted(watched, now):
                silence = self._sooner.get(watched, self._timeout)
                watched.break_off(f"nothing was received over the WAN for {silence:g} s")

    def _is_exhausted(self, watched: Watched, now: float) -> bool:
        """Return True if the peer has been silent for too long."""
        info = tcp_info(watched.sock)
        if not info.retransmits and info.probes < 2:  # the answer to one probe may be on its way
            self._failing_since[watched] = None
            return False
        if watched in self._sooner:
            return info.silent >= self._sooner[watched]
        since = self._failing_since[watched]
        if since is None:
            self._failing_since[watched] = since = now
        return info.silent >= self._timeout and now - since >= self._timeout * (1 - 1 / _CHECKS)

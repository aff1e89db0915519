"""Notices dead connections of which nobody reads or writes just now.

A reactor reports nothing about a descriptor without interest in it, and interest in one that is
half closed would keep it spinning. So every socket of an element is also in an epoll set of the
element's own, for errors only; and long WAN breaks are found by looking at TCP's own state.
"""

from __future__ import annotations

import select
import socket
import struct
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IReadWriteDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

_TCP_INFO = struct.Struct("@8B24I")  # struct tcp_info as far as tcpi_total_retrans
_RETRANSMITS, _PROBES, _LAST_DATA_RECEIVED, _LAST_ACK_RECEIVED = 2, 3, 19, 20
_LOOKS = 6
"""How often a connection is looked at while its patience lasts."""


@implementer(IReadWriteDescriptor)
class Watch:
    """Calls back when a watched connection is found dead. Uses neither descriptor nor timer while nothing is watched.

    :param reactor: an `IReactorFDSet` and `IReactorTime`.
    :param patience: seconds; see `Patience`.
    """

    def __init__(self, reactor: Any, patience: float) -> None:
        self._reactor = reactor
        self._patience = patience
        self._set: select.epoll | None = None
        self._callbacks: dict[int, Callable[[str], None]] = {}
        self._patient: dict[int, Patience] = {}
        self._timer: Any = None

    def add(self, sock: socket.socket, on_dead: Callable[[str], None], *, wan: bool) -> None:
        """Watch a connected socket until `remove`, which must come before it is closed."""
        fd = sock.fileno()
        if self._set is None:
            self._set = select.epoll()
            self._reactor.addReader(self)
        # No event is asked for but errors, which always come; edge-triggered, as a hang-up stays.
        self._set.register(fd, select.EPOLLET)
        self._callbacks[fd] = on_dead
        if wan:
            self._patient[fd] = Patience(sock, self._patience)
            if self._timer is None:
                self._timer = self._reactor.callLater(self._patience / _LOOKS, self._look)

    def remove(self, sock: socket.socket) -> None:
        """Watch it no longer."""
        fd = sock.fileno()
        if self._set is None or self._callbacks.pop(fd, None) is None:
            return
        self._set.unregister(fd)
        self._patient.pop(fd, None)
        if not self._patient and self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._callbacks:
            self._reactor.removeReader(self)
            self._set.close()
            self._set = None

    def _look(self) -> None:
        self._timer = self._reactor.callLater(self._patience / _LOOKS, self._look)
        now = self._reactor.seconds()
        for fd, patience in list(self._patient.items()):
            if patience.exhausted(now) and fd in self._callbacks:
                self._callbacks[fd](f"nothing has come back over the WAN for {self._patience:g} s")

    # IReadWriteDescriptor

    def fileno(self) -> int:
        return -1 if self._set is None else self._set.fileno()

    def logPrefix(self) -> str:
        return "watch"

    def doRead(self) -> None:
        if self._set is None:
            return
        # A hang-up without an error is a connection that both sides have ended well.
        dead = [(fd, self._callbacks[fd]) for fd, events in self._set.poll(0) if events & select.EPOLLERR]
        for fd, on_dead in dead:
            if self._callbacks.get(fd) is on_dead:  # an earlier one may have ended it
                on_dead("the connection was reset")

    def doWrite(self) -> None:
        """Nothing: reached only by an event about another that had this descriptor before."""

    def connectionLost(self, _reason: Failure) -> None:
        if self._set is not None:  # likewise
            self._reactor.addReader(self)


class Patience:
    """How long the far side of a WAN connection may be silent while bytes wait for its acknowledgement.

    TCP_USER_TIMEOUT would not do: Linux also counts the time in which a living peer keeps its
    window closed, and so would cut off a reader that is merely slow.

    :param seconds: the limit; the question is to be asked several times within it.
    """

    def __init__(self, sock: socket.socket, seconds: float) -> None:
        self._sock = sock
        self._limit = seconds
        self._troubled_since: float | None = None

    def exhausted(self, now: float) -> bool:
        """Whether nothing has come back for too long."""
        info = _TCP_INFO.unpack(self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size))
        if not info[_RETRANSMITS] and info[_PROBES] < 2:  # one probe may be on its way
            self._troubled_since = None
            return False
        if self._troubled_since is None:
            self._troubled_since = now
        silent = min(info[_LAST_DATA_RECEIVED], info[_LAST_ACK_RECEIVED]) / 1000
        return silent >= self._limit and now - self._troubled_since >= self._limit * (1 - 1 / _LOOKS)

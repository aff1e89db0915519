"""A leg: one socket of a relay, as the relay sees it, whether plain TCP (`plain.py`) or TLS (`tls.py`).

The relay reads and writes without blocking and says what it waits for; the leg translates that
into the reactor's interest in its descriptor. Every socket resets its connection when it is closed
or its process dies, until `close` ends it well.
"""

from __future__ import annotations

import os
import select
import socket
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IReadWriteDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from scistream.s2ds.relay.watch import Watch
from scistream.wire.address import Address

WANT = -1
"""`Leg.read_into`: nothing is there now."""
EOF = 0
"""`Leg.read_into`: the peer has ended this direction well."""

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_CLOSE_WELL = struct.pack("ii", 0, 0)
_KEEPALIVE_PROBES = 3


class Broken(Exception):
    """A leg has ended abnormally. Its text says how, for the log."""


class Refused(Broken):
    """Nobody listens there, or not yet."""


def explain(problem: OSError) -> str:
    """The words of the system for an error."""
    return os.strerror(problem.errno) if problem.errno else str(problem)


def prepare(sock: socket.socket, patience: float) -> None:
    """What every socket of a relay gets when it becomes ours. A host that vanishes is noticed in `patience` seconds."""
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    probe = max(1, round(patience / (2 * _KEEPALIVE_PROBES)))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, max(1, round(patience / 2)))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, probe)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _KEEPALIVE_PROBES)


def peer_of(sock: socket.socket) -> str:
    """The far end's address for the log."""
    try:
        return str(Address(*sock.getpeername()[:2]))
    except OSError:
        return "a peer that is gone"


@implementer(IReadWriteDescriptor)
class Leg(ABC):
    """One connected socket, owned from here on.

    :param reactor: an `IReactorFDSet`.
    :param on_broken: called with a sentence when the connection breaks while nothing is read or written.
    """

    wan = False
    """Whether this leg crosses the WAN, where a long silence counts as a break."""

    def __init__(self, reactor: Any, sock: socket.socket, watch: Watch, on_broken: Callable[[str], None]) -> None:
        self._reactor = reactor
        self._sock = sock
        self._watch = watch
        self._broken = on_broken
        self.peer = peer_of(sock)
        self.on_readable: Callable[[], None] = _nothing
        self.on_writable: Callable[[], None] = _nothing
        self._wants_read = self._wants_write = False
        # TLS may have to write before it can read, and the other way round.
        self._read_waits_for_room = self._write_waits_for_data = False
        self._reader = self._writer = False
        watch.add(sock, self.break_off, wan=self.wan)

    # What a relay does with it

    @abstractmethod
    def read_into(self, room: memoryview) -> int:
        """Read up to len(room) > 0 bytes: how many, or `WANT`, or `EOF`.

        :raises Broken: the connection has ended abnormally.
        """

    @abstractmethod
    def write(self, data: memoryview) -> int:
        """Write: how many bytes went, 0 when there is no room. After 0, the next call begins with the same bytes.

        :raises Broken: the connection has ended abnormally.
        """

    @abstractmethod
    def finish_writing(self) -> bool:
        """End this direction well; False when there is no room yet to say so: call again when there is.

        :raises Broken: the connection has ended abnormally.
        """

    @abstractmethod
    def pending(self) -> bool:
        """Whether bytes, or the end of them, wait inside the leg, of which the socket says nothing."""

    def want_read(self, wanted: bool) -> None:
        """Call `on_readable` when it is worth reading (level-triggered), or no longer."""
        self._wants_read = wanted
        self._show_interest()

    def want_write(self, wanted: bool) -> None:
        """Call `on_writable` when it is worth writing (level-triggered), or no longer."""
        self._wants_write = wanted
        self._show_interest()

    def abort(self) -> None:
        """Reset the connection now. Idempotent."""
        if self._sock.fileno() != -1:
            self._wants_read = self._wants_write = False
            self._show_interest()
            self._watch.remove(self._sock)
            self._sock.close()

    def close(self) -> None:
        """Both directions have ended well: let the kernel deliver what it holds, and be gone."""
        if self._sock.fileno() != -1:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _CLOSE_WELL)
            self.abort()

    def break_off(self, reason: str) -> None:
        """Something other than reading or writing has found the connection dead."""
        self._broken(f"{reason} ({self.peer})")

    def _show_interest(self) -> None:
        if self._sock.fileno() == -1:
            return
        reads, writes = self._wants_read, self._wants_write
        reader = (reads and not self._read_waits_for_room) or (writes and self._write_waits_for_data)
        writer = (writes and not self._write_waits_for_data) or (reads and self._read_waits_for_room)
        if reader is not self._reader:
            self._reader = reader
            (self._reactor.addReader if reader else self._reactor.removeReader)(self)
        if writer is not self._writer:
            self._writer = writer
            (self._reactor.addWriter if writer else self._reactor.removeWriter)(self)

    # IReadWriteDescriptor

    def fileno(self) -> int:
        return self._sock.fileno()

    def logPrefix(self) -> str:
        return "relay"

    def doRead(self) -> None:
        crossed = self._wants_write and self._write_waits_for_data
        if self._wants_read and not self._read_waits_for_room:
            self.on_readable()
        if crossed:
            self.on_writable()

    def doWrite(self) -> None:
        crossed = self._wants_read and self._read_waits_for_room
        if self._wants_write and not self._write_waits_for_data:
            self.on_writable()
        if crossed:
            self.on_readable()

    def connectionLost(self, reason: Failure) -> None:
        self._reader = self._writer = False  # the reactor has dropped both
        if self._sock.fileno() == -1:
            return
        if is_event_of_another(self._sock, reason):
            self._show_interest()
        else:
            self.break_off(pending_error(self._sock) or "the connection was lost")


def is_event_of_another(sock: socket.socket, reason: Failure) -> bool:
    """Whether the reactor reports the death of a connection whose descriptor has gone to this one.

    It reads a batch of events; an early one may close a descriptor, and open it anew, that a later one is about.
    """
    if not reason.check(ConnectionDone, ConnectionLost):
        return False
    state = select.poll()
    state.register(sock, 0)
    return not state.poll(0)


def pending_error(sock: socket.socket) -> str | None:
    """What the kernel holds against a socket. Asking clears it: only for a connection that is given up."""
    code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    return os.strerror(code) if code else None


def _nothing() -> None:
    """A leg that no one waits for."""

"""A leg: one socket of a relay, as the relay sees it, whether plain TCP (`plain.py`) or TLS (`tls.py`).

Pumps read and write without blocking. A leg knows whether that is worth a try, since a call has said otherwise
last, and gives its pumps a turn when the poller tells of a change. Every socket resets its connection when it is
closed or its process dies, until `close` ends it well.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import random
import select
import socket
import struct
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Protocol

from scistream import timing
from scistream.protocol.messages import Cause
from scistream.s2ds.relay.buffers import Buffer
from scistream.s2ds.relay.dead_peers import DeadPeerDetector
from scistream.s2ds.relay.poller import ENDING, READABLE, WRITABLE, Poller
from scistream.s2ds.relay.receive_windows import StreamWindows

WANT = -1
"""What reading returns when nothing is there now."""
EOF = 0
"""What reading returns when the peer has ended this direction well."""

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_CLOSE_WELL = struct.pack("ii", 0, 0)
_KEEPALIVE = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
_MOST_PROBES = 127


class ConnectionBrokenError(Exception):
    """A leg has ended abnormally. Its text says how, in the same words for every connection.

    :param cause: who or what has ended it.
    :param leg: which one; None for a connection that was never joined.
    """

    def __init__(self, reason: str, cause: Cause, leg: Leg | None = None) -> None:
        super().__init__(reason)
        self.cause: Cause = cause
        self.leg = leg


class DialRefusedError(ConnectionBrokenError):
    """Nobody listens there, or not yet."""


class ShortageError(ConnectionBrokenError):
    """This machine has not what a connection needs just now: another try may help."""


def broken_by(code: int, leg: Leg) -> ConnectionBrokenError:
    """What an error of the system says of a connection."""
    if code in (errno.ECONNRESET, errno.EPIPE):
        return ConnectionBrokenError(f"{leg.far} reset the connection", "far-side" if leg.wan else "application", leg)
    cause: Cause = "gateway" if code in SHORT_HERE else "wan" if leg.wan else "application"
    return ConnectionBrokenError(f"the connection to {leg.far} broke: {os.strerror(code)}", cause, leg)


SHORT_HERE = frozenset(
    {
        errno.EADDRNOTAVAIL,
        errno.EADDRINUSE,
        errno.EAGAIN,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOBUFS,
        errno.ENOMEM,
        errno.ENOSPC,
    }
)
"""Errors that say what this machine lacks, for a while: ports for outgoing connections, descriptors, memory."""


def explain(problem: OSError) -> str:
    """The words of the system for an error."""
    return os.strerror(problem.errno) if problem.errno else str(problem)


UNSENT = 256 * 1024
"""Bytes that a socket takes beyond what is on its way: a far end that does not read leaves no more than these."""
MODEST = 128 * 1024
"""Bytes that a socket takes in before its connection has shown that they are read at the other end."""
HELD = 512 * 1024
"""The same afterwards, while its stream has as many large windows as it may; net.core.rmem_max can make it less."""
_TCP_NOTSENT_LOWAT = 25
_SO_BUF_LOCK = 72


def prepare(sock: socket.socket, dead_after: float, congestion: str = "") -> None:
    """What every socket of a relay gets when it becomes ours. A host that vanishes is noticed in `dead_after` seconds.

    :param congestion: its congestion control; empty: the system's.
    """
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)  # an urgent byte is a byte of the stream
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in zip(_KEEPALIVE, keepalive(dead_after, random.random()), strict=True):
        sock.setsockopt(socket.IPPROTO_TCP, option, value)
    with contextlib.suppress(OSError):  # before Linux 3.12
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, UNSENT)
    if congestion:
        with contextlib.suppress(OSError):  # it was there when the gateway started
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, congestion.encode())


def be_modest(sock: socket.socket) -> bool:
    """Let the kernel take in little for a connected socket, until `be_generous`; False where it cannot.

    By itself it takes in the more the faster a connection begins, and keeps all of that while nobody reads.
    """
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_BUF_LOCK, 0)  # since Linux 5.15, without which there is no way back
    except OSError:
        return False
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, MODEST)
    return True


def be_generous(sock: socket.socket) -> None:
    """Let the kernel take in as much as the path asks for."""
    sock.setsockopt(socket.SOL_SOCKET, _SO_BUF_LOCK, 0)


def congestion_control(setting: str, suited: str = "") -> str:
    """The congestion control that a setting stands for; empty: the system's.

    :param setting: a name, empty, or "auto": `suited` where this process may set it, else the system's.
    :raises ValueError: for a name that cannot be had, with a sentence that says what can.
    """
    if setting != "auto":
        _try_congestion(setting)
        return setting
    try:
        _try_congestion(suited)
    except ValueError:
        return ""
    return suited


def _try_congestion(name: str) -> None:
    if not name:
        return
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())
        except OSError as problem:
            raise ValueError(
                f'this system does not give {name!r} ({explain(problem)}): it allows {_allowed()}; "auto" takes what '
                "suits and can be had, an empty text is what the system does by itself; `modprobe` and "
                "net.ipv4.tcp_allowed_congestion_control change what it allows"
            ) from None


def _allowed() -> str:
    try:
        return ", ".join(Path("/proc/sys/net/ipv4/tcp_allowed_congestion_control").read_text().split())
    except OSError:
        return "others"


def keepalive(dead_after: float, place: float) -> tuple[int, int, int]:
    """Seconds until the first probe, seconds between probes, and how many: together they last for `dead_after`.

    The kernel keeps timers of many seconds in few slots, and hands on the packets of one slot together, up to a limit
    (net.core.netdev_max_backlog): of thousands of connections that are idle from one moment on, and probed after the
    same time, some would lose all their probes and be taken for dead. So each has a time of its own, and a short one.

    :param place: 0 to 1, at random.
    """
    latest = min(timing.LATEST_KEEPALIVE, dead_after / 2)
    first = max(1, round(latest * (1 + place) / 2))
    between = max(1, round(dead_after / 10))
    return first, between, max(1, min(_MOST_PROBES, math.ceil((dead_after - first) / between)))


def pending_error(sock: socket.socket) -> int:
    """What the kernel holds against a socket, or 0. Asking clears it: only for a connection that is given up."""
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


class PumpEnd(Protocol):
    """Who reads from a leg or writes to it."""

    def turn(self) -> None:
        """Move what can be moved now. Never raises."""


class LegOwner(Protocol):
    """Whose leg it is."""

    def broke(self, broken: ConnectionBrokenError) -> None:
        """A leg has ended abnormally. What came before can still be read from it."""

    def reset(self, reason: str, cause: Cause) -> None:
        """Nothing comes back on a leg any more."""


class Leg(ABC):
    """One connected socket, owned from here on.

    :ivar far: who is at its other end, in words for a person.
    :ivar readable: reading is worth a try.
    :ivar writable: writing is.
    :ivar is_modest: the kernel takes in little for it, see `be_modest`.
    :ivar is_ending: the peer has ended its direction, or the connection is over.
    :ivar is_opening: it cannot carry anything yet.
    :ivar is_first: nothing has been read since it last became readable.
    :ivar is_urgent: a byte was marked as urgent: what is read ends before it though more is there, and the kernel
        splices nothing across it.
    :ivar reader: who has a turn when it becomes readable.
    :ivar writer: who has a turn when it becomes writable again.
    :ivar wan: whether it crosses the WAN, where a long silence counts as a break.
    :ivar work: what the last reading has cost of a turn, in bytes, where that is more than the bytes that it gave.
    """

    __slots__ = (
        "_crossed",
        "_owner",
        "_poller",
        "_sock",
        "_watch",
        "_windows",
        "born",
        "far",
        "is_ending",
        "is_first",
        "is_modest",
        "is_opening",
        "is_urgent",
        "readable",
        "reader",
        "wan",
        "work",
        "writable",
        "writer",
    )

    def __init__(
        self, poller: Poller, sock: socket.socket, watch: DeadPeerDetector, owner: LegOwner, far: str, *, wan: bool
    ) -> None:
        self._poller = poller
        self._sock = sock
        self._watch = watch
        self._owner: LegOwner | None = owner
        self.is_ending = False
        self._crossed = False  # TLS has to write before it can read, or the other way round
        self.far = far
        self.readable = self.writable = self.is_first = True
        self.reader: PumpEnd | None = None
        self.writer: PumpEnd | None = None
        self.wan = wan
        self.is_opening = self.is_urgent = False
        self.work = 0
        self.born = 0
        self.is_modest = be_modest(sock)
        self._windows: StreamWindows | None = None  # which it has asked for a large one
        poller.add(self)
        if wan:
            watch.add(self)

    @property
    def sock(self) -> socket.socket:
        """Its socket, to ask the system about it."""
        return self._sock

    def fileno(self) -> int:
        return self._sock.fileno()

    @abstractmethod
    def read_into(self, buffer: Buffer, room: int) -> int:
        """Read up to `room` > 0 bytes: how many, or `WANT`, or `EOF`.

        :raises Broken: the connection has ended abnormally.
        """

    @abstractmethod
    def write(self, buffer: Buffer, start: int, end: int) -> int:
        """Write what is between: how many bytes went, 0 for no room. After 0, the next call begins with the same bytes.

        :raises Broken: the connection has ended abnormally.
        """

    @abstractmethod
    def finish_writing(self) -> bool:
        """End this direction well; False when there is no room yet to say so: call again when there is.

        :raises Broken: the connection has ended abnormally.
        """

    def abort(self) -> None:
        """Reset the connection now. Idempotent."""
        if self._owner is not None:
            self._owner = self.reader = self.writer = None
            if self._windows is not None:
                self._windows.ended(self)
                self._windows = None
            self._poller.remove(self)
            if self.wan:
                self._watch.remove(self)
            self._sock.close()

    def close(self) -> None:
        """Both directions have ended well: let the kernel deliver what it holds, and be gone."""
        if self._owner is not None:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _CLOSE_WELL)
            self.abort()

    def proven(self, windows: StreamWindows) -> None:
        """What comes is read at the other end: let more come, as far as the stream's other connections allow."""
        self.is_modest = False
        if self._owner is not None:
            self._windows = windows
            windows.ask(self)

    def widen(self) -> None:
        be_generous(self._sock)

    def hold(self) -> None:
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, HELD)

    def break_off(self, reason: str) -> None:
        """Something other than reading or writing has found the connection dead."""
        if self._owner is not None:
            self._owner.reset(reason, "wan" if self.wan else "application")

    def event(self, mask: int) -> None:
        """The poller's: it has become readable or writable, or it is over."""
        if mask & ENDING:
            self.is_ending = True
            if mask & select.EPOLLERR:
                self.readable = True
                broken = broken_by(pending_error(self._sock) or errno.ECONNRESET, self)
                if self._owner is not None:
                    self._owner.broke(broken)
                return
        if mask & select.EPOLLPRI:
            self.is_urgent = True
        wakes_writer = not self.writable and mask & WRITABLE
        if self._crossed:
            self._crossed = False
            self.readable = self.writable = True
            wakes_writer = 1
            mask |= READABLE
        if mask & READABLE:
            self.readable = self.is_first = True
            if self.reader is not None:
                self.reader.turn()
        if wakes_writer:
            self.writable = True
            if self.writer is not None:
                self.writer.turn()

    def _break(self, problem: OSError) -> ConnectionBrokenError:
        return broken_by(problem.errno or errno.EIO, self)

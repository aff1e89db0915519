"""A leg: one socket of a relay, plain TCP (`plain.py`) or TLS (`tls.py`).

Pumps read and write without blocking. A leg remembers whether its last read or write would have blocked, and gives its
pumps a turn when the poller reports a change. A socket that is closed, or whose process dies, resets its connection;
only `close` ends it cleanly.
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
from fcntl import ioctl
from functools import lru_cache
from pathlib import Path
from termios import FIONREAD
from typing import NamedTuple, Protocol

from scistream import timing
from scistream.protocol.messages import Cause
from scistream.s2ds.relay.buffers import Buffer
from scistream.s2ds.relay.dead_peers import DeadPeerDetector
from scistream.s2ds.relay.mptcp import is_multipath
from scistream.s2ds.relay.poller import ENDING, READABLE, WRITABLE, Poller
from scistream.s2ds.relay.receive_windows import StreamWindows
from scistream.s2ds.relay.tcp_info import tcp_info

WANT = -1
"""The result of a read that would block."""
EOF = 0
"""The result of a read after the peer has ended this direction cleanly."""

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_CLOSE_WELL = struct.pack("ii", 0, 0)
_KEEPALIVE_STEPS = 64
"""The number of different times of a first probe."""
_MOST_PROBES = 127


class ConnectionBrokenError(Exception):
    """A leg has ended abnormally. The text is the same for all connections that end for this reason.

    :param cause: the party or network that caused it.
    :param leg: the leg that broke; None for a connection that was never joined.
    """

    def __init__(self, reason: str, cause: Cause, leg: Leg | None = None) -> None:
        super().__init__(reason)
        self.cause: Cause = cause
        self.leg = leg


class DialRefusedError(ConnectionBrokenError):
    """The target refused the connection; its program may not have started yet."""


class ConnectRefusedError(ConnectionBrokenError):
    """The other gateway answered Connect with an ERROR, whose sentence this is."""


class ShortageError(ConnectionBrokenError):
    """This machine lacks a resource for the connection at the moment; another attempt may succeed."""


def broken_by(code: int, leg: Leg) -> ConnectionBrokenError:
    """Return the exception for a system error on a leg."""
    if code in (errno.ECONNRESET, errno.EPIPE):
        return ConnectionBrokenError(
            f"{leg.peer_name} reset the connection", "far-side" if leg.wan else "application", leg
        )
    cause: Cause = "gateway" if code in LOCAL_SHORTAGES else "wan" if leg.wan else "application"
    return ConnectionBrokenError(f"the connection to {leg.peer_name} broke: {os.strerror(code)}", cause, leg)


LOCAL_SHORTAGES = frozenset(
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
"""Errors for a temporary shortage on this machine: of ports for outgoing connections, descriptors or memory."""


def explain(problem: OSError) -> str:
    """Return the system's text for an error."""
    return os.strerror(problem.errno) if problem.errno else str(problem)


UNSENT_BYTES = 256 * 1024
"""The number of unsent bytes that a socket accepts: a peer that does not read keeps no more than these here."""
SMALL_RECEIVE_BUFFER = 128 * 1024
"""The receive buffer, in bytes, of a connection that has not yet shown that its bytes are read at the other side."""
MEDIUM_RECEIVE_BUFFER = 512 * 1024
"""The receive buffer afterwards, while its stream has no large window to give; net.core.rmem_max limits it."""
FIRST_LARGE_BUFFER = 1024 * 1024
"""The receive buffer from which a large window of a distant connection grows; net.core.rmem_max limits it."""
MOST_ENLARGEMENTS = 2
"""How often a receive buffer that has overflowed is enlarged, by half of its size each time."""
_TCP_NOTSENT_LOWAT = 25
_waiting = bytearray(4)  # where the system puts a number of bytes; a new object each time would double the cost
_SO_MEMINFO = 55
_SO_BUF_LOCK = 72
_MEMINFO = struct.Struct("9I")
_UNUSUAL = ENDING | select.EPOLLPRI
_IN, _OUT = select.EPOLLIN, select.EPOLLOUT


def prepare(sock: socket.socket, dead_after: float, congestion: str = "") -> None:
    """Set the options that every socket of a relay has.

    :param dead_after: the seconds after which an unreachable host is noticed.
    :param congestion: the congestion control; empty: the system's.
    """
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if not is_multipath(sock):  # which has no urgent bytes
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)  # an urgent byte is part of the stream
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    set_keepalive(sock, dead_after)
    with contextlib.suppress(OSError):  # before Linux 3.12
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, UNSENT_BYTES)
    if congestion:
        with contextlib.suppress(OSError):  # it may have been removed since the gateway started
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, congestion.encode())


def shrink_receive_buffer(sock: socket.socket) -> bool:
    """Give a connected socket a small receive buffer until `autotune_receive_buffer`.

    Return False, and change nothing, if this kernel could not undo it. Without a limit the buffer grows with the speed
    of a new connection, and the kernel keeps all bytes in it while nobody reads them.
    """
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_BUF_LOCK, 0)  # needs Linux 5.15, before which SO_RCVBUF is permanent
    except OSError:
        return False
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_RECEIVE_BUFFER)
    return True


def autotune_receive_buffer(sock: socket.socket) -> None:
    """Let the kernel adapt the receive buffer to the path again."""
    sock.setsockopt(socket.SOL_SOCKET, _SO_BUF_LOCK, 0)


def set_receive_window(sock: socket.socket, size: int) -> None:
    """Let a socket with a small receive buffer receive up to `size` bytes ahead.

    The kernel derives a limit of the window from the first receive buffer, and keeps it when the buffer grows.
    """
    enlarge_receive_buffer(sock, size)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_WINDOW_CLAMP, size)


def enlarge_receive_buffer(sock: socket.socket, size: int) -> None:
    """Set the size of the receive buffer, unless it is as large already: its peer may have been promised all of it."""
    if sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2 < size:  # the kernel reserves as much for itself
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)


class ReceiveMemory(NamedTuple):
    """The memory of a socket's receive buffer in bytes, and the number of packets for which it had none."""

    used: int
    size: int
    dropped: int

    @classmethod
    def of(cls, sock: socket.socket) -> ReceiveMemory:
        """Ask the system."""
        used, size, *_, dropped = _MEMINFO.unpack(sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size))
        return cls(used, size, dropped)


def congestion_control(setting: str, suited: str = "") -> str:
    """Return the congestion control for a setting; empty: the system's.

    :param setting: a name, empty, or "auto": `suited` if this process may set it, otherwise the system's.
    :raises ValueError: if the name is not available; the text says which are.
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
                f"{name!r} is not available on this system ({explain(problem)}): choose one of {_allowed()}, "
                '"auto" for a suitable one or "" for the default of the system, or make it available with `modprobe` '
                "and net.ipv4.tcp_allowed_congestion_control"
            ) from None


def _allowed() -> str:
    try:
        return ", ".join(Path("/proc/sys/net/ipv4/tcp_allowed_congestion_control").read_text().split())
    except OSError:
        return "those that it allows"


@lru_cache(1024)
def keepalive(dead_after: float, fraction: float) -> tuple[int, int, int]:
    """Return the seconds until the first probe, the seconds between probes, and the number of probes.

    Together the probes last for `dead_after` seconds. The first one has a random time: the kernel has few slots for
    long timers, and delivers the packets of one slot together, up to net.core.netdev_max_backlog. If thousands of
    connections became idle at once and had the same timer, some would lose all their probes and be considered dead.

    :param fraction: a random number from 0 to 1.
    """
    latest = min(timing.LATEST_KEEPALIVE, dead_after / 2)
    first = max(1, round(latest * (1 + fraction) / 2))
    between = max(1, round(dead_after / 10))
    return first, between, max(1, min(_MOST_PROBES, math.ceil((dead_after - first) / between)))


def set_keepalive(sock: socket.socket, dead_after: float, *, is_watched: bool = False) -> None:
    """Let TCP probe a silent peer so that its death is noticed after `dead_after` seconds.

    :param is_watched: whether a `DeadPeerDetector` watches the connection. If it has several paths, the kernel keeps a
        path that does not answer then, since it would not open it again.
    """
    first, between, count = keepalive(dead_after, random.randrange(_KEEPALIVE_STEPS) / (_KEEPALIVE_STEPS - 1))
    if is_watched and is_multipath(sock):
        count = _MOST_PROBES
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, first)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, between)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, count)


def pending_error(sock: socket.socket) -> int:
    """Return the pending error of a socket, or 0, and clear it: only for a connection that is given up."""
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


class PumpEnd(Protocol):
    """The reader or writer of a leg.

    :ivar waits: True if it reads nothing for now, although something may be there.
    """

    @property
    def waits(self) -> bool:
        """See above."""
        ...

    def advance(self) -> None:
        """Move the bytes that can be moved now. Never raises."""


class LegOwner(Protocol):
    """The owner of a leg."""

    def broke(self, broken: ConnectionBrokenError) -> None:
        """Note that a leg has ended abnormally; bytes that arrived before can still be read from it."""

    def reset(self, reason: str, cause: Cause) -> None:
        """Reset the connection, since the peer of a leg is dead."""


class Leg(ABC):
    """One connected socket, which the leg owns.

    :ivar peer_name: a readable name of the peer.
    :ivar readable: False if a read would block.
    :ivar writable: False if a write would block.
    :ivar has_small_window: True while its receive buffer is small, see `shrink_receive_buffer`.
    :ivar is_held: True while it waits for a large receive window.
    :ivar is_ending: True if the peer has ended its direction, or the connection is over.
    :ivar is_reset: True if an error has ended the connection; the system tells of it only once.
    :ivar is_opening: True until it can carry bytes.
    :ivar is_first: True if nothing has been read since it last became readable.
    :ivar is_urgent: True if a byte was marked as urgent: a read ends before that byte even if more bytes are there, and
        the kernel splices nothing across it.
    :ivar looks_empty: True if the last read probably took all that had arrived; `is_empty` finds it out.
    :ivar reader: gets a turn when the leg becomes readable.
    :ivar writer: gets a turn when the leg becomes writable again.
    :ivar wan: True if the leg crosses the WAN, where a long silence counts as an interruption.
    :ivar read_cost: the cost of the last read in bytes of a turn, if that is more than the bytes that were read.
    """

    __slots__ = (
        "_dead_peers",
        "_dropped",
        "_enlargements",
        "_is_distant",
        "_owner",
        "_poller",
        "_retries_both",
        "_sock",
        "_windows",
        "batch_added",
        "has_small_window",
        "is_ending",
        "is_first",
        "is_held",
        "is_opening",
        "is_reset",
        "is_urgent",
        "looks_empty",
        "peer_name",
        "read_cost",
        "readable",
        "reader",
        "wan",
        "writable",
        "writer",
    )

    def __init__(
        self,
        poller: Poller,
        sock: socket.socket,
        dead_peers: DeadPeerDetector,
        owner: LegOwner,
        peer_name: str,
        *,
        wan: bool,
    ) -> None:
        self._poller = poller
        self._sock = sock
        self._dead_peers = dead_peers
        self._owner: LegOwner | None = owner
        self.is_ending = self.is_held = False
        self._retries_both = False  # TLS must write before it can read, or read before it can write
        self.peer_name = peer_name
        self.readable = self.writable = self.is_first = True
        self.reader: PumpEnd | None = None
        self.writer: PumpEnd | None = None
        self.wan = wan
        self.is_opening = self.is_urgent = self.is_reset = self.looks_empty = False
        self.read_cost = 0
        self.batch_added = 0
        self.has_small_window = shrink_receive_buffer(sock)
        self._enlargements = MOST_ENLARGEMENTS  # how many are left
        self._dropped = 0  # packets that were dropped before its receive buffer was full
        self._is_distant = False  # known once it has read some bytes
        self._windows: StreamWindows | None = None  # set once the leg has asked for a large window
        poller.add(self)
        if wan:
            dead_peers.add(self)

    @property
    def sock(self) -> socket.socket:
        """The socket, for queries to the system."""
        return self._sock

    def fileno(self) -> int:
        """Return the descriptor of the socket."""
        return self._sock.fileno()

    @abstractmethod
    def read_into(self, buffer: Buffer, room: int) -> int:
        """Read up to `room` > 0 bytes. Return their number, `WANT` or `EOF`.

        :raises ConnectionBrokenError: if the connection has ended abnormally.
        """

    def is_empty(self) -> bool:
        """Return True if a leg that looks empty is so. It is not readable then."""
        self.looks_empty = False
        if self.is_ending or ioctl(self._sock.fileno(), FIONREAD, _waiting) or any(_waiting):
            return False
        self.readable = False  # the poller reports further bytes
        return True

    @abstractmethod
    def write(self, buffer: Buffer, start: int, end: int) -> int:
        """Write `buffer[start:end]`. Return how many bytes were written, 0 if the socket has no room.

        After a result of 0, the next call must begin with the same bytes.

        :raises ConnectionBrokenError: if the connection has ended abnormally.
        """

    @abstractmethod
    def finish_writing(self) -> bool:
        """End this direction cleanly. Return False if the socket has no room: call again when it is writable.

        :raises ConnectionBrokenError: if the connection has ended abnormally.
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
                self._dead_peers.remove(self)
            self._sock.close()

    def tell_broken(self, broken: ConnectionBrokenError) -> None:
        """Tell its owner, if it has one, that it has ended abnormally."""
        if self._owner is not None:
            self._owner.broke(broken)

    def adopt(self, owner: LegOwner) -> None:
        """Change its owner, if it is not closed."""
        if self._owner is not None:
            self._owner = owner
            self.reader = self.writer = None

    def close(self) -> None:
        """Close the socket after both directions have ended cleanly; the kernel delivers the bytes that it holds."""
        if self._owner is not None:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _CLOSE_WELL)
            self.abort()

    def request_large_window(self, windows: StreamWindows) -> None:
        """Ask for a large receive window, since the bytes of this leg are read at the other side.

        :param windows: the large windows of the stream.
        """
        self.has_small_window = False
        if self._owner is not None:
            self._windows = windows
            windows.ask(self)

    def find_distance(self) -> bool:
        """Return True if the round-trip time is so long that a small receive window would slow the connection."""
        self._is_distant = self._owner is not None and tcp_info(self._sock).min_rtt > timing.DISTANT
        return self._is_distant

    def grow_window(self, size: int) -> None:
        """Let the small receive window of a distant connection grow to `size` bytes."""
        if self._owner is not None:
            set_receive_window(self._sock, size)
            self._enlargements = MOST_ENLARGEMENTS

    def enlarge_overflowed_buffer(self) -> None:
        """Enlarge a receive buffer of a fixed size that has overflowed, so that this direction blocks no other one.

        The kernel promises a window by its guess of the memory that packets need. If it has guessed too little, it
        drops a packet within the window and closes the window before that packet. Since Linux 6.17 it may then ignore
        all that comes from the peer, even the acknowledgements of what is sent to it, until the buffer is read. A
        buffer without a fixed size grows instead.
        """
        if not self._enlargements or not (self.has_small_window or self.is_held) or self._owner is None:
            return
        used, size, dropped = ReceiveMemory.of(self._sock)
        if used <= size:
            self._dropped = dropped
        elif dropped != self._dropped:
            self._dropped = dropped
            self._enlargements -= 1
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size * 3 // 4)  # net.core.rmem_max limits it

    def widen(self) -> None:
        """Let the receive window grow with the path."""
        if self._is_distant:  # by itself the kernel would let it grow later than the sender could use it
            set_receive_window(self._sock, FIRST_LARGE_BUFFER)
        autotune_receive_buffer(self._sock)
        self.is_held = False

    def hold(self) -> None:
        """Set a medium receive window that does not grow."""
        self.is_held = True
        self._enlargements = MOST_ENLARGEMENTS
        if self._is_distant:
            set_receive_window(self._sock, MEDIUM_RECEIVE_BUFFER)
        else:
            enlarge_receive_buffer(self._sock, MEDIUM_RECEIVE_BUFFER)

    def break_off(self, reason: str) -> None:
        """End the connection, whose peer is dead."""
        if self._owner is not None:
            self._owner.reset(reason, "wan" if self.wan else "application")

    def event(self, mask: int) -> None:
        """Handle an event of the poller: the leg has become readable or writable, or the connection has ended."""
        if mask & _UNUSUAL or self._retries_both:
            self._handle_unusual(mask)
            return
        wakes_writer = not self.writable and mask & _OUT
        if mask & _IN:
            self.readable = self.is_first = True
            reader = self.reader
            if reader is not None:
                reader.advance()
        if wakes_writer:
            self._wake_writer()

    def _handle_unusual(self, mask: int) -> None:
        if mask & ENDING:
            self.is_ending = True
            if mask & select.EPOLLERR:
                self.readable = self.is_reset = True
                broken = broken_by(pending_error(self._sock) or errno.ECONNRESET, self)
                if self._owner is not None:
                    self._owner.broke(broken)
                return
        if mask & select.EPOLLPRI:
            self.is_urgent = True
        wakes_writer = not self.writable and mask & WRITABLE
        if self._retries_both:
            self._retries_both = False
            self.readable = self.writable = True
            wakes_writer = 1
            mask |= READABLE
        if mask & READABLE:
            self.readable = self.is_first = True
            if self.reader is not None:
                self.reader.advance()
        if wakes_writer:
            self._wake_writer()

    def _wake_writer(self) -> None:
        self.writable = True
        if self.writer is not None:
            self.writer.advance()

    def _break(self, problem: OSError) -> ConnectionBrokenError:
        return broken_by(problem.errno or errno.EIO, self)

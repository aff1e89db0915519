"""The ports of a gateway and the sockets that listen on them.

`ListenPorts` gives out bound sockets to the initiator, which reserves them with a stream and arms them
later; `ChannelListener` is how an armed one accepts. What becomes of an accepted connection is decided elsewhere.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable, Collection, Container, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from twisted.internet.interfaces import IReadWriteDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from scistream import timing
from scistream.protocol.address import Address
from scistream.protocol.errors import StreamError
from scistream.protocol.port_ranges import Ranges, already_lent, is_in, not_to_choose
from scistream.reactors import ACCEPTS_A_TURN, EXHAUSTED, Shortage
from scistream.shared_settings import parse_port_ranges

BACKLOG = 1024

KERNEL_SETTINGS = Path("/proc/sys/net/ipv4")
"""Where the kernel tells which ports it gives to outgoing connections, whether over IPv4 or IPv6."""

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class ListenPorts:
    """The ports that a gateway lends to streams, each given out once at a time.

    :param first: the first port of the range that streams get their ports from; `last` is the last one.
    :param chosen: ranges of the ports that a stream may ask for by number, both ends included. Those outside the first
        range are given out to nobody else.
    """

    def __init__(self, first: int, last: int, chosen: Sequence[tuple[int, int]] = ()) -> None:
        self.first = first
        self.last = last
        self.chosen = list(chosen)
        self.ranges = [(first, last), *self.chosen]
        """All that may ever be lent; they may overlap."""
        lent = dict.fromkeys(port for low, high in self.ranges for port in range(low, high + 1))
        self._slots = {port: slot for slot, port in enumerate(lent)}
        self._idle = dict.fromkeys(range(first, last + 1))  # in order of use, the longest unused first
        self._given: dict[socket.socket, int] = {}
        self._given_ports: set[int] = set()

    @property
    def free(self) -> int:
        """How many ports this gateway has not given out."""
        return len(self._idle)

    @property
    def slots(self) -> int:
        """How many ports there are, lent or not."""
        return len(self._slots)

    def slot(self, port: int) -> int:
        """The place of a port among all, counted from 0."""
        return self._slots[port]

    def reserve(self, host: str, count: int, barred: Container[int] = ()) -> list[socket.socket]:
        """`count` sockets bound to the numeric address `host`, each on a port of its own, or none at all.

        They do not listen: the kernel refuses connections until a `ChannelListener` is started.

        :param barred: ports that will not do.
        :raises StreamError: ``no-ports`` when too few are free, ``gateway-failed`` when the address cannot be used.
        """
        with self._all_or_none() as bound:
            if count <= self.free:
                self._bind(host, self._idle, count, bound, barred)
            if len(bound) < count:
                raise self._too_few(host, count, len(bound))
        return list(bound.values())

    def reserve_chosen(self, host: str, ports: Sequence[int], barred: Container[int] = ()) -> list[socket.socket]:
        """Sockets bound to the numeric address `host` on these ports, in their order, or none at all.

        :param barred: ports that will not do, since they are targets of streams.
        :raises StreamError: as `reserve`, with a sentence that names the first port that cannot be had.
        """
        for port in ports:
            self._refuse_choice(port, barred)
        with self._all_or_none() as bound:
            for port in ports:
                self._bind(host, [port], len(bound) + 1, bound)
                if port not in bound:
                    raise _taken(host, port)
        return list(bound.values())

    def _refuse_choice(self, port: int, barred: Container[int]) -> None:
        """:raises StreamError: if this port is one that no stream may choose, or another one has it."""
        if not is_in(port, self.chosen):
            raise StreamError("no-ports", not_to_choose(port, self.chosen))
        if port in self._given_ports or port in barred:
            raise StreamError("no-ports", already_lent(port))

    @contextmanager
    def _all_or_none(self) -> Iterator[dict[int, socket.socket]]:
        """The sockets that are bound meanwhile, by port: given out at the end, or closed if anything is raised."""
        bound: dict[int, socket.socket] = {}
        try:
            yield bound
        except BaseException:
            for sock in bound.values():
                sock.close()
            raise
        for port, sock in bound.items():
            self._idle.pop(port, None)
            self._given[sock] = port
            self._given_ports.add(port)

    def release(self, sock: socket.socket) -> None:
        """Close a socket that `reserve` gave out, and take its port back. Once is enough; twice does no harm."""
        sock.close()
        port = self._given.pop(sock, None)
        if port is None:
            return
        self._given_ports.discard(port)
        if self.first <= port <= self.last:
            self._idle[port] = None

    def _bind(
        self,
        host: str,
        ports: Collection[int],
        count: int,
        bound: dict[int, socket.socket],
        barred: Container[int] = (),
    ) -> None:
        """Bind more of these ports until there are `count`; those last that may only be waiting out TIME_WAIT."""
        for reuse in (False, True):
            for port in ports:
                if len(bound) == count:
                    return
                if port not in bound and port not in barred:
                    sock = self._bound(host, port, reuse=reuse)
                    if sock is not None:
                        bound[port] = sock

    def _bound(self, host: str, port: int, *, reuse: bool) -> socket.socket | None:
        """A socket bound to that port, or None if someone has the port already."""
        return _bound(host, port, reuse)

    def _too_few(self, host: str, count: int, found: int) -> StreamError:
        available = found if count <= self.free else self.free
        return StreamError(
            "no-ports",
            f"{count} port(s) were asked for on {host} and {available} of the range {self.first}-{self.last} are free: "
            "ask for fewer channels, wait until another stream ends, or have the range of this gateway widened",
        )


def _bound(host: str, port: int, reuse: bool) -> socket.socket | None:
    """A socket bound to that port, or None if someone has the port already."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        sock = socket.socket(family, socket.SOCK_STREAM)
    except OSError as problem:
        raise _unusable(host, port, problem) from None
    try:
        sock.setblocking(False)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if reuse:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        # Off again: as long as this socket does not listen, another reuser could share its port.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    except OSError as problem:
        sock.close()
        if problem.errno == errno.EADDRINUSE:
            return None
        raise _unusable(host, port, problem) from None
    return sock


def shared_with_connections(ranges: Ranges) -> list[tuple[int, int]]:
    """Those of the ranges that have a port which the kernel may give to an outgoing connection.

    Where the kernel does not tell, there are none.
    """
    try:
        low, high = map(int, (KERNEL_SETTINGS / "ip_local_port_range").read_text().split())
        text = (KERNEL_SETTINGS / "ip_local_reserved_ports").read_text().strip()
        reserved = parse_port_ranges(text) if text else []
    except (OSError, ValueError):
        return []
    return [
        (first, last)
        for first, last in ranges
        if not all(is_in(port, reserved) for port in range(max(first, low), min(last, high) + 1))
    ]


def _taken(host: str, port: int) -> StreamError:
    has_it = f"port {port} was asked for, and another program of this gateway has it at {host}"
    if shared_with_connections([(port, port)]):
        return StreamError(
            "no-ports",
            f"{has_it}, or an outgoing connection of this gateway: choose a port that is outside "
            "net.ipv4.ip_local_port_range there, or have its operator add the port to net.ipv4.ip_local_reserved_ports",
        )
    return StreamError("no-ports", f"{has_it}: choose another port, or have that program moved")


def _unusable(host: str, port: int, problem: OSError) -> StreamError:
    cause = os.strerror(problem.errno) if problem.errno else str(problem)
    return StreamError(
        "gateway-failed",
        f"this gateway cannot listen on {Address(host, port)}: {cause}; "
        "look at `bind` in [lan] and [wan] of its configuration, at the port range, and at its limit of open files",
    )


@implementer(IReadWriteDescriptor)
class ChannelListener:
    """Accepts connections on a bound socket from `start` until `stop`.

    When the process is out of descriptors, or has no room for more, connections wait in the kernel's queue until it
    has.

    :param reactor: an `IReactorFDSet` and `IReactorTime`.
    :param sock: a bound socket; it is closed by `stop`, so release its port after that.
    """

    log = Logger()

    def __init__(self, reactor: Any, sock: socket.socket) -> None:
        self._reactor = reactor
        self._sock = sock
        self._on_accept: Callable[[socket.socket, tuple[Any, ...]], None] | None = None
        self._has_room: Callable[[], bool] = _always
        self._pause: Any = None
        self._shortage = Shortage(reactor)

    def start(
        self,
        on_accept: Callable[[socket.socket, tuple[Any, ...]], None],
        has_room: Callable[[], bool] | None = None,
    ) -> None:
        """Listen; each connection goes to `on_accept` as (non-blocking socket, address of the peer).

        Started once more, it only exchanges the callables.

        :param has_room: tells whether one more may be accepted now; raises an OSError of `EXHAUSTED` where that is for
            want of something.

        :raises StreamError: ``gateway-failed`` when someone else listens there by now.
        """
        started, self._on_accept = self._on_accept is not None, on_accept
        self._has_room = has_room or _always
        if started:
            return
        try:
            # Accepted connections inherit this; without it their TIME_WAIT would keep the port from being bound again.
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._sock.listen(BACKLOG)
        except OSError as problem:
            self._on_accept = None
            host, port = self._sock.getsockname()[:2]
            raise _unusable(host, port, problem) from None
        self._reactor.addReader(self)

    def stop(self) -> None:
        """Close the socket; connections that were not accepted are reset by the kernel. Idempotent."""
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        if self._sock.fileno() != -1:
            self._reactor.removeReader(self)
            self._sock.close()

    # IReadWriteDescriptor

    def fileno(self) -> int:
        return self._sock.fileno()

    def logPrefix(self) -> str:
        return "listener"

    def doRead(self) -> None:
        for _ in range(ACCEPTS_A_TURN):
            if self._sock.fileno() == -1:  # stopped by what it accepted
                return
            try:
                if not self._has_room():
                    self._rest(timing.ROOM_LOOK)
                    return
                sock, peer = self._sock.accept()
            except BlockingIOError:
                return
            except OSError as problem:
                if problem.errno in EXHAUSTED:
                    self._shortage.begins(self._address, problem)
                    self._rest(timing.ACCEPT_PAUSE)
                    return
                continue  # this one connection failed before it was accepted
            self._shortage.ends(self._address)
            self._hand_on(sock, peer)

    def doWrite(self) -> None:
        """Nothing: reached only by an event about another that had this descriptor before."""

    def connectionLost(self, _reason: Failure) -> None:
        if self._sock.fileno() != -1:  # likewise
            self._reactor.addReader(self)

    def _hand_on(self, sock: socket.socket, peer: tuple[Any, ...]) -> None:
        assert self._on_accept is not None
        try:
            sock.setblocking(False)
            # From here on a process that dies resets the connection instead of ending it cleanly.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            self._on_accept(sock, peer)
        except Exception:
            self.log.failure("A connection from {peer} could not be handed on", peer=peer)
            sock.close()

    def _rest(self, seconds: float) -> None:
        self._reactor.removeReader(self)
        self._pause = self._reactor.callLater(seconds, self._wake)

    def _wake(self) -> None:
        self._pause = None
        self._reactor.addReader(self)

    @property
    def _address(self) -> Address:
        return Address(*self._sock.getsockname()[:2])


def _always() -> bool:
    return True

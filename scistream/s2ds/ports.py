"""The ports of a gateway and the sockets that listen on them.

`ListenPorts` gives bound sockets to the initiator, which reserves them with a stream. A `ChannelListener` accepts
connections on one of them once its channel is armed, and passes them on.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable, Collection, Container, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from twisted.internet.interfaces import IReadWriteDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from scistream import timing
from scistream.protocol.address import Address
from scistream.protocol.errors import StreamError
from scistream.protocol.port_ranges import Ranges, already_lent, is_in, not_to_choose
from scistream.reactors import ACCEPTS_A_TURN, EXHAUSTED, Shortage
from scistream.s2ds.relay.mptcp import address_for, plain_address, tcp_socket
from scistream.shared_settings import parse_port_ranges

BACKLOG = 1024

KERNEL_SETTINGS = Path("/proc/sys/net/ipv4")
"""The kernel's settings that say which ports it gives to outgoing connections over IPv4 and IPv6."""

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_IP_FREEBIND, _IPV6_FREEBIND = 15, 78


class Paths(NamedTuple):
    """How the listeners of a gateway's WAN side use its paths.

    :param multipath: whether connections may use several paths.
    :param others: further numeric addresses at which to listen, on the same port.
    :param mixed: whether paths are of both IPv4 and IPv6.
    """

    multipath: bool = False
    others: tuple[str, ...] = ()
    mixed: bool = False


ONE_PATH = Paths()


class ListenPorts:
    """The ports that a gateway lends to streams, each to one stream at a time.

    :param first: the first port of the range from which streams get their ports; `last` is the last one.
    :param chosen: ranges of the ports that a stream may ask for by number, both ends included. Ports outside
        `first`-`last` are only given to streams that ask for them.
    """

    def __init__(self, first: int, last: int, chosen: Sequence[tuple[int, int]] = ()) -> None:
        self.first = first
        self.last = last
        self.chosen = list(chosen)
        self.ranges = [(first, last), *self.chosen]
        """All ranges of ports that may be lent; they may overlap."""
        self._idle = dict.fromkeys(range(first, last + 1))  # the least recently used first
        self._given: dict[socket.socket, int] = {}
        self._given_ports: set[int] = set()
        self._beside: dict[socket.socket, list[socket.socket]] = {}

    def change(self, first: int, last: int, chosen: Sequence[tuple[int, int]]) -> None:
        """Lend other ports from now on; those that are lent stay so until `release`."""
        self.first, self.last, self.chosen = first, last, list(chosen)
        self.ranges = [(first, last), *self.chosen]
        idle = dict.fromkeys(port for port in self._idle if first <= port <= last)
        idle.update(dict.fromkeys(port for port in range(first, last + 1) if port not in self._given_ports))
        self._idle = idle

    @property
    def free(self) -> int:
        """The number of ports between `first` and `last` that are not lent."""
        return len(self._idle)

    def beside(self, sock: socket.socket) -> list[socket.socket]:
        """Return the sockets on the same port at the addresses of other paths."""
        return list(self._beside.get(sock, ()))

    def reserve(
        self, host: str, count: int, excluded: Container[int] = (), paths: Paths = ONE_PATH
    ) -> list[socket.socket]:
        """Return `count` sockets bound to the numeric address `host`, each on a port of its own.

        The sockets do not listen: the kernel refuses connections until a `ChannelListener` is started.

        :param excluded: ports that must not be used.
        :param paths: how to use the paths of the WAN; `beside` returns the sockets at their other addresses.
        :raises StreamError: ``no-ports`` if too few are free, ``gateway-failed`` if the address cannot be used. No port
            is reserved then.
        """
        with self._all_or_none() as bound:
            if count <= self.free:
                self._bind(host, self._idle, count, bound, excluded, paths)
            if len(bound) < count:
                raise self._too_few(host, count, len(bound))
        return list(bound.values())

    def reserve_chosen(
        self, host: str, ports: Sequence[int], excluded: Container[int] = (), paths: Paths = ONE_PATH
    ) -> list[socket.socket]:
        """Return sockets bound to the numeric address `host` on the given ports, in their order.

        :param excluded: ports that must not be used, since they are targets of streams.
        :param paths: as in `reserve`.
        :raises StreamError: as `reserve` does; the text names the first port that cannot be used.
        """
        for port in ports:
            self._refuse_choice(port, excluded)
        with self._all_or_none() as bound:
            for port in ports:
                self._bind(host, [port], len(bound) + 1, bound, paths=paths)
                if port not in bound:
                    raise _taken(host, port)
        return list(bound.values())

    def _refuse_choice(self, port: int, excluded: Container[int]) -> None:
        """Check that a stream may choose this port.

        :raises StreamError: ``no-ports`` if no stream may choose it, or another stream has it.
        """
        if not is_in(port, self.chosen):
            raise StreamError("no-ports", not_to_choose(port, self.chosen))
        if port in self._given_ports or port in excluded:
            raise StreamError("no-ports", already_lent(port))

    @contextmanager
    def _all_or_none(self) -> Iterator[dict[int, socket.socket]]:
        """Yield a dict for sockets by port; lend them all at the end of the block, or close all if it raises."""
        bound: dict[int, socket.socket] = {}
        try:
            yield bound
        except BaseException:
            for sock in bound.values():
                self._close(sock)
            raise
        for port, sock in bound.items():
            self._idle.pop(port, None)
            self._given[sock] = port
            self._given_ports.add(port)

    def release(self, sock: socket.socket) -> None:
        """Close a socket that `reserve` returned, and take its port back. Idempotent."""
        self._close(sock)
        port = self._given.pop(sock, None)
        if port is None:
            return
        self._given_ports.discard(port)
        if self.first <= port <= self.last:
            self._idle[port] = None

    def _close(self, sock: socket.socket) -> None:
        sock.close()
        for other in self._beside.pop(sock, ()):
            other.close()

    def _bind(
        self,
        host: str,
        ports: Collection[int],
        count: int,
        bound: dict[int, socket.socket],
        excluded: Container[int] = (),
        paths: Paths = ONE_PATH,
    ) -> None:
        """Add sockets on these ports to `bound` until it has `count`; try ports that may be in TIME_WAIT last."""
        for reuse in (False, True):
            for port in ports:
                if len(bound) == count:
                    return
                if port not in bound and port not in excluded:
                    sock = self._bind_at(host, port, paths, reuse=reuse)
                    if sock is not None:
                        bound[port] = sock

    def _bind_at(self, host: str, port: int, paths: Paths, *, reuse: bool) -> socket.socket | None:
        """Return a socket bound to this port, with one at each other path; None if the port is in use at any."""
        if paths == ONE_PATH:
            return self._bind_one(host, port, reuse=reuse)
        bound: list[socket.socket] = []
        try:
            for each in (host, *paths.others):
                # The address of another path may be away for a while.
                sock = _bind_one(each, port, reuse, paths, away=each != host)
                if sock is None:
                    break
                bound.append(sock)
            else:
                self._beside[bound[0]] = bound[1:]
                return bound[0]
        except StreamError:
            for sock in bound:
                sock.close()
            raise
        for sock in bound:
            sock.close()
        return None

    def _bind_one(self, host: str, port: int, *, reuse: bool) -> socket.socket | None:
        return _bind_one(host, port, reuse)

    def _too_few(self, host: str, count: int, found: int) -> StreamError:
        available = found if count <= self.free else self.free
        return StreamError(
            "no-ports",
            f"{count} port(s) requested on {host}, but {available} of the range {self.first}-{self.last} are free: "
            "request fewer channels, wait until another stream ends, or ask the gateway's operator for more ports",
        )


def _bind_one(
    host: str, port: int, reuse: bool, paths: Paths = ONE_PATH, *, away: bool = False
) -> socket.socket | None:
    """Return a socket bound to this port, or None if the port is in use.

    :param paths: how its connections may use several paths.
    :param away: whether this machine may lack the address for now.
    :raises StreamError: ``gateway-failed`` if the address cannot be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        sock = tcp_socket(family, multipath=paths.multipath, mixed=paths.mixed)
    except OSError as problem:
        raise _unusable(host, port, problem) from None
    try:
        sock.setblocking(False)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if reuse:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if away:
            level, option = (
                (socket.IPPROTO_IPV6, _IPV6_FREEBIND)
                if sock.family == socket.AF_INET6
                else (socket.IPPROTO_IP, _IP_FREEBIND)
            )
            sock.setsockopt(level, option, 1)
        sock.bind((address_for(sock, host), port))
        # Turn SO_REUSEADDR off: until this socket listens, another socket with the option could bind the same port.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    except OSError as problem:
        sock.close()
        if problem.errno == errno.EADDRINUSE:
            return None
        raise _unusable(host, port, problem) from None
    return sock


def shared_with_connections(ranges: Ranges) -> list[tuple[int, int]]:
    """Return the ranges with a port that the kernel may give to an outgoing connection.

    Return none if the kernel does not say which ports it uses.
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
    in_use = f"port {port} was requested, but another program on this gateway uses it at {host}"
    if shared_with_connections([(port, port)]):
        return StreamError(
            "no-ports",
            f"{in_use}, or an outgoing connection of this gateway: choose a port outside "
            "net.ipv4.ip_local_port_range of the gateway, or ask its operator to add the port to "
            "net.ipv4.ip_local_reserved_ports",
        )
    return StreamError("no-ports", f"{in_use}: choose another port, or ask the gateway's operator to free this one")


def _unusable(host: str, port: int, problem: OSError) -> StreamError:
    cause = os.strerror(problem.errno) if problem.errno else str(problem)
    return StreamError(
        "gateway-failed",
        f"this gateway cannot listen on {Address(host, port)}: {cause}; "
        "check `bind` in [lan] and [wan] of its configuration, its port range and its limit of open files",
    )


@implementer(IReadWriteDescriptor)
class ChannelListener:
    """A listener that accepts connections on a bound socket from `start` until `stop`.

    While the process is out of descriptors, or `has_room` returns False, connections wait in the kernel's queue.

    :param reactor: an `IReactorFDSet` and `IReactorTime`.
    :param sock: a bound socket, which `stop` closes. Release its port after that.
    :param beside: sockets on the same port at the addresses of other paths, which listen as well.
    """

    log = Logger()

    def __init__(self, reactor: Any, sock: socket.socket, beside: Sequence[socket.socket] = ()) -> None:
        self._reactor = reactor
        self._sock = sock
        self._on_accept: Callable[[socket.socket, tuple[Any, ...]], None] | None = None
        self._has_room: Callable[[], bool] = _always
        self._pause: Any = None
        self._shortage = Shortage(reactor)
        self._beside = [ChannelListener(reactor, other) for other in beside]

    def start(
        self,
        on_accept: Callable[[socket.socket, tuple[Any, ...]], None],
        has_room: Callable[[], bool] | None = None,
    ) -> None:
        """Listen, or replace the callables if this listener is started already.

        :param on_accept: called with each connection's non-blocking socket and the address of its peer.
        :param has_room: returns whether another connection may be accepted now. It may raise an OSError in `EXHAUSTED`
            if the process has run out of a resource.
        :raises StreamError: ``gateway-failed`` if another program has started to listen there.
        """
        for other in self._beside:
            other.start(on_accept, has_room)
        started, self._on_accept = self._on_accept is not None, on_accept
        self._has_room = has_room or _always
        if started:
            return
        try:
            # Accepted connections inherit this: otherwise the port could not be bound during their TIME_WAIT.
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._sock.listen(BACKLOG)
        except OSError as problem:
            self._on_accept = None
            raise _unusable(self._address.host, self._address.port, problem) from None
        self._reactor.addReader(self)

    def stop(self) -> None:
        """Close the socket; the kernel resets connections that are not accepted yet. Idempotent."""
        for other in self._beside:
            other.stop()
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        if self._sock.fileno() != -1:
            self._reactor.removeReader(self)
            self._sock.close()

    # IReadWriteDescriptor

    def fileno(self) -> int:
        """Return the descriptor of the socket; -1 after `stop`."""
        return self._sock.fileno()

    def logPrefix(self) -> str:
        """Return the prefix of log lines."""
        return "listener"

    def doRead(self) -> None:
        """Accept the waiting connections, up to a limit."""
        for _ in range(ACCEPTS_A_TURN):
            if self._sock.fileno() == -1:  # `on_accept` has stopped this listener
                return
            try:
                if not self._has_room():
                    self._pause_for(timing.ROOM_POLL)
                    return
                sock, peer = self._sock.accept()
                peer = plain_address(peer[0]), *peer[1:]
            except BlockingIOError:
                return
            except OSError as problem:
                if problem.errno in EXHAUSTED:
                    self._shortage.begins(self._address, problem)
                    self._pause_for(timing.ACCEPT_PAUSE)
                    return
                continue  # this one connection failed before it was accepted
            self._shortage.ends(self._address)
            self._pass_on(sock, peer)

    def doWrite(self) -> None:
        """Do nothing: an event for an earlier owner of this descriptor can arrive here."""

    def connectionLost(self, _reason: Failure) -> None:
        """Go on listening: the event was for an earlier owner of this descriptor."""
        if self._sock.fileno() != -1:
            self._reactor.addReader(self)

    def _pass_on(self, sock: socket.socket, peer: tuple[Any, ...]) -> None:
        assert self._on_accept is not None
        try:
            sock.setblocking(False)
            # If this process dies, the kernel must reset the connection: a clean end would be a lie.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            self._on_accept(sock, peer)
        except Exception:
            self.log.failure("Failed to pass on a connection from {peer}", peer=peer)
            sock.close()

    def _pause_for(self, seconds: float) -> None:
        self._reactor.removeReader(self)
        self._pause = self._reactor.callLater(seconds, self._resume)

    def _resume(self) -> None:
        self._pause = None
        self._reactor.addReader(self)

    @property
    def _address(self) -> Address:
        host, port, *_ = self._sock.getsockname()
        return Address(plain_address(host), port)


def _always() -> bool:
    return True

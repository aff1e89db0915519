"""Monotonic timers, and a listening port that pauses when file descriptors run out."""

from __future__ import annotations

import errno
import os
import socket
import time
from typing import Any

from twisted.internet import tcp
from twisted.internet.interfaces import IDelayedCall, IListeningPort
from twisted.logger import Logger
from twisted.python.failure import Failure

from scistream import timing
from scistream.protocol.address import Address
from scistream.systemd.sockets import InheritedSockets

ACCEPTS_A_TURN = 64

EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""The errors of `accept` that mean a lack of resources, and may pass."""


class Shortage:
    """Logs once that a listener pauses, and once that it accepts again.

    :param reactor: an `IReactorTime`.
    """

    log = Logger()

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._last: float | None = None
        self._is_logged = False

    def begins(self, listener: Address, problem: OSError) -> None:
        """Report that accepting failed for lack of a resource."""
        now = self._reactor.seconds()
        if self._last is None or now - self._last > timing.SHORTAGE_QUIET:
            self._is_logged = True
            self.log.warn(
                "Accepting on {listener} is paused: {reason}. New connections wait until resources are free; if this "
                "happens often, raise the limit of open files (LimitNOFILE)",
                listener=str(listener),
                reason=os.strerror(problem.errno or 0),
            )
        self._last = now

    def ends(self, listener: Address) -> None:
        """Report that accepting works. Called for every connection, so it is cheap."""
        if self._is_logged:
            self._is_logged = False
            self.log.info("Accepting on {listener} again", listener=str(listener))


class PatientPort(tcp.Port):
    """A TCP port that stops accepting for a while when there are no file descriptors left."""

    reactor: Any
    _pause: IDelayedCall | None = None
    _shortage: Shortage | None = None

    def doRead(self) -> None:
        """Accept the connections that wait, up to a limit."""
        for _ in range(ACCEPTS_A_TURN):
            if not self.connected or self.disconnecting:
                return
            try:
                sock, peer = self.socket.accept()
            except BlockingIOError:
                return
            except OSError as problem:
                if problem.errno in EXHAUSTED:
                    self._rest(problem)
                    return
                continue  # this connection failed before it was accepted
            if self._shortage is not None:
                self._shortage.ends(self._address)
            self._hand_on(sock, peer)

    def loseConnection(self, connDone: Any = None) -> Any:
        """Stop accepting; return a Deferred that fires when the port is closed."""
        self._stop_pause()
        return super().loseConnection(*(() if connDone is None else (connDone,)))

    stopListening = loseConnection

    def connectionLost(self, reason: Failure) -> None:
        """Clean up after the port has been closed."""
        self._stop_pause()
        super().connectionLost(reason)

    def _hand_on(self, sock: socket.socket, peer: tuple[Any, ...]) -> None:
        try:
            if len(peer) == 4:  # IPv6: a host with its scope
                host, _ = socket.getnameinfo(peer, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)
                peer = (host, *peer[1:])
            assert self.factory is not None
            protocol = self.factory.buildProtocol(self._buildAddr(peer))
            if protocol is None:
                sock.close()
                return
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # else a vanished host would never be noticed
            self.sessionno += 1
            transport = self.transport(sock, protocol, peer, self, self.sessionno, self.reactor)
            protocol.makeConnection(transport)
        except Exception:
            self._logger.failure("A connection from {peer} could not be set up", peer=peer)
            sock.close()

    def _rest(self, problem: OSError) -> None:
        if self._shortage is None:
            self._shortage = Shortage(self.reactor)
        self._shortage.begins(self._address, problem)
        self.stopReading()
        self._pause = self.reactor.callLater(timing.ACCEPT_PAUSE, self._wake)

    def _wake(self) -> None:
        self._pause = None
        self.startReading()

    def _stop_pause(self) -> None:
        pause, self._pause = self._pause, None
        if pause is not None and pause.active():
            pause.cancel()

    @property
    def _address(self) -> Address:
        return Address(*self.socket.getsockname()[:2])


NO_SOCKETS = InheritedSockets()


def check_bindable(address: Address, inherited: InheritedSockets = NO_SOCKETS, *, may_be_used: bool = False) -> None:
    """Check that this process could listen on an address.

    :param address: with port 0 only the host is checked.
    :param inherited: sockets on which it listens already.
    :param may_be_used: it is no problem if a program listens there already.
    :raises ValueError: if not, with a sentence that names the address and the reason.
    """
    problem = None if inherited.find(address) else bind_problem(address)
    if problem is not None and not (may_be_used and problem.errno == errno.EADDRINUSE):
        raise ValueError(explain_bind(address, problem))


def bind_problem(address: Address) -> OSError | None:
    """Return the error with which the system refuses to let this process listen on an address, or None."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        name = socket.getaddrinfo(address.host, address.port, family, socket.SOCK_STREAM)[0][4]
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT counts as free
            sock.bind(name)
    except OSError as problem:
        return problem
    return None


def explain_bind(address: Address, problem: OSError) -> str:
    """Return a sentence for the user about the error of `bind_problem`."""
    where = str(address) if address.port else address.host
    return f"{where!r} cannot be listened on: {_NOT_BINDABLE.get(problem.errno or 0) or problem.strerror or problem}"


_NOT_BINDABLE = {
    errno.EADDRNOTAVAIL: "it is not an address of this machine",
    errno.EADDRINUSE: "another program listens on it",
    errno.EACCES: "permission denied: a port below 1024 needs CAP_NET_BIND_SERVICE, or choose a higher port",
    errno.EAFNOSUPPORT: "IPv6 is disabled on this machine",
}


def listen_patiently(reactor: Any, inherited: InheritedSockets = NO_SOCKETS) -> None:
    """Make every TCP port on which this reactor listens from now on a `PatientPort`.

    :param inherited: sockets to use for the addresses on which they listen.
    """

    def listen(port: int, factory: Any, backlog: int = 50, interface: str = "") -> IListeningPort:
        sock = inherited.find(Address(interface, port))
        if sock is None:
            patient = PatientPort(port, factory, backlog, interface, reactor)
        else:  # the port gets a copy of the descriptor, and listens with the backlog that the socket has
            patient = PatientPort._fromListeningDescriptor(reactor, sock.fileno(), sock.family, factory)
        patient.startListening()
        return patient

    reactor.listenTCP = listen


def run_on_monotonic_time(reactor: Any) -> None:
    """Make the timers of a reactor, which must not have any yet, follow the monotonic clock.

    By default a reactor uses wall time, which an operator or NTP may set back or forth.
    """
    reactor.seconds = time.monotonic

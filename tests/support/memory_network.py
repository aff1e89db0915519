"""A network in memory: a reactor whose connections, ports and processes are objects, and whose time is a clock.

Every connection is between a `connectTCP` and a `listenTCP` of the same `MemoryNetwork`. Bytes take
`LATENCY` seconds of the clock to arrive. Tests let time pass with `run` and `until`, which stop at
every event on the way, and make trouble with `sever`, `mute` and `lose`.
"""

from __future__ import annotations

import itertools
import socket
from bisect import insort
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.base import DelayedCall
from twisted.internet.defer import Deferred
from twisted.internet.error import (
    ConnectionDone,
    ConnectionLost,
    ConnectionRefusedError,
)
from twisted.internet.interfaces import IConnector, IListeningPort, ITransport
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure
from zope.interface import implementer

from scistream.app.handover import fill_placeholders
from scistream.s2ds.ports import ListenPorts

LATENCY = 0.001
HOST = "127.0.0.1"


class MemoryNetwork(MemoryReactorClock):
    """The reactor of all parties of a test."""

    def __init__(self) -> None:
        super().__init__()
        self.listeners: dict[int, Any] = {}
        self.links: list[Link] = []
        self.programs: list[Program] = []
        self.lose: Callable[[bytes], bool] = lambda line: False
        """Tells which lines never arrive."""
        self._muted: set[int] = set()
        self._numbers = itertools.count(40000)

    # -- time

    def run(self, seconds: float) -> None:
        """Let this much time pass, from event to event."""
        end = self.seconds() + seconds
        while (upcoming := self._next()) is not None and upcoming <= end:
            self.advance(upcoming - self.seconds())
        self.advance(max(0.0, end - self.seconds()))

    def until(self, condition: Callable[[], bool], within: float = 5.0) -> None:
        """Let time pass until it is so, which must happen `within` seconds."""
        end = self.seconds() + within
        while not condition():
            upcoming = self._next()
            assert upcoming is not None, "it is not so, and nothing will ever happen"
            assert upcoming <= end, f"it is not so within {within} s"
            self.advance(upcoming - self.seconds())

    def jump(self, seconds: float) -> None:
        """Let this much time pass at once, as in a machine that was suspended: what was due meanwhile comes late."""
        self.advance(seconds)

    def callLater(self, delay: float, callable: Callable[..., Any], *args: Any, **kw: Any) -> DelayedCall:
        """IReactorTime: as a clock does it, without sorting all calls again."""
        call = DelayedCall(self.seconds() + delay, callable, args, kw, self.calls.remove, _is_sorted, self.seconds)
        insort(self.calls, call, key=DelayedCall.getTime)
        return call

    def advance(self, amount: float) -> None:
        """Let time pass, and call what is due by then."""
        self.rightNow += amount
        while self._sorted() and self.calls[0].getTime() <= self.rightNow:
            call = self.calls.pop(0)
            call.called = 1
            call.func(*call.args, **call.kw)

    def _sorted(self) -> list[Any]:
        self.calls.sort(key=DelayedCall.getTime)
        return self.calls

    def _next(self) -> float | None:
        return max(self._sorted()[0].getTime(), self.seconds()) if self.calls else None

    # -- trouble

    def sever(self, port: int) -> int:
        """Break all links to a listener; both ends see it. How many there were."""
        broken = [link for link in self.links if link.port == port]
        for link in broken:
            link.broken()
        return len(broken)

    def mute(self, port: int) -> None:
        """From now on nothing that is sent to this listener arrives, and nobody is told."""
        self._muted.add(port)

    def unmute(self, port: int) -> None:
        """End `mute`; what was sent meanwhile is lost."""
        self._muted.discard(port)

    def close_listener(self, port: int) -> Any:
        """Refuse connections to this port until `listeners` has it again; return what listened there."""
        return self.listeners.pop(port)

    def arrives(self, link: Link, data: bytes, to_server: bool) -> bytes:
        """Return what is left of these bytes after their way."""
        if to_server and link.port in self._muted:
            return b""
        return b"".join(line for line in data.splitlines(keepends=True) if not self.lose(line))

    # -- the reactor

    def listenTCP(self, port: int, factory: Any, backlog: int = 50, interface: str = "") -> Any:
        """IReactorTCP."""
        port = port or next(self._numbers)
        assert port not in self.listeners, f"two listen on {port}"
        self.listeners[port] = factory
        return ListeningPort(self.listeners, port)

    def connectTCP(self, host: str, port: int, factory: Any, timeout: float = 30, bindAddress: Any = None) -> Any:
        """IReactorTCP."""
        connector = _Connector(IPv4Address("TCP", host, port))
        factory.doStart()
        factory.startedConnecting(connector)
        connector.pending = self.callLater(LATENCY, self._connect, connector, port, factory)
        return connector

    def _connect(self, connector: _Connector, port: int, factory: Any) -> None:
        listener = self.listeners.get(port)
        if listener is None:
            factory.clientConnectionFailed(connector, Failure(ConnectionRefusedError("nobody listens there")))
            return
        near, far = IPv4Address("TCP", HOST, next(self._numbers)), IPv4Address("TCP", HOST, port)
        link = Link(self, port)
        link.client = End(link, near, far, factory.buildProtocol(far))
        link.server = End(link, far, near, listener.buildProtocol(near))
        self.links.append(link)
        link.server.protocol.makeConnection(link.server)
        link.client.protocol.makeConnection(link.client)


def _is_sorted(_call: DelayedCall) -> None:
    """Do nothing: `MemoryNetwork.advance` sorts."""


@implementer(IListeningPort)
class ListeningPort:
    """A port that listens as long as it is in `listeners`."""

    def __init__(self, listeners: dict[int, Any], port: int) -> None:
        self._listeners = listeners
        self._port = port

    def startListening(self) -> None:
        """Do nothing: the port listens from the beginning."""

    def stopListening(self) -> None:
        """IListeningPort."""
        self._listeners.pop(self._port, None)

    def getHost(self) -> IPv4Address:
        """IListeningPort."""
        return IPv4Address("TCP", HOST, self._port)


@implementer(IConnector)
class _Connector:
    pending: Any = None

    def __init__(self, address: IPv4Address) -> None:
        self._address = address

    def stopConnecting(self) -> None:
        """IConnector."""
        if self.pending.active():
            self.pending.cancel()

    def disconnect(self) -> None:
        """IConnector."""

    def connect(self) -> None:
        """IConnector."""

    def getDestination(self) -> IPv4Address:
        """IConnector."""
        return self._address


class Link:
    """One connection, both ends of it."""

    client: End
    server: End

    def __init__(self, network: MemoryNetwork, port: int) -> None:
        self.network = network
        self.port = port

    def other(self, end: End) -> End:
        """Return the end that this one talks to."""
        return self.server if end is self.client else self.client

    def broken(self) -> None:
        """Both ends lose it at once."""
        for end in (self.server, self.client):
            end.gone(ConnectionLost("the network was broken"))

    def forget(self) -> None:
        """Note that an end has lost the connection."""
        if self in self.network.links:
            self.network.links.remove(self)


class MemoryTransport:
    """What every transport in memory does alike: it has two addresses, and never fills."""

    def __init__(self, host: IPv4Address, peer: IPv4Address) -> None:
        self._host = host
        self._peer = peer

    def getPeer(self) -> IPv4Address:
        """ITransport."""
        return self._peer

    def getHost(self) -> IPv4Address:
        """ITransport."""
        return self._host

    def setTcpNoDelay(self, enabled: bool) -> None:
        """ITCPTransport. Nothing is held back here."""

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """IConsumer."""

    def unregisterProducer(self) -> None:
        """IConsumer."""


@implementer(ITransport)
class End(MemoryTransport):
    """The transport of one end."""

    disconnecting = False

    def __init__(self, link: Link, host: IPv4Address, peer: IPv4Address, protocol: Any) -> None:
        super().__init__(host, peer)
        self.protocol = protocol
        self._link = link
        self._open = True

    def write(self, data: bytes) -> None:
        """ITransport."""
        if self._open and not self.disconnecting:
            other = self._link.other(self)
            self._link.network.callLater(LATENCY, other.received, data)

    def writeSequence(self, data: Any) -> None:
        """ITransport."""
        self.write(b"".join(data))

    def received(self, data: bytes) -> None:
        """Bytes have come from the other end."""
        data = self._link.network.arrives(self._link, data, self is self._link.server)
        if self._open and data:
            self.protocol.dataReceived(data)

    def loseConnection(self) -> None:
        """ITransport: what was written before still arrives."""
        if not self.disconnecting:
            self.disconnecting = True
            other = self._link.other(self)
            self._link.network.callLater(LATENCY, other.gone, ConnectionDone())
            self._link.network.callLater(LATENCY, self.gone, ConnectionDone())

    def abortConnection(self) -> None:
        """ITCPTransport."""
        other = self._link.other(self)
        self._link.network.callLater(LATENCY, other.gone, ConnectionLost("reset by the other end"))
        self._link.network.callLater(0, self.gone, ConnectionLost("aborted"))

    def gone(self, why: Exception) -> None:
        """Note that the connection is gone."""
        if self._open:
            self._open = False
            self._link.forget()
            self.protocol.connectionLost(Failure(why))

    def pauseProducing(self) -> None:
        """IPushProducer."""

    def resumeProducing(self) -> None:
        """IPushProducer."""


class Program:
    """A program beside an application controller: once it is started it is in the network's `programs`."""

    def __init__(self, network: MemoryNetwork, command: Sequence[str]) -> None:
        self.args: list[str] = []
        self._command = command
        self._network = network
        self._ended: Deferred[None] = Deferred()

    def start(self, listeners: Sequence[str]) -> None:
        """Start, and do nothing else."""
        self.args = fill_placeholders(self._command, listeners)
        self._network.programs.append(self)

    def ended(self, _reactor: Any) -> Deferred[None]:
        """Return a Deferred that fires when the program has ended."""
        return self._ended

    def end(self) -> None:
        """Exit."""
        if not self._ended.called:
            self._ended.callback(None)


class MemoryPorts(ListenPorts):
    """Ports without sockets: the bookkeeping is the real one. Other programs have those in `taken`."""

    def __init__(self, first: int, last: int, chosen: Sequence[tuple[int, int]] = ()) -> None:
        super().__init__(first, last, chosen)
        self.taken: set[int] = set()

    def _bind_one(self, host: str, port: int, *, reuse: bool) -> Any:
        return None if port in self.taken else MemorySocket(host, port)


class MemorySocket:
    """As much of a socket as a `Listener` needs."""

    def __init__(self, host: str, port: int) -> None:
        self._name = (host, port)
        self.listens = False
        self.closed = False

    def getsockname(self) -> tuple[str, int]:
        """As a socket's."""
        return self._name

    def setsockopt(self, *_: Any) -> None:
        """As a socket's."""

    def listen(self, _backlog: int) -> None:
        """As a socket's."""
        assert not self.closed
        self.listens = True

    def fileno(self) -> int:
        """As a socket's."""
        return -1 if self.closed else self._name[1]

    def accept(self) -> tuple[socket.socket, tuple[str, int]]:
        """Nobody ever connects."""
        raise BlockingIOError

    def close(self) -> None:
        """As a socket's."""
        self.closed = True
        self.listens = False

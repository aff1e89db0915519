"""The answering end of a probe, at the producer's gateway: it stands where ProdApp would listen.

The conversation is over the channels of the probe's stream, one connection each, begun by the consumer's gateway
(`probe.py`): it says which channel it means and gets `READY`; then it may send any number of pings, each of which
comes back, and at last either asks for test data or sends some. Test data is a `Pattern` that both ends know, so
every byte can be checked where it arrives. Nobody but a gateway that this stream's credentials have verified comes
here over the WAN; whoever else on this machine connects gets test data and nothing more. Protocol section 11.2.
"""

from __future__ import annotations

import struct
from typing import Any

from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IHalfCloseableProtocol, IListeningPort, IPullProducer
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import LoopingCall
from twisted.python.failure import Failure
from zope.interface import implementer

from scistream import timing
from scistream.protocol.address import Address
from scistream.protocol.errors import StreamError
from scistream.s2ds.probe.test_data import BLOCK, Pattern, start_of

VERSION = 1
GREETING = struct.Struct(">BH")
"""The first words on a connection: `VERSION`, and the channel."""
READY = b"!"
PING = b"P"
PING_SIZE = 64
GIVE = b"G"
"""Send test data until this side ends its direction."""
TAKE = b"T"
"""All that follows is test data; reports of it come back."""
REPORT = struct.Struct(">?Q")
"""Whether all bytes so far were right, and how many there were."""


class Received:
    """Test data as it arrives: how much, and whether it is what was sent."""

    def __init__(self, pattern: Pattern, start: int) -> None:
        self._pattern = pattern
        self._start = start
        self.count = 0
        self.right = True

    def take(self, data: bytes) -> None:
        """More of it."""
        for begin in range(0, len(data), BLOCK):
            part = data[begin : begin + BLOCK]
            if self.right and part != self._pattern.at(self._start + self.count, len(part)):
                self.right = False
            self.count += len(part)


@implementer(IPullProducer)
class Sending:
    """Test data as it leaves, as fast as the transport takes it."""

    def __init__(self, transport: Any, pattern: Pattern, start: int) -> None:
        self._transport = transport
        self._pattern = pattern
        self._position = start
        self._going = True
        transport.registerProducer(self, False)

    def resumeProducing(self) -> None:
        if self._going:
            self._transport.write(self._pattern.at(self._position, BLOCK))
            self._position += BLOCK

    def stopProducing(self) -> None:
        self._going = False

    def stop(self) -> None:
        """No more of it."""
        if self._going:
            self._going = False
            self._transport.unregisterProducer()


class Responder:
    """Answers the probe of one stream, on loopback, until it is stopped.

    :param reactor: an `IReactorTCP` and `IReactorTime`.
    :raises StreamError: `gateway-failed` if it cannot listen.
    """

    def __init__(self, reactor: Any, uid: str) -> None:
        self.reactor = reactor
        self.pattern = Pattern(uid)
        self.talks: set[_Talk] = set()
        factory = Factory.forProtocol(lambda: _Talk(self))
        factory.noisy = False
        try:
            self._port: IListeningPort = reactor.listenTCP(0, factory, 1024, "127.0.0.1")
        except CannotListenError as problem:
            raise StreamError("gateway-failed", f"the gateway cannot answer a probe: {problem}") from None

    @property
    def address(self) -> Address:
        """What the channels of the stream lead to."""
        host: Any = self._port.getHost()
        return Address(host.host, host.port)

    def stop(self) -> None:
        """Listen no longer, and reset every connection."""
        self._port.stopListening()
        for talk in list(self.talks):
            talk.transport.abortConnection()


@implementer(IHalfCloseableProtocol)
class _Talk(Protocol):
    """One connection, of one channel."""

    transport: Any

    def __init__(self, responder: Responder) -> None:
        self._responder = responder
        self._do = self._greeting
        self._waiting = b""
        self._channel = 0
        self._sending: Sending | None = None
        self._received: Received | None = None
        self._reports = LoopingCall(self._report)
        self._reports.clock = responder.reactor

    def connectionMade(self) -> None:
        self._responder.talks.add(self)
        self.transport.setTcpNoDelay(True)
        self.transport.bufferSize = BLOCK

    def dataReceived(self, data: bytes) -> None:
        if self._received is not None:
            self._received.take(data)
            return
        self._waiting += data
        while self._do():
            """There may be more in what has come."""

    def readConnectionLost(self) -> None:
        """The other end is done: so is this one."""
        if self._sending is not None:
            self._sending.stop()
        if self._received is not None:
            self._report()
        self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        """Never: this end closes both directions at once."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._responder.talks.discard(self)
        if self._reports.running:
            self._reports.stop()

    def _greeting(self) -> bool:
        if len(self._waiting) < GREETING.size:
            return False
        version, self._channel = GREETING.unpack_from(self._waiting)
        if version != VERSION:
            self.transport.abortConnection()
            return False
        self._waiting = self._waiting[GREETING.size :]
        self._do = self._command
        self.transport.write(READY)
        return True

    def _command(self) -> bool:
        command = self._waiting[:1]
        if command == PING:
            return self._ping()
        if command == GIVE:
            self._do = _nothing_more
            self._sending = Sending(self.transport, self._responder.pattern, start_of(self._channel, to_producer=False))
        elif command == TAKE:
            self._received = Received(self._responder.pattern, start_of(self._channel, to_producer=True))
            self._received.take(self._waiting[1:])
            self._reports.start(timing.PROBE_REPORT, now=False)
        elif command:
            self.transport.abortConnection()
        return False

    def _ping(self) -> bool:
        if len(self._waiting) < PING_SIZE:
            return False
        self.transport.write(self._waiting[:PING_SIZE])
        self._waiting = self._waiting[PING_SIZE:]
        return True

    def _report(self) -> None:
        if self._received is not None:
            self.transport.write(REPORT.pack(self._received.right, self._received.count))


def _nothing_more() -> bool:
    return False

"""The answering end of a probe, at the producer's gateway: it listens in place of ProdApp.

The consumer's gateway (`measure.py`) opens a connection on each channel of the probe's stream. It sends the number of
the channel and gets `READY`. Then it may send any number of pings, which are echoed, and finally either asks for test
data or sends some. Test data is a `Pattern` that both ends know, so that every byte can be checked on arrival. Over the
WAN only a gateway that has this stream's credentials can connect. A local program that connects to the port gets test
data and nothing else. Protocol section 11.2.
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
"""The first message on a connection: `VERSION`, and the channel."""
READY = b"!"
PING = b"P"
PING_SIZE = 64
GIVE = b"G"
"""The request to send test data until the requester ends its direction."""
TAKE = b"T"
"""The announcement that all further bytes are test data, of which reports are expected."""
REPORT = struct.Struct(">?Q")
"""A report: whether all bytes so far were right, and their number."""


class Received:
    """A check of test data as it arrives.

    :ivar count: the number of bytes so far.
    :ivar is_right: True while all of them are right.
    """

    def __init__(self, pattern: Pattern, start: int) -> None:
        self._pattern = pattern
        self._start = start
        self.count = 0
        self.is_right = True

    def take(self, data: bytes) -> None:
        """Check more data."""
        for begin in range(0, len(data), BLOCK):
            part = data[begin : begin + BLOCK]
            if self.is_right and part != self._pattern.at(self._start + self.count, len(part)):
                self.is_right = False
            self.count += len(part)


@implementer(IPullProducer)
class Sending:
    """A producer of test data, as fast as the transport takes it."""

    def __init__(self, transport: Any, pattern: Pattern, start: int) -> None:
        self._transport = transport
        self._pattern = pattern
        self._position = start
        self._is_running = True
        transport.registerProducer(self, False)

    def resumeProducing(self) -> None:
        """Write a block."""
        if self._is_running:
            self._transport.write(self._pattern.at(self._position, BLOCK))
            self._position += BLOCK

    def stopProducing(self) -> None:
        """Write no more, since the connection is lost."""
        self._is_running = False

    def stop(self) -> None:
        """Write no more. Idempotent."""
        if self._is_running:
            self._is_running = False
            self._transport.unregisterProducer()


class Responder:
    """A listener on loopback that answers the probe of one stream until it is stopped.

    :param reactor: an `IReactorTCP` and `IReactorTime`.
    :raises StreamError: `gateway-failed` if it cannot listen.
    """

    def __init__(self, reactor: Any, uid: str) -> None:
        self.reactor = reactor
        self.pattern = Pattern(uid)
        self.conversations: set[_Conversation] = set()
        factory = Factory.forProtocol(lambda: _Conversation(self))
        factory.noisy = False
        try:
            self._port: IListeningPort = reactor.listenTCP(0, factory, 1024, "127.0.0.1")
        except CannotListenError as problem:
            raise StreamError("gateway-failed", f"the gateway cannot answer a probe: {problem}") from None

    @property
    def address(self) -> Address:
        """The address that the channels of the stream have as their target."""
        host: Any = self._port.getHost()
        return Address(host.host, host.port)

    def stop(self) -> None:
        """Stop listening, and reset every connection."""
        self._port.stopListening()
        for conversation in list(self.conversations):
            conversation.transport.abortConnection()


@implementer(IHalfCloseableProtocol)
class _Conversation(Protocol):
    """The connection of one channel."""

    transport: Any

    def __init__(self, responder: Responder) -> None:
        self._responder = responder
        self._next_step = self._greeting
        self._unparsed = b""
        self._channel = 0
        self._sending: Sending | None = None
        self._received: Received | None = None
        self._reports = LoopingCall(self._report)
        self._reports.clock = responder.reactor

    def connectionMade(self) -> None:
        """Wait for the channel's number."""
        self._responder.conversations.add(self)
        self.transport.setTcpNoDelay(True)
        self.transport.bufferSize = BLOCK

    def dataReceived(self, data: bytes) -> None:
        """Handle messages, or check test data."""
        if self._received is not None:
            self._received.take(data)
            return
        self._unparsed += data
        while self._next_step():
            pass

    def readConnectionLost(self) -> None:
        """End this direction, too, after a last report."""
        if self._sending is not None:
            self._sending.stop()
        if self._received is not None:
            self._report()
        self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        """Do nothing: this end always closes both directions."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Stop the reports."""
        self._responder.conversations.discard(self)
        if self._reports.running:
            self._reports.stop()

    def _greeting(self) -> bool:
        if len(self._unparsed) < GREETING.size:
            return False
        version, self._channel = GREETING.unpack_from(self._unparsed)
        if version != VERSION:
            self.transport.abortConnection()
            return False
        self._unparsed = self._unparsed[GREETING.size :]
        self._next_step = self._command
        self.transport.write(READY)
        return True

    def _command(self) -> bool:
        command = self._unparsed[:1]
        if command == PING:
            return self._ping()
        if command == GIVE:
            self._next_step = _nothing_more
            self._sending = Sending(self.transport, self._responder.pattern, start_of(self._channel, to_producer=False))
        elif command == TAKE:
            self._received = Received(self._responder.pattern, start_of(self._channel, to_producer=True))
            self._received.take(self._unparsed[1:])
            self._reports.start(timing.PROBE_REPORT, now=False)
        elif command:
            self.transport.abortConnection()
        return False

    def _ping(self) -> bool:
        if len(self._unparsed) < PING_SIZE:
            return False
        self.transport.write(self._unparsed[:PING_SIZE])
        self._unparsed = self._unparsed[PING_SIZE:]
        return True

    def _report(self) -> None:
        if self._received is not None:
            self.transport.write(REPORT.pack(self._received.is_right, self._received.count))


def _nothing_more() -> bool:
    return False

"""A link without a network, with the events that its owner gets and the lines that its peer reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from scistream.links.link import UNLIMITED, CredentialExpiry, Link, LinkAdmission
from scistream.protocol.codec import decode
from scistream.protocol.messages import Answer, Message


class Owner:
    """A link owner that records all events."""

    def __init__(self) -> None:
        self.ups: list[Link] = []
        self.downs: list[Failure] = []
        self.messages: list[Message] = []
        self.answers: list[Answer] = []

    def link_up(self, link: Link) -> None:
        self.ups.append(link)

    def link_down(self, link: Link, reason: Failure) -> None:
        self.downs.append(reason)

    def message_received(self, link: Link, message: Message) -> None:
        self.messages.append(message)

    def answer_received(self, link: Link, answer: Answer) -> None:
        self.answers.append(answer)


class Wire(StringTransport):
    """A transport with a TLS connection."""

    handle = object()

    def getHandle(self) -> object:
        return self.handle


class SlowWire(Wire):
    """A transport that becomes full like a real one, until `drained` is called."""

    bufferSize = 65536
    is_full = False

    def write(self, data: bytes) -> None:
        super().write(data)
        if len(self.value()) > self.bufferSize and self.producer is not None and not self.is_full:
            self.is_full = True
            self.producer.pauseProducing()

    def drained(self) -> None:
        """Let the peer read everything."""
        self.clear()
        if self.is_full and self.producer is not None:
            self.is_full = False
            self.producer.resumeProducing()


class Peer:
    """The other end of a link: it sends lines, and reads those that are written. The parameters are the link's."""

    def __init__(
        self,
        *,
        accepted: bool = True,
        plain_peer: Any = "ada",
        authenticate: Callable[[Any], Any] | None = None,
        admission: LinkAdmission | None = None,
        owner: Owner | None = None,
        wire: Wire | None = None,
        expiry: CredentialExpiry | None = None,
    ) -> None:
        self.clock = Clock()
        self.owner = owner or Owner()
        self.wire = wire or Wire()
        self.link = Link(
            self.owner,
            self.clock,
            authenticate,
            plain_peer,
            accepted=accepted,
            admission=admission or UNLIMITED,
            expiry=expiry,
        )
        self.link.makeConnection(self.wire)

    def says(self, *lines: bytes) -> None:
        self.link.dataReceived(b"".join(line + b"\n" for line in lines))

    def reads(self) -> list[Message]:
        """Return the messages that were written since it last read."""
        written = self.wire.value()
        self.wire.clear()
        assert written == b"" or written.endswith(b"\n")
        return [decode(line) for line in written.splitlines()]

    def goes(self) -> None:
        """End the connection on both sides."""
        self.link.connectionLost(Failure(ConnectionDone()))

    @property
    def is_closed(self) -> bool:
        return bool(self.wire.disconnecting)

    @property
    def is_cut_off(self) -> bool:
        return bool(self.wire.disconnected)

"""Two gateways of a stream in the process of the test, or with elements of their own, and applications at both ends.

Applications are blocking sockets in threads; the gateways run in the reactor of the test.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any
from uuid import uuid4

import msgspec
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.logger import globalLogPublisher

from scistream.protocol.address import Address
from scistream.protocol.messages import CONS, PROD, ChannelFigures, Role
from scistream.s2ds.capacity import SharedLimits
from scistream.s2ds.elements.channel import ElementChannel
from scistream.s2ds.elements.element_settings import ElementSettings
from scistream.s2ds.elements.pool import Elements
from scistream.s2ds.ports import ChannelListener, ListenPorts
from scistream.s2ds.relay import relay
from scistream.s2uc.stream_certificates import issue_credentials
from scistream.tls.stream_channels import StreamSecret
from support.applications import NOISE, how_it_ends, receive_digest, send_and_end
from support.leased_ports import leased
from support.waiting import until_in_reactor

PATIENCE = 20.0


# Applications


async def both(*jobs: Callable[[], Any]) -> list[Any]:
    """Run blocking jobs in threads, at once."""
    return list(await gatherResults([deferToThread(job) for job in jobs], consumeErrors=True))


async def carry_both_ways(consumer: socket.socket, producer: socket.socket, count: int) -> None:
    """Send that many bytes in both directions at once, until both have ended, and compare digests."""
    said, answered, heard, got = await both(
        lambda: send_and_end(consumer, count),
        lambda: send_and_end(producer, count),
        lambda: receive_digest(producer),
        lambda: receive_digest(consumer),
    )
    assert heard == (count, said)
    assert got == (count, answered)


def set_networks(elements: Elements, wan_networks: list[str]) -> None:
    """Let gateways dial others in these networks only."""
    elements.change_settings(msgspec.structs.replace(elements.settings, wan_networks=wan_networks))


def sleep(seconds: float) -> Deferred[None]:
    return deferLater(reactor, seconds, lambda: None)


def fill(sock: socket.socket, stop: threading.Event) -> int:
    """Write as long as anything goes in within a while; how much did."""
    sock.settimeout(0.5)
    total = 0
    with contextlib.suppress(TimeoutError):
        while not stop.is_set():
            total += sock.send(NOISE[:65536])
    return total


# Gateways


class Side:
    """One gateway's end of a stream: listeners, an element, and a key pair."""

    def __init__(
        self,
        role: Role,
        uid: str,
        ports: ListenPorts,
        channels: int,
        rate: float,
        elements: int,
        limits: SharedLimits | None,
        **settings: float,
    ) -> None:
        self.role: Role = role
        self.uid = uid
        self.ports = ports
        self.secret = StreamSecret()
        self.reasons: list[str] = []
        """Why connections were reset."""
        self.elements = Elements(
            reactor,
            elements,
            channels,
            ElementSettings(**settings),  # type: ignore[arg-type]
            limits,
            on_reset=lambda reset: self.reasons.append(reset.reason),
        )
        self.elements.start()
        self.elements.open(uid, role, rate, dict(enumerate(range(channels))))
        self.sockets = ports.reserve("127.0.0.1", channels)
        self.listeners = [ChannelListener(reactor, sock) for sock in self.sockets]
        self.wan_sockets: list[socket.socket] = []
        """The WAN listeners of a consumer's gateway that the producer's gateway dials."""

    def address(self, channel: int = 0) -> Address:
        return Address(*self.sockets[channel].getsockname())

    def listen_to_wan(self) -> list[Address]:
        """Reserve WAN listeners at the consumer's gateway, and return their addresses."""
        self.wan_sockets = self.ports.reserve("127.0.0.1", len(self.sockets))
        self.listeners += [ChannelListener(reactor, sock) for sock in self.wan_sockets]
        return [Address(*sock.getsockname()) for sock in self.wan_sockets]

    def arm(
        self,
        bundle: str | None,
        targets: list[Address],
        wan_dialer: Role = CONS,
        wan_targets: Sequence[Address] = (),
    ) -> None:
        """Without a bundle, the WAN is plain TCP too."""
        credentials = self.secret.credentials(bundle, self.uid, self.role) if bundle is not None else None
        self.elements.arm(
            self.uid,
            self.role,
            dict(enumerate(targets)),
            credentials,
            wan_dialer=wan_dialer,
            wan_targets=dict(enumerate(wan_targets)),
        )
        if self.role == PROD and wan_dialer == PROD:
            return  # nobody connects to this gateway
        channels = len(self.sockets)
        for number, listener in enumerate(self.listeners):
            listener.start(self._acceptor(number % channels, wan=self.role == PROD or number >= channels))

    def _acceptor(self, channel: int, *, wan: bool) -> Callable[[socket.socket, object], None]:
        return lambda sock, _peer: self.elements.carry(self.uid, self.role, channel, sock, wan=wan)

    def figures(self, channel: int = 0) -> ChannelFigures:
        return self.elements.figures(self.uid, self.role)[channel]

    def __str__(self) -> str:
        return f"{self.elements.figures(self.uid, self.role)}, resets: {self.reasons}"

    def close(self) -> Deferred[None]:
        for listener in self.listeners:
            listener.stop()
        self.elements.close(self.uid, self.role)
        stopped = self.elements.stop()
        for sock in (*self.sockets, *self.wan_sockets):
            self.ports.release(sock)
        return stopped

    def is_ready(self) -> bool:
        """Return True if its elements take connections."""
        return all(member.ready for member in self.elements._members)

    def relays(self) -> list[relay.Relay]:
        """Return the open relays of the first channel."""
        return list(self.channel().relays)

    def channel(self) -> ElementChannel:
        """Return the first channel of an element in this process."""
        (here,) = self.elements._members
        found: ElementChannel = here._element._streams[self.uid, self.role].channels[0]  # type: ignore[attr-defined]
        return found


class Stream:
    """A stream over two gateways, and the two applications' ends of it.

    :param wan: "tls", or "plain" where the relay by itself is looked at.
    :param elements: how many processes each gateway has for it; 0 is none.
    :param wan_dialer: the side whose gateway dials the other.
    :param limits: those of the producer's gateway.
    """

    def __init__(
        self,
        channels: int = 1,
        rate: float = 1e6,
        *,
        wan: str = "tls",
        elements: int = 0,
        wan_dialer: Role = CONS,
        limits: SharedLimits | None = None,
        **settings: float,
    ) -> None:
        self.uid = str(uuid4())
        self.app = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.app.settimeout(PATIENCE)
        first = leased.take(3 * channels)
        ports = ListenPorts(first, first + 3 * channels - 1)
        self.prod = Side(PROD, self.uid, ports, channels, rate, elements, limits, **settings)
        self.cons = Side(CONS, self.uid, ports, channels, rate, elements, None, **settings)
        self.bundles = issue_credentials(self.uid, 1, 600.0, {PROD: self.prod.secret.csr, CONS: self.cons.secret.csr})
        prod, cons = (self.bundles[PROD], self.bundles[CONS]) if wan == "tls" else (None, None)
        programs = [Address(*self.app.getsockname())] * channels
        if wan_dialer == CONS:
            self.prod.arm(prod, programs)
            self.cons.arm(cons, [self.prod.address(channel) for channel in range(channels)])
        else:
            gateways = self.cons.listen_to_wan()
            self.cons.arm(cons, [], PROD)
            self.prod.arm(prod, programs, PROD, gateways)
        self._ends: list[socket.socket] = [self.app]

    def connect(self, channel: int = 0) -> socket.socket:
        """ConsApp connects; blocks."""
        return self._keep(socket.create_connection(self.cons.address(channel), timeout=PATIENCE))

    def attempt(self) -> str:
        """ConsApp connects and says something; how that ends; blocks."""
        try:
            sock = self.connect()
            sock.sendall(b"secret")
        except (ConnectionResetError, BrokenPipeError):
            return "reset"
        return how_it_ends(sock)

    def accept(self) -> socket.socket:
        """ProdApp accepts; blocks."""
        return self._keep(self.app.accept()[0])

    async def pair(self, channel: int = 0) -> tuple[socket.socket, socket.socket]:
        """Return the two ends of a new connection: ConsApp's and ProdApp's."""
        await self.ready()
        consumer, producer = await both(lambda: self.connect(channel), self.accept)
        return consumer, producer

    async def ready(self) -> None:
        """Wait until all elements take connections."""
        await self.until(lambda: self.prod.is_ready() and self.cons.is_ready())

    async def until(self, condition: Callable[[], Any]) -> None:
        """Wait until something is so that the gateways do; if it never is, fail with what they have counted."""
        await until_in_reactor(reactor, condition, lambda: f"producer's gateway: {self.prod}\nconsumer's: {self.cons}")

    def nobody_came(self) -> bool:
        """Return True if ProdApp was not dialled."""
        self.app.settimeout(0.05)
        try:
            self.accept()
        except TimeoutError:
            return True
        return False

    async def close(self) -> None:
        await gatherResults([self.prod.close(), self.cons.close()])
        for sock in self._ends:
            sock.close()

    def _keep(self, sock: socket.socket) -> socket.socket:
        sock.settimeout(PATIENCE)
        self._ends.append(sock)
        return sock


@contextlib.asynccontextmanager
async def streams() -> AsyncIterator[Callable[..., Stream]]:
    """Return a function that makes streams; close them, and check for leftovers and unnoticed failures."""
    failures: list[Any] = []
    made: list[Stream] = []
    readers, writers, calls = (set(found()) for found in (_readers, _writers, _calls))

    def note(event: dict[str, Any]) -> None:
        if event.get("log_failure") is not None:
            failures.append(event["log_failure"].getTraceback())

    def make_one(*args: Any, **kwargs: Any) -> Stream:
        made.append(Stream(*args, **kwargs))
        return made[-1]

    globalLogPublisher.addObserver(note)
    try:
        yield make_one
        for stream in made:
            await stream.close()
    finally:
        globalLogPublisher.removeObserver(note)
    assert not failures, failures
    assert not set(_readers()) - readers
    assert not set(_writers()) - writers
    assert not set(_calls()) - calls


def _readers() -> list[Any]:
    return [found for found in reactor.getReaders() if _is_ours(found)]


def _writers() -> list[Any]:
    return [found for found in reactor.getWriters() if _is_ours(found)]


def _calls() -> list[Any]:
    calls = reactor.getDelayedCalls()
    return [call for call in calls if call.func.__module__.startswith("scistream")]


def _is_ours(found: Any) -> bool:
    return type(found).__module__.startswith("scistream")


Make = Callable[..., Stream]

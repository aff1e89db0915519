"""One connection of a channel: two legs, and a pump for each direction.

The leg to the application is plain TCP, and the leg to the other gateway is TLS. An abnormal end of one side becomes a
reset of the other; a clean end of a direction becomes a clean end (protocol section 10.2). Elements create relays.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from OpenSSL import SSL
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from scistream import timing
from scistream.protocol.address import Address, address_group
from scistream.protocol.messages import CONS, PROD, Cause, Role
from scistream.s2ds.relay.buffers import Buffers, Pipes
from scistream.s2ds.relay.dead_peers import DeadPeerDetector
from scistream.s2ds.relay.flow import Flow
from scistream.s2ds.relay.leg import ConnectionBrokenError, DialRefusedError, Leg, ShortageError, explain, prepare
from scistream.s2ds.relay.plain import PlainLeg, dial
from scistream.s2ds.relay.poller import Poller, poller_of
from scistream.s2ds.relay.prod_app_start import ProdAppStart
from scistream.s2ds.relay.pump import PlainPump, Pump
from scistream.s2ds.relay.target_names import Names
from scistream.s2ds.relay.tcp_info import bytes_to_send, bytes_waiting, tcp_info
from scistream.s2ds.relay.tls import TlsLeg
from scistream.s2ds.relay.turns import Turn
from scistream.tls.files import CertificateError
from scistream.tls.stream_channels import server_name, verify_consumer, verify_producer

_OTHER = "the other gateway"

PIPE_BUFFERS = 4
"""The size of a pipe in buffers. It may be large, since bytes in a pipe are not copied and do not fill the caches."""


SMALL_BUFFER = 65536
"""The size, in bytes, of the buffers of plain connections that carry small messages."""


MOST_UNDER_ONE_KEY = 362 * 2**30
"""The number of bytes in one direction after which RFC 8446 (section 5.5) advises new keys for AES-GCM."""


@dataclass(frozen=True)
class ChannelTarget:
    """The target of the connections of one channel.

    :param address: the address to connect to.
    :param tls_context: the TLS context of the WAN leg: a server's for the role PROD, a client's for CONS. With None
        both legs are plain TCP, which only benchmarks and tests use: a stream always has a context.
    :param start: the start of ProdApp, at the producer's side.
    :param own_ports: ports of this gateway that are allowed as targets.
    :param other_addresses: other addresses of the same program, for when the target does not answer.
    """

    uid: str
    role: Role
    channel: int
    address: Address
    tls_context: SSL.Context | None
    start: ProdAppStart = field(default_factory=ProdAppStart)
    own_ports: frozenset[int] = frozenset()
    other_addresses: tuple[Address, ...] = ()

    @cached_property
    def peer_name(self) -> str:
        """A readable name of the target."""
        places = " or ".join(map(str, (self.address, *self.other_addresses)))
        return f"{'ProdApp' if self.role == PROD else 'the other gateway'} at {places}"


@dataclass(frozen=True)
class RelayContext:
    """The resources and settings that the relays of an element share; times in seconds."""

    reactor: Any
    buffers: Buffers
    dead_peers: DeadPeerDetector
    dial_timeout: float
    handshake_timeout: float
    wan_timeout: float
    lan_congestion: str
    wan_congestion: str
    names: Names
    multipath: bool = False
    poller: Poller = field(init=False)
    small_buffers: Buffers = field(init=False)
    pipes: Pipes = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "poller", poller_of(self.reactor))
        object.__setattr__(self, "small_buffers", Buffers(min(SMALL_BUFFER, self.buffers.size)))
        object.__setattr__(self, "pipes", Pipes(PIPE_BUFFERS * self.buffers.size))


class Sample(NamedTuple):
    """The figures of one relay and its connection over the WAN.

    :param rtt: the smoothed round-trip time in seconds.
    :param retransmits: segments retransmitted since the connection was opened.
    :param delivery_rate: the latest rate in bytes per second.
    :param waiting: bytes in the gateway's buffers and in the buffers of both sockets.
    :param unread: the same without sent bytes that are not acknowledged.
    :param moved: bytes in both directions over the WAN since the connection was opened.
    :param is_held: whether it gets no large receive window on the WAN, since there is no memory for more of them.
    """

    rtt: float
    retransmits: int
    delivery_rate: float
    waiting: int
    unread: int
    moved: int
    is_held: bool


class ConnectionEnding(NamedTuple):
    """The end of a relay."""

    clean: bool
    reason: str = ""
    """A sentence that is the same for all connections that end for this reason."""
    cause: Cause = "gateway"
    detail: str = ""
    """Further details, for the log only."""


class _Break(NamedTuple):
    """The abnormal end of a leg. The exception is not kept, since its traceback would keep the relay in memory."""

    leg: Leg
    reason: str
    cause: Cause


class Relay:
    """A relay that carries one accepted connection from `start` until it ends cleanly or is reset.

    :param sock: the accepted connection, which the relay owns: from ConsApp for CONS, from the WAN for PROD.
    :param on_end: called once, with the relay and its ending, which has no reason if the stream was closed.
    :param on_open: called when both sides are joined.
    :param turn: the turn to wait for before dialling.
    """

    __slots__ = (
        "__weakref__",
        "_broken",
        "_broken_at",
        "_context",
        "_delivery_check",
        "_flows",
        "_is_key_overused",
        "_legs",
        "_on_end",
        "_on_open",
        "_opening",
        "_progressed_at",
        "_pumps",
        "_sock",
        "_target",
        "_turn",
        "_undelivered",
        "is_verified",
        "over",
        "source",
    )

    log = Logger()

    def __init__(
        self,
        context: RelayContext,
        target: ChannelTarget,
        sock: socket.socket,
        to_producer: Flow,
        to_consumer: Flow,
        on_end: Callable[[Relay, ConnectionEnding], None],
        on_open: Callable[[Relay], None],
        turn: Turn,
    ) -> None:
        self._context = context
        self._target = target
        self._sock = sock
        self._flows = (to_producer, to_consumer)
        self._on_end = on_end
        self._on_open = on_open
        self._turn = turn
        self._legs: tuple[Leg, ...] = ()
        self._pumps: tuple[Pump, ...] = ()
        self._opening: Deferred[Any] | None = None
        self._broken: _Break | None = None  # set while the bytes that came before a leg broke are delivered
        self._broken_at = self._progressed_at = 0.0  # when the leg broke, and when the other end last took bytes
        self._undelivered = (0, 0)
        self._delivery_check: Any = None
        self._is_key_overused = False
        self.over = False
        self.source = _address_of(sock) if target.role == PROD else ""  # the address of the peer on the WAN
        self.is_verified = False  # True once the certificate of the WAN peer is verified

    def start(self) -> None:
        """Connect the other side and start the pumps; no byte passes before the WAN peer is verified."""
        self._opening = Deferred.fromCoroutine(self._open())
        self._opening.addCallback(self._start_pumps).addErrback(self._open_failed)

    def reset(self, reason: str, cause: Cause) -> None:
        """Reset both sides at once. Idempotent.

        :param reason: a sentence that is the same for all connections reset for this reason.
        """
        if self._target.role == PROD and not self.is_verified and cause != "gateway":
            cause = "stranger"
        if not self.over:
            self._finish(ConnectionEnding(False, reason, cause))

    def broke(self, broken: ConnectionBrokenError) -> None:
        """Deliver the bytes that came before a leg broke, then reset the other side.

        If the other side breaks as well, reset it at once.
        """
        leg = broken.leg
        if self.over:
            return
        if leg is not None and leg.is_opening and leg.reader is not None:
            leg.reader.advance()  # the rest of the handshake may have arrived before the reset
            if self.over:
                return
        if leg is None or leg.is_opening:
            self.reset(str(broken), broken.cause)
            return
        if self._broken is None:
            self._broken = _Break(leg, str(broken), broken.cause)
            self._broken_at = self._progressed_at = self._context.reactor.seconds()
            self._delivery_check = self._context.reactor.callLater(timing.DELIVERED_POLL, self._check_delivery)
        elif leg is not self._broken.leg:
            self.reset(self._broken.reason, self._broken.cause)
            return
        self._pass_on(leg)

    def _pass_on(self, leg: Leg) -> None:
        """Pass on the bytes from a leg that broke, and write nothing to it."""
        leg.readable = True
        for pump in self._pumps:  # empty while the other side is being dialled
            if pump.sink is leg:
                pump.sink_broke()
        for pump in self._pumps:
            if pump.source is leg:
                pump.source_broke()

    def delivered(self) -> None:
        """Reset the other side as soon as it has acknowledged the bytes that came before a leg broke."""
        if not self.over:
            self._check_delivery()

    def _check_delivery(self) -> None:
        """Reset the other side if all bytes are delivered or their delivery takes too long; else check again later."""
        broken, now = self._broken, self._context.reactor.seconds()
        assert broken is not None
        is_delivered = False
        for pump in self._pumps:
            if pump.source is broken.leg:
                left = pump.held(), bytes_to_send(pump.sink.sock)
                is_delivered = pump.ended and not left[1]
                if left != self._undelivered:
                    self._undelivered, self._progressed_at = left, now
        limit = min(self._broken_at + timing.DELIVER_BEFORE_RESET, self._progressed_at + timing.DELIVER_STALLED)
        if is_delivered or (now >= limit and self._pumps):
            self.reset(broken.reason, broken.cause)
            return
        if self._delivery_check.active():
            self._delivery_check.cancel()
        self._delivery_check = self._context.reactor.callLater(timing.DELIVERED_POLL, self._check_delivery)

    def has_received(self) -> bool:
        """Return True if any byte has arrived on the accepted connection."""
        return tcp_info(self._sock).received > 0

    def cut(self) -> None:
        """Reset both sides without a reason, since the stream is closed. Idempotent."""
        if not self.over:
            self._finish(ConnectionEnding(False))

    def sample(self) -> Sample:
        """Return the current figures; all are zero before both sides are joined and after the end."""
        if not self._pumps:
            return Sample(0.0, 0, 0.0, 0, 0, 0, False)
        wan = next(leg for leg in self._legs if leg.wan)
        info = tcp_info(wan.sock)
        if max(info.received, info.acknowledged) > MOST_UNDER_ONE_KEY and not self._is_key_overused:
            self._warn_of_key_use(wan)
        held = sum(pump.held() for pump in self._pumps)
        in_sockets = [bytes_waiting(leg.sock) for leg in self._legs]
        waiting = held + sum(one.in_all for one in in_sockets)
        unread = held + sum(one.unsent for one in in_sockets)
        moved = info.received + info.acknowledged
        return Sample(info.rtt, info.total_retrans, info.delivery_rate, waiting, unread, moved, wan.is_held)

    def _warn_of_key_use(self, wan: Leg) -> None:
        self._is_key_overused = True
        if isinstance(wan, TlsLeg) and "GCM" in (wan.connection.get_cipher_name() or ""):
            self.log.warn(
                "Stream {uid} ({role}), channel {channel}: one connection has carried more than {gib} GiB under "
                "one key, after which AES-GCM should have new keys: let the application open a new connection "
                'from time to time, or set wan_cipher = "chacha20" in s2ds.toml of the producer\'s gateway',
                uid=self._target.uid,
                role=self._target.role,
                channel=self._target.channel,
                gib=round(MOST_UNDER_ONE_KEY / 2**30),
            )

    async def _open(self) -> tuple[Leg, Leg]:
        """Return the leg towards the consumer and the leg towards the producer, both open."""
        if self._target.role == CONS:
            prepare(self._sock, timing.LAN_SILENCE, self._context.lan_congestion)
            lan: Leg = self._plain_leg(self._sock, "ConsApp", wan=False)
            await self._turn.wait()
            return lan, await self._connect_wan()
        # Verify the peer first: ProdApp must not be dialled for a stranger.
        prepare(self._sock, self._context.wan_timeout, self._context.wan_congestion)
        began = self._context.reactor.seconds()
        wan = await self._accept_wan()
        took = self._context.reactor.seconds() - began
        await self._turn.wait(took + timing.HANDSHAKE_AHEAD)
        return wan, self._plain_leg(await self._dial_program(), self._target.peer_name, wan=False)

    async def _dial_program(self) -> socket.socket:
        """Connect to ProdApp; while it starts, all connections of the channel wait for it together."""
        reactor, start = self._context.reactor, self._target.start
        while True:
            try:
                sock = await self._dial(timing.LAN_SILENCE, wan=False)
            except DialRefusedError:
                if not await start.wait(reactor, timing.DIAL_AGAIN, self._context.dial_timeout):
                    raise
            else:
                start.finish()
                return sock

    def _start_pumps(self, legs: tuple[Leg, Leg]) -> None:
        self._opening = None
        self._on_open(self)
        consumer, producer = legs
        to_producer, to_consumer = self._flows
        self._pumps = (self._pump(consumer, producer, to_producer), self._pump(producer, consumer, to_consumer))
        if self._broken is not None:  # before the first turn, which would read its end as a clean one
            self._pass_on(self._broken.leg)
        for pump in self._pumps:
            pump.advance()

    def _pump(self, source: Leg, sink: Leg, flow: Flow) -> Pump:
        context = self._context
        if isinstance(source, PlainLeg) and isinstance(sink, PlainLeg):
            return PlainPump(
                self, context.poller, source, sink, flow, context.buffers, context.small_buffers, context.pipes
            )
        return Pump(self, context.poller, source, sink, flow, context.buffers)

    async def _connect_wan(self) -> Leg:
        uid, channel = self._target.uid, self._target.channel
        sock = await self._dial(self._context.wan_timeout, wan=True)
        if self._target.tls_context is None:
            return self._plain_leg(sock, self._target.peer_name, wan=True)
        leg = self._tls_leg(sock, self._target.peer_name, self._target.tls_context, server_name(uid, channel))
        await leg.handshake(self._context.reactor, self._context.handshake_timeout)
        verify_producer(leg.connection, uid, channel)
        return leg

    async def _accept_wan(self) -> Leg:
        if self._target.tls_context is None:
            self.is_verified = True
            return self._plain_leg(self._sock, _OTHER, wan=True)
        leg = self._tls_leg(self._sock, _OTHER, self._target.tls_context, None)
        await leg.handshake(self._context.reactor, self._context.handshake_timeout)
        verify_consumer(leg.connection, self._target.uid, self._target.channel)
        self.is_verified = True
        return leg

    def _open_failed(self, failure: Failure) -> None:
        if failure.check(CancelledError):
            return
        wrong = failure.value
        if isinstance(wrong, ConnectionBrokenError | CertificateError):
            cause = wrong.cause if isinstance(wrong, ConnectionBrokenError) else "wan"
            if self._target.role == CONS and cause in ("wan", "far-side"):
                self._fail_unreached(str(wrong))
            else:
                self.reset(str(wrong), cause)
        elif isinstance(wrong, OSError):
            self.reset(explain(wrong), "gateway")
        else:
            self.log.failure("Failed to open a relay", failure=failure)
            self.reset(f"the gateway failed with {type(wrong).__name__}", "gateway")

    def _fail_unreached(self, detail: str) -> None:
        """End a connection that did not reach the other gateway.

        Only the log has the details: otherwise users could scan the networks of this gateway with streams.
        """
        if not self.over:
            reason = f"{self._target.peer_name} could not be reached; see the log of this gateway for the reason"
            self._finish(ConnectionEnding(False, reason, "wan", detail))

    async def _dial(self, dead_after: float, *, wan: bool) -> socket.socket:
        """Connect to the target; while this machine lacks resources, try again for `dial_timeout` seconds.

        :param dead_after: seconds in which a target that vanishes later is noticed.
        """
        context = self._context
        deadline = context.reactor.seconds() + context.dial_timeout
        while True:
            try:
                return await self._dial_any(dead_after, deadline, wan=wan)
            except ShortageError:
                if context.reactor.seconds() + timing.DIAL_AGAIN > deadline:
                    raise
            await deferLater(context.reactor, timing.DIAL_AGAIN)

    async def _dial_any(self, dead_after: float, deadline: float, *, wan: bool) -> socket.socket:
        """Connect to the first address of the target that answers; the time left is divided among the addresses."""
        context, target = self._context, self._target.address
        congestion = context.wan_congestion if wan else context.lan_congestion
        addresses = await context.names.addresses(target, self._target.own_ports, self._target.other_addresses)
        problem = ConnectionBrokenError(
            f"{self._target.peer_name} has no address that this gateway can find and may dial", "wan"
        )
        for tried, address in enumerate(addresses):
            seconds_left = max(timing.SHORTEST_DIAL, deadline - context.reactor.seconds()) / (len(addresses) - tried)
            try:
                dialling = dial(
                    context.reactor,
                    context.poller,
                    address,
                    self._target.peer_name,
                    seconds_left,
                    dead_after,
                    congestion,
                    wan=wan,
                    multipath=wan and context.multipath,
                )
                self._turn.finish()  # the SYN is sent, so the next connection may be dialled
                sock = await dialling
            except ShortageError:
                raise
            except ConnectionBrokenError as broken:
                if not isinstance(problem, DialRefusedError):  # a program that refuses may not have started yet
                    problem = broken
            else:
                context.names.prefer(target, address)
                return sock
        raise problem

    def _plain_leg(self, sock: socket.socket, peer_name: str, *, wan: bool) -> PlainLeg:
        leg = PlainLeg(self._context.poller, sock, self._context.dead_peers, self, peer_name, wan=wan)
        self._legs += (leg,)
        return leg

    def _tls_leg(self, sock: socket.socket, peer_name: str, tls_context: SSL.Context, name: str | None) -> TlsLeg:
        leg = TlsLeg(self._context.poller, sock, self._context.dead_peers, self, peer_name, tls_context, name)
        self._legs += (leg,)
        return leg

    def direction_ended(self) -> None:
        """End the relay once both directions have ended."""
        if all(pump.ended for pump in self._pumps):
            self._finish(ConnectionEnding(True))

    def _finish(self, ending: ConnectionEnding) -> None:
        self.over = True
        if self._delivery_check is not None and self._delivery_check.active():
            self._delivery_check.cancel()
        self._turn.finish()
        if self._opening is not None:
            self._opening.cancel()
        for leg in self._legs:
            if ending.clean:
                leg.close()
            else:
                leg.abort()
        self._sock.close()  # for a relay without legs; otherwise a leg has closed it
        for pump in self._pumps:
            pump.drop()
        self._legs = self._pumps = ()  # break the reference cycles
        self._broken = self._delivery_check = None
        self._on_end(self, ending)


def _address_of(sock: socket.socket) -> str:
    """Return the address or network that identifies the peer; empty if the connection is over."""
    try:
        return address_group(sock.getpeername()[0])
    except OSError:
        return ""

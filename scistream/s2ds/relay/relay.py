"""One connection of a channel: two legs, and a pump for each direction.

The application's leg is plain, the leg to the other gateway is TLS. Whatever ends abnormally on
one side ends with a reset on the other; a direction that ends well ends well on the other
side (protocol section 10.2). An element makes these and hears of their end.
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
from scistream.links.admission import place_of
from scistream.protocol.address import Address
from scistream.protocol.messages import CONS, PROD, Cause, Role
from scistream.s2ds.elements.start import WorkerStart
from scistream.s2ds.elements.target_names import Names
from scistream.s2ds.relay.buffers import Buffers, Pipes
from scistream.s2ds.relay.dead_peers import DeadPeerDetector
from scistream.s2ds.relay.flow import Flow
from scistream.s2ds.relay.leg import ConnectionBrokenError, DialRefusedError, Leg, ShortageError, explain, prepare
from scistream.s2ds.relay.plain import PlainLeg, dial
from scistream.s2ds.relay.poller import Poller, poller_of
from scistream.s2ds.relay.pump import PlainPump, Pump
from scistream.s2ds.relay.tcp_info import bytes_to_send, bytes_waiting, tcp_info
from scistream.s2ds.relay.tls import TlsLeg
from scistream.s2ds.relay.turns import Turn
from scistream.tls.files import CertificateError
from scistream.tls.stream_channels import server_name, verify_consumer, verify_producer

_OTHER = "the other gateway"

PIPE_BUFFERS = 4
"""A pipe is for this many times the bytes of a buffer: what is in it is not copied, and so leaves the caches alone."""


LITTLE_BUFFER = 65536
"""Bytes of the buffers that plain connections use while what comes fits into one."""


MOST_UNDER_ONE_KEY = 362 * 2**30
"""Bytes in one direction of a connection, beyond which RFC 8446 (section 5.5) advises new keys for AES-GCM."""


@dataclass(frozen=True)
class ChannelTarget:
    """How the connections of one channel are carried from now on.

    :param target: where to connect to.
    :param context: of the WAN leg: the server's side for the role PROD, the client's for CONS. None is a relay
        by itself, between two legs of plain TCP: a stream of the product always has a context.
    :param start: of ProdApp, at the producer's side.
    :param own: ports of this gateway that are targets all the same.
    :param others: where to connect to if the target does not answer: addresses of the same name.
    """

    uid: str
    role: Role
    channel: int
    target: Address
    context: SSL.Context | None
    start: WorkerStart = field(default_factory=WorkerStart)
    own: frozenset[int] = frozenset()
    others: tuple[Address, ...] = ()

    @cached_property
    def far(self) -> str:
        """Who is dialled, in words for a person."""
        places = " or ".join(map(str, (self.target, *self.others)))
        return f"{'ProdApp' if self.role == PROD else 'the other gateway'} at {places}"


@dataclass(frozen=True)
class RelayContext:
    """What the relays of an element share; times in seconds."""

    reactor: Any
    buffers: Buffers
    watch: DeadPeerDetector
    dial_timeout: float
    handshake_timeout: float
    wan_timeout: float
    lan_congestion: str
    wan_congestion: str
    names: Names
    poller: Poller = field(init=False)
    little: Buffers = field(init=False)
    pipes: Pipes = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "poller", poller_of(self.reactor))
        object.__setattr__(self, "little", Buffers(min(LITTLE_BUFFER, self.buffers.size)))
        object.__setattr__(self, "pipes", Pipes(PIPE_BUFFERS * self.buffers.size))


class Sample(NamedTuple):
    """How the connection over the WAN is doing.

    :param rtt: seconds, smoothed.
    :param retransmits: segments sent again since it was opened.
    :param delivery_rate: bytes a second, lately.
    :param waiting: bytes in the gateway's buffers and in those of both its sockets.
    :param unread: the same without those that are on their way.
    :param moved: bytes of both directions over the WAN since it was opened.
    """

    rtt: float
    retransmits: int
    delivery_rate: float
    waiting: int
    unread: int
    moved: int


class ConnectionEnding(NamedTuple):
    """How a relay has ended."""

    well: bool
    reason: str = ""
    cause: Cause = "gateway"
    detail: str = ""
    """For the log alone."""


class _Break(NamedTuple):
    """How a leg has ended. Not the exception: its traceback would keep the relay in memory."""

    leg: Leg
    reason: str
    cause: Cause


class Relay:
    """Carries one accepted connection from `start` until it ends well or is reset.

    :param sock: the accepted connection, owned from here on: from ConsApp for CONS, from the WAN for PROD.
    :param on_end: called once, with the relay and, unless it ended well, why it was reset; no reason where its stream
        was closed.
    :param on_open: called when both sides are joined.
    :param turn: for which it waits before it dials.
    """

    __slots__ = (
        "__weakref__",
        "_arming",
        "_broken",
        "_flows",
        "_is_key_worn",
        "_left",
        "_legs",
        "_looking",
        "_means",
        "_on_end",
        "_on_open",
        "_opening",
        "_progressed",
        "_pumps",
        "_since",
        "_sock",
        "_turn",
        "is_verified",
        "over",
        "source",
    )

    log = Logger()

    def __init__(
        self,
        means: RelayContext,
        arming: ChannelTarget,
        sock: socket.socket,
        to_producer: Flow,
        to_consumer: Flow,
        on_end: Callable[[Relay, ConnectionEnding], None],
        on_open: Callable[[Relay], None],
        turn: Turn,
    ) -> None:
        self._means = means
        self._arming = arming
        self._sock = sock
        self._flows = (to_producer, to_consumer)
        self._on_end = on_end
        self._on_open = on_open
        self._turn = turn
        self._legs: tuple[Leg, ...] = ()
        self._pumps: tuple[Pump, ...] = ()
        self._opening: Deferred[Any] | None = None
        self._broken: _Break | None = None  # what has ended it, while what came before is delivered
        self._since = self._progressed = 0.0  # when that began, and when the far end last took something
        self._left = (0, 0)
        self._looking: Any = None
        self._is_key_worn = False
        self.over = False
        self.source = _source(sock) if arming.role == PROD else ""  # the address that it came from over the WAN
        self.is_verified = False  # whether the far end of the WAN leg has shown who it is

    def start(self) -> None:
        """Join the two sides and begin to pump; nothing passes before the WAN peer is verified."""
        self._opening = Deferred.fromCoroutine(self._open())
        self._opening.addCallback(self._begin).addErrback(self._not_opened)

    def reset(self, reason: str, cause: Cause) -> None:
        """End both sides with a reset, at once. Idempotent.

        :param reason: a sentence in which nothing is different for each connection.
        """
        if self._arming.role == PROD and not self.is_verified and cause != "gateway":
            cause = "stranger"
        if not self.over:
            self._finish(ConnectionEnding(False, reason, cause))

    def broke(self, broken: ConnectionBrokenError) -> None:
        """A leg has ended abnormally: what came from it before goes on to the other side, then the reset does.

        Where the other side has broken as well, the reset goes at once.
        """
        leg = broken.leg
        if self.over:
            return
        if leg is not None and leg.is_opening and leg.reader is not None:
            leg.reader.turn()  # what makes the handshake whole may have come before the reset
            if self.over:
                return
        if leg is None or leg.is_opening:
            self.reset(str(broken), broken.cause)
            return
        if self._broken is None:
            self._broken = _Break(leg, str(broken), broken.cause)
            self._since = self._progressed = self._means.reactor.seconds()
            self._looking = self._means.reactor.callLater(timing.DELIVERED_LOOK, self._look)
        elif leg is not self._broken.leg:
            self.reset(self._broken.reason, self._broken.cause)
            return
        self._pass_on(leg)

    def _pass_on(self, leg: Leg) -> None:
        """Pass on what has come from a leg that broke, and nothing to it."""
        leg.readable = True
        for pump in self._pumps:  # there are none yet while the other side is being dialled
            if pump.sink is leg:
                pump.sink_broke()
        for pump in self._pumps:
            if pump.source is leg:
                pump.source_broke()

    def delivered(self) -> None:
        """What came before a leg broke is written: pass on the reset as soon as the far end has it."""
        if not self.over:
            self._look()

    def _look(self) -> None:
        """Pass on the reset if what came before it is delivered, or takes too long."""
        broken, now = self._broken, self._means.reactor.seconds()
        assert broken is not None
        is_delivered = False
        for pump in self._pumps:
            if pump.source is broken.leg:
                left = pump.held(), bytes_to_send(pump.sink.sock)
                is_delivered = pump.ended and not left[1]
                if left != self._left:
                    self._left, self._progressed = left, now
        limit = min(self._since + timing.DELIVER, self._progressed + timing.DELIVER_STALLED)
        if is_delivered or (now >= limit and self._pumps):
            self.reset(broken.reason, broken.cause)
            return
        if self._looking.active():
            self._looking.cancel()
        self._looking = self._means.reactor.callLater(timing.DELIVERED_LOOK, self._look)

    def has_heard(self) -> bool:
        """Whether any byte has come on the accepted connection."""
        return tcp_info(self._sock).received > 0

    def cut(self) -> None:
        """The same, since its stream is closed: that is not worth a word. Idempotent."""
        if not self.over:
            self._finish(ConnectionEnding(False))

    def sample(self) -> Sample:
        """How it is doing now; zeros while it is not joined, and when it is over."""
        if not self._pumps:
            return Sample(0.0, 0, 0.0, 0, 0, 0)
        wan = next(leg for leg in self._legs if leg.wan)
        info = tcp_info(wan.sock)
        if max(info.received, info.acknowledged) > MOST_UNDER_ONE_KEY and not self._is_key_worn:
            self._note_worn_key(wan)
        held = sum(pump.held() for pump in self._pumps)
        in_sockets = [bytes_waiting(leg.sock) for leg in self._legs]
        waiting = held + sum(one.in_all for one in in_sockets)
        unread = held + sum(one.unsent for one in in_sockets)
        moved = info.received + info.acknowledged
        return Sample(info.rtt, info.total_retrans, info.delivery_rate, waiting, unread, moved)

    def _note_worn_key(self, wan: Leg) -> None:
        self._is_key_worn = True
        if isinstance(wan, TlsLeg) and "GCM" in (wan.connection.get_cipher_name() or ""):
            self.log.warn(
                "Stream {uid} ({role}), channel {channel}: one connection has carried more than {gib} GiB under "
                "one key, beyond which new keys are advised for AES-GCM: let the application open a new connection "
                'from time to time, or set wan_cipher = "chacha20" in s2ds.toml of the producer\'s gateway',
                uid=self._arming.uid,
                role=self._arming.role,
                channel=self._arming.channel,
                gib=round(MOST_UNDER_ONE_KEY / 2**30),
            )

    async def _open(self) -> tuple[Leg, Leg]:
        # The way in is guarded before the way out is opened: ProdApp is not dialled for a stranger.
        if self._arming.role == CONS:
            prepare(self._sock, timing.LAN_SILENCE, self._means.lan_congestion)
            lan: Leg = self._plain(self._sock, "ConsApp", wan=False)
            await self._turn.come()
            return lan, await self._wan_out()
        prepare(self._sock, self._means.wan_timeout, self._means.wan_congestion)
        began = self._means.reactor.seconds()
        wan = await self._wan_in()
        took = self._means.reactor.seconds() - began
        await self._turn.come(took + timing.HANDSHAKE_AHEAD)
        return wan, self._plain(await self._dial_program(), self._arming.far, wan=False)

    async def _dial_program(self) -> socket.socket:
        """Connect to ProdApp, for which all connections of the channel may wait together while it starts."""
        reactor, start = self._means.reactor, self._arming.start
        while True:
            try:
                sock = await self._dial(timing.LAN_SILENCE, wan=False)
            except DialRefusedError:
                if not await start.wait(reactor, timing.DIAL_AGAIN, self._means.dial_timeout):
                    raise
            else:
                start.over()
                return sock

    def _begin(self, legs: tuple[Leg, Leg]) -> None:
        self._opening = None
        self._on_open(self)
        consumer, producer = legs
        to_producer, to_consumer = self._flows
        self._pumps = (self._pump(consumer, producer, to_producer), self._pump(producer, consumer, to_consumer))
        if self._broken is not None:  # before a turn, which would take the end of what it gave for a clean one
            self._pass_on(self._broken.leg)
        for pump in self._pumps:
            pump.turn()

    def _pump(self, source: Leg, sink: Leg, flow: Flow) -> Pump:
        means = self._means
        if isinstance(source, PlainLeg) and isinstance(sink, PlainLeg):
            return PlainPump(self, means.poller, source, sink, flow, means.buffers, means.little, means.pipes)
        return Pump(self, means.poller, source, sink, flow, means.buffers)

    async def _wan_out(self) -> Leg:
        uid, channel = self._arming.uid, self._arming.channel
        sock = await self._dial(self._means.wan_timeout, wan=True)
        if self._arming.context is None:
            return self._plain(sock, self._arming.far, wan=True)
        leg = self._tls(sock, self._arming.far, self._arming.context, server_name(uid, channel))
        await leg.handshake(self._means.reactor, self._means.handshake_timeout)
        verify_producer(leg.connection, uid, channel)
        return leg

    async def _wan_in(self) -> Leg:
        if self._arming.context is None:
            self.is_verified = True
            return self._plain(self._sock, _OTHER, wan=True)
        leg = self._tls(self._sock, _OTHER, self._arming.context, None)
        await leg.handshake(self._means.reactor, self._means.handshake_timeout)
        verify_consumer(leg.connection, self._arming.uid, self._arming.channel)
        self.is_verified = True
        return leg

    def _not_opened(self, failure: Failure) -> None:
        if failure.check(CancelledError):
            return
        wrong = failure.value
        if isinstance(wrong, ConnectionBrokenError | CertificateError):
            cause = wrong.cause if isinstance(wrong, ConnectionBrokenError) else "wan"
            if self._arming.role == CONS and cause in ("wan", "far-side"):
                self._not_reached(str(wrong))
            else:
                self.reset(str(wrong), cause)
        elif isinstance(wrong, OSError):
            self.reset(explain(wrong), "gateway")
        else:
            self.log.failure("A relay could not be opened", failure=failure)
            self.reset(f"it failed here: {type(wrong).__name__}", "gateway")

    def _not_reached(self, detail: str) -> None:
        """There is no connection to the other gateway. A user hears no more than that, or whoever may ask for streams
        could find out what listens where in the networks of this gateway; its log has the rest."""
        if not self.over:
            reason = f"{self._arming.far} was not reached; the log of this gateway says why"
            self._finish(ConnectionEnding(False, reason, "wan", detail))

    async def _dial(self, timeout: float, *, wan: bool) -> socket.socket:
        """Connect to the target; while this machine lacks what that needs, try again for `dial_timeout`."""
        means = self._means
        deadline = means.reactor.seconds() + means.dial_timeout
        while True:
            try:
                return await self._dial_any(timeout, deadline, wan=wan)
            except ShortageError:
                if means.reactor.seconds() + timing.DIAL_AGAIN > deadline:
                    raise
            await deferLater(means.reactor, timing.DIAL_AGAIN)

    async def _dial_any(self, timeout: float, deadline: float, *, wan: bool) -> socket.socket:
        """Connect to the first address of the target that answers; each gets its share of the time that is left."""
        means, target = self._means, self._arming.target
        congestion = means.wan_congestion if wan else means.lan_congestion
        addresses = await means.names.addresses(target, self._arming.own, self._arming.others)
        problem = ConnectionBrokenError(
            f"{self._arming.far} has no address that this gateway finds and may dial", "wan"
        )
        for tried, address in enumerate(addresses):
            left = max(0.1, deadline - means.reactor.seconds()) / (len(addresses) - tried)
            try:
                dialling = dial(
                    means.reactor, means.poller, address, self._arming.far, left, timeout, congestion, wan=wan
                )
                self._turn.over()  # the connection request is on its way
                sock = await dialling
            except ShortageError:
                raise
            except ConnectionBrokenError as broken:
                if not isinstance(problem, DialRefusedError):  # who refuses may only not have started yet
                    problem = broken
            else:
                means.names.prefer(target, address)
                return sock
        raise problem

    def _plain(self, sock: socket.socket, far: str, *, wan: bool) -> PlainLeg:
        leg = PlainLeg(self._means.poller, sock, self._means.watch, self, far, wan=wan)
        self._legs += (leg,)
        return leg

    def _tls(self, sock: socket.socket, far: str, context: SSL.Context, name: str | None) -> TlsLeg:
        leg = TlsLeg(self._means.poller, sock, self._means.watch, self, far, context, name)
        self._legs += (leg,)
        return leg

    def direction_ended(self) -> None:
        """A pump has passed on the end of its direction."""
        if all(pump.ended for pump in self._pumps):
            self._finish(ConnectionEnding(True))

    def _finish(self, ending: ConnectionEnding) -> None:
        self.over = True
        if self._looking is not None and self._looking.active():
            self._looking.cancel()
        self._turn.over()
        if self._opening is not None:
            self._opening.cancel()
        for leg in self._legs:
            if ending.well:
                leg.close()
            else:
                leg.abort()
        self._sock.close()  # a leg has it, unless it never came to one
        for pump in self._pumps:
            pump.drop()
        self._legs = self._pumps = ()  # which know this relay
        self._broken = self._looking = None
        self._on_end(self, ending)


def _source(sock: socket.socket) -> str:
    """What counts as one address of the far end; empty if the connection is over."""
    try:
        return place_of(sock.getpeername()[0])
    except OSError:
        return ""

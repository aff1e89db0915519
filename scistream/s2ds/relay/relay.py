"""One connection of a channel: two legs, and a pump for each direction.

The application's leg is plain, the leg to the other gateway is TLS. Whatever ends abnormally on
one side ends with a reset on the other; a direction that ends well ends well on the other
side. Section 10 of the protocol. An element makes these and hears of their end.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from OpenSSL import SSL
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from scistream.s2ds.relay.buffers import Buffers
from scistream.s2ds.relay.flow import Flow
from scistream.s2ds.relay.leg import EOF, WANT, Broken, Leg, Refused, peer_of, prepare
from scistream.s2ds.relay.plain import PlainLeg, dial
from scistream.s2ds.relay.tls import TlsLeg
from scistream.s2ds.relay.watch import Watch
from scistream.security.stream import server_name, verify_consumer, verify_producer
from scistream.security.tls import CertificateProblem
from scistream.wire.address import Address
from scistream.wire.messages import CONS, Role

TURN = 1024 * 1024
"""Bytes that one direction of one connection may move before others have their turn."""

SMALL = 8192
"""A read of less than this has most likely emptied the connection: wait before reading again."""

LAN_PATIENCE = 60.0
"""Seconds until an idle application whose host has vanished is noticed."""


DIAL_AGAIN = 0.1
"""Seconds between two tries to reach a ProdApp that does not listen yet."""


@dataclass(frozen=True)
class Arming:
    """How the connections of one channel are carried from now on.

    :param target: where to connect to: a numeric address.
    :param context: of the WAN leg: the server's side for the role PROD, the client's for CONS.
    """

    uid: str
    role: Role
    channel: int
    target: Address
    context: SSL.Context | None


@dataclass(frozen=True)
class Means:
    """What the relays of an element share; times in seconds."""

    reactor: Any
    buffers: Buffers
    watch: Watch
    dial_timeout: float
    handshake_timeout: float
    wan_timeout: float


class Sample(NamedTuple):
    """A"""

    rtt: float
    retransmits: int
    delivery_rate: float
    waiting: int


class Relay:
    """Carries one accepted connection from `start` until it ends well or is reset.

    :param sock: the accepted connection, owned from here on: from ConsApp for CONS, from the WAN for PROD.
    :param on_end: called once, with the relay and whether it ended well.
    :param on_open: called when both sides are joined.
    """

    log = Logger()

    def __init__(
        self,
        means: Means,
        arming: Arming,
        sock: socket.socket,
        to_producer: Flow,
        to_consumer: Flow,
        on_end: Callable[[Relay, bool], None],
        on_open: Callable[[Relay], None],
    ) -> None:
        self._means = means
        self._arming = arming
        self._sock = sock
        self._flows = (to_producer, to_consumer)
        self._on_end = on_end
        self._on_open = on_open
        self._legs: list[Leg] = []
        self._pumps: list[_Pump] = []
        self._opening: Deferred[Any] | None = None
        self._peer = peer_of(sock)
        self.over = False
        self.is_verified = False
        """Whether the far end of the WAN leg has shown who it is."""

    def start(self) -> None:
        """Join the two sides and begin to pump; nothing passes before the WAN peer is verified."""
        self._opening = Deferred.fromCoroutine(self._open())
        self._opening.addCallback(self._begin).addErrback(self._not_opened)

    def reset(self, reason: str, *, report: bool = True) -> None:
        """End both sides with a reset, at once. Idempotent."""
        if self.over:
            return
        if report:
            self.log.info(
                "Connection from {peer} on channel {channel} of stream {uid} ({role}) was reset: {reason}",
                uid=self._arming.uid,
                role=self._arming.role,
                channel=self._arming.channel,
                peer=self._peer,
                reason=reason,
            )
        self._finish(well=False)

    def sample(self) -> Sample:
        """What TCP says."""
        return Sample(0.0, 0, 0.0, 0)

    async def _open(self) -> tuple[Leg, Leg]:
        # The way in is guarded before the way out is opened: ProdApp is not dialled for a stranger.
        if self._arming.role == CONS:
            lan = self._plain(self._sock)
            wan = await self._wan_out()
        else:
            wan = await self._wan_in()
            lan = self._plain(await self._dial_program())
        return (lan, wan) if self._arming.role == CONS else (wan, lan)

    async def _dial_program(self) -> socket.socket:
        """Connect to ProdApp, which may still be starting: where nobody listens, try again for `dial_timeout`."""
        reactor = self._means.reactor
        deadline = reactor.seconds() + self._means.dial_timeout
        while True:
            try:
                return await self._dial(LAN_PATIENCE)
            except Refused:
                if reactor.seconds() + DIAL_AGAIN > deadline:
                    raise
            await deferLater(reactor, DIAL_AGAIN)

    def _begin(self, legs: tuple[Leg, Leg]) -> None:
        self._on_open(self)
        consumer, producer = legs
        to_producer, to_consumer = self._flows
        self._pumps.append(_Pump(self, consumer, producer, to_producer, self._means))
        self._pumps.append(_Pump(self, producer, consumer, to_consumer, self._means))
        for pump in self._pumps:
            pump.turn()

    async def _wan_out(self) -> TlsLeg:
        uid, channel = self._arming.uid, self._arming.channel
        leg = self._tls(await self._dial(self._means.wan_timeout), server_name(uid, channel))
        await leg.handshake(self._means.handshake_timeout)
        verify_producer(leg.connection, uid, channel)
        return leg

    async def _wan_in(self) -> TlsLeg:
        leg = self._tls(self._sock, None)
        await leg.handshake(self._means.handshake_timeout)
        verify_consumer(leg.connection, self._arming.uid, self._arming.channel)
        self.is_verified = True
        return leg

    def _not_opened(self, failure: Failure) -> None:
        if failure.check(CancelledError):
            return
        if not failure.check(Broken, CertificateProblem, OSError):
            self.log.failure("A relay could not be opened", failure=failure)
        self.reset(str(failure.value))

    def _dial(self, patience: float) -> Deferred[socket.socket]:
        return dial(self._means.reactor, self._arming.target, self._means.dial_timeout, patience)

    def _plain(self, sock: socket.socket) -> PlainLeg:
        prepare(sock, LAN_PATIENCE)
        leg = PlainLeg(self._means.reactor, sock, self._means.watch, self.reset)
        self._legs.append(leg)
        return leg

    def _tls(self, sock: socket.socket, name: str | None) -> TlsLeg:
        prepare(sock, self._means.wan_timeout)
        assert self._arming.context is not None
        leg = TlsLeg(self._means.reactor, sock, self._means.watch, self.reset, self._arming.context, name)
        self._legs.append(leg)
        return leg

    def direction_ended(self) -> None:
        """A pump has passed on the end of its direction."""
        if all(pump.ended for pump in self._pumps):
            self._finish(well=True)

    def _finish(self, *, well: bool) -> None:
        self.over = True
        if self._opening is not None:
            self._opening.cancel()
        for leg in self._legs:
            if well:
                leg.close()
            else:
                leg.abort()
        self._sock.close()  # a leg has it, unless it never came to one
        for pump in self._pumps:
            pump.drop()
        self._on_end(self, well)


class _Pump:
    """One direction: fill a buffer from the source, empty it into the sink, and so on."""

    __slots__ = (
        "_buffer",
        "_buffers",
        "_end",
        "_eof",
        "_flow",
        "_queued",
        "_reactor",
        "_relay",
        "_sink",
        "_source",
        "_start",
        "ended",
    )

    def __init__(self, relay: Relay, source: Leg, sink: Leg, flow: Flow, means: Means) -> None:
        self._relay = relay
        self._source = source
        self._sink = sink
        self._flow = flow
        self._buffers = means.buffers
        self._reactor = means.reactor
        self._buffer: memoryview | None = None  # held only while bytes are in flight
        self._start = self._end = 0  # which part of it is still to be written
        self._eof = False
        self._queued = False  # waits for the stream's rate
        self.ended = False
        source.on_readable = sink.on_writable = self.turn

    def turn(self) -> None:
        """Move what can be moved now, up to a limit, and say what to wait for."""
        if self._relay.over or self._queued or self.ended:
            return
        try:
            self._move()
        except Broken as broken:
            self._relay.reset(str(broken))
        except Exception as fault:
            self._relay.log.failure("A relay failed")
            self._relay.reset(f"it failed here: {fault!r}")

    def drop(self) -> None:
        """Let go of what was in flight."""
        if self._buffer is not None:
            self._buffers.give_back(self._buffer)
            self._buffer = None

    def _move(self) -> None:
        left = TURN
        while self._empty():
            if self._eof:
                self._end_direction()
                return
            if left <= 0:
                self._wait_for_source()
                if self._source.pending():  # of which the reactor knows nothing
                    self._reactor.callLater(0, self.turn)
                return
            count = self._fill()
            if count == WANT:
                self._wait_for_source()
                return
            if count < SMALL and not self._source.pending():
                left = 0
            left -= count

    def _empty(self) -> bool:
        """Write what is held; False when the sink has no more room."""
        if self._buffer is None:
            return True
        while self._start < self._end:
            count = self._sink.write(self._buffer[self._start : self._end])
            if not count:
                self._wait_for_sink()
                return False
            self._start += count
            self._flow.moved(count)
        self.drop()
        return True

    def _fill(self) -> int:
        """Read into a buffer of one's own: how much, `WANT` or `EOF`."""
        throttle = self._flow.throttle
        allowed = throttle.take(self._buffers.size)
        if not allowed:
            self._queued = True
            throttle.wait(self._resume)
            return WANT
        buffer = self._buffers.borrow()
        count = WANT
        try:
            count = self._source.read_into(buffer[:allowed])
        finally:
            throttle.give_back(allowed - max(count, 0))
            if count > 0:
                self._buffer, self._start, self._end = buffer, 0, count
            else:
                self._buffers.give_back(buffer)
        self._eof = count == EOF
        return count

    def _end_direction(self) -> None:
        self._source.want_read(False)
        if not self._sink.finish_writing():
            self._sink.want_write(True)
            return
        self._sink.want_write(False)
        self.ended = True
        self._relay.direction_ended()

    def _resume(self) -> None:
        self._queued = False
        self.turn()

    def _wait_for_source(self) -> None:
        self._sink.want_write(False)
        self._source.want_read(not self._queued)

    def _wait_for_sink(self) -> None:
        self._source.want_read(False)
        self._sink.want_write(True)

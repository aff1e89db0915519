"""One connection of a channel: two legs, and a pump for each direction.

The leg to the application is plain TCP, and the leg to the other gateway is TLS. An abnormal end of one side becomes a
reset of the other; a clean end of a direction becomes a clean end (protocol section 10.2). Elements create relays.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from scistream import timing
from scistream.protocol.address import Address
from scistream.protocol.connect import MAX_LINE, Connect, accepted, encode_connect, read_answer
from scistream.protocol.errors import BadMessageError, ErrorCode, printable
from scistream.protocol.messages import CONS, MAX_REASON, Cause, Error
from scistream.s2ds.relay.context import ChannelTarget, ConnectionEnding, RelayContext
from scistream.s2ds.relay.dialling import dial_target
from scistream.s2ds.relay.flow import Flow
from scistream.s2ds.relay.leg import (
    ConnectionBrokenError,
    ConnectRefusedError,
    DialRefusedError,
    Leg,
    ShortageError,
    explain,
    prepare,
)
from scistream.s2ds.relay.plain import PlainLeg
from scistream.s2ds.relay.pump import PlainPump, Pump
from scistream.s2ds.relay.tcp_info import PathInfo, bytes_to_send, bytes_waiting, connection_info, paths_of
from scistream.s2ds.relay.tickets import Tickets, keep_ticket, ticket_for
from scistream.s2ds.relay.tls import TlsLeg
from scistream.s2ds.relay.turns import Turn
from scistream.s2ds.relay.wan import OUTSIDE, WanConnection, refuse_connect

MOST_UNDER_ONE_KEY = 362 * 2**30
"""The number of bytes in one direction after which RFC 8446 (section 5.5) advises new keys for AES-GCM."""


class Sample(NamedTuple):
    """The figures of one relay and its connection over the WAN.

    :param rtt: the smoothed round-trip time in seconds.
    :param retransmits: segments retransmitted since the connection was opened.
    :param delivery_rate: the latest rate in bytes per second.
    :param waiting: bytes in the gateway's buffers and in the buffers of both sockets.
    :param unread: the same without sent bytes that are not acknowledged.
    :param moved: bytes in both directions over the WAN since the connection was opened.
    :param is_held: whether it gets no large receive window on the WAN, since there is no memory for more of them.
    :param paths: the paths of a connection that may use several.
    """

    rtt: float
    retransmits: int
    delivery_rate: float
    waiting: int
    unread: int
    moved: int
    is_held: bool
    paths: Sequence[PathInfo] = ()


class WanSource(Protocol):
    """Where a relay of the consumer's gateway finds its connection to the other gateway."""

    def claim(self) -> WanConnection | None:
        """Return a ready connection, which is the caller's now; None if there is none."""

    def wait_for_ready(self) -> Deferred[WanConnection]:
        """Fire with a ready connection once the other gateway has opened one; fail with `ConnectionBrokenError`."""


class _Break(NamedTuple):
    """The abnormal end of a leg. The exception is not kept, since its traceback would keep the relay in memory."""

    leg: Leg
    reason: str
    cause: Cause


class Relay:
    """A relay that carries one connection from `start` until it ends cleanly or is reset.

    :param on_end: called once, with the relay and its ending, which has no reason if the stream was closed.
    :param on_open: called when both sides are joined.
    :param turn: the turn to wait for before dialling.
    :param number: the number of the connection among those of its channel; 0 if their order does not matter.
    :param sock: at the consumer's gateway: the connection from ConsApp, which the relay owns.
    :param source: at the consumer's gateway: where connections to the other gateway come from.
    :param wan: at the producer's gateway: the connection from the other gateway, which the relay takes.
    """

    __slots__ = (
        "__weakref__",
        "_answer_timer",
        "_broken",
        "_broken_at",
        "_context",
        "_delivery_check",
        "_dialling",
        "_flows",
        "_is_key_overused",
        "_legs",
        "_number",
        "_on_end",
        "_on_open",
        "_opening",
        "_owes_answer",
        "_progressed_at",
        "_pumps",
        "_sock",
        "_source",
        "_target",
        "_turn",
        "_undelivered",
        "_wan",
        "last_paths",
        "over",
    )

    log = Logger()

    def __init__(
        self,
        context: RelayContext,
        target: ChannelTarget,
        to_producer: Flow,
        to_consumer: Flow,
        on_end: Callable[[Relay, ConnectionEnding], None],
        on_open: Callable[[Relay], None],
        turn: Turn,
        number: int,
        *,
        sock: socket.socket | None = None,
        source: WanSource | None = None,
        wan: WanConnection | None = None,
    ) -> None:
        self._context = context
        self._target = target
        self._sock = sock
        self._source = source
        self._wan = wan
        self._number = number
        self._flows = (to_producer, to_consumer)
        self._on_end = on_end
        self._on_open = on_open
        self._turn = turn
        self._legs: tuple[Leg, ...] = ()
        self._pumps: tuple[Pump, ...] = ()
        self._opening: Deferred[Any] | None = None
        self._dialling: WanConnection | None = None  # while it opens, for this relay alone
        self._owes_answer = False  # Connect has arrived, and is not answered
        self._answer_timer: Any = None  # while the answer to Connect is awaited
        self._broken: _Break | None = None  # set while the bytes that came before a leg broke are delivered
        self._broken_at = self._progressed_at = 0.0  # when the leg broke, and when the other end last took bytes
        self._undelivered = (0, 0)
        self._delivery_check: Any = None
        self._is_key_overused = False
        self.over = False
        self.last_paths: Sequence[PathInfo] = ()
        """The paths of the connection over the WAN as they were at its end."""

    def start(self) -> None:
        """Connect the other side and start the pumps; no byte passes before the WAN peer is verified."""
        self._opening = Deferred.fromCoroutine(self._open())
        self._opening.addCallback(self._start_pumps).addErrback(self._open_failed)

    def reset(self, reason: str, cause: Cause) -> None:
        """Reset both sides at once. Idempotent.

        :param reason: a sentence that is the same for all connections reset for this reason.
        """
        if not self.over:
            self._finish(ConnectionEnding(False, reason, cause))

    def broke(self, broken: ConnectionBrokenError) -> None:
        """Deliver the bytes that came before a leg broke, then reset the other side.

        If the other side breaks as well, reset it at once.
        """
        leg = broken.leg
        if self.over:
            return
        if leg is None:
            self.reset(str(broken), broken.cause)
            return
        if self._broken is None:
            self._broken = _Break(leg, str(broken), broken.cause)
            self._broken_at = self._progressed_at = self._context.reactor.seconds()
            self._delivery_check = self._context.reactor.callLater(timing.DELIVERED_POLL, self._check_delivery)
        elif leg is not self._broken.leg:
            self.reset(self._broken.reason, self._broken.cause)
            return
        elif isinstance(broken, ConnectRefusedError):  # it arrived before the connection ended, and tells why
            self._broken = _Break(leg, str(broken), broken.cause)
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

    def cut(self) -> None:
        """Reset both sides without a reason, since the stream is closed. Idempotent."""
        if not self.over:
            self._finish(ConnectionEnding(False))

    def drop_outside(self, allowed: Callable[[Address], bool]) -> None:
        """Reset the connection if it still waits for another gateway at an address that is not allowed any more."""
        if self._dialling is not None and not self._dialling.is_inside(allowed):
            self.reset(OUTSIDE, "gateway")

    def sample(self) -> Sample:
        """Return the current figures; all are zero before both sides are joined and after the end."""
        if not self._pumps:
            return Sample(0.0, 0, 0.0, 0, 0, 0, False)
        for leg in self._legs:
            leg.enlarge_overflowed_buffer()
        wan = next(leg for leg in self._legs if leg.wan)
        info, paths = connection_info(wan.sock)
        if max(info.received, info.acknowledged) > MOST_UNDER_ONE_KEY and not self._is_key_overused:
            self._warn_of_key_use(wan)
        held = sum(pump.held() for pump in self._pumps)
        in_sockets = [bytes_waiting(leg.sock) for leg in self._legs]
        waiting = held + sum(one.in_all for one in in_sockets)
        unread = held + sum(one.unsent for one in in_sockets)
        moved = info.received + info.acknowledged
        return Sample(info.rtt, info.total_retrans, info.delivery_rate, waiting, unread, moved, wan.is_held, paths)

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
        if self._wan is None:
            assert self._sock is not None
            prepare(self._sock, timing.LAN_SILENCE, self._context.lan_congestion)
            lan = self._plain_leg(self._sock, "ConsApp")
            await self._turn.wait()
            return lan, await self._connect()
        wan = self._take(self._wan)
        self._owes_answer = self._wan.speaks_connect
        await self._turn.wait(self._wan.seconds_to_open + timing.HANDSHAKE_AHEAD)
        program = self._plain_leg(await self._dial_program(), self._target.program)
        if self._owes_answer:
            self._owes_answer = False
            assert isinstance(wan, TlsLeg)
            try:
                wan.write_line(accepted(self._target.uid, ticket_for(self._target.tickets, wan.connection)))
            except ConnectionBrokenError as broken:
                self.broke(broken)
        return wan, program

    async def _connect(self) -> Leg:
        """Return the leg to the other gateway, on which Connect is sent and not yet answered."""
        assert self._source is not None
        while True:
            ready = self._source.claim()
            wan = ready or await self._wait_for_wan(self._source)
            leg = self._take(wan)
            if not wan.speaks_connect:
                return leg
            assert isinstance(leg, TlsLeg)
            connect = Connect(
                uid=self._target.uid,
                channel=self._target.channel,
                number=self._number,
                ticket=ticket_for(wan.target.tickets, leg.connection),
            )
            try:
                leg.write_line(encode_connect(connect))
            except ConnectionBrokenError:
                if ready is None:
                    raise
                self._legs = self._legs[:-1]
                leg.abort()
                continue  # nothing was sent on it: another connection may do
            self._turn.finish()
            leg.first_line = partial(self._read_answer, wan.target.tickets)
            timeout = self._context.dial_timeout + self._context.wan_timeout
            self._answer_timer = self._context.reactor.callLater(timeout, self._not_answered, timeout)
            return leg

    async def _wait_for_wan(self, source: WanSource) -> WanConnection:
        if not self._target.dials_wan:
            return await source.wait_for_ready()
        opened: Deferred[WanConnection] = Deferred()
        self._dialling = WanConnection(self._context, self._target, _Dialled(opened))
        self._dialling.dial(self._turn.finish, must_speak_connect=False)
        wan = await opened
        self._dialling = None
        return wan

    def _take(self, wan: WanConnection) -> Leg:
        leg = wan.take(self)
        self._legs += (leg,)
        return leg

    def _read_answer(self, tickets: Tickets | None) -> bool:
        """Read the answer to Connect. Return False if it has not arrived.

        :param tickets: those of the connection, whose target may be a later one than that of the relay.
        :raises ConnectionBrokenError: if the other gateway refuses, or sends something else.
        """
        leg = next(leg for leg in self._legs if leg.wan)
        assert isinstance(leg, TlsLeg)
        line = leg.read_line(MAX_LINE)
        if line is None:
            return False
        self._stop_waiting_for_answer()
        leg.first_line = None
        try:
            answer = read_answer(line)
        except BadMessageError as wrong:
            reason = f"{leg.peer_name} did not answer Connect: {wrong.msg}"
            raise ConnectRefusedError(reason[:MAX_REASON], "far-side", leg) from None
        if isinstance(answer, Error):
            raise ConnectRefusedError(printable(answer.msg)[:MAX_REASON], "far-side", leg)
        keep_ticket(tickets, leg.connection, answer.ticket)
        return True

    def _not_answered(self, timeout: float) -> None:
        self.reset(f"{self._target.gateway} did not answer Connect within {timeout:g} s", "far-side")

    def _stop_waiting_for_answer(self) -> None:
        timer, self._answer_timer = self._answer_timer, None
        if timer is not None and timer.active():
            timer.cancel()

    async def _dial_program(self) -> socket.socket:
        """Connect to ProdApp; while it starts, all connections of the channel wait for it together."""
        context, start = self._context, self._target.start
        while True:
            try:
                sock = await dial_target(context, self._target, lambda _: self._turn.finish(), wan=False)
            except DialRefusedError:
                if not await start.wait(context.reactor, timing.DIAL_AGAIN, context.dial_timeout):
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

    def _open_failed(self, failure: Failure) -> None:
        if self.over or failure.check(CancelledError):
            return
        wrong = failure.value
        if isinstance(wrong, ConnectionBrokenError):
            if self._target.role == CONS and wrong.cause in ("wan", "far-side"):
                self._fail_unreached(str(wrong))
            else:
                self._refuse(_code_for(wrong), str(wrong))
                self.reset(str(wrong), wrong.cause)
        elif isinstance(wrong, OSError):
            self._refuse("no-capacity", f"the producer's gateway lacks something: {explain(wrong)}")
            self.reset(explain(wrong), "gateway")
        else:
            self.log.failure("Failed to open a relay", failure=failure)
            self._refuse("gateway-failed", "the producer's gateway has failed; see its log")
            self.reset(f"the gateway failed with {type(wrong).__name__}", "gateway")

    def _refuse(self, code: ErrorCode, reason: str) -> None:
        """Answer Connect with an ERROR, unless it is answered."""
        if self._owes_answer:
            self._owes_answer = False
            wan = next(leg for leg in self._legs if leg.wan)
            self._legs = tuple(leg for leg in self._legs if leg is not wan)
            refuse_connect(self._context, wan, self._target.uid, code, reason)

    def _fail_unreached(self, detail: str) -> None:
        """End a connection that did not reach the other gateway.

        Only the log has the details: otherwise users could scan the networks of this gateway with streams.
        """
        if not self.over:
            reason = f"{self._target.gateway} could not be reached; see the log of this gateway for the reason"
            self._finish(ConnectionEnding(False, reason, "wan", detail))

    def _plain_leg(self, sock: socket.socket, peer_name: str) -> PlainLeg:
        leg = PlainLeg(self._context.poller, sock, self._context.dead_peers, self, peer_name, wan=False)
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
        self._stop_waiting_for_answer()
        if self._opening is not None:
            self._opening.cancel()
        if self._dialling is not None:
            self._dialling.abort()
        for leg in self._legs:
            if leg.wan and leg.sock.fileno() != -1:
                self.last_paths = paths_of(leg.sock)
            if ending.clean:
                leg.close()
            else:
                leg.abort()
            if isinstance(leg, TlsLeg):
                leg.first_line = None
        if self._sock is not None:
            self._sock.close()  # for a relay without legs; otherwise a leg has closed it
        for pump in self._pumps:
            pump.drop()
        self._legs = self._pumps = ()  # break the reference cycles
        self._broken = self._delivery_check = self._source = self._wan = self._dialling = None
        self._on_end(self, ending)


class _Dialled:
    """The owner of a connection that one relay dials for itself."""

    def __init__(self, opened: Deferred[WanConnection]) -> None:
        self._opened = opened

    def wan_opened(self, wan: WanConnection) -> None:
        """Give the connection to the relay."""
        self._opened.callback(wan)

    def wan_connects(self, wan: WanConnection, connect: Connect) -> None:
        """Do nothing: only the producer's gateway gets Connect, and it holds its own connections."""

    def wan_ended(self, wan: WanConnection, ending: ConnectionEnding) -> None:
        """Tell the relay why."""
        self._opened.errback(Failure(ConnectionBrokenError(ending.reason, ending.cause)))


def _code_for(broken: ConnectionBrokenError) -> ErrorCode:
    """Return the code of the ERROR that answers Connect if ProdApp cannot be connected."""
    if isinstance(broken, ShortageError) or broken.cause == "gateway":
        return "no-capacity"
    return "target-refused" if isinstance(broken, DialRefusedError) else "timeout"

"""The asking end of a probe, at the consumer's gateway: it stands where ConsApp would connect, and measures.

A `Probe` hands connections of its own to the element, which carries them like any other: what is found is what an
application would find. First one connection a channel, with pings on one of them and test data to the consumer on
all; then new ones, with test data to the producer. Where a channel has no connection, knock.py finds out what is in
the way. The other end is in responder.py, which has the conversation.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, DeferredList
from twisted.internet.defer import TimeoutError as TookTooLong
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from scistream import timing
from scistream.protocol.address import Address
from scistream.protocol.messages import MAX_TEXT, ProbeResult
from scistream.s2ds.probe.diagnose import comes_from, diagnose_connection
from scistream.s2ds.probe.responder import (
    GIVE,
    GREETING,
    PING,
    PING_SIZE,
    READY,
    REPORT,
    TAKE,
    VERSION,
    Received,
    Sending,
)
from scistream.s2ds.probe.test_data import BLOCK, Pattern, start_of

PINGS = 20
WARM_UP = 0.25
"""The part of the time of a measurement that does not count: TCP has not got up to speed then."""
MBIT = 125_000


class UnreachedError(Exception):
    """The probe has failed. Its text says why, for a person."""


class WrongBytesError(UnreachedError):
    """What arrived is not what was sent."""


class Probe:
    """Measures between this gateway and the producer's, from `start` until `result` is not running any more.

    :param carry: takes over one end of a connection, as if ConsApp had opened it to that channel.
    :param targets: where each channel leads to at the producer's gateway.
    :param seconds: of test data, each way.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        uid: str,
        carry: Callable[[int, socket.socket], None],
        targets: dict[int, Address],
        seconds: float,
    ) -> None:
        self.result = ProbeResult(state="running")
        self._reactor = reactor
        self._uid = uid
        self._carry = carry
        self._targets = targets
        self._seconds = seconds
        self._pattern = Pattern(uid)
        self._ends: list[_End] = []
        self._measuring: Deferred[ProbeResult] | None = None

    def start(self) -> None:
        """Begin."""
        self._measuring = Deferred.fromCoroutine(self._measure())
        self._measuring.addCallbacks(self._done, self._failed)

    def stop(self) -> None:
        """Let go of everything. Idempotent."""
        if self._measuring is not None:
            self._measuring.cancel()
        self._drop()

    def _done(self, result: ProbeResult) -> None:
        self.result = result
        self._drop()

    def _failed(self, failure: Failure) -> None:
        if failure.check(CancelledError):
            return
        if not failure.check(UnreachedError, OSError):
            self.log.failure("A probe failed", failure=failure)
        self.log.info("The probe of stream {uid} failed: {reason}", uid=self._uid, reason=str(failure.value))
        right = not failure.check(WrongBytesError)
        self.result = ProbeResult(state="failed", reason=str(failure.value)[:MAX_TEXT], bytes_right=right)
        self._drop()

    def _drop(self) -> None:
        ends, self._ends = self._ends, []
        for end in ends:
            end.abort()

    # -- the measurement

    async def _measure(self) -> ProbeResult:
        connect = await self._open()
        trips = await self._ping(self._ends[0])
        round_trip = median(trips)
        to_consumer = await self._give(round_trip)
        await self._open()
        to_producer = await self._take(round_trip)
        return ProbeResult(
            state="done",
            connect_ms=round(connect * 1e3, 3),
            rtt_ms=round(round_trip * 1e3, 3),
            mbit_to_consumer=round(to_consumer.mbit, 3),
            mbit_to_producer=round(to_producer.mbit, 3),
            bytes=to_consumer.bytes + to_producer.bytes,
        )

    async def _open(self) -> float:
        """A connection on each channel, answered by the other end; the longest that one took, in seconds."""
        self._drop()
        for channel in self._targets:
            self._connect(channel)
        late = self._reactor.callLater(timing.PROBE_CONNECT, self._drop_silent)
        try:
            await DeferredList([end.ready for end in self._ends], consumeErrors=True)
        finally:
            if late.active():
                late.cancel()
        dead = [end for end in self._ends if end.lost is not None]
        if dead:
            raise UnreachedError(await self._why_not(dead))
        return max(end.seconds_to_answer for end in self._ends)

    def _connect(self, channel: int) -> None:
        ours, carried = tcp_pair()
        end = _End(self._reactor, channel)
        try:
            self._reactor.adoptStreamConnection(ours.fileno(), socket.AF_INET, Factory.forProtocol(lambda: end))
        except OSError:
            carried.close()
            raise
        finally:
            ours.close()  # the reactor has a copy
        self._ends.append(end)
        self._carry(channel, carried)

    def _drop_silent(self) -> None:
        for end in self._ends:
            if not end.ready.called:
                end.abort()

    async def _why_not(self, dead: Sequence[_End]) -> str:
        """:param dead: ends without a connection to the other gateway."""
        first = dead[0]
        found = first.complaint
        if not found:
            # Its text is for operators: a user could find out with it what listens where in the networks of a gateway.
            target = self._targets[first.channel]
            self.log.warn("uid={uid} {found}", uid=self._uid, found=await diagnose_connection(self._reactor, target))
            found = (
                f"no gateway was reached at {target} from {comes_from(target)}. The other facility has to open all "
                "`ports` of its gateway to this one and to have it in its `wan_networks`, and `advertise` in its [wan] "
                "has to be an address that reaches it; the logs of both gateways say more"
            )
        if len(self._ends) == 1:
            return found
        channels = ", ".join(str(end.channel) for end in dead[:10]) + (", ..." if len(dead) > 10 else "")
        count = f"{len(dead)} of {len(self._ends)} channels ({channels})"
        return f"{count} have no connection. Channel {first.channel}: {found}"

    async def _ping(self, end: _End) -> list[float]:
        trips: list[float] = []
        started = self._reactor.seconds()
        while len(trips) < PINGS and (not trips or self._reactor.seconds() - started < timing.PROBE_PING):
            sent = self._reactor.seconds()
            await self._in_time(end.ping(), timing.PROBE_PING, "a small message did not come back")
            trips.append(self._reactor.seconds() - sent)
        return trips

    async def _in_time(self, waiting: Deferred[None], seconds: float, what: str) -> None:
        try:
            await waiting.addTimeout(seconds, self._reactor)
        except TookTooLong:
            raise UnreachedError(f"{what} within {seconds:g} s") from None

    async def _give(self, round_trip: float) -> _Found:
        """Test data to the consumer."""
        begun = self._reactor.seconds()
        for end in self._ends:
            end.start_receiving(self._pattern)
        await self._wait_until(begun + round_trip + self._seconds * WARM_UP)
        before, since = sum(end.count for end in self._ends), self._reactor.seconds()
        await self._wait_until(begun + round_trip + self._seconds)
        self._check("to the consumer")
        elapsed = self._reactor.seconds() - since
        moved = sum(end.count for end in self._ends) - before
        await self._end_all()
        self._check("to the consumer", ended=True)
        return _Found(_mbit(moved, elapsed), sum(end.count for end in self._ends))

    async def _take(self, round_trip: float) -> _Found:
        """Test data to the producer; the other end counts it, and its word takes half a round trip to come."""
        begun = self._reactor.seconds()
        for end in self._ends:
            end.start_sending(self._pattern)
        await self._wait_until(begun + round_trip + self._seconds * WARM_UP)
        before = [end.reported for end in self._ends]
        await self._wait_until(begun + round_trip + self._seconds)
        self._check("to the producer")
        mbit = sum(
            _mbit(end.reported.count - old.count, end.reported.at - (old.at or begun + round_trip))
            for end, old in zip(self._ends, before, strict=True)
        )
        for end in self._ends:
            end.stop_sending()
        await self._end_all()
        self._check("to the producer", ended=True)
        return _Found(mbit, sum(end.reported.count for end in self._ends))

    async def _wait_until(self, when: float) -> None:
        while (left := when - self._reactor.seconds()) > 0:
            await deferLater(self._reactor, min(left, timing.PROBE_STEP))
            self._check("")

    def _check(self, where: str, *, ended: bool = False) -> None:
        """:raises UnreachedError: if a connection broke, bytes were wrong, or none came."""
        for end in self._ends:
            if end.lost is not None and not ended:
                raise UnreachedError(
                    f"the connection of channel {end.channel} broke, {end.lost}: the logs of both gateways say why"
                )
            if not end.right:
                raise WrongBytesError(
                    f"bytes {where or 'on their way'} were not those that were sent, on channel {end.channel}: "
                    "a gateway is broken, take it out of service"
                )
        if where and not any(end.moved for end in self._ends):  # at a low rate some may still wait for their turn
            raise UnreachedError(f"no test data {where} has arrived in {self._seconds:g} s")

    async def _end_all(self) -> None:
        """Let the connections end well, as far as they do so soon."""
        for end in self._ends:
            end.finish()
        late = self._reactor.callLater(timing.PROBE_DRAIN, self._abort_all)
        try:
            await DeferredList([end.closed for end in self._ends], consumeErrors=True)
        finally:
            if late.active():
                late.cancel()

    def _abort_all(self) -> None:
        for end in self._ends:
            end.abort()


@dataclass(frozen=True)
class _Found:
    """What one direction has brought."""

    mbit: float
    bytes: int


@dataclass(frozen=True)
class _Reported:
    """What the other end has said last of what it got; `at` is when it said so, 0.0 before the first time."""

    count: int = 0
    at: float = 0.0


class _End(Protocol):
    """This end of one connection through both gateways."""

    transport: Any

    def __init__(self, reactor: Any, channel: int) -> None:
        self._reactor = reactor
        self.channel = channel
        self.seconds_to_answer = 0.0
        self._opened_at: float = reactor.seconds()
        self.ready: Deferred[None] = Deferred()
        self.closed: Deferred[None] = Deferred()
        self.lost: str | None = None
        self.complaint = ""
        self.reported = _Reported()
        self._waiting = b""
        self._pinged: Deferred[None] | None = None
        self._received: Received | None = None
        self._sending: Sending | None = None
        self._all_right = True

    # -- from the transport

    def connectionMade(self) -> None:
        self.transport.setTcpNoDelay(True)
        self.transport.bufferSize = BLOCK
        self.transport.write(GREETING.pack(VERSION, self.channel))

    def dataReceived(self, data: bytes) -> None:
        if self._received is not None:
            self._received.take(data)
            return
        self._waiting += data
        if not self.ready.called:
            self._answered()
        if self._pinged is not None and len(self._waiting) >= PING_SIZE:
            self._waiting = self._waiting[PING_SIZE:]
            pinged, self._pinged = self._pinged, None
            pinged.callback(None)
        if self._sending is not None:
            self._note_reports()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.lost is None:
            self.lost = "it was ended" if reason.check(ConnectionDone) else "it was reset"
        for waiting in (self.ready, self.closed):
            if not waiting.called:
                waiting.callback(None)
        pinged, self._pinged = self._pinged, None
        if pinged is not None:
            pinged.errback(
                Failure(UnreachedError(f"the connection broke, {self.lost}: the logs of both gateways say why"))
            )

    def _answered(self) -> None:
        if self._waiting[:1] != READY:
            self.complaint = "the other gateway answers in words of another version: install the same one at both"
            self.abort()
            return
        self._waiting = self._waiting[1:]
        self.seconds_to_answer = self._reactor.seconds() - self._opened_at
        self.ready.callback(None)

    def _note_reports(self) -> None:
        while len(self._waiting) >= REPORT.size:
            right, count = REPORT.unpack_from(self._waiting)
            self._waiting = self._waiting[REPORT.size :]
            self._all_right = self._all_right and right
            self.reported = _Reported(count, self._reactor.seconds())

    # -- for the probe

    @property
    def count(self) -> int:
        """Bytes of test data that came here."""
        return self._received.count if self._received is not None else 0

    @property
    def moved(self) -> bool:
        """Whether any test data has arrived, here or there."""
        return bool(self.count or self.reported.count)

    @property
    def right(self) -> bool:
        """Whether all that arrived, here and there, was what was sent."""
        return self._all_right and (self._received is None or self._received.right)

    def ping(self) -> Deferred[None]:
        """A small message to the other end; fires when it is back."""
        self._pinged = Deferred()
        self.transport.write(PING.ljust(PING_SIZE, b"."))
        return self._pinged

    def start_receiving(self, pattern: Pattern) -> None:
        self._received = Received(pattern, start_of(self.channel, to_producer=False))
        self.transport.write(GIVE)

    def start_sending(self, pattern: Pattern) -> None:
        self.transport.write(TAKE)
        self._sending = Sending(self.transport, pattern, start_of(self.channel, to_producer=True))

    def stop_sending(self) -> None:
        if self._sending is not None:
            self._sending.stop()

    def finish(self) -> None:
        """End this direction; the other end then ends the other one."""
        if self.lost is None:
            self.transport.loseWriteConnection()

    def abort(self) -> None:
        """Reset it. Idempotent."""
        if self.transport is not None:
            self.transport.abortConnection()


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """The two ends of a TCP connection inside this machine, which nobody else can have got hold of.

    :raises OSError: if the system has no room for it.
    """
    with socket.create_server(("127.0.0.1", 0), backlog=8) as listener:
        listener.settimeout(timing.PROBE_OWN_CONNECT)
        ours = socket.create_connection(listener.getsockname(), timeout=timing.PROBE_OWN_CONNECT)
        try:
            while True:
                other, peer = listener.accept()
                if peer == ours.getsockname():
                    break
                other.close()
        except OSError:
            ours.close()
            raise
    for sock in (ours, other):
        sock.setblocking(False)
    return ours, other


def _mbit(count: int, seconds: float) -> float:
    return count / MBIT / seconds if seconds > 0 else 0.0

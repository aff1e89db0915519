"""The measuring end of a probe, at the consumer's gateway: it connects in place of ConsApp.

A `Probe` hands its own connections to the elements, which carry them like any other, so an application would get the
same results. It opens a connection on each channel, sends pings on one of them, and receives test data on all. Then it
opens new connections and sends test data to the producer. If a channel has no connection, `diagnose.py` finds out why.
The other end is `responder.py`, which describes the messages.
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
from scistream.s2ds.probe.diagnose import diagnose_connection, source_name
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
"""The first part of a measurement's time, which does not count since TCP is still speeding up."""
MBIT = 125_000


class ProbeFailedError(Exception):
    """The probe has failed. The text says why, for the user."""


class WrongBytesError(ProbeFailedError):
    """The bytes that arrived are not the bytes that were sent."""


class Probe:
    """A measurement between this gateway and the producer's, from `start` until the state of `result` is not "running".

    :param carry: takes over one end of a connection, as if ConsApp had opened it on a channel.
    :param targets: the address of each channel at the producer's gateway; None if that gateway dials this one.
    :param seconds: how long to send test data in each direction.
    :param proxy: the HTTP proxy through which this gateway connects to others.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        uid: str,
        carry: Callable[[int, socket.socket], None],
        targets: dict[int, Address | None],
        seconds: float,
        proxy: Address | None = None,
    ) -> None:
        self.result = ProbeResult(state="running")
        self._reactor = reactor
        self._uid = uid
        self._carry = carry
        self._targets = targets
        self._seconds = seconds
        self._proxy = proxy
        self._pattern = Pattern(uid)
        self._ends: list[_End] = []
        self._measuring: Deferred[ProbeResult] | None = None

    def start(self) -> None:
        """Start measuring."""
        self._measuring = Deferred.fromCoroutine(self._measure())
        self._measuring.addCallbacks(self._done, self._failed)

    def stop(self) -> None:
        """Stop measuring, and reset all connections. Idempotent."""
        if self._measuring is not None:
            self._measuring.cancel()
        self._discard_all()

    def _done(self, result: ProbeResult) -> None:
        self.result = result
        self._discard_all()

    def _failed(self, failure: Failure) -> None:
        if failure.check(CancelledError):
            return
        if not failure.check(ProbeFailedError, OSError):
            self.log.failure("The probe of stream {uid} failed", uid=self._uid, failure=failure)
        self.log.info("The probe of stream {uid} failed: {reason}", uid=self._uid, reason=str(failure.value))
        is_right = not failure.check(WrongBytesError)
        self.result = ProbeResult(state="failed", reason=str(failure.value)[:MAX_TEXT], bytes_right=is_right)
        self._discard_all()

    def _discard_all(self) -> None:
        ends, self._ends = self._ends, []
        for end in ends:
            end.abort()

    # -- the measurement

    async def _measure(self) -> ProbeResult:
        connect = await self._open()
        round_trip = median(await self._ping(self._ends[0]))
        to_consumer = await self._measure_to_consumer(round_trip)
        await self._open()
        to_producer = await self._measure_to_producer(round_trip)
        return ProbeResult(
            state="done",
            connect_ms=round(connect * 1e3, 3),
            rtt_ms=round(round_trip * 1e3, 3),
            mbit_to_consumer=round(to_consumer.mbit, 3),
            mbit_to_producer=round(to_producer.mbit, 3),
            bytes=to_consumer.bytes + to_producer.bytes,
        )

    async def _open(self) -> float:
        """Open a connection on each channel, and return the longest time until one was answered, in seconds."""
        self._discard_all()
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
            raise ProbeFailedError(await self._diagnose(dead))
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

    async def _diagnose(self, dead: Sequence[_End]) -> str:
        """Return why some connections failed, for the user; log further details.

        :param dead: the ends without a connection to the other gateway.
        """
        first = dead[0]
        found = first.version_problem
        if not found:
            found = await self._why_dead(self._targets[first.channel])
        if len(self._ends) == 1:
            return found
        channels = ", ".join(str(end.channel) for end in dead[:10]) + (", ..." if len(dead) > 10 else "")
        count = f"{len(dead)} of {len(self._ends)} channels ({channels})"
        return f"{count} have no connection. Channel {first.channel}: {found}"

    async def _why_dead(self, target: Address | None) -> str:
        if target is None:
            return (
                "the producer's gateway has opened no connection to this one in time. This facility has to open all "
                "`ports` of its gateway to the other one and to have it in its `wan_networks`, and `advertise` in its "
                "[wan] has to be an address that reaches it; see the logs of both gateways"
            )
        found = await diagnose_connection(self._reactor, target, self._proxy)
        # Only the log has the diagnosis: otherwise users could scan the networks of a gateway with probes.
        self.log.warn("uid={uid} {found}", uid=self._uid, found=found.text)
        if found.proxy_fails:
            return (
                f"the proxy at {self._proxy} cannot be used, through which this gateway connects to others. This "
                "facility has to check `proxy` in [wan] of its gateway, and the proxy; see the log of the gateway"
            )
        if self._proxy is not None:
            return (
                f"no gateway could be reached at {target} through the proxy at {self._proxy}. The proxy has to let "
                "this gateway CONNECT to all `ports` of the other one. The other facility has to open these to the "
                "proxy and to have its address in its `wan_networks`, and `advertise` in its [wan] has to be an "
                "address that reaches it; see the logs of both gateways and of the proxy"
            )
        return (
            f"no gateway could be reached at {target} from {source_name(target)}. The other facility has to open "
            "all `ports` of its gateway to this one and to have it in its `wan_networks`, and `advertise` in its "
            "[wan] has to be an address that reaches it; see the logs of both gateways"
        )

    async def _ping(self, end: _End) -> list[float]:
        round_trips: list[float] = []
        started = self._reactor.seconds()
        while len(round_trips) < PINGS and (not round_trips or self._reactor.seconds() - started < timing.PROBE_PING):
            sent = self._reactor.seconds()
            await self._in_time(end.ping(), timing.PROBE_PING, "a small message was not answered")
            round_trips.append(self._reactor.seconds() - sent)
        return round_trips

    async def _in_time(self, waiting: Deferred[None], seconds: float, what: str) -> None:
        try:
            await waiting.addTimeout(seconds, self._reactor)
        except TookTooLong:
            raise ProbeFailedError(f"{what} within {seconds:g} s") from None

    async def _measure_to_consumer(self, round_trip: float) -> _Throughput:
        """Receive test data from the producer's gateway."""
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
        return _Throughput(_mbit(moved, elapsed), sum(end.count for end in self._ends))

    async def _measure_to_producer(self, round_trip: float) -> _Throughput:
        """Send test data to the producer's gateway, whose reports arrive half a round trip later."""
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
        return _Throughput(mbit, sum(end.reported.count for end in self._ends))

    async def _wait_until(self, when: float) -> None:
        while (left := when - self._reactor.seconds()) > 0:
            await deferLater(self._reactor, min(left, timing.PROBE_STEP))
            self._check("")

    def _check(self, where: str, *, ended: bool = False) -> None:
        """Check that the connections are open and the bytes right.

        :param where: "to the consumer" or "to the producer" if bytes must have arrived there, otherwise empty.
        :param ended: True if the connections may have ended.
        :raises UnreachedError: if a connection broke, bytes were wrong, or none arrived.
        """
        for end in self._ends:
            if end.lost is not None and not ended:
                raise ProbeFailedError(
                    f"the connection of channel {end.channel} broke, {end.lost}: see the logs of both gateways"
                )
            if not end.is_right:
                raise WrongBytesError(
                    f"the bytes that arrived {where or 'on the way'} are not those that were sent, on channel "
                    f"{end.channel}: a gateway corrupts data, take it out of service"
                )
        if where and not any(end.moved for end in self._ends):  # at a low rate some channels may not have sent yet
            raise ProbeFailedError(f"no test data {where} arrived within {self._seconds:g} s")

    async def _end_all(self) -> None:
        """Let the connections end cleanly, and reset those that take too long."""
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
class _Throughput:
    """The result of one direction."""

    mbit: float
    bytes: int


@dataclass(frozen=True)
class _Reported:
    """The last report of the other end: the bytes that it got, and the time of the report, 0.0 before the first one."""

    count: int = 0
    at: float = 0.0


class _End(Protocol):
    """This end of a connection through both gateways."""

    transport: Any

    def __init__(self, reactor: Any, channel: int) -> None:
        self._reactor = reactor
        self.channel = channel
        self.seconds_to_answer = 0.0
        self._opened_at: float = reactor.seconds()
        self.ready: Deferred[None] = Deferred()
        self.closed: Deferred[None] = Deferred()
        self.lost: str | None = None
        self.version_problem = ""
        self.reported = _Reported()
        self._unparsed = b""
        self._pinged: Deferred[None] | None = None
        self._received: Received | None = None
        self._sending: Sending | None = None
        self._all_right = True

    # -- from the transport

    def connectionMade(self) -> None:
        """Send the channel's number."""
        self.transport.setTcpNoDelay(True)
        self.transport.bufferSize = BLOCK
        self.transport.write(GREETING.pack(VERSION, self.channel))

    def dataReceived(self, data: bytes) -> None:
        """Handle answers and reports, or check test data."""
        if self._received is not None:
            self._received.take(data)
            return
        self._unparsed += data
        if not self.ready.called:
            self._answered()
        if self._pinged is not None and len(self._unparsed) >= PING_SIZE:
            self._unparsed = self._unparsed[PING_SIZE:]
            pinged, self._pinged = self._pinged, None
            pinged.callback(None)
        if self._sending is not None:
            self._note_reports()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Note how the connection ended, and fire what waits for it."""
        if self.lost is None:
            self.lost = "it was closed" if reason.check(ConnectionDone) else "it was reset"
        for waiting in (self.ready, self.closed):
            if not waiting.called:
                waiting.callback(None)
        pinged, self._pinged = self._pinged, None
        if pinged is not None:
            pinged.errback(
                Failure(ProbeFailedError(f"the connection broke, {self.lost}: see the logs of both gateways"))
            )

    def _answered(self) -> None:
        if self._unparsed[:1] != READY:
            self.version_problem = (
                "the other gateway has another version of SciStream: install the same version at both"
            )
            self.abort()
            return
        self._unparsed = self._unparsed[1:]
        self.seconds_to_answer = self._reactor.seconds() - self._opened_at
        self.ready.callback(None)

    def _note_reports(self) -> None:
        while len(self._unparsed) >= REPORT.size:
            is_right, count = REPORT.unpack_from(self._unparsed)
            self._unparsed = self._unparsed[REPORT.size :]
            self._all_right = self._all_right and is_right
            self.reported = _Reported(count, self._reactor.seconds())

    # -- for the probe

    @property
    def count(self) -> int:
        """The number of bytes of test data that arrived here."""
        return self._received.count if self._received is not None else 0

    @property
    def moved(self) -> bool:
        """True if any test data has arrived at either end."""
        return bool(self.count or self.reported.count)

    @property
    def is_right(self) -> bool:
        """True if all bytes that arrived at both ends were right."""
        return self._all_right and (self._received is None or self._received.is_right)

    def ping(self) -> Deferred[None]:
        """Send a small message to the other end; fire when it is echoed."""
        self._pinged = Deferred()
        self.transport.write(PING.ljust(PING_SIZE, b"."))
        return self._pinged

    def start_receiving(self, pattern: Pattern) -> None:
        """Ask for test data."""
        self._received = Received(pattern, start_of(self.channel, to_producer=False))
        self.transport.write(GIVE)

    def start_sending(self, pattern: Pattern) -> None:
        """Send test data until `stop_sending`."""
        self.transport.write(TAKE)
        self._sending = Sending(self.transport, pattern, start_of(self.channel, to_producer=True))

    def stop_sending(self) -> None:
        """Send no more test data."""
        if self._sending is not None:
            self._sending.stop()

    def finish(self) -> None:
        """End this direction; the other end then ends its own."""
        if self.lost is None:
            self.transport.loseWriteConnection()

    def abort(self) -> None:
        """Reset the connection. Idempotent."""
        if self.transport is not None:
            self.transport.abortConnection()


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Return the two ends of a TCP connection within this machine, after a check that no other program has one of them.

    :raises OSError: if the system lacks the resources.
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

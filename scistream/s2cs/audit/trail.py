"""The audit trail of an S2CS: who asked for what, from where, what became of it, and how many bytes it carried.

`AuditTrail` writes the lines that concern the server, `StreamTrail` those of one stream; the server and
`ServerStream` tell them what happens. A line that cannot be written waits in memory and is written as soon as it can
be, and no new stream is taken meanwhile: a facility must be able to say who has streamed what. Streams that are there
go on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from datetime import UTC, datetime
from typing import Any

import msgspec
from twisted.logger import Logger

from scistream import __version__, timing
from scistream.links.admission import place_of
from scistream.links.link import Link
from scistream.protocol.errors import StreamError
from scistream.protocol.messages import Error, Req, ResetReason, Resp, Role
from scistream.s2cs.audit.events import (
    SCHEMA,
    BadLineEvent,
    EndEvent,
    Event,
    HelloEvent,
    ImplausibleFiguresEvent,
    LinesLostEvent,
    LinkRefusedEvent,
    RefusedEvent,
    ReleaseEvent,
    RequestEvent,
    ResetsEvent,
    ServerStartEvent,
    ServerStopEvent,
    StartEvent,
    TargetsEvent,
    line_of,
)
from scistream.s2cs.audit.sinks import Sink
from scistream.s2cs.record import Record
from scistream.s2cs.store.ledger import Implausible, Total
from scistream.tls.verify import Identity

MAX_WAITING_BYTES = 2**20
"""Lines that wait in memory; those above it are counted, and dropped."""
MOST_IN_WINDOW = 20
"""Refusals of one kind, by one identity or from one address without one, and Hellos and new targets of one stream, that
get a line of their own in each window."""
MOST_OF_IDENTITY = 200
"""Lines about refusals that each identity gets in each window, whatever their kinds."""
MOST_OF_STRANGERS = 1000
"""Lines about refusals that all strangers together get in each window, whatever their addresses."""
MOST_ADDRESSES = 4096
MOST_RESETS_IN_WINDOW = 10
"""Lines about resets that each stream gets in each window."""
MOST_RESETS = 256
"""Reasons of resets of one stream of which it is known what was told."""


class AuditTrail:
    """The trail of one S2CS.

    :param sink: where lines go; None keeps no trail.
    :param server: what the S2CS listens on, for each line.
    :param wall: seconds since the epoch.
    """

    log = Logger()

    def __init__(self, sink: Sink | None, server: str, wall: Callable[[], float]) -> None:
        self._sink = sink
        self._server = server
        self.wall = wall
        self._waiting: deque[str] = deque()
        self._waiting_bytes = 0
        self._lost = 0
        self._is_failing = False
        self._refusals: dict[Hashable, _Window] = {}
        self._late: set[StreamTrail] = set()
        """The streams with lines that wait for the end of a window."""

    # -- the server

    def started(self, gateways: list[str], streams: int, insecure: bool) -> None:
        """The S2CS serves from now on."""
        if self._sink is None:
            self.log.warn("audit is 'none': nobody will be able to say who has streamed what")
        self._emit(ServerStartEvent, version=__version__, gateways=gateways, streams=streams, insecure=insecure)

    def stopped(self, streams: int) -> None:
        """The S2CS ends."""
        self._end_windows(all_of_them=True)
        for stream in list(self._late):
            stream.end_windows(all_of_them=True)
        self._emit(ServerStopEvent, streams=streams)
        if self._sink is None:
            return
        if self._waiting or self._lost:
            lost = len(self._waiting) + self._lost
            self.log.error("AUDIT: {sink} cannot be written; lines lost: {lost}", sink=self._sink.name, lost=lost)
        self._sink.close()

    def link_refused(self, link: Link, reason: str) -> None:
        """Record that the listener refused a link."""
        address, host = _address(link)
        self._emit_refusal(None, (host,), LinkRefusedEvent, address=address, reason=reason)

    def answered(
        self, link: Link, cmd: str, role: Role | None, answer: Resp | Error, stream: StreamTrail | None = None
    ) -> None:
        """A command is answered: called where each answer leaves, so that no line about one is written elsewhere.

        :param stream: the trail of the stream that the command was for, if it reached one.
        """
        if isinstance(answer, Error):
            self.refused(link, cmd, answer.uid, role, answer.code, answer.msg)
        elif stream is not None and cmd == "Hello":
            stream.greeted(link)

    def refused(self, link: Link, cmd: str, uid: str | None, role: Role | None, code: str, reason: str) -> None:
        """A command was refused."""
        address, host = _address(link)
        identity, issuer = _peer(link)
        self._emit_refusal(
            link.peer,
            (link.peer or host, cmd, code),
            RefusedEvent,
            address=address,
            identity=identity,
            issuer=issuer,
            cmd=cmd,
            uid=uid,
            role=role,
            code=code,
            reason=reason,
        )

    def bad_line(self, link: Link, uid: str | None, reason: str, closed: bool) -> None:
        """What was said is no message, or none for that link, which is `closed` for it or stays."""
        address, host = _address(link)
        identity, issuer = _peer(link)
        self._emit_refusal(
            link.peer,
            (link.peer or host, "bad-line"),
            BadLineEvent,
            address=address,
            identity=identity,
            issuer=issuer,
            uid=uid,
            reason=reason,
            closed=closed,
        )

    def request(self, link: Link, request: Req, owner: str) -> None:
        """A new stream is asked for.

        :raises StreamError: `no-capacity` if that cannot be written down: the stream must not be taken then.
        """
        identity, issuer = split_owner(owner)
        self._emit(
            RequestEvent,
            uid=request.uid,
            role=request.role,
            identity=identity,
            issuer=issuer,
            address=_address(link)[0],
            num_conn=request.num_conn,
            rate=request.rate,
            expires=request.expires,
            protocol=request.protocol,
            app_from=request.app_from,
            listen_ports=request.listen_ports,
            label=request.label,
        )
        if self._is_failing:
            why = "the audit trail of this S2CS cannot be written, so it takes no new stream: tell its operator"
            raise StreamError("no-capacity", why)

    # -- of streams

    def of_stream(self, kind: type[Any], record: Record, **fields: Any) -> None:
        """Something has happened to a stream."""
        identity, issuer = split_owner(record.owner)
        self._emit(kind, uid=record.uid, role=record.role, identity=identity, issuer=issuer, **fields)

    # -- writing

    def flush(self) -> None:
        """Write what waits, and what was left out of the last window. To be called now and then."""
        self._end_windows()
        for stream in list(self._late):
            stream.end_windows()
        self._write_waiting()

    def note_late(self, stream: StreamTrail) -> None:
        """A stream has lines that wait for the end of a window."""
        self._late.add(stream)

    def forget_late(self, stream: StreamTrail) -> None:
        """Note that a stream has no uncounted lines any more."""
        self._late.discard(stream)

    def reopen(self) -> None:
        """The file may have been moved away: at SIGHUP."""
        if self._sink is None:
            return
        try:
            self._sink.reopen()
        except OSError as problem:
            self._failed(problem)
            return
        self._write_waiting()

    def _emit(self, kind: type[Any], **fields: Any) -> None:
        if self._sink is not None:
            self._write(kind(time=_timestamp(self.wall()), schema=SCHEMA, server=self._server, **fields))

    def _emit_refusal(self, who: Identity | None, key: Hashable, kind: type[Any], **fields: Any) -> None:
        """Whoever knocks again and again must not fill the disk: what is above the measure is only counted.

        :param who: whose refusals are bounded together; all without an identity are.
        :param key: the kind, and who or from where.
        """
        if self._sink is None:
            return
        event = kind(time=_timestamp(self.wall()), schema=SCHEMA, server=self._server, repeated=0, **fields)
        self._end_windows()
        group = self._window(("all of", who), MOST_OF_STRANGERS if who is None else MOST_OF_IDENTITY)
        if group.is_full:
            group.leave_out(event)
            return
        window = self._window(("one kind", who, key), MOST_IN_WINDOW)
        if window.is_full:
            window.leave_out(event)
            return
        for each in {group, window}:  # one and the same for newcomers, once there are too many
            each.written += 1
        self._write(event)

    def _window(self, key: Hashable, most: int) -> _Window:
        if key not in self._refusals and len(self._refusals) >= MOST_ADDRESSES:
            key, most = None, MOST_IN_WINDOW
        return self._refusals.setdefault(key, _Window(self.wall(), most))

    def _end_windows(self, *, all_of_them: bool = False) -> None:
        """They are in the order of their beginning. A clock that was set back ends them, too."""
        now = self.wall()
        while self._refusals:
            key, window = next(iter(self._refusals.items()))
            if not all_of_them and not window.is_over(now):
                return
            del self._refusals[key]
            if window.last is not None:
                self._write(msgspec.structs.replace(window.last, repeated=window.left_out - 1))

    def _write(self, event: Event) -> None:
        line = line_of(event)
        if self._waiting_bytes + len(line) > MAX_WAITING_BYTES:
            self._lost += 1
        else:
            self._waiting.append(line)
            self._waiting_bytes += len(line)
        self._write_waiting()

    def _write_waiting(self) -> None:
        sink = self._sink
        if sink is None:
            return
        try:
            while self._waiting:
                sink.write(self._waiting[0])
                self._waiting_bytes -= len(self._waiting.popleft())
            if self._lost:
                lost = LinesLostEvent(
                    time=_timestamp(self.wall()), schema=SCHEMA, server=self._server, count=self._lost
                )
                sink.write(line_of(lost))
        except OSError as problem:
            self._failed(problem)
            return
        if self._is_failing:
            self.log.info("AUDIT: {sink} is written again; lines lost: {lost}", sink=sink.name, lost=self._lost)
        self._is_failing, self._lost = False, 0

    def _failed(self, problem: OSError) -> None:
        if not self._is_failing:
            self._is_failing = True
            assert self._sink is not None
            self.log.error(
                "AUDIT: {sink} cannot be written: {reason}. No new stream is taken until it can: make room",
                sink=self._sink.name,
                reason=problem.strerror,
            )


class _Window:
    """Events that share one bound: so many lines a minute are written, and the other events are counted."""

    def __init__(self, began: float, most: int) -> None:
        self._began = began
        self._most = most
        self.written = 0
        self.left_out = 0
        self.last: Any = None
        """The last one that was left out."""

    @property
    def is_full(self) -> bool:
        """Whether no more lines are to be written."""
        return self.written >= self._most

    def is_over(self, now: float) -> bool:
        """Whether its minute has passed. A clock that was set back ends it, too."""
        return not 0 <= now - self._began < timing.AUDIT_WINDOW

    def leave_out(self, what: Any) -> None:
        """Count one that gets no line."""
        self.left_out += 1
        self.last = what


class StreamTrail:
    """What the trail says of one stream, each thing once.

    :param carried: gives what is known of its bytes.
    :param restored: it was in the store when the S2CS started.
    """

    def __init__(self, audit: AuditTrail, record: Record, carried: Callable[[], Total], *, restored: bool) -> None:
        self._audit = audit
        self._record = record
        self._carried = carried
        self._revision = record.revision
        self._has_ended = restored and record.state == "Released"
        self._greeted_on: Link | None = None
        self._greeted_with: list[str] = []
        self._windows: dict[type[Any], _Window] = {}
        self._resets_told: dict[tuple[str, int, str, str], int] = {}
        self._resets_due: dict[tuple[str, int, str, str], int] = {}
        self._implausible: set[str] = set()
        self._resets_began = 0.0
        self._resets_seen = 0

    def greeted(self, link: Link) -> None:
        """A Hello was answered: a line, unless it says what the last one from this link has said."""
        record = self._record
        if (link, record.app_listeners) != (self._greeted_on, self._greeted_with):
            self._greeted_on, self._greeted_with = link, list(record.app_listeners)
            address, _ = _address(link)
            self._emit_bounded(HelloEvent, address=address, listeners=self._greeted_with)

    def _emit_bounded(self, kind: type[Any], **fields: Any) -> None:
        """Write a line of a kind that users and applications can cause again and again, or count it."""
        now = self._audit.wall()
        if kind in self._windows and self._windows[kind].is_over(now):
            self.end_windows()
        window = self._windows.setdefault(kind, _Window(now, MOST_IN_WINDOW))
        if window.is_full:
            window.leave_out(fields)
            self._audit.note_late(self)
        else:
            window.written += 1
            self._audit.of_stream(kind, self._record, **fields)

    def end_windows(self, *, all_of_them: bool = False) -> None:
        """Write the last line of those that were left out in a minute that has passed, with their number."""
        now = self._audit.wall()
        for kind, window in list(self._windows.items()):
            if all_of_them or window.is_over(now):
                del self._windows[kind]
                if window.last is not None:
                    self._audit.of_stream(kind, self._record, repeated=window.left_out - 1, **window.last)
        if not any(window.last is not None for window in self._windows.values()):
            self._audit.forget_late(self)

    def resets_heard(self, gateway: str, resets: list[ResetReason]) -> None:
        """Connections were reset: a line for each reason of which there are more now, up to a few each minute. The
        others wait for the next minute, with the count that they have by then."""
        if self._has_ended:
            return
        for one in resets:
            key = gateway, one.channel, one.cause, one.reason
            is_known = key in self._resets_told or key in self._resets_due
            has_room = is_known or len(self._resets_told) + len(self._resets_due) < MOST_RESETS
            if has_room and one.count > self._resets_told.get(key, 0):
                self._resets_due[key] = one.count
        now = self._audit.wall()
        if not 0 <= now - self._resets_began < timing.AUDIT_WINDOW:
            self._resets_began, self._resets_seen = now, 0
        self._write_resets(MOST_RESETS_IN_WINDOW - self._resets_seen)

    def _write_resets(self, most: int) -> None:
        for key in list(self._resets_due)[: max(0, most)]:
            count = self._resets_told[key] = self._resets_due.pop(key)
            gateway, channel, cause, reason = key
            self._resets_seen += 1
            self._audit.of_stream(
                ResetsEvent, self._record, gateway=gateway, channel=channel, cause=cause, reason=reason, count=count
            )

    def implausible(self, gateway: str, told: Implausible) -> None:
        """A gateway has told figures that cannot be: said once of each."""
        if gateway not in self._implausible and not self._has_ended:
            self._implausible.add(gateway)
            self._audit.log.warn(
                "gateway {gateway} tells more bytes of {uid} ({role}) than its rate allows: they are not counted",
                gateway=gateway,
                uid=self._record.uid,
                role=self._record.role,
            )
            self._audit.of_stream(ImplausibleFiguresEvent, self._record, gateway=gateway, **told._asdict())

    def release_asked(self, link: Link) -> None:
        """Somebody who may has asked for its end."""
        if self._record.state not in ("Releasing", "Released"):
            address, _ = _address(link)
            by, by_issuer = _peer(link)
            self._audit.of_stream(ReleaseEvent, self._record, address=address, by=by, by_issuer=by_issuer)

    def saved(self) -> None:
        """The record is written down: it may say something new."""
        record = self._record
        if record.state == "Streaming" and record.revision != self._revision:
            kind = TargetsEvent if self._revision else StartEvent
            self._revision = record.revision
            gateways, targets = sorted(record.plan), dict(record.connection_map)
            self._emit_bounded(kind, generation=record.revision, gateways=gateways, targets=targets)

    def ended(self) -> None:
        """Nothing of it is left. Said before it is written down: a crash in between repeats it and loses nothing."""
        if self._has_ended:
            return
        self._has_ended = True
        self.end_windows(all_of_them=True)
        self._write_resets(MOST_RESETS_IN_WINDOW)
        record, now, carried = self._record, self._audit.wall(), self._carried()
        error, request = record.last_error, record.request
        self._audit.of_stream(
            EndEvent,
            record,
            label=request.label if request is not None else None,
            num_conn=request.num_conn if request is not None else 0,
            rate=request.rate if request is not None else 0.0,
            duration=_seconds(now - (record.expires_at - record.life)),
            streaming=_seconds(now - record.started_at) if record.started_at else 0.0,
            bytes_to_consumer=carried.bytes_to_consumer,
            bytes_to_producer=carried.bytes_to_producer,
            connections=carried.connections,
            reset=carried.reset,
            complete=carried.complete,
            code=error.code if error is not None else "released",
            reason=error.msg if error is not None else "the stream was released on request",
        )


def split_owner(owner: str) -> tuple[str, str | None]:
    """Identity and issuer of an owner, as records keep it."""
    name, bracket, issuer = owner.rpartition(" (")
    return (name, issuer.removesuffix(")")) if bracket and owner.endswith(")") else (owner, None)


def _peer(link: Link) -> tuple[str | None, str | None]:
    """Identity and issuer of the certificate that the peer has shown, if any."""
    peer = link.peer
    return (peer.name, peer.issuer) if peer is not None else (None, None)


def _address(link: Link) -> tuple[str, str]:
    """Where the peer of a link is, and what counts as one address of those who knock."""
    address = link.address
    return address, place_of(address.rpartition(":")[0].strip("[]"))


def _timestamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _seconds(span: float) -> float:
    return round(max(0.0, span), 3)

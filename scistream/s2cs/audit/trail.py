"""The audit trail of an S2CS: who requested what, from where, what became of it, and how many bytes it carried.

`AuditTrail` writes the lines about the server, and `StreamTrail` those about one stream. A line that cannot be written
waits in memory until it can. Meanwhile new streams are refused, because a facility must be able to say who has streamed
what; existing streams go on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from datetime import UTC, datetime
from typing import Any

import msgspec
from twisted.logger import Logger

from scistream import __version__, timing
from scistream.links.link import Link
from scistream.protocol.address import address_group
from scistream.protocol.errors import StreamError
from scistream.protocol.messages import Error, PathFigures, Req, ResetReason, Resp, Role
from scistream.s2cs.audit.events import (
    SCHEMA,
    BadLineEvent,
    DrainEvent,
    EndEvent,
    Event,
    ExtendEvent,
    HelloEvent,
    ImplausibleFiguresEvent,
    LinesLostEvent,
    LinkRefusedEvent,
    PathEvent,
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
from scistream.s2cs.audit.recent import RecentEvents
from scistream.s2cs.audit.sinks import Sink
from scistream.s2cs.record import Record
from scistream.s2cs.store.ledger import Implausible, Total
from scistream.tls.verify import Identity

MAX_WAITING_BYTES = 2**20
"""Size of the lines that may wait in memory. Further lines are dropped and counted."""
MOST_IN_WINDOW = 20
"""Lines in each window about refusals of one kind for one identity (or one address without an identity), about Hellos
of one stream, and about new targets of one stream."""
MOST_OF_IDENTITY = 200
"""Lines in each window about all refusals of one identity."""
MOST_OF_STRANGERS = 1000
"""Lines in each window about all refusals of clients without an identity."""
MOST_ADDRESSES = 4096
MOST_RESETS_IN_WINDOW = 10
"""Lines in each window about resets of one stream."""
MOST_RESETS = 256
"""Reasons of resets of one stream whose counts are kept."""
MOST_PATHS_IN_WINDOW = 10
"""Lines in each window about paths of one stream that have come or gone."""
MOST_PATHS = 256
"""Paths of one stream whose state is kept, over all its gateways."""


class AuditTrail:
    """The trail of one S2CS.

    :param sink: the destination of lines; None keeps no trail.
    :param server: the address on which the S2CS listens, which is in each line.
    :param wall: returns the seconds since the epoch.
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
        self.recent = RecentEvents()
        self._refusals: dict[Hashable, _Window] = {}
        self._late: set[StreamTrail] = set()
        """The streams with events that were left out of the current window."""

    @property
    def is_failing(self) -> bool:
        """True while lines cannot be written."""
        return self._is_failing

    # -- the server

    def started(self, gateways: list[str], streams: int, insecure: bool) -> None:
        """Record that the S2CS has started."""
        if self._sink is None:
            self.log.warn("audit is 'none': there will be no record of who has streamed what")
        self._emit(ServerStartEvent, version=__version__, gateways=gateways, streams=streams, insecure=insecure)

    def stopped(self, streams: int) -> None:
        """Record that the S2CS stops, and close the trail."""
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
        """Record the answer to a command, if it is a refusal or answers a Hello.

        :param cmd: the name of the command.
        :param stream: the trail of the stream that the command was for, if it reached one.
        """
        if isinstance(answer, Error):
            self.refused(link, cmd, answer.uid, role, answer.code, answer.msg)
        elif stream is not None and cmd == "Hello":
            stream.greeted(link)
        elif stream is not None and cmd == "Extend":
            stream.extended(link)

    def refused(self, link: Link, cmd: str, uid: str | None, role: Role | None, code: str, reason: str) -> None:
        """Record that a command was refused."""
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
        """Record a line that is not a message, or not one that is allowed on its link.

        :param closed: whether the link was closed because of it.
        """
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
        """Record a request for a new stream.

        :raises StreamError: `no-capacity` if the trail cannot be written; the stream must then be refused.
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
            why = "this S2CS cannot write its audit trail, so it accepts no new streams: tell its operator"
            raise StreamError("no-capacity", why)

    def drain(self, link: Link, by: str, action: str, gateway: str | None, within: float | None) -> None:
        """Record that an administrator has begun or ended a drain.

        :param by: the administrator, in the form of `owner_of`.
        :param gateway: None for all gateways.
        :param within: the seconds after which the streams that are left are released, if any.
        """
        identity, issuer = split_owner(by)
        self._emit(
            DrainEvent,
            address=_address(link)[0],
            identity=identity,
            issuer=issuer,
            action=action,
            gateway=gateway,
            within=within,
        )

    # -- streams

    def of_stream(self, kind: type[Any], record: Record, **fields: Any) -> None:
        """Record an event of a stream."""
        identity, issuer = split_owner(record.owner)
        self._emit(kind, uid=record.uid, role=record.role, identity=identity, issuer=issuer, **fields)

    # -- writing

    def flush(self) -> None:
        """Write the lines that wait, and the events that were left out of windows that are over.

        To be called from time to time.
        """
        self._end_windows()
        for stream in list(self._late):
            stream.end_windows()
        self._write_waiting()

    def note_late(self, stream: StreamTrail) -> None:
        """Note that a stream has events that were left out of the current window."""
        self._late.add(stream)

    def forget_late(self, stream: StreamTrail) -> None:
        """Note that a stream has no such events any more."""
        self._late.discard(stream)

    def reopen(self) -> None:
        """Open the destination again, because it may have been replaced. Called at SIGHUP."""
        if self._sink is None:
            return
        try:
            self._sink.reopen()
        except OSError as problem:
            self._failed(problem)
            return
        self._write_waiting()

    def use(self, sink: Sink | None) -> None:
        """Write to another destination from now on; lines that wait go there too. Called at SIGHUP.

        :param sink: None keeps no trail.
        """
        before, self._sink = self._sink, sink
        if before is not None:
            before.close()
        self.log.info("the audit trail goes to {to} from now on", to=sink.name if sink is not None else "nowhere")
        self._write_waiting()

    def _emit(self, kind: type[Any], **fields: Any) -> None:
        self._write(kind(time=_timestamp(self.wall()), schema=SCHEMA, server=self._server, **fields))

    def _emit_refusal(self, who: Identity | None, key: Hashable, kind: type[Any], **fields: Any) -> None:
        """Write a line about a refusal, or only count it if there were too many, so that refusals cannot fill the disk.

        :param who: the identity whose refusals share a limit; None for all clients without one.
        :param key: the kind of refusal together with its identity or address.
        """
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
        for each in {group, window}:  # they are the same object if there are too many windows
            each.written += 1
        self._write(event)

    def _window(self, key: Hashable, most: int) -> _Window:
        if key not in self._refusals and len(self._refusals) >= MOST_ADDRESSES:
            key, most = None, MOST_IN_WINDOW
        return self._refusals.setdefault(key, _Window(self.wall(), most))

    def _end_windows(self, *, all_of_them: bool = False) -> None:
        """Write the last event that was left out of each window that is over. The dictionary has the oldest first."""
        now = self.wall()
        while self._refusals:
            key, window = next(iter(self._refusals.items()))
            if not all_of_them and not window.is_over(now):
                return
            del self._refusals[key]
            if window.last is not None:
                self._write(msgspec.structs.replace(window.last, repeated=window.left_out - 1))

    def _write(self, event: Event) -> None:
        self.recent.note(event)
        if self._sink is None:
            return
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
            self.log.info("AUDIT: {sink} can be written again; lines lost: {lost}", sink=sink.name, lost=self._lost)
        self._is_failing, self._lost = False, 0

    def _failed(self, problem: OSError) -> None:
        if not self._is_failing:
            self._is_failing = True
            assert self._sink is not None
            self.log.error(
                "AUDIT: {sink} cannot be written: {reason}. New streams are refused until it can: free disk space",
                sink=self._sink.name,
                reason=problem.strerror,
            )


class _Window:
    """Events that share one limit: the first lines of a minute are written, and further events are only counted."""

    def __init__(self, began: float, most: int) -> None:
        self._began = began
        self._most = most
        self.written = 0
        self.left_out = 0
        self.last: Any = None
        """The last event that was left out."""

    @property
    def is_full(self) -> bool:
        """True if the window has all its lines."""
        return self.written >= self._most

    def is_over(self, now: float) -> bool:
        """Return True if the minute has passed, or the clock was set back."""
        return not 0 <= now - self._began < timing.AUDIT_WINDOW

    def leave_out(self, event: Any) -> None:
        """Count an event that gets no line."""
        self.left_out += 1
        self.last = event


class StreamTrail:
    """The lines of the trail about one stream. Nothing is written twice.

    :param carried: returns what the stream has carried so far.
    :param restored: whether the stream was read from the store when the S2CS started.
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
        self._paths_told: dict[tuple[str, str, str], tuple[bool, int]] = {}
        self._paths_began = 0.0
        self._paths_seen = 0
        self._implausible: set[str] = set()
        self._resets_began = 0.0
        self._resets_seen = 0

    def greeted(self, link: Link) -> None:
        """Record a Hello that was accepted, unless it repeats the last one from this link."""
        record = self._record
        if (link, record.app_listeners) != (self._greeted_on, self._greeted_with):
            self._greeted_on, self._greeted_with = link, list(record.app_listeners)
            address, _ = _address(link)
            self._emit_bounded(HelloEvent, address=address, listeners=self._greeted_with)

    def _emit_bounded(self, kind: type[Any], **fields: Any) -> None:
        """Write a line of a kind that users and applications can cause repeatedly, or only count it."""
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
        """Write the last event that was left out of each window that is over, with the number of the others."""
        now = self._audit.wall()
        for kind, window in list(self._windows.items()):
            if all_of_them or window.is_over(now):
                del self._windows[kind]
                if window.last is not None:
                    self._audit.of_stream(kind, self._record, repeated=window.left_out - 1, **window.last)
        if not any(window.last is not None for window in self._windows.values()):
            self._audit.forget_late(self)

    def resets_heard(self, gateway: str, resets: list[ResetReason]) -> None:
        """Record resets of connections: a line for each reason whose count has grown, up to a few each minute.

        The others wait for the next minute, and are written with the count that they have by then.
        """
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

    def paths_heard(self, gateway: str, paths: list[PathFigures]) -> None:
        """Record paths over the WAN that have come or gone: a line for each, up to a few each minute.

        The others wait for the next minute, and are written with the state that they have by then.
        """
        now = self._audit.wall()
        if not 0 <= now - self._paths_began < timing.AUDIT_WINDOW:
            self._paths_began, self._paths_seen = now, 0
        for one in paths:
            key = gateway, one.local, one.remote
            state = one.up, one.failures
            told = self._paths_told.get(key)
            if self._has_ended or not one.local or told == state or (told is None and not (one.up or one.failures)):
                continue
            if self._paths_seen >= MOST_PATHS_IN_WINDOW or (told is None and len(self._paths_told) >= MOST_PATHS):
                continue
            self._paths_seen += 1
            self._paths_told[key] = state
            self._audit.of_stream(
                PathEvent,
                self._record,
                gateway=gateway,
                local=one.local,
                remote=one.remote,
                up=one.up,
                failures=one.failures,
            )

    def implausible(self, gateway: str, figures: Implausible) -> None:
        """Record figures that a gateway cannot have measured: once for each gateway."""
        if gateway not in self._implausible and not self._has_ended:
            self._implausible.add(gateway)
            self._audit.log.warn(
                "gateway {gateway} reports more bytes for {uid} ({role}) than its rate allows: they are not counted",
                gateway=gateway,
                uid=self._record.uid,
                role=self._record.role,
            )
            self._audit.of_stream(ImplausibleFiguresEvent, self._record, gateway=gateway, **figures._asdict())

    def extended(self, link: Link) -> None:
        """Record that the owner or an administrator has changed the end of the stream."""
        address, _ = _address(link)
        by, by_issuer = _peer(link)
        life = _seconds(self._record.life)
        self._emit_bounded(ExtendEvent, address=address, by=by, by_issuer=by_issuer, life=life)

    def release_asked(self, link: Link) -> None:
        """Record that the owner or an administrator has released the stream."""
        if self._record.state not in ("Releasing", "Released"):
            address, _ = _address(link)
            by, by_issuer = _peer(link)
            self._audit.of_stream(ReleaseEvent, self._record, address=address, by=by, by_issuer=by_issuer)

    def saved(self) -> None:
        """Record new targets, if the record that was just written has any."""
        record = self._record
        if record.state == "Streaming" and record.revision != self._revision:
            kind = TargetsEvent if self._revision else StartEvent
            self._revision = record.revision
            gateways, targets = sorted(record.plan), dict(record.connection_map)
            self._emit_bounded(kind, generation=record.revision, gateways=gateways, targets=targets)

    def ended(self) -> None:
        """Record the end of the stream. Call this before writing the record: a crash then cannot lose the line."""
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
    """Return the identity and the issuer of an owner, which is in the form that records keep."""
    name, bracket, issuer = owner.rpartition(" (")
    return (name, issuer.removesuffix(")")) if bracket and owner.endswith(")") else (owner, None)


def _peer(link: Link) -> tuple[str | None, str | None]:
    """Return the identity and the issuer of the peer's certificate, if it has one."""
    peer = link.peer
    return (peer.name, peer.issuer) if peer is not None else (None, None)


def _address(link: Link) -> tuple[str, str]:
    """Return the address of a link's peer, and the host or network that counts as one address for limits."""
    address = link.address
    return address, address_group(address.rpartition(":")[0].strip("[]"))


def _timestamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _seconds(span: float) -> float:
    return round(max(0.0, span), 3)

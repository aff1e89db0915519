"""Carry out the decisions of a stream's machine at an S2CS: in the store, on gateways and links, and with timers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Protocol

import msgspec
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from scistream import timing
from scistream.links.link import Link
from scistream.links.outbox import Outbox
from scistream.protocol.errors import StreamError
from scistream.protocol.messages import (
    CONS,
    MAX_NOTICE,
    MAX_NOTICES,
    MAX_RESETS,
    MAX_TEXT,
    UNSENT,
    BrokenChannel,
    ChannelFigures,
    Command,
    Error,
    LastError,
    PathFigures,
    ProbeResult,
    ProdLstn,
    Rel,
    ReqListeners,
    ResetReason,
    Resp,
    Role,
    StartConn,
    StreamKey,
    StreamStatus,
    UpdateTargets,
)
from scistream.s2cs.audit.trail import AuditTrail, StreamTrail
from scistream.s2cs.counts import CAUSES, MOST_RESETS_COUNTED, OTHER_CAUSE, ServerCounts
from scistream.s2cs.event_log import EventLog
from scistream.s2cs.extension import Extender
from scistream.s2cs.gateway import GatewayLink
from scistream.s2cs.machine import new_stream, restored_stream
from scistream.s2cs.machine_core import Core, Operation, Release, Stream
from scistream.s2cs.path_list import one_list
from scistream.s2cs.policy.authorizer import Authorizer, Grant, identity_of
from scistream.s2cs.record import (
    Record,
    chosen_dialer,
    ordered_listeners,
    ordered_wan_listeners,
    wan_abilities,
    whole_probe,
)
from scistream.s2cs.store.database import Store
from scistream.s2cs.store.ledger import Ledger
from scistream.state_machines import Caller, data_of, guarded, trace


class ServedFacility(Protocol):
    """The parts of the server that a stream uses."""

    reactor: Any
    wall: Callable[[], float]
    store: Store
    ledger: Ledger
    audit: AuditTrail
    authorizer: Authorizer
    counts: ServerCounts
    unwritten: set[StreamKey]
    """The streams whose last record could not be written. The server writes them again later."""

    def forget(self, stream: ServerStream) -> None:
        """Remove a stream of which nothing was ever written, so that its uid is free again."""

    def use_changed(self, stream: ServerStream) -> None:
        """Update what a stream uses, because its record may have changed."""

    def ended(self, stream: ServerStream) -> None:
        """Remove a stream that is released and written. From now on it is answered for from the store."""

    def answer(
        self, link: Link, cmd: str, role: Role | None, answer: Resp | Error, stream: StreamTrail | None = None
    ) -> None:
        """Send the answer to a command, and record it in the audit trail."""

    def check_targets(self, record: Record, addresses: list[str], grant: Grant) -> None:
        """Check that the policy, the pool and its gateways let ProdApp of a stream listen on these addresses.

        :raises StreamError: if they do not.
        """

    @property
    def gateways(self) -> Mapping[str, GatewayLink]:
        """The pool, by name."""


class ServerStream:
    """One stream of an S2CS, with the `Effects` of its machine.

    :param restored: whether the record was read from the store.
    """

    log = Logger()

    def __init__(self, server: ServedFacility, record: Record, *, restored: bool = False) -> None:
        self._server = server
        self.record = record
        self.core = Core(guarded(self, self.log, self._failed, record.uid), record)
        self.machine: Stream = restored_stream(self.core) if restored else new_stream(self.core)
        owner = identity_of(record.owner).name
        self.events = EventLog(record, server.wall)
        trace(
            self.machine,
            self.log,
            server.reactor.seconds,
            self.events.state_changed,
            party="s2cs",
            uid=record.uid,
            role=record.role,
            owner=owner,
        )
        self.app_link: Link | None = None
        self.app_outbox = Outbox(server.reactor, "the application")
        self.wrong_hellos = 0
        self._owner_links: set[Link] = set()
        self._restored = restored
        self._resets_counted: dict[tuple[str, int, str, str], int] = {}
        self._resets: dict[str, tuple[float, list[ResetReason]]] = {}
        """The resets that each gateway reported last, and when it did."""
        self.trail = StreamTrail(server.audit, record, lambda: server.ledger.total(record), restored=restored)
        self._asking: dict[str, Deferred[Resp]] = {}
        self._may_hold = set(record.plan) if restored else set()
        """The gateways that were sent any command, and so may have something reserved."""
        self._asked_to_release: set[str] = set()
        self._carried = -1
        """Bytes that the stream had carried at the last comparison with a gateway."""
        self._carried_since = 0.0
        """When the stream had first carried that many bytes."""
        self._noted_state = record.state if restored else ""
        """The state of which `state_since` is in the record."""
        self._timers: list[IDelayedCall] = []
        self._targets_timer: IDelayedCall | None = None
        self._next_own_update = 0.0
        self._release_retry: IDelayedCall | None = None
        # Deadlines are monotonic while the process runs, so that a change of the wall clock does not move them.
        self._expires_at = server.reactor.seconds() + record.expires_at - server.wall()
        self._extender = Extender(self, lambda: server.gateways, server.store.id)

    # -- effects

    def _failed(self, effect: str, error: StreamError) -> None:
        """End the stream, because an effect has raised."""
        self._server.use_changed(self)  # `save` may have failed before it did so
        if effect == "save":
            self._server.unwritten.add(self.record.key)
        if effect == "ask" and self.record.state == "Releasing":
            self._retry_release_later()
        self.machine.fault(error)

    def _retry_release_later(self) -> None:
        """Try again to send REL to the gateways to which it could not be sent: at once, and then at intervals.

        Until then the stream is not released, unless its life ends: then the gateways release it themselves.
        """
        if self._release_retry is None or not self._release_retry.active():
            seconds = 0.0 if self._release_retry is None else timing.RELEASE_AGAIN
            self._release_retry = self._server.reactor.callLater(seconds, self._retry_release)

    def _retry_release(self) -> None:
        release = data_of(self.machine, Release)
        for gateway in sorted(release.pending_gateways - self._asked_to_release) if release is not None else ():
            if gateway in self._may_hold and self._seconds_left_on_gateways() > 0:
                self.core.effects.ask(gateway, Rel(uid=self.record.uid, role=self.record.role, seq=UNSENT))
            else:
                self.machine.gateway_released(gateway)

    def save(self, record: Record) -> bool:
        """Write the record, with the time of a new state, a first start or a release. Return False if that failed."""
        if record.state != self._noted_state:
            self._noted_state, record.state_since = record.state, self._server.wall()
        if record.state == "Released" and not record.released_at:
            record.released_at = self._server.wall()
        if record.state == "Streaming" and not record.started_at:
            record.started_at = self._server.wall()
            self._server.counts.setup[record.role].add(self.age)
        if record.state == "Released":
            self.trail.ended()
        self._server.use_changed(self)
        self.events.note_changes()
        try:
            self._server.store.save(record)
        except StreamError:  # the store has logged it
            self._server.unwritten.add(record.key)
            return False
        self._server.unwritten.discard(record.key)
        self.trail.saved()
        if record.state == "Released":
            self._server.ended(self)
        return True

    def forget(self, record: Record) -> None:
        """Remove a stream of which nothing was ever written."""
        self.trail.ended()
        self._server.forget(self)

    def ask(self, gateway: str, command: Command) -> None:
        """Send a command to a gateway, in place of an earlier one that still waits for its answer."""
        earlier = self._asking.pop(gateway, None)
        if earlier is not None:
            earlier.cancel()
        gateway_link = self._server.gateways.get(gateway)
        if gateway_link is None:
            self._no_such_gateway(gateway, command)
            return
        releasing = isinstance(command, Rel)
        is_own_update = isinstance(command, UpdateTargets) and not command.data_conn_key
        if isinstance(command, ReqListeners | UpdateTargets | Rel):
            command = msgspec.structs.replace(command, store=self._server.store.id)
        self._may_hold.add(gateway)
        answered = gateway_link.dialer.ask(command, None if releasing or is_own_update else timing.GATEWAY_ANSWER)
        self._asking[gateway] = answered
        if releasing:
            self._asked_to_release.add(gateway)
            answered.addCallbacks(self._rel_answered, self._rel_refused, (gateway,), {}, (gateway,))
        else:
            answered.addCallbacks(self._answered, self._refused, (gateway,), {}, (gateway,))

    def _no_such_gateway(self, gateway: str, command: Command) -> None:
        if isinstance(command, Rel):
            seconds = self._seconds_left_on_gateways()
            if seconds > 0:  # the gateway releases the stream itself when its life is over
                self.log.error(
                    "gateway {gateway} is not in the configuration, but may hold stream {uid} for another {seconds} s: "
                    "to release the stream earlier, add the gateway to the configuration and restart the S2CS",
                    gateway=gateway,
                    uid=self.record.uid,
                    seconds=round(seconds),
                )
                self._asked_to_release.add(gateway)
                self._timers.append(self._server.reactor.callLater(seconds, self.machine.gateway_released, gateway))
            else:
                self.machine.gateway_released(gateway)
        else:
            msg = "it is not in the configuration of this facility"
            self.machine.gateway_refused(gateway, StreamError("gateway-failed", msg))

    def _seconds_left_on_gateways(self) -> float:
        """Return for how many seconds a gateway may hold this stream if it is not told to release it."""
        return float(self._expires_at + timing.HELD_LONGER - self._server.reactor.seconds())

    def _answered(self, answer: Resp, gateway: str) -> None:
        self.machine.gateway_answered(gateway, answer)
        self._server.use_changed(self)

    def _refused(self, failure: Failure, gateway: str) -> None:
        failure.trap(StreamError, CancelledError)
        error = failure.value
        if isinstance(error, StreamError) and error.code != "shutting-down":
            self.machine.gateway_refused(gateway, error)

    def _rel_answered(self, answer: Resp, gateway: str) -> None:
        if self.record.state == "Released":
            return
        try:
            refused = self._server.ledger.hear_last(self.record, gateway, answer.boot, answer.figures, self.age)
            if refused is not None:
                self.trail.implausible(gateway, refused)
            if answer.resets is not None:
                self.hear_resets(gateway, answer.resets)
            self.trail.paths_heard(gateway, answer.paths or [])
        finally:
            self.machine.gateway_released(gateway)

    def _rel_refused(self, failure: Failure, gateway: str) -> None:
        failure.trap(StreamError, CancelledError)
        error = failure.value
        if isinstance(error, StreamError) and error.code != "shutting-down":
            if error.code != "unknown-uid":
                self.log.warn("gateway {gateway} refused REL: {reason}", gateway=gateway, reason=error.msg)
            try:
                self._server.ledger.hear_last(self.record, gateway, None, None, self.age)
            finally:
                self.machine.gateway_released(gateway)

    def answer(self, caller: Caller, message: Resp | Error) -> None:
        """Send the answer to a command, and record it in the audit trail."""
        self._server.answer(caller.link, caller.cmd, self.record.role, message, self.trail)

    def tell_owner(self, message: ProdLstn | Error) -> None:
        """Send a message on all links on which the owner has sent a command about this stream."""
        for link in self._owner_links:
            link.send(message)

    def tell_application(self, message: StartConn | Error) -> None:
        """Send a message to the application, if its link is up. StartConn is repeated until it is answered."""
        if self.app_link is None:
            return
        if isinstance(message, Error):
            self.app_link.send(message)
            return
        if not len(self.app_outbox):
            self.app_outbox.ask(message, None).addErrback(_application_gone)

    def start_timers(self, record: Record) -> None:
        """Start the timers for the end of the stream's life and for the first Hello."""
        reactor, now = self._server.reactor, self._server.wall()
        self._timers = [
            reactor.callLater(self.seconds_left(), self.machine.expired),
            reactor.callLater(max(0.0, record.hello_by - now), self.machine.hello_timeout),
        ]

    def shorten_life(self, record: Record, seconds: float) -> None:
        """End the stream in `seconds` from now, unless it ends earlier."""
        if seconds < self.seconds_left():
            self.set_life(record, seconds)

    def set_life(self, record: Record, seconds: float) -> float:
        """End the stream in `seconds` from now, in place of the time when it was due. Return how much was left."""
        left = self.seconds_left()
        record.life += seconds - left
        record.expires_at += seconds - left
        self._expires_at += seconds - left
        if self._timers and self._timers[0].active():
            self._timers[0].reset(seconds)
        return left

    def extend(self, caller: Caller, seconds: float) -> None:
        """Ask all gateways to end the stream in `seconds` from now; then give `extended`, or refuse the command."""
        self.events.extended_by(caller.link.peer.name)
        self._extender.begin(caller, seconds)

    def take_back(self, seconds: float) -> None:
        """Let the gateways end the stream in `seconds` from now, since an extension failed after they accepted it."""
        self._extender.take_back(seconds)

    def stop_timers(self) -> None:
        """Stop all timers of the stream."""
        timers, self._timers = self._timers, []
        for timer in (*timers, self._release_retry, self._targets_timer):
            if timer is not None and timer.active():
                timer.cancel()

    def await_targets(self) -> None:
        """Start the timer after which this S2CS sets targets itself. There is no need to wait without an owner's link.

        Updates by this S2CS keep a minimum interval.
        """
        self._stop_awaiting_targets()
        until_next = max(0.0, self._next_own_update - self._server.reactor.seconds())
        seconds = timing.OWNER_SETS_TARGETS if self.has_owner_link() else until_next
        self._targets_timer = self._server.reactor.callLater(seconds, self._targets_overdue)

    def _stop_awaiting_targets(self) -> None:
        if self._targets_timer is not None and self._targets_timer.active():
            self._targets_timer.cancel()

    def _targets_overdue(self) -> None:
        """Set targets if all gateways of the stream answer; otherwise try again later, and keep the old targets."""
        pool = [self._server.gateways.get(name) for name in self.record.plan]
        if all(gateway is not None and gateway.answers for gateway in pool):
            self._next_own_update = self._server.reactor.seconds() + timing.BETWEEN_OWN_UPDATES
            self.machine.targets_overdue(self._own_update_problem())
        else:
            self._targets_timer = self._server.reactor.callLater(timing.OWNER_SETS_TARGETS, self._targets_overdue)

    def _own_update_problem(self) -> StreamError | None:
        """Return why this S2CS cannot set targets for the current listeners of ProdApp, or None if it can."""
        for name in self.record.plan:
            if not self._server.gateways[name].keeps_credentials:
                return StreamError(
                    "gateway-failed",
                    f"gateway {name} runs an older version of SciStream, with which only the user can set new targets",
                )
        grant = self._server.authorizer.of_stream(self.record)
        self.keep_allowed_addresses(grant)
        return self._target_problem(self.record.app_listeners, grant)

    def keep_allowed_addresses(self, grant: Grant) -> None:
        """Forget the other addresses of ProdApp that the policy, the pool or a gateway no longer allows."""
        record = self.record
        allowed = {
            listener: [one for one in others if self._target_problem([one], grant) is None]
            for listener, others in record.other_addresses.items()
        }
        record.other_addresses = {listener: others for listener, others in allowed.items() if others}

    def _target_problem(self, addresses: list[str], grant: Grant) -> StreamError | None:
        try:
            self._server.check_targets(self.record, addresses, grant)
        except StreamError as error:
            return error
        return None

    @property
    def pending_gateways(self) -> Collection[str]:
        """The gateways whose answer the stream waits for."""
        operation = data_of(self.machine, Operation)
        return operation.pending_gateways if operation is not None else ()

    def has_owner_link(self) -> bool:
        """Return True if the owner has a link on which it has sent a command about this stream."""
        return bool(self._owner_links)

    # -- for the server

    def note_owner_link(self, link: Link, owner: str) -> None:
        """Note a link that has sent a command about this stream. The owner's links get messages about it."""
        if owner == self.record.owner:
            self._owner_links.add(link)

    def release(self, caller: Caller, owner: str) -> None:
        """Take REL from the owner or an administrator. The owner and the application are told who the administrator is.

        :param owner: the sender of the command.
        """
        record = self.record
        self.trail.release_asked(caller.link)
        self.events.released_by(identity_of(owner).name)
        by_administrator = owner != record.owner and record.state not in ("Releasing", "Released")
        if by_administrator:
            msg = f"the stream was released by {identity_of(owner).name}, an administrator of this facility"
            record.last_error = LastError(code="wrong-state", msg=msg[:MAX_TEXT])
        self.machine.rel(caller)
        if by_administrator and record.last_error is not None:
            error = record.last_error
            self.tell_owner(Error(uid=record.uid, role=record.role, code=error.code, msg=error.msg))

    def note_application(self, link: Link) -> None:
        """Note the link on which the application has said Hello. StartConn is sent on the latest one."""
        if self.app_link is not link:
            self._drop_application()
            self.app_link = link
            self.app_outbox = Outbox(self._server.reactor, "the application")
            self.app_outbox.link_up(link)

    def link_lost(self, link: Link) -> None:
        """Note that a link of the owner or the application is down."""
        self._owner_links.discard(link)
        if self.app_link is link:
            self._drop_application()

    def _drop_application(self) -> None:
        self.app_link = None
        self.app_outbox.close(StreamError("timeout", "the application's link is gone"))

    def hear_resets(self, gateway: str, resets: list[ResetReason]) -> None:
        """Take the reasons for which connections of the stream were reset on a gateway."""
        self._count_resets(gateway, resets)
        self._resets[gateway] = (self._server.reactor.seconds(), resets)
        self.events.note_resets(gateway, resets)
        self.trail.resets_heard(gateway, resets)

    def _count_resets(self, gateway: str, resets: list[ResetReason]) -> None:
        """Count what has come to the resets since the gateway's last report, which may leave out older reasons.

        After a restart, the first report of a gateway only says where to begin.
        """
        is_first = self._restored and gateway not in self._resets
        for one in resets:
            key = gateway, one.channel, one.cause, one.reason
            if key not in self._resets_counted and len(self._resets_counted) >= MOST_RESETS_COUNTED:
                continue
            more = one.count - self._resets_counted.get(key, 0)
            if more > 0:
                self._resets_counted[key] = one.count
                cause = one.cause if one.cause in CAUSES else OTHER_CAUSE
                self._server.counts.resets[cause, self.record.role] += 0 if is_first else more

    def _all_resets(self) -> list[ResetReason]:
        """Return the latest resets on all gateways, newest first, with those by strangers last."""
        now = self._server.reactor.seconds()
        aged = [
            msgspec.structs.replace(one, seconds_ago=round(one.seconds_ago + now - heard, 1))
            for heard, resets in self._resets.values()
            for one in resets
        ]
        return sorted(aged, key=lambda one: (one.cause == "stranger", one.seconds_ago))[:MAX_RESETS]

    def is_held_by(self, gateway: str) -> bool:
        """Return True if a gateway has reserved for this stream, and is not known to have released it."""
        record = self.record
        return gateway in record.plan and record.state not in ("Reserving", "Released")

    def is_of_another_boot(self, gateway: str, boot: str) -> bool:
        """Return True if a gateway has restarted since it reserved for this stream, and so has lost the reservation."""
        record = self.record
        return record.state != "Released" and record.boots.get(gateway, boot) != boot

    def hear_figures(self, gateway: str, boot: str, figures: Iterable[ChannelFigures]) -> bool:
        """Book what the stream has carried on a gateway. Return False if the figures are not plausible."""
        refused = self._server.ledger.hear(self.record, gateway, boot, figures, self.age)
        if refused is not None:
            self.trail.implausible(gateway, refused)
        return refused is None

    @property
    def age(self) -> float:
        """Seconds since the stream was requested."""
        return float(self._server.reactor.seconds() - self._expires_at + self.record.life)

    def status(self, *, events: bool = False) -> StreamStatus:
        """Return this stream for an answer to Status.

        :param events: say what has happened to it, too.
        """
        record = self.record
        return StreamStatus(
            uid=record.uid,
            role=record.role,
            state=record.state,
            owner=record.owner,
            label=record.request.label if record.request is not None else None,
            rate=record.request.rate if record.request is not None else 0.0,
            channels=sorted(record.listeners),
            listeners=ordered_listeners(record),
            csr="".join(record.csr.values()),
            app_listeners=record.app_listeners,
            generation=record.generation,
            connection_map=record.connection_map,
            figures=self._figures(),
            gateways=sorted(record.plan),
            seconds_left=self.seconds_left() if record.state != "Released" else 0.0,
            last_error=record.last_error,
            probe=self._probe(),
            wrong_hellos=self.wrong_hellos,
            resets=self._all_resets(),
            broken=self._broken(),
            notices=self._notices(),
            paths=self._paths(),
            silent=self._silent(),
            listen_ports=record.request.listen_ports if record.request is not None else None,
            wan=wan_abilities(record),
            wan_dialer=chosen_dialer(record),
            wan_listeners=ordered_wan_listeners(record),
            events=self.events.events() if events else [],
            events_dropped=record.events_dropped if events else 0,
        )

    def _silent(self) -> dict[str, float]:
        """Return the gateways of the stream that do not answer, and for how many seconds they have not answered."""
        if self.record.state == "Released":
            return {}
        silent = {gateway.name: gateway.silent_seconds for gateway in self._gateways()}
        return {name: round(seconds, 1) for name, seconds in silent.items() if seconds is not None}

    def _gateways(self) -> list[GatewayLink]:
        """Return the gateways of the stream that are in the pool."""
        return [self._server.gateways[name] for name in self.record.plan if name in self._server.gateways]

    def seconds_left(self) -> float:
        """Return the seconds until the stream ends."""
        left: float = self._expires_at - self._server.reactor.seconds()
        return max(0.0, left)

    def _figures(self) -> list[ChannelFigures]:
        figures = [one for gateway in self._gateways() for one in gateway.figures.get(self.record.key, [])]
        return sorted(figures, key=lambda one: one.channel)

    def _broken(self) -> list[BrokenChannel]:
        broken = [one for gateway in self._gateways() for one in gateway.broken.get(self.record.key, [])]
        return sorted(broken, key=lambda one: -one.seconds)[:MAX_RESETS] if self.record.state != "Released" else []

    def _notices(self) -> list[str]:
        """Return what the gateways say about the stream, each sentence with the name of its gateway."""
        said = [
            f"gateway {gateway.name}, {notice}"[:MAX_NOTICE]
            for gateway in self._gateways()
            for notice in gateway.notices.get(self.record.key, [])
        ]
        return said[:MAX_NOTICES] if self.record.state != "Released" else []

    def _paths(self) -> list[PathFigures]:
        """Return the paths over the WAN that the gateways report."""
        return one_list(one for gateway in self._gateways() for one in gateway.paths.get(self.record.key, []))

    def longest_broken_channel(self) -> BrokenChannel | None:
        """Return the channel that has been broken for longest, or None if no channel is broken.

        Its `seconds` are how long the channel has been broken and the stream has carried no bytes. Call this after each
        comparison with a gateway. The result is None while a gateway of the stream does not answer.
        """
        now = self._server.reactor.seconds()
        carried = sum(one.bytes_to_consumer + one.bytes_to_producer for one in self._figures())
        if carried != self._carried:
            self._carried, self._carried_since = carried, now
        if self._silent() or not self.record.plan.keys() <= self._server.gateways.keys():
            return None
        for channel in self._broken():
            return msgspec.structs.replace(channel, seconds=min(channel.seconds, now - self._carried_since))
        return None

    def _probe(self) -> ProbeResult | None:
        """Return the result of a probe, if this is the consumer's side of one: all its gateways together."""
        record = self.record
        if record.request is None or record.request.protocol != "probe" or record.role != CONS:
            return None
        return whole_probe([gateway.probes.get(record.key) for gateway in self._gateways()])


def _application_gone(failure: Failure) -> None:
    failure.trap(StreamError, CancelledError)

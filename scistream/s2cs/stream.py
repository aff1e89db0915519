"""What carries out the decisions of a stream's machine at S2CS: the store, the gateways, links and timers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import msgspec
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from scistream import timing
from scistream.links.link import Link
from scistream.links.outbox import UNSENT, Caller, Outbox
from scistream.protocol.errors import StreamError
from scistream.protocol.messages import (
    CONS,
    MAX_RESETS,
    MAX_TEXT,
    BrokenChannel,
    ChannelFigures,
    Command,
    Error,
    LastError,
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
from scistream.s2cs.gateway import GatewayLink
from scistream.s2cs.machine import Core, Release, Stream, new_stream, restored_stream
from scistream.s2cs.policy.authorizer import Authorizer, Grant, identity_of
from scistream.s2cs.record import Record, ordered_listeners, whole_probe
from scistream.s2cs.store.database import Store
from scistream.s2cs.store.ledger import Ledger
from scistream.state_machines import data_of, guarded, trace


class ServedFacility(Protocol):
    """What a stream needs of the server that keeps it."""

    reactor: Any
    wall: Callable[[], float]
    store: Store
    ledger: Ledger
    audit: AuditTrail
    unwritten: set[StreamKey]
    """The streams whose record in the store is not as it should be: written as soon as there is room."""

    def forget(self, held: ServerStream) -> None:
        """A stream of which nothing was ever written."""

    def use_changed(self, held: ServerStream) -> None:
        """Count what a stream holds once more, since its record may say something new of it."""

    def ended(self, held: ServerStream) -> None:
        """A stream is over, and written down: the store answers for it from now on."""

    authorizer: Authorizer

    def answer(
        self, link: Link, cmd: str, role: Role | None, answer: Resp | Error, stream: StreamTrail | None = None
    ) -> None:
        """Send the answer to a command, and write the line of the audit trail that belongs to it."""

    def check_targets(self, record: Record, addresses: list[str], grant: Grant) -> None:
        """Whether ProdApp of a stream may listen at these, by the policy, the pool and its gateways.

        :param grant: what the policy has answered.
        :raises StreamError: if it may not.
        """

    @property
    def gateways(self) -> Mapping[str, GatewayLink]:
        """The pool, by name."""


class ServerStream:
    """One stream of this S2CS; the `Effects` of its machine."""

    log = Logger()

    def __init__(self, server: ServedFacility, record: Record, *, restored: bool = False) -> None:
        self._server = server
        self.record = record
        self.core = Core(guarded(self, self.log, self._failed, record.uid), record)
        self.machine: Stream = restored_stream(self.core) if restored else new_stream(self.core)
        owner = identity_of(record.owner).name
        trace(
            self.machine, self.log, server.reactor.seconds, party="s2cs", uid=record.uid, role=record.role, owner=owner
        )
        self.app_link: Link | None = None
        self.app_outbox = Outbox(server.reactor, "the application")
        self.wrong_hellos = 0
        self._owner_links: set[Link] = set()
        self._resets: dict[str, tuple[float, list[ResetReason]]] = {}
        """What each gateway has said of resets last, and when that was."""
        self.trail = StreamTrail(server.audit, record, lambda: server.ledger.total(record), restored=restored)
        self._asking: dict[str, Deferred[Resp]] = {}
        self._may_hold = set(record.plan) if restored else set()
        """The gateways that have been asked for anything, and so may hold something."""
        self._asked_to_release: set[str] = set()
        self._carried = -1
        self._carried_since = 0.0
        """How many bytes the stream had carried at the last comparison with a gateway, and since when it is so many."""
        self._timers: list[IDelayedCall] = []
        self._targets_timer: IDelayedCall | None = None
        self._next_own_update = 0.0
        self._asks_again: IDelayedCall | None = None
        # From here on the wall clock may jump as it likes.
        self._expires_at = server.reactor.seconds() + record.expires_at - server.wall()

    # -- effects

    def _failed(self, effect: str, error: StreamError) -> None:
        """An effect has raised: end the stream, in a way that nothing can hold up."""
        self._server.use_changed(self)  # which `save` may have failed to say
        if effect == "save":
            self._server.unwritten.add(self.record.key)
        if effect == "ask" and self.record.state == "Releasing":
            self._ask_unasked_later()
        self.machine.fault(error)

    def _ask_unasked_later(self) -> None:
        """A gateway could not be asked to release: try once more at once, and then again and again. The stream is not
        called released before, unless the gateway has let go of it by itself, at the end of its life."""
        if self._asks_again is None or not self._asks_again.active():
            seconds = 0.0 if self._asks_again is None else timing.RELEASE_AGAIN
            self._asks_again = self._server.reactor.callLater(seconds, self._ask_unasked)

    def _ask_unasked(self) -> None:
        release = data_of(self.machine, Release)
        for gateway in sorted(release.pending_gateways - self._asked_to_release) if release is not None else ():
            if gateway in self._may_hold and self._seconds_left_on_gateways() > 0:
                self.core.effects.ask(gateway, Rel(uid=self.record.uid, role=self.record.role, seq=UNSENT))
            else:
                self.machine.gateway_released(gateway)

    def save(self, record: Record) -> bool:
        if record.state == "Released" and not record.released_at:
            record.released_at = self._server.wall()
        if record.state == "Streaming" and not record.started_at:
            record.started_at = self._server.wall()
        if record.state == "Released":
            self.trail.ended()
        self._server.use_changed(self)
        try:
            self._server.store.save(record)
        except StreamError:  # the store has told it
            self._server.unwritten.add(record.key)
            return False
        self._server.unwritten.discard(record.key)
        self.trail.saved()
        if record.state == "Released":
            self._server.ended(self)
        return True

    def forget(self, record: Record) -> None:
        self.trail.ended()
        self._server.forget(self)

    def ask(self, gateway: str, command: Command) -> None:
        earlier = self._asking.pop(gateway, None)
        if earlier is not None:
            earlier.cancel()
        known = self._server.gateways.get(gateway)
        if known is None:
            self._no_such_gateway(gateway, command)
            return
        releasing = isinstance(command, Rel)
        is_own_update = isinstance(command, UpdateTargets) and not command.data_conn_key
        if isinstance(command, ReqListeners | UpdateTargets | Rel):
            command = msgspec.structs.replace(command, store=self._server.store.id)
        self._may_hold.add(gateway)
        asked = known.dialer.ask(command, None if releasing or is_own_update else timing.GATEWAY_ANSWER)
        self._asking[gateway] = asked
        if releasing:
            self._asked_to_release.add(gateway)
            asked.addCallbacks(self._rel_answered, self._rel_refused, (gateway,), {}, (gateway,))
        else:
            asked.addCallbacks(self._answered, self._refused, (gateway,), {}, (gateway,))

    def _no_such_gateway(self, gateway: str, command: Command) -> None:
        if isinstance(command, Rel):
            seconds = self._seconds_left_on_gateways()
            if seconds > 0:  # it cannot be asked, and lets go by itself when the stream's life is over
                self.log.error(
                    "gateway {gateway} is not in the configuration and may hold stream {uid} for {seconds} s more: "
                    "the stream is not released before, unless the gateway is put back and the S2CS started again",
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
        """For how long a gateway that cannot be asked may hold what it has of this stream."""
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
        finally:
            self.machine.gateway_released(gateway)

    def _rel_refused(self, failure: Failure, gateway: str) -> None:
        failure.trap(StreamError, CancelledError)
        error = failure.value
        if isinstance(error, StreamError) and error.code != "shutting-down":
            if error.code != "unknown-uid":
                self.log.warn("gateway {gateway} on REL: {reason}", gateway=gateway, reason=error.msg)
            try:
                self._server.ledger.hear_last(self.record, gateway, None, None, self.age)
            finally:
                self.machine.gateway_released(gateway)

    def answer(self, caller: Caller, message: Resp | Error) -> None:
        self._server.answer(caller.link, caller.cmd, self.record.role, message, self.trail)

    def tell_owner(self, message: ProdLstn | Error) -> None:
        for link in self._owner_links:
            link.send(message)

    def tell_application(self, message: StartConn | Error) -> None:
        if self.app_link is None:
            return
        if isinstance(message, Error):
            self.app_link.send(message)
            return
        if not len(self.app_outbox):
            self.app_outbox.ask(message, None).addErrback(_application_gone)

    def start_timers(self, record: Record) -> None:
        reactor, now = self._server.reactor, self._server.wall()
        self._timers = [
            reactor.callLater(self._seconds_left(), self.machine.expired),
            reactor.callLater(max(0.0, record.hello_by - now), self.machine.hello_timeout),
        ]

    def shorten_life(self, record: Record, seconds: float) -> None:
        excess = self._seconds_left() - seconds
        if excess > 0:
            record.life -= excess
            record.expires_at -= excess
            self._expires_at -= excess
            if self._timers and self._timers[0].active():
                self._timers[0].reset(seconds)

    def stop_timers(self) -> None:
        timers, self._timers = self._timers, []
        for timer in (*timers, self._asks_again, self._targets_timer):
            if timer is not None and timer.active():
                timer.cancel()

    def await_targets(self) -> None:
        self._stop_awaiting_targets()
        left = max(0.0, self._next_own_update - self._server.reactor.seconds())
        seconds = timing.OWNER_SETS_TARGETS if self.has_owner_link() else left
        self._targets_timer = self._server.reactor.callLater(seconds, self._targets_overdue)

    def _stop_awaiting_targets(self) -> None:
        if self._targets_timer is not None and self._targets_timer.active():
            self._targets_timer.cancel()

    def _targets_overdue(self) -> None:
        """Set targets when each gateway of the stream can be asked: one that cannot goes on with those that it has."""
        pool = [self._server.gateways.get(name) for name in self.record.plan]
        if all(gateway is not None and gateway.answers for gateway in pool):
            self._next_own_update = self._server.reactor.seconds() + timing.BETWEEN_OWN_UPDATES
            self.machine.targets_overdue(self._own_update_problem())
        else:
            self._targets_timer = self._server.reactor.callLater(timing.OWNER_SETS_TARGETS, self._targets_overdue)

    def _own_update_problem(self) -> StreamError | None:
        """Why this S2CS cannot lead the stream to where ProdApp listens, if it cannot."""
        for name in self.record.plan:
            if not self._server.gateways[name].keeps_credentials:
                return StreamError(
                    "gateway-failed", f"gateway {name} runs older software, which takes new targets only from the user"
                )
        grant = self._server.authorizer.of_stream(self.record)
        self.keep_allowed_addresses(grant)
        return self._target_problem(self.record.app_listeners, grant)

    def keep_allowed_addresses(self, grant: Grant) -> None:
        """Forget the other addresses of ProdApp's names that the policy, the pool or a gateway allows no more."""
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

    def has_owner_link(self) -> bool:
        return bool(self._owner_links)

    # -- for the server

    def note_owner_link(self, link: Link, owner: str) -> None:
        """The owner has spoken of this stream on this link: news of it goes there."""
        if owner == self.record.owner:
            self._owner_links.add(link)

    def release(self, caller: Caller, owner: str) -> None:
        """REL: by the owner, or by an administrator, who is named to the owner and to the application."""
        record = self.record
        self.trail.release_asked(caller.link)
        is_told = owner != record.owner and record.state not in ("Releasing", "Released")
        if is_told:
            msg = f"the stream was released by {identity_of(owner).name}, an administrator of this facility"
            record.last_error = LastError(code="wrong-state", msg=msg[:MAX_TEXT])
        self.machine.rel(caller)
        if is_told and record.last_error is not None:
            told = record.last_error
            self.tell_owner(Error(uid=record.uid, role=record.role, code=told.code, msg=told.msg))

    def note_application(self, link: Link) -> None:
        """The application said Hello on this link: StartConn goes there."""
        if self.app_link is not link:
            self._drop_application()
            self.app_link = link
            self.app_outbox = Outbox(self._server.reactor, "the application")
            self.app_outbox.link_up(link)

    def link_lost(self, link: Link) -> None:
        self._owner_links.discard(link)
        if self.app_link is link:
            self._drop_application()

    def _drop_application(self) -> None:
        self.app_link = None
        self.app_outbox.close(StreamError("timeout", "the application's link is gone"))

    def hear_resets(self, gateway: str, resets: list[ResetReason]) -> None:
        """A gateway tells why connections of the stream were reset there."""
        self._resets[gateway] = (self._server.reactor.seconds(), resets)
        self.trail.resets_heard(gateway, resets)

    def _told_resets(self) -> list[ResetReason]:
        """The same of all gateways, the newest first."""
        now = self._server.reactor.seconds()
        aged = [
            msgspec.structs.replace(one, seconds_ago=round(one.seconds_ago + now - heard, 1))
            for heard, resets in self._resets.values()
            for one in resets
        ]
        return sorted(aged, key=lambda one: (one.cause == "stranger", one.seconds_ago))[:MAX_RESETS]

    def is_held_by(self, gateway: str) -> bool:
        """Whether this gateway has reserved for this stream, and was not seen to release it."""
        record = self.record
        return gateway in record.plan and record.state not in ("Reserving", "Released")

    def is_of_another_boot(self, gateway: str, boot: str) -> bool:
        """Whether what this gateway held of this stream went down with an earlier run of it."""
        record = self.record
        return record.state != "Released" and record.boots.get(gateway, boot) != boot

    def hear_figures(self, gateway: str, boot: str, figures: Iterable[ChannelFigures]) -> bool:
        """What the stream has carried on a gateway, which is booked; False if that cannot be."""
        refused = self._server.ledger.hear(self.record, gateway, boot, figures, self.age)
        if refused is not None:
            self.trail.implausible(gateway, refused)
        return refused is None

    @property
    def age(self) -> float:
        """Seconds since the stream was asked for."""
        return float(self._server.reactor.seconds() - self._expires_at + self.record.life)

    def status(self) -> StreamStatus:
        """This stream, for an answer to Status."""
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
            seconds_left=self._seconds_left() if record.state != "Released" else 0.0,
            last_error=record.last_error,
            probe=self._probe(),
            wrong_hellos=self.wrong_hellos,
            resets=self._told_resets(),
            broken=self._broken(),
            silent=self._silent(),
            listen_ports=record.request.listen_ports if record.request is not None else None,
        )

    def _silent(self) -> dict[str, float]:
        """The gateways of the stream that do not answer, and for how many seconds they have not."""
        if self.record.state == "Released":
            return {}
        gateways = [self._server.gateways[name] for name in self.record.plan if name in self._server.gateways]
        told = {gateway.name: gateway.silent_seconds for gateway in gateways}
        return {name: round(seconds, 1) for name, seconds in told.items() if seconds is not None}

    def _seconds_left(self) -> float:
        left: float = self._expires_at - self._server.reactor.seconds()
        return max(0.0, left)

    def _figures(self) -> list[ChannelFigures]:
        figures: list[ChannelFigures] = []
        for name in self.record.plan:
            gateway = self._server.gateways.get(name)
            if gateway is not None:
                figures += gateway.figures.get(self.record.key, [])
        return sorted(figures, key=lambda one: one.channel)

    def _broken(self) -> list[BrokenChannel]:
        gateways = [self._server.gateways[name] for name in self.record.plan if name in self._server.gateways]
        told = [one for gateway in gateways for one in gateway.broken.get(self.record.key, [])]
        return sorted(told, key=lambda one: -one.seconds)[:MAX_RESETS] if self.record.state != "Released" else []

    def stuck(self) -> BrokenChannel | None:
        """The channel that has been broken for longest, if any is, and for how long the stream has carried no byte
        either. To be asked at each comparison with a gateway; None while nobody knows what another one carries."""
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
        """What a probe has found, over all gateways of the consumer's side; nothing for any other stream."""
        record = self.record
        if record.request is None or record.request.protocol != "probe" or record.role != CONS:
            return None
        gateways = [self._server.gateways[name] for name in record.plan if name in self._server.gateways]
        return whole_probe([gateway.probes.get(record.key) for gateway in gateways])


def _application_gone(failure: Failure) -> None:
    failure.trap(StreamError, CancelledError)

"""S2CS as a Twisted service: one door for users and applications, a lasting link to each gateway.

`ControlServer` authenticates and hands commands to the machine of the stream that they name; each
stream has a `_Held` that carries out what its machine decides; `_Gateway` is one S2DS of the pool.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, DeferredList, maybeDeferred
from twisted.internet.interfaces import IDelayedCall, IListeningPort
from twisted.logger import Logger
from twisted.python.failure import Failure

from scistream.config import S2CSConfig, beside, parse_seconds
from scistream.logs import trace
from scistream.s2cs.machine import (
    Core,
    Record,
    Stream,
    new_stream,
    ordered_listeners,
    restored_stream,
    resume,
)
from scistream.s2cs.pool import Member, member, spread
from scistream.s2cs.streams import REMEMBER_SECONDS, Store
from scistream.security.control import PLAIN_IDENTITY, Door, Trust, dialer
from scistream.security.tls import Identity
from scistream.wire.address import Address
from scistream.wire.errors import StreamError
from scistream.wire.line import Link
from scistream.wire.link import UNSENT, Caller, Dialer, Outbox
from scistream.wire.messages import (
    Answer,
    ChannelFigures,
    Command,
    Error,
    Hello,
    Message,
    ProdLstn,
    Rel,
    Req,
    Resp,
    Room,
    StartConn,
    Status,
    StreamKey,
    StreamStatus,
    UpdateTargets,
)

GATEWAY_PATIENCE = 20.0
FIGURES_PATIENCE = 2.0
MAX_PAGE_BYTES = 150_000

_REFUSED_HELLO = (
    "no stream here waits for that application with that key: it was released, or has expired, or the join "
    "string is for the other side or another facility. Ask for a new join string."
)


class ControlServer(Service):
    """An S2CS.

    :param reactor: the reactor, with monotonic timers.
    :param config: the settings, checked.
    :param config_file: where they came from: relative paths start there.
    :param wall: seconds since the epoch, for deadlines that outlive this process.
    :raises CertificateProblem: if the certificates are not usable.
    :raises StoreProblem: if the store is not usable.
    :raises StreamError: if it would serve or dial plain TCP beyond loopback.
    """

    log = Logger()

    def __init__(
        self, reactor: Any, config: S2CSConfig, config_file: Path, wall: Callable[[], float] = time.time
    ) -> None:
        self.reactor = reactor
        self.config = config
        self.wall = wall
        own, to_gateways = _trusts(config, config_file)
        self._door = Door(reactor, Address.parse(config.listen), own, client_certificate="optional")
        self._port: IListeningPort | None = None
        self._links: set[Link] = set()
        self.gateways = {
            one.name: _Gateway(self, one.name, dialer(reactor, Address.parse(one.address), one.name, to_gateways))
            for one in config.gateways
        }
        self.store = Store(beside(config_file, config.state))
        self.streams: dict[StreamKey, _Held] = {}
        self._early: list[Callable[[], None]] = []

    # -- the service

    def startService(self) -> None:
        if self.config.insecure:
            self.log.warn("INSECURE: control links are plain TCP on loopback; anybody on this machine is every owner")
        self._port = self._door.open(lambda: self)
        self._restore()
        super().startService()
        for gateway in self.gateways.values():
            gateway.dialer.startService()
        self.log.info(
            "party=s2cs listens on {listen}, gateways {gateways}, streams in the store {streams}",
            listen=self.config.listen,
            gateways=", ".join(self.gateways),
            streams=len(self.streams),
        )

    def stopService(self) -> Deferred[Any]:
        """Close links and timers; the streams go on, and are taken up again at the next start."""
        super().stopService()
        for held in self.streams.values():
            held.stop_timers()
        for link in list(self._links):
            link.close()
        stopping: list[Deferred[Any]] = [gateway.dialer.stopService() for gateway in self.gateways.values()]
        port, self._port = self._port, None
        if port is not None:
            stopping.append(maybeDeferred(port.stopListening))
        return DeferredList(stopping).addCallback(lambda _: self.store.close())

    def _restore(self) -> None:
        held = [_Held(self, record, restored=True) for record in self.store.load()]
        self.streams = {one.record.key: one for one in held}
        self._forget_old()
        for one in self.streams.values():
            resume(one.machine, one.core)

    def _forget_old(self) -> None:
        for key, held in list(self.streams.items()):
            if held.record.state == "Released" and self.wall() - held.record.released_at > REMEMBER_SECONDS:
                self.store.forget(key)
                del self.streams[key]

    # -- LinkOwner

    def link_up(self, link: Link) -> None:
        self._links.add(link)

    def link_down(self, link: Link, reason: Failure) -> None:
        self._links.discard(link)
        for held in self.streams.values():
            held.link_lost(link)

    def answer_received(self, link: Link, answer: Answer) -> None:
        for held in self.streams.values():
            if held.app_link is link and held.app_outbox.answered(answer):
                return

    def message_received(self, link: Link, message: Message) -> None:
        try:
            if isinstance(message, Hello):
                self._hello(link, message)
            elif isinstance(message, Req | UpdateTargets | Rel | Status):
                self._from_user(link, message)
            elif not isinstance(message, Resp | Error):
                link.refuse(message, "not-authorized", "an S2CS takes REQ, UpdateTargets, REL, Status and Hello")
        except StreamError as error:
            assert not isinstance(message, Resp | Error)
            link.refuse(message, error.code, error.msg)

    # -- users

    def _from_user(self, link: Link, command: Req | UpdateTargets | Rel | Status) -> None:
        owner = _user(link)
        if isinstance(command, Status):
            self._status(link, owner, command)
        elif isinstance(command, Req):
            self._req(link, owner, command)
        else:
            self._of_stream(link, owner, command)

    def _req(self, link: Link, owner: str, request: Req) -> None:
        held = self.streams.get((request.uid, request.role))
        if held is not None:
            held.note_owner_link(link, owner)
            held.machine.req(Caller(link, request.seq), request, owner, {})
        elif any(not gateway.tried for gateway in self.gateways.values()):
            self._early.append(lambda: self.message_received(link, request))
        else:
            self._new_stream(link, owner, request)

    def _new_stream(self, link: Link, owner: str, request: Req) -> None:
        self._forget_old()
        life = request.expires or parse_seconds(self.config.expires)
        longest = parse_seconds(self.config.longest_expires)
        if life > longest:
            raise StreamError(
                "not-authorized", f"asked for a stream of {life:g} s, and this facility allows {longest:g} s at most"
            )
        hello = min(request.hello_timeout or parse_seconds(self.config.hello_timeout), life)
        plan = spread(self._members(), request.num_conn, request.rate)
        record = Record(
            uid=request.uid,
            role=request.role,
            owner=owner,
            life=life,
            expires_at=self.wall() + life,
            hello_by=self.wall() + hello,
        )
        held = self.streams[record.key] = _Held(self, record)
        held.note_owner_link(link, owner)
        held.machine.req(Caller(link, request.seq), request, owner, plan)

    def _members(self) -> list[Member]:
        records = [held.record for held in self.streams.values()]
        return [
            member(name, gateway.room, records)
            for name, gateway in self.gateways.items()
            if gateway.room is not None and gateway.dialer.link is not None
        ]

    def _of_stream(self, link: Link, owner: str, command: UpdateTargets | Rel) -> None:
        held = self.streams.get((command.uid, command.role))
        if held is None:
            if isinstance(command, Rel):
                self._remember_released(command, owner)
            raise StreamError("unknown-uid", f"no stream {command.uid} of role {command.role} was asked for here")
        self._check_owner(held, owner)
        held.note_owner_link(link, owner)
        caller = Caller(link, command.seq)
        if isinstance(command, UpdateTargets):
            held.machine.update_targets(caller, command)
        else:
            held.machine.rel(caller)

    def _check_owner(self, held: _Held, owner: str) -> None:
        if held.record.owner != owner:
            raise StreamError("not-authorized", f"stream {held.record.uid} has another owner than {owner}")

    def _remember_released(self, command: Rel, owner: str) -> None:
        """A REL that overtook its REQ: the REQ comes too late then."""
        record = Record(uid=command.uid, role=command.role, owner=owner, state="Released", released_at=self.wall())
        held = _Held(self, record, restored=True)
        if held.save(record):
            self.streams[record.key] = held

    # -- Status

    def _status(self, link: Link, owner: str, command: Status) -> None:
        mine = [held for held in self.streams.values() if held.record.owner == owner]
        if command.uid is not None:
            named = [held for held in self.streams.values() if held.record.uid == command.uid]
            chosen = [held for held in named if command.role in (None, held.record.role)]
            if not chosen:
                raise StreamError("unknown-uid", f"no stream {command.uid} was asked for here")
            for held in chosen:
                self._check_owner(held, owner)
                held.note_owner_link(link, owner)
        else:
            chosen = [
                held for held in mine if command.role in (None, held.record.role) and held.record.state != "Released"
            ]
        after = command.after or ""
        page = sorted((held for held in chosen if held.page_key > after), key=lambda held: held.page_key)
        asked = [gateway.fetch_figures(command.uid) for gateway in self._gateways_of(page[: command.limit])]
        DeferredList(asked).addCallback(lambda _: self._answer_status(link, command, page))

    def _gateways_of(self, page: list[_Held]) -> list[_Gateway]:
        names = {name for held in page if held.record.state != "Released" for name in held.record.plan}
        return [self.gateways[name] for name in sorted(names) if name in self.gateways]

    def _answer_status(self, link: Link, command: Status, page: list[_Held]) -> None:
        streams: list[StreamStatus] = []
        size = 0
        for held in page[: command.limit]:
            status = held.status()
            size += 400 + len(status.csr) + 200 * len(status.listeners)
            if streams and size > MAX_PAGE_BYTES:
                break
            streams.append(status)
        last = page[len(streams) - 1].page_key if len(streams) < len(page) else None
        state = streams[0].state if command.uid is not None and len(streams) == 1 else ""
        link.answer(command, state, f"{len(streams)} streams", streams=streams, more=last)

    # -- applications

    def _hello(self, link: Link, hello: Hello) -> None:
        held = self.streams.get((hello.uid, hello.role))
        request = held.record.request if held is not None else None
        known = request.app_key_hash if request is not None else "0" * 64
        given = hashlib.sha256(hello.app_key.encode()).hexdigest()
        if not hmac.compare_digest(known, given) or held is None:
            self.log.warn(
                "refused a Hello for {uid} ({role}) from {peer}", uid=hello.uid, role=hello.role, peer=link.address
            )
            link.refuse(hello, "not-authorized", _REFUSED_HELLO)
            link.close()
            return
        held.note_application(link)
        held.machine.hello(Caller(link, hello.seq), hello.listeners or [])

    # -- gateways

    def gateway_tried(self) -> None:
        """A gateway has answered for the first time, or could not be reached: requests that came early may go on."""
        if all(gateway.tried for gateway in self.gateways.values()):
            early, self._early = self._early, []
            for go_on in early:
                go_on()

    def held_by(self, gateway: str) -> set[StreamKey]:
        """The streams that this gateway must know of: it has reserved for them, and was not seen to release."""
        return {key for key, held in self.streams.items() if held.is_held_by(gateway)}

    def gateway_knows(
        self, gateway: _Gateway, boot: str, expected: set[StreamKey], known: dict[StreamKey, StreamStatus]
    ) -> None:
        """Compare what a gateway holds with the records: section 6 rules 5 and 6.

        :param expected: what `held_by` gave when the gateway was asked.
        """
        for key, held in list(self.streams.items()):
            if held.is_of_another_boot(gateway.name, boot):
                held.machine.gateway_lost(gateway.name, "was restarted, and what it held of this stream is gone")
            elif key in expected and (key not in known or known[key].state in ("Releasing", "Released")):
                held.machine.gateway_lost(gateway.name, "has released this stream by itself")
        for key, status in known.items():
            mine = self.streams.get(key)
            orphaned = mine is None or gateway.name not in mine.record.plan or mine.record.state == "Released"
            if orphaned and status.state not in ("Releasing", "Released"):
                self.log.warn("releasing {uid} ({role}) on {gateway}: no record of it", uid=key[0], role=key[1])
                gateway.release(key)


def _trusts(config: S2CSConfig, config_file: Path) -> tuple[Trust | None, Trust | None]:
    """With what it shows itself to users and applications, and with what to its gateways."""
    if config.insecure or config.controller is None:
        return None, None
    return (
        Trust(
            beside(config_file, config.certificate),
            beside(config_file, config.key),
            tuple(beside(config_file, name) for name in config.authorities),
        ),
        Trust(
            beside(config_file, config.controller.certificate),
            beside(config_file, config.controller.key),
            tuple(beside(config_file, name) for name in config.controller.authorities),
        ),
    )


def _user(link: Link) -> str:
    """The owner that the peer of a link is, in the form that records keep.

    :raises StreamError: if it is nobody, or a controller, which is no user.
    """
    peer: Identity | None = link.peer
    if peer is None:
        raise StreamError("not-authenticated", "this needs a client certificate; without one only Hello is understood")
    if peer.name.startswith("scistream:controller:"):
        raise StreamError("not-authorized", f"{peer.name} is a controller's certificate, not a user's")
    return f"{peer.name} ({peer.issuer})" if peer != PLAIN_IDENTITY else peer.name


class _Held:
    """One stream of this S2CS; the `Effects` of its machine."""

    log = Logger()

    def __init__(self, server: ControlServer, record: Record, *, restored: bool = False) -> None:
        self._server = server
        self.record = record
        self.core = Core(self, record)
        self.machine: Stream = restored_stream(self.core) if restored else new_stream(self.core)
        trace(self.machine, self.log, party="s2cs", uid=record.uid, role=record.role)
        self.app_link: Link | None = None
        self.app_outbox = Outbox(server.reactor, "the application")
        self._owner_links: set[Link] = set()
        self._asking: dict[str, Deferred[Resp]] = {}
        self._timers: list[IDelayedCall] = []

    @property
    def page_key(self) -> str:
        """Orders streams for the pages of Status."""
        return f"{self.record.uid}/{self.record.role}"

    # -- effects

    def save(self, record: Record) -> bool:
        if record.state == "Released" and not record.released_at:
            record.released_at = self._server.wall()
        try:
            self._server.store.save(record)
        except StreamError as error:
            self.log.error("{reason}", reason=error.msg, uid=record.uid)
            return False
        return True

    def ask(self, gateway: str, command: Command) -> None:
        earlier = self._asking.pop(gateway, None)
        if earlier is not None:
            earlier.cancel()
        known = self._server.gateways.get(gateway)
        if known is None:
            self._no_such_gateway(gateway, command)
            return
        releasing = isinstance(command, Rel)
        asked = known.dialer.ask(command, None if releasing else GATEWAY_PATIENCE)
        self._asking[gateway] = asked
        if releasing:
            asked.addCallbacks(lambda _: self.machine.gateway_released(gateway), self._rel_refused, (), {}, (gateway,))
        else:
            asked.addCallbacks(
                lambda answer: self.machine.gateway_answered(gateway, answer), self._refused, (), {}, (gateway,)
            )

    def _no_such_gateway(self, gateway: str, command: Command) -> None:
        if isinstance(command, Rel):
            self.machine.gateway_released(gateway)
        else:
            msg = "it is in the configuration no more"
            self.machine.gateway_refused(gateway, StreamError("gateway-failed", msg))

    def _refused(self, failure: Failure, gateway: str) -> None:
        failure.trap(StreamError, CancelledError)
        error = failure.value
        if isinstance(error, StreamError) and error.code != "shutting-down":
            self.machine.gateway_refused(gateway, error)

    def _rel_refused(self, failure: Failure, gateway: str) -> None:
        failure.trap(StreamError, CancelledError)
        error = failure.value
        if isinstance(error, StreamError) and error.code != "shutting-down":
            if error.code != "unknown-uid":
                self.log.warn("gateway {gateway} on REL: {reason}", gateway=gateway, reason=error.msg)
            self.machine.gateway_released(gateway)

    def answer(self, caller: Caller, message: Resp | Error) -> None:
        caller.link.send(message)

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
            reactor.callLater(max(0.0, record.expires_at - now), self.machine.expired),
            reactor.callLater(max(0.0, record.hello_by - now), self.machine.hello_timeout),
        ]

    def stop_timers(self) -> None:
        timers, self._timers = self._timers, []
        for timer in timers:
            if timer.active():
                timer.cancel()

    # -- for the server

    def note_owner_link(self, link: Link, owner: str) -> None:
        """The owner has spoken of this stream on this link: news of it goes there."""
        if owner == self.record.owner:
            self._owner_links.add(link)

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

    def is_held_by(self, gateway: str) -> bool:
        """Whether this gateway has reserved for this stream, and was not seen to release it."""
        record = self.record
        return gateway in record.plan and record.state not in ("Reserving", "Released")

    def is_of_another_boot(self, gateway: str, boot: str) -> bool:
        """Whether what this gateway held of this stream went down with an earlier run of it."""
        record = self.record
        return record.state != "Released" and record.boots.get(gateway, boot) != boot

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
            seconds_left=max(0.0, record.expires_at - self._server.wall()) if record.state != "Released" else 0.0,
            last_error=record.last_error,
        )

    def _figures(self) -> list[ChannelFigures]:
        figures: list[ChannelFigures] = []
        for name in self.record.plan:
            gateway = self._server.gateways.get(name)
            if gateway is not None:
                figures += gateway.figures.get(self.record.key, [])
        return sorted(figures, key=lambda one: one.channel)


def _application_gone(failure: Failure) -> None:
    failure.trap(StreamError, CancelledError)


class _Gateway:
    """One S2DS of the pool: its link, what room it has, and what it said of its streams last."""

    log = Logger()

    def __init__(self, server: ControlServer, name: str, link: Dialer) -> None:
        self._server = server
        self.name = name
        self.dialer = link
        self.dialer.on_up = self._up
        self.dialer.on_down = self._down
        self.dialer.on_poll = self._compare
        self.tried = False
        self.room: Room | None = None
        self.figures: dict[StreamKey, list[ChannelFigures]] = {}

    def fetch_figures(self, uid: str | None) -> Deferred[None]:
        """Ask for the figures of a stream, or of all; fires when they are here or too long in coming."""
        if self.dialer.link is None:
            done: Deferred[None] = Deferred()
            done.callback(None)
            return done
        asked = self.dialer.ask(Status(uid=uid, role=None, seq=UNSENT), FIGURES_PATIENCE)
        return asked.addCallbacks(self._note_figures, _no_figures)

    def release(self, key: StreamKey) -> None:
        """Release what the gateway holds of a stream that nobody here knows."""
        uid, role = key
        self.dialer.ask(Rel(uid=uid, role=role, seq=UNSENT), None).addErrback(_no_figures)

    def _up(self) -> None:
        self.log.info("gateway {gateway} is there", gateway=self.name)
        self._compare()

    def _down(self, trouble: str, hopeless: bool) -> None:
        if hopeless:
            self.log.error("gateway {gateway}: {trouble}", gateway=self.name, trouble=trouble)
        self._tried()

    def _tried(self) -> None:
        if not self.tried:
            self.tried = True
            self._server.gateway_tried()

    def _compare(self) -> None:
        """Ask for all streams, page by page."""
        self._next_page(self._server.held_by(self.name), {}, None)

    def _next_page(self, expected: set[StreamKey], known: dict[StreamKey, StreamStatus], after: str | None) -> None:
        asked = self.dialer.ask(Status(uid=None, role=None, seq=UNSENT, after=after), GATEWAY_PATIENCE)
        asked.addCallbacks(self._page, self._no_page, (expected, known))

    def _no_page(self, failure: Failure) -> None:
        failure.trap(StreamError, CancelledError)
        self._tried()

    def _page(self, answer: Resp, expected: set[StreamKey], known: dict[StreamKey, StreamStatus]) -> None:
        for status in answer.streams or []:
            known[status.uid, status.role] = status
        if answer.more is not None:
            self._next_page(expected, known, answer.more)
            return
        self.figures = {key: status.figures for key, status in known.items()}
        self.room = answer.room
        self._server.gateway_knows(self, answer.boot or "", expected, known)
        self._tried()

    def _note_figures(self, answer: Resp) -> None:
        for status in answer.streams or []:
            self.figures[status.uid, status.role] = status.figures


def _no_figures(failure: Failure) -> None:
    failure.trap(StreamError, CancelledError)

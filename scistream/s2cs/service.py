"""The S2CS as a Twisted service: a listener for users and applications, and a link to each gateway.

`ControlServer` authenticates the senders of commands and passes each command to the machine of its stream. A
`ServerStream` carries out what the machine of one stream decides, a `GatewayLink` is one S2DS of the pool, and
`GatewayReports` takes what the gateways report.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import time
from collections.abc import Callable, Collection, Iterable
from contextlib import ExitStack, suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
from OpenSSL import SSL
from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred, succeed
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger
from twisted.python.failure import Failure

from scistream import __version__, timing
from scistream.config import raise_if_any
from scistream.links.admission import AdmissionController
from scistream.links.link import Link
from scistream.links.outbox import command_name
from scistream.links.tls_links import (
    PLAIN_IDENTITY,
    LinkListener,
    close_refused,
    dialer,
    handshake_failure,
    log_refusal,
)
from scistream.paging import page_key
from scistream.protocol.address import Address
from scistream.protocol.errors import ErrorCode, StreamError
from scistream.protocol.messages import (
    CONS,
    PROD,
    Answer,
    Command,
    Drain,
    DrainProgress,
    Error,
    Extend,
    Hello,
    Message,
    ProdLstn,
    Rel,
    Req,
    Resp,
    Role,
    Status,
    StreamKey,
    StreamStatus,
    UpdateTargets,
)
from scistream.reloading import Change, merge
from scistream.s2cs.audit.sinks import Sink, audit_file, open_sink
from scistream.s2cs.audit.trail import AuditTrail, StreamTrail
from scistream.s2cs.counts import ServerCounts
from scistream.s2cs.drains import Drains
from scistream.s2cs.early_requests import EarlyRequests
from scistream.s2cs.event_log import size_of
from scistream.s2cs.gateway import GatewayLink
from scistream.s2cs.gateway_addresses import PoolAddresses
from scistream.s2cs.gateway_reports import GatewayReports
from scistream.s2cs.hello_throttle import WrongKeys
from scistream.s2cs.http import check_readers, http_server, http_trust
from scistream.s2cs.live_streams import LiveStreams
from scistream.s2cs.machine import resume
from scistream.s2cs.placement import GatewayState, gateway_state, spares
from scistream.s2cs.policy.authorizer import Authorizer, Grant, owner_of, policy_of
from scistream.s2cs.record import Record
from scistream.s2cs.settings import GatewaySettings, S2CSConfig
from scistream.s2cs.start import machine_problems, orphan_problems, remove_new_file
from scistream.s2cs.store.database import MOST_EARLY_RELEASES, MOST_RELEASED, Store
from scistream.s2cs.store.ledger import Ledger
from scistream.s2cs.store.lock import StoreLock
from scistream.s2cs.stream import ServerStream
from scistream.s2cs.web.monitor import Monitor
from scistream.setup_problems import SetupProblems
from scistream.shared_settings import resolve_path, trust_of
from scistream.state_machines import Caller
from scistream.tls.expiry import ExpiryWatch
from scistream.tls.explain import explain
from scistream.tls.reloadable import ReloadableCredentials, controller_credentials
from scistream.tls.verify import Identity
from scistream.units import parse_grace, parse_seconds

MAX_PAGE_BYTES = 150_000
STATUS_BYTES = 400
"""An estimate of the bytes that a stream takes in a page of Status, without its certificate request and listeners."""
LISTENER_BYTES = 200
"""An estimate of the bytes that a listener takes there, with the figures of its channel."""
PATH_BYTES = 300
"""The most bytes that a path takes there."""
NEEDS_RESTART = ("listen", "state", "insecure")
"""The settings that only a restart can change, because the process has the port and the files open."""
ROLES: tuple[Role, ...] = (CONS, PROD)

_COMMANDS = "an S2CS accepts REQ, UpdateTargets, Extend, REL, Status, Drain and Hello"
_REFUSED_HELLO = (
    "no stream here expects this application with this key: the stream was released or has expired, or the join string "
    "is for the other side or another facility. Get a new join string."
)


class ControlServer(Service):
    """An S2CS.

    :param reactor: the reactor, with monotonic timers.
    :param config: the settings, without problems.
    :param config_file: the file of the settings; relative paths start at its folder.
    :param wall: returns the seconds since the epoch, for deadlines that outlive this process.
    :param problems: problems that were found before, to be raised together with those found here.
    :param release_unknown: release streams of which the store has no record, when a gateway first reports them.
    :raises CertificateError: if the certificates cannot be used.
    :raises ConfigError: if the policy cannot be used.
    :raises StoreError: if the store cannot be used.
    :raises StreamError: if it would serve or dial plain TCP beyond loopback.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        config: S2CSConfig,
        config_file: Path,
        wall: Callable[[], float] = time.time,
        problems: SetupProblems | None = None,
        *,
        release_unknown: bool = False,
    ) -> None:
        self.counts = ServerCounts()
        self._reports = GatewayReports(self, release_unknown=release_unknown)
        self.reactor = reactor
        self.config = config
        self.config_file = config_file
        self.wall = wall
        self.monitor = Monitor(self)
        problems = problems or SetupProblems()
        own = None if config.insecure else trust_of(config, config_file)
        with problems.of_step():
            self._listener = LinkListener(reactor, Address.parse(config.listen), own, client_certificate="optional")
        self._to_gateways: ReloadableCredentials | None = None
        if config.controller is not None and not config.insecure:
            with problems.of_step():
                self._to_gateways = controller_credentials(trust_of(config.controller, config_file))
        with problems.of_step():
            policy = policy_of(config, config_file)
            check_readers(config, policy)
        with problems.of_step():
            self._http = http_server(self)
        store = resolve_path(config_file, config.state)
        lock = None
        if store.exists():  # otherwise a failed start would leave a lock file behind
            with problems.of_step():
                lock = StoreLock(store)
        problems.raise_if_any()
        self.expiry = ExpiryWatch(reactor, self.all_credentials(), wall, self.log)
        self.admission_controller = AdmissionController(
            reactor, config.limits.bounds, f"the listener at {config.listen}", known_refusal=timing.FIRST_REFUSAL
        )
        self._wrong_keys = WrongKeys(reactor)
        self._port: IListeningPort | None = None
        self._links: set[Link] = set()
        self.gateways = {one.name: self._gateway(one) for one in config.gateways}
        self._lock, self.store, sink = self._open_files(store, lock)
        self.ledger = Ledger(self.store, wall)
        self.authorizer = Authorizer(config, policy, self.ledger.usage_today, reactor.seconds)
        self.audit = AuditTrail(sink, config.listen, wall)
        self.pool_addresses = PoolAddresses(_control_addresses(config))
        self.streams = LiveStreams()
        self.unwritten: set[StreamKey] = set()
        self.drains = Drains(self)
        self._early = EarlyRequests(reactor, self._resume_request)

    def _open_files(self, file: Path, lock: StoreLock | None) -> tuple[StoreLock, Store, Sink | None]:
        """Open the lock, the store and the destination of the audit trail.

        :param file: the file of the store.
        :param lock: the lock of the store, if the store already exists.
        :raises ConfigError: if any of them cannot be opened. Files that were created are removed again, except for the
            lock file.
        """
        audit = audit_file(self.config.audit, self.config_file, file)
        with ExitStack() as opened:
            lock = lock or StoreLock(file)
            opened.callback(lock.release)
            for new in (file, audit):
                if new is not None and not os.path.lexists(new):
                    opened.callback(remove_new_file, new)
            store = Store(file)
            opened.callback(store.close)
            self._refuse_orphans(self.config, store.load(live=True))
            sink = open_sink(self.config.audit, audit)
            opened.pop_all()
            return lock, store, sink

    def _gateway(self, settings: GatewaySettings) -> GatewayLink:
        """Return the link to a gateway of the configuration.

        :raises StreamError: if the gateway would be dialled over plain TCP beyond loopback.
        """
        address = Address.parse(settings.address)
        return GatewayLink(
            self._reports, settings.name, dialer(self.reactor, address, settings.name, self._to_gateways)
        )

    def _refuse_orphans(self, config: S2CSConfig, records: Iterable[Record]) -> None:
        """Refuse a configuration without a gateway that may hold a stream, because the stream could not be released.

        :raises ConfigError: naming the gateways and their streams.
        """
        raise_if_any(self.config_file, orphan_problems(config, records, self.wall()))

    # -- the service

    def startService(self) -> None:
        """Listen, take up the streams of the store again, and dial the gateways."""
        self._lock.note_holder()
        if self.config.insecure:
            self.log.warn(
                "INSECURE: control links are plain TCP on loopback; every user of this machine is every owner"
            )
        self._port = self._listener.open(lambda: self, self.admission_controller)
        self._http.start()
        self._restore()
        super().startService()
        if self.all_credentials():
            self.expiry.start()
        for gateway in self.gateways.values():
            gateway.dialer.startService()
        self.log.info(
            "party=s2cs listens on {listen}, gateways {gateways}, streams in the store {streams}",
            listen=self.config.listen,
            gateways=", ".join(self.gateways),
            streams=len(self.streams),
        )

    def shut_down(self) -> Deferred[None]:
        """Fire when this S2CS may stop: when it has no stream left, or after `shutdown_grace`."""
        return self.drains.shut_down(parse_grace(self.config.shutdown_grace))

    def when_ready(self) -> Deferred[None]:
        """Return a Deferred that has fired: the S2CS works as soon as it listens, and requests wait for gateways."""
        return succeed(None)

    def status_line(self) -> str:
        """Return how many streams there are, and how many gateways are connected, in one line."""
        connected = sum(gateway.dialer.link is not None for gateway in self.gateways.values())
        return f"{self._live()} streams; gateways connected: {connected} of {len(self.gateways)}"

    def stopService(self) -> Deferred[Any]:
        """Close all links and files. The streams go on, and the next start takes them up again."""
        super().stopService()
        self.expiry.stop()
        closing_http = self._http.stop()
        for stream in self.streams.values():
            stream.stop_timers()
        self.drains.stop()
        self._wrong_keys.stop()
        self._early.stop()
        self.admission_controller.stop()
        for link in list(self._links):
            link.close()
        stopping: list[Deferred[Any]] = [
            closing_http,
            *(gateway.dialer.stopService() for gateway in self.gateways.values()),
        ]
        port, self._port = self._port, None
        if port is not None:
            stopping.append(maybeDeferred(port.stopListening))
        return DeferredList(stopping).addCallback(lambda _: self._close_files())

    @property
    def is_draining(self) -> bool:
        """True if no new stream begins here; `is_drained` of a gateway says the same of it alone."""
        return self.drains.is_draining()

    def _close_files(self) -> None:
        self.ledger.write()
        self.audit.stopped(self._live())
        self.store.close()
        self._lock.release()

    def _live(self) -> int:
        return sum(stream.record.state != "Released" for stream in self.streams.values())

    def reload(self, config: S2CSConfig) -> Change:
        """Apply new settings, and read certificates, keys, authorities, CRLs and the policy again.

        Either everything is applied, or nothing changes. Users and gateways whose certificates are no longer accepted
        lose their links; streams go on. Gateways may be added, and those that hold no stream may be removed.

        :raises ConfigError: with a line for each problem.
        """
        # Read and create everything before changing anything, so that an exception changes nothing.
        held = {name for name in self.gateways if self.streams.at_gateway(name)}
        pool_kept, moved = _pool_to_keep(self.config.gateways, config.gateways, held)
        merged, change = merge(self.config_file, self.config, config, NEEDS_RESTART, {"gateways": pool_kept}, moved)
        problems = SetupProblems()
        with problems.of_step():
            raise_if_any(self.config_file, list(machine_problems(merged, self.config_file, may_run=True)))
        new = []
        for credentials, section in ((self._listener.credentials, merged), (self._to_gateways, merged.controller)):
            if credentials is not None and section is not None:
                with problems.of_step():
                    new.append(credentials.read(trust_of(section, self.config_file)))
        with problems.of_step():
            policy = policy_of(merged, self.config_file)
            check_readers(merged, policy)
        with problems.of_step():
            self._refuse_orphans(merged, [stream.record for stream in self.streams.values()])
        pool = {}
        for one in merged.gateways:
            with problems.of_step():
                pool[one.name] = self.gateways[one.name] if one in self.config.gateways else self._gateway(one)
        problems.raise_if_any()
        with ExitStack() as opened:
            use_audit = self._prepare_audit(merged, opened)
            new.append(self._http.prepare(merged.http, http_trust(merged, self.config_file)))
            opened.pop_all()

        self.config = merged
        self.authorizer.put_in_force(merged, policy)
        self.admission_controller.set_bounds(merged.limits.bounds)
        for put_in_force in new:
            put_in_force()
        self._change_pool(pool)
        if self._listener.credentials is not None:
            close_refused(list(self._links), self._listener.credentials)
        if self._to_gateways is not None:
            close_refused([gateway.dialer.link for gateway in self.gateways.values()], self._to_gateways)
        use_audit()
        self.expiry.look()
        return change

    def _prepare_audit(self, config: S2CSConfig, opened: ExitStack) -> Callable[[], None]:
        """Open the destination of the audit trail if it is another one; return what puts it in force.

        :param opened: closes it, if the reload fails after this.
        :raises ConfigError: if it cannot be opened.
        """
        if config.audit == self.config.audit:
            return self.audit.reopen
        file = audit_file(config.audit, self.config_file, resolve_path(self.config_file, config.state))
        if file is not None and not os.path.lexists(file):
            opened.callback(remove_new_file, file)
        sink = open_sink(config.audit, file)
        if sink is not None:
            opened.callback(sink.close)
        return partial(self.audit.use, sink)

    def _change_pool(self, pool: dict[str, GatewayLink]) -> None:
        """Dial the gateways that are new in the pool, and hang up on those that are not in it any more."""
        before, self.gateways = self.gateways, pool
        self.pool_addresses.set_control(_control_addresses(self.config))
        for name, gateway in before.items():
            if pool.get(name) is not gateway:
                self.log.info("gateway {gateway} was removed from the pool, or has moved", gateway=name)
                self.pool_addresses.forget(name)
                gateway.dialer.stopService()
        for name, gateway in pool.items():
            if before.get(name) is not gateway and self.running:
                gateway.dialer.startService()
        self.drains.pool_changed()
        self.gateway_settled()  # requests may have waited for a gateway that was removed

    def all_credentials(self) -> dict[str, ReloadableCredentials]:
        """Return the certificates of this S2CS: of the "server" for users, of the "controller" for gateways."""
        named = {"server": self._listener.credentials, "controller": self._to_gateways}
        return {name: credentials for name, credentials in named.items() if credentials is not None}

    def _warnings(self, link: Link) -> list[str] | None:
        """Return the warnings for a user, about this facility and the user's certificate; None if there are none."""
        warnings = self.operator_warnings()
        if self.all_credentials():
            warnings += self.expiry.of_peer(link, "your own certificate", "ask your facility to renew it")
        return warnings or None

    def operator_warnings(self) -> list[str]:
        """Return the warnings about drains, certificates that expire soon and unknown streams on gateways."""
        warnings = self.drains.warnings()
        warnings += [_unknown_streams_warning(gateway) for gateway in self.gateways.values() if gateway.unknown_streams]
        if not self.all_credentials():
            return warnings
        warnings += self.expiry.warnings()
        for gateway in self.gateways.values():
            whose = f"the certificate of gateway {gateway.name}"
            warnings += self.expiry.of_peer(gateway.dialer.link, whose, "its operator has to renew it")
        return warnings

    def _restore(self) -> None:
        self._forget_old()
        self.streams = LiveStreams(ServerStream(self, record, restored=True) for record in self.store.load(live=True))
        self.audit.started(list(self.gateways), self._live(), self.config.insecure)
        for one in list(self.streams.values()):
            one.events.restarted()
            resume(one.machine, one.core)
        self.drains.restore()

    def _forget_old(self) -> None:
        self.store.forget_old(self.wall() - timing.REMEMBER_RELEASED)

    def use_changed(self, stream: ServerStream) -> None:
        """Update what a stream uses, because its record may have changed."""
        self.streams.note_use(stream)
        self.monitor.stream_changed(stream.record.key)

    def ended(self, stream: ServerStream) -> None:
        """Remove a stream that is released and written. From now on it is answered for from the store."""
        self.ledger.close(stream.record)
        for gateway in self.gateways.values():
            gateway.figures.pop(stream.record.key, None)
            gateway.probes.pop(stream.record.key, None)
            gateway.broken.pop(stream.record.key, None)
            gateway.notices.pop(stream.record.key, None)
            gateway.paths.pop(stream.record.key, None)
        self.store.keep_newest(stream.record.owner, MOST_RELEASED)
        self.streams.remove(stream)
        self.drains.streams_changed()
        self.monitor.stream_changed(stream.record.key)

    def find(self, key: StreamKey) -> ServerStream | None:
        """Return a live stream, or one that was released within a day, or None.

        :raises StreamError: `no-capacity` if the store cannot be read.
        """
        record = self.store.find(key)  # always, so that the time of an answer does not reveal whether a stream exists
        if key in self.streams or record is None:
            return self.streams.get(key)
        return ServerStream(self, record, restored=True)

    def forget(self, stream: ServerStream) -> None:
        """Remove a stream of which nothing was ever written, so that its uid is free again."""
        self.unwritten.discard(stream.record.key)
        self.store.forget(stream.record.key)
        self.ledger.close(stream.record)
        self.streams.remove(stream)
        self.drains.streams_changed()
        self.monitor.stream_changed(stream.record.key)

    def write_again(self) -> None:
        """Write the records that could not be written before."""
        for key in list(self.unwritten):
            stream = self.streams.get(key)
            if stream is None:
                self.unwritten.discard(key)
            elif not stream.core.effects.save(stream.record):
                return

    # -- LinkOwner

    def link_up(self, link: Link) -> None:
        """Take a new link, and note the identity of its certificate if it has one."""
        self._links.add(link)
        link.on_bad_line = partial(self.audit.bad_line, link)
        if link.peer is not None:
            link.mark_proven(str(link.peer) if link.peer != PLAIN_IDENTITY else None)

    def link_down(self, link: Link, reason: Failure) -> None:
        """Forget a link, also one that was refused before it was up."""
        if link.refusal is not None or (link not in self._links and isinstance(reason.value, SSL.Error)):
            self.audit.link_refused(link, explain(reason))
        log_refusal(link, reason)
        self._wrong_keys.forget(link)
        if link not in self._links:
            failure = handshake_failure(reason)
            if failure is not None:
                self.counts.handshakes[failure] += 1
            return
        self._links.remove(link)
        if link.is_anonymous:  # no stream has such a link, and there may be very many of them
            return
        for stream in self.streams.of_link(link):
            stream.link_lost(link)
        self.streams.forget_link(link)

    def answer_received(self, link: Link, answer: Answer) -> None:
        """Take the answer of an application to StartConn."""
        if link.is_anonymous:
            self._misused(link, "an answer without a command")
            return
        if answer.uid is None:
            candidates = self.streams.of_link(link)
        else:
            candidates = [stream for role in ROLES if (stream := self.streams.get((answer.uid, role))) is not None]
        for stream in candidates:
            if stream.app_link is link and stream.app_outbox.answered(answer):
                return

    def message_received(self, link: Link, message: Message) -> None:
        """Carry out a command, and answer it."""
        if self._wrong_keys.has(link):
            self._misused(link, "another message after a wrong key")
            return
        self._carry_out_or_refuse(link, message, partial(self._carry_out, link, message))

    def _carry_out(self, link: Link, message: Message) -> None:
        if isinstance(message, Hello):
            self._hello(link, message)
        elif isinstance(message, Req | UpdateTargets | Extend | Rel | Status | Drain):
            self._from_user(link, message)
        elif not isinstance(message, Resp | Error):
            raise StreamError("not-authorized", _COMMANDS)

    def _carry_out_or_refuse(self, link: Link, message: Message, carry_out: Callable[[], None]) -> None:
        """Carry out a message. If that fails, answer with the error."""
        try:
            carry_out()
        except StreamError as error:
            assert not isinstance(message, Resp | Error)
            self._refuse(link, message, error.code, error.msg)
            if link.peer is None and not isinstance(message, Hello):
                link.count_bad_line(f"{command_name(message)} without a certificate")
        except Exception:
            # The sender waits for an answer, so a bug here must not prevent one.
            self.log.failure("{cmd} of {uid} failed", cmd=command_name(message), uid=message.uid)
            if not isinstance(message, Resp | Error):
                msg = "internal error of this S2CS: ask its operator to look into its log"
                self._refuse(link, message, "no-capacity", msg)

    def _misused(self, link: Link, why: str) -> None:
        self.audit.bad_line(link, None, why, link.next_bad_line_closes)
        link.count_bad_line(why)

    def answer(
        self, link: Link, cmd: str, role: Role | None, answer: Resp | Error, stream: StreamTrail | None = None
    ) -> None:
        """Send the answer to a command, and record it in the audit trail.

        :param cmd: the name of the command.
        :param role: the side of the stream that the command names, if any.
        :param stream: the trail of the stream that the command was for, if it reached one.
        """
        self.audit.answered(link, cmd, role, answer, stream)
        if isinstance(answer, Error):
            self.counts.refusals[answer.code] += 1
        link.send(answer)

    def _refuse(self, link: Link, command: Command | ProdLstn, code: ErrorCode, msg: str) -> None:
        self.answer(link, command_name(command), command.role, _refusal(command, code, msg))

    # -- users

    def _from_user(self, link: Link, command: Req | UpdateTargets | Extend | Rel | Status | Drain) -> None:
        owner = _user(link)
        if isinstance(command, Status):
            self._status(link, owner, command)
        elif isinstance(command, Drain):
            self._drain(link, owner, command)
        elif isinstance(command, Req):
            self._req(link, owner, command)
        else:
            self._change_stream(link, owner, command)

    def _req(self, link: Link, owner: str, request: Req, *, waits: bool = True) -> None:
        stream = self.find((request.uid, request.role))
        if stream is not None and stream.record.owner == owner:
            self.authorizer.authorise(request, owner, stream.record).check()
            self._note_owner_link(stream, link, owner)
            stream.machine.req(Caller(link, request.seq, "REQ"), request, owner, {})
        elif self.store.was_released_early(owner, (request.uid, request.role)):
            raise StreamError(
                "wrong-state", f"stream {request.uid} was released before it was requested: choose another uid"
            )
        elif waits and not self._is_settled():
            earlier = self._early.add(owner, link, request)
            if earlier is not None:
                msg = f"stream {request.uid} was requested again, with other fields, before this request was answered"
                self._refuse(*earlier, "wrong-state", msg)
        else:
            self._new_stream(link, owner, request, is_free=stream is None)

    def gateway_settled(self) -> None:
        """Let requests that came early go on, if all gateways are now known or cannot be reached."""
        if self._is_settled():
            self._early.go_on()

    def _is_settled(self) -> bool:
        return all(gateway.settled for gateway in self.gateways.values())

    def _resume_request(self, link: Link, request: Req) -> None:
        """Carry out a request that has waited for the gateways, with the gateways that are known by now."""
        if link.is_up:  # otherwise its sender repeats it on a new link, unless the certificate was revoked meanwhile
            self._carry_out_or_refuse(link, request, partial(self._req, link, _user(link), request, waits=False))

    def _new_stream(self, link: Link, owner: str, request: Req, *, is_free: bool) -> None:
        self._forget_old()
        grant = self.authorizer.authorise(request, owner, use=self.streams.use_of_owner(owner))
        self.audit.request(link, request, owner)
        grant.check()
        life = grant.life
        hello_timeout = min(request.hello_timeout or parse_seconds(self.config.hello_timeout), life)
        members, plan = self.drains.place(self._members(), request)
        if not is_free:  # checked last, so that only a user who could have the stream learns that the uid is in use
            raise StreamError("uid-in-use", f"stream {request.uid} is not yours: choose another uid")
        record = Record(
            uid=request.uid,
            role=request.role,
            owner=owner,
            life=life,
            expires_at=self.wall() + life,
            hello_by=self.wall() + hello_timeout,
        )
        stream = ServerStream(self, record)
        self.streams.add(stream)
        self._note_owner_link(stream, link, owner)
        if request.listen_ports is not None:
            stream.core.spares = spares(members, plan, request.listen_ports, request.rate)
        stream.machine.req(Caller(link, request.seq, "REQ"), request, owner, plan)

    def _members(self) -> list[GatewayState]:
        return [
            gateway_state(name, gateway.room, self.streams.use_of_gateway(name), gateway.unknown_use)
            for name, gateway in self.gateways.items()
            if gateway.room is not None and gateway.dialer.link is not None
        ]

    def _change_stream(self, link: Link, owner: str, command: UpdateTargets | Extend | Rel) -> None:
        key = (command.uid, command.role)
        stream = self.find(key)
        grant = self.authorizer.authorise(command, owner, stream.record if stream is not None else None)
        if stream is None or not grant.shows(stream.record):
            if isinstance(command, Rel) and grant.allows_role:
                with suppress(StreamError):  # if the disk is full, a late REQ is refused anyway
                    self.store.note_early_release(owner, key, self.wall(), MOST_EARLY_RELEASES)
            raise _none_of_yours(command.uid)
        self._note_owner_link(stream, link, owner)
        caller = Caller(link, command.seq, command_name(command))
        if isinstance(command, UpdateTargets):
            grant.check_targets(command.connection_map.values() if command.role == PROD else ())
            self._refuse_own_gateways(stream.record, _dialled(command))
            stream.keep_allowed_addresses(grant)
            stream.machine.update_targets(caller, command)
        elif isinstance(command, Extend):
            if command.expires > stream.seconds_left():
                self.authorizer.check_extension(grant, stream.age + command.expires)
            stream.machine.extend(caller, command)
        else:
            stream.release(caller, owner)

    def _refuse_own_gateways(self, record: Record, targets: Iterable[str]) -> None:
        """Refuse targets that are addresses of the pool itself.

        :raises StreamError: `target-refused`.
        """
        other = self.streams.get((record.uid, PROD if record.role == CONS else CONS))
        allowed: Collection[str] = ()
        if other is not None:
            allowed = (other.record.listeners if record.role == CONS else other.record.wan_listeners).values()
        problem = self.pool_addresses.problem(targets, allowed)
        if problem is not None:
            raise StreamError("target-refused", problem)

    # -- Status

    def _status(self, link: Link, owner: str, command: Status) -> None:
        grant = self.authorizer.authorise(command, owner)
        if command.uid is not None:
            named = [self.find((command.uid, role)) for role in ROLES if command.role in (None, role)]
            chosen = [stream for stream in named if stream is not None and grant.shows(stream.record)]
            if not chosen:
                raise _none_of_yours(command.uid)
            for stream in chosen:
                self._note_owner_link(stream, link, owner)
            chosen.sort(key=_page_key)
        else:
            after = command.after or ""
            visible = self.streams.after(after) if grant.is_administrator else self.streams.of_owner(owner, after)
            of_role = (stream for stream in visible if command.role in (None, stream.record.role))
            chosen = list(islice(of_role, command.limit + 1))
        page = [stream for stream in chosen if _page_key(stream) > (command.after or "")]
        fetching = [gateway.fetch_figures(command.uid) for gateway in self._gateways_of(page[: command.limit])]
        draining = self.drains.progress() if grant.is_administrator and command.uid is None else None
        DeferredList(fetching).addCallback(lambda _: self._answer_status(link, command, page, draining or None))

    def _note_owner_link(self, stream: ServerStream, link: Link, owner: str) -> None:
        stream.note_owner_link(link, owner)
        self.streams.note_link(stream, link)

    def _gateways_of(self, page: list[ServerStream]) -> list[GatewayLink]:
        names = {name for stream in page if stream.record.state != "Released" for name in stream.record.plan}
        return [self.gateways[name] for name in sorted(names) if name in self.gateways]

    def _answer_status(
        self, link: Link, command: Status, page: list[ServerStream], draining: list[DrainProgress] | None
    ) -> None:
        streams: list[StreamStatus] = []
        size = 0
        for stream in page[: command.limit]:
            status = self.drains.with_notices(stream.status(events=command.events and command.uid is not None))
            size += STATUS_BYTES + len(status.csr) + LISTENER_BYTES * len(status.listeners + status.wan_listeners)
            size += sum(map(len, status.notices)) + PATH_BYTES * len(status.paths) + size_of(status.events)
            if streams and size > MAX_PAGE_BYTES:
                break
            streams.append(status)
        last = _page_key(page[len(streams) - 1]) if len(streams) < len(page) else None
        state = streams[0].state if command.uid is not None and len(streams) == 1 else ""
        answer = Resp(
            uid=command.uid,
            seq=command.seq,
            state=state,
            msg=f"{len(streams)} streams",
            streams=streams,
            more=last,
            warnings=self._warnings(link),
            draining=draining,
            version=__version__ if command.uid is None else None,
        )
        self.answer(link, command_name(command), command.role, answer)

    # -- drains

    def _drain(self, link: Link, owner: str, command: Drain) -> None:
        self.authorizer.check_administrator(owner)
        draining = self.drains.carry_out(link, command, owner)
        answer = Resp(uid=command.uid, seq=command.seq, state="", msg=f"{len(draining)} drains", draining=draining)
        self.answer(link, command_name(command), command.role, answer)

    # -- applications

    def _hello(self, link: Link, hello: Hello) -> None:
        stream = self.find((hello.uid, hello.role))
        request = stream.record.request if stream is not None else None
        known = request.app_key_hash if request is not None else "0" * 64
        given = hashlib.sha256(hello.app_key.encode()).hexdigest()
        if not hmac.compare_digest(known, given) or stream is None:
            if stream is not None:
                stream.wrong_hellos += 1
            refusal = _refusal(hello, "not-authorized", _REFUSED_HELLO)
            # Recorded now, though the answer may be sent later.
            self.counts.refusals[refusal.code] += 1
            self.audit.answered(link, command_name(hello), hello.role, refusal)
            self._wrong_keys.refuse(link, hello, _REFUSED_HELLO)
            return
        link.mark_proven(None)
        grant = self.authorizer.of_stream(stream.record)
        hello = self._choose_addresses(stream.record, hello, grant)
        listeners = hello.listeners or []
        if hello.role == PROD and hello.listeners != stream.record.app_listeners:
            grant.check_targets(listeners)
        self._check_pool(stream.record, listeners)
        stream.note_application(link)
        stream.core.other_addresses = hello.other_addresses or {}
        self.streams.note_link(stream, link)
        stream.machine.hello(Caller(link, hello.seq, "Hello"), listeners)

    def _choose_addresses(self, record: Record, hello: Hello, grant: Grant) -> Hello:
        """Drop the addresses of each listener that must not be dialled; the first remaining one becomes the listener.

        A listener without a remaining address is kept, so that it is refused later with the reason.
        """
        listeners, remaining = [], {}
        for listener in hello.listeners or ():
            others = (hello.other_addresses or {}).get(listener)
            usable = [one for one in (listener, *others) if self._is_target(record, one, grant)] if others else []
            usable.sort(key=lambda one: one not in record.app_listeners)  # a lookup may return them in another order
            listeners.append(usable[0] if usable else listener)
            if len(usable) > 1:
                remaining[usable[0]] = usable[1:]
        return msgspec.structs.replace(hello, listeners=listeners or None, other_addresses=remaining or None)

    def _is_target(self, record: Record, address: str, grant: Grant) -> bool:
        """Return True if ProdApp may listen on an address. Addresses that the record already has are allowed."""
        if address in record.app_listeners or any(address in others for others in record.other_addresses.values()):
            return True
        try:
            self.check_targets(record, [address], grant)
        except StreamError:
            return False
        return True

    def check_targets(self, record: Record, addresses: list[str], grant: Grant) -> None:
        """Check that the policy, the pool and its gateways let ProdApp of a stream listen on these addresses.

        :raises StreamError: if they do not.
        """
        grant.check_targets(addresses)
        self._check_pool(record, addresses)

    def _check_pool(self, record: Record, addresses: list[str]) -> None:
        """Check that addresses are not the pool's own, and that the gateways of a stream connect to them.

        :raises StreamError: `target-refused`.
        """
        self._refuse_own_gateways(record, addresses)
        if record.request is not None and record.request.protocol == "probe":
            return  # gateways do not connect to the listener of a probe
        for name in record.plan:
            if name in self.gateways:
                self.gateways[name].check_targets(addresses)


def _dialled(command: UpdateTargets) -> Iterable[str]:
    """Return the targets that gateways dial."""
    if command.wan_dialer == CONS:
        return command.connection_map.values()
    return [*command.connection_map.values(), *(command.wan_targets or {}).values()] if command.role == PROD else ()


def _page_key(stream: ServerStream) -> str:
    return page_key(stream.record.key)


def _refusal(command: Command | ProdLstn, code: ErrorCode, msg: str) -> Error:
    return Error(uid=command.uid, seq=getattr(command, "seq", None), code=code, msg=msg)


def _pool_to_keep(
    in_force: list[GatewaySettings], new: list[GatewaySettings], held: Collection[str]
) -> tuple[list[GatewaySettings], list[str]]:
    """Return the new pool, and the keys of the addresses in it that differ from those in the file.

    A gateway that has streams keeps its address until the S2CS restarts.

    :param held: the gateways that have streams.
    """
    known = {gateway.name: gateway for gateway in in_force if gateway.name in held}
    pool = [known.get(gateway.name, gateway) for gateway in new]
    return pool, [f"gateways.{gateway.name}.address" for gateway in new if gateway not in pool]


def _none_of_yours(uid: str) -> StreamError:
    return StreamError(
        "unknown-uid",
        f"you have no stream {uid} here: it was requested at another S2CS, with another certificate, or never",
    )


def _control_addresses(config: S2CSConfig) -> list[str]:
    http = [config.http.listen] if config.http.listen else []
    return [config.listen, *http, *(one.address for one in config.gateways)]


def _unknown_streams_warning(gateway: GatewayLink) -> str:
    count = len(gateway.unknown_streams)
    return (
        f"gateway {gateway.name} has {count} streams of which this S2CS has no record, and keeps "
        "their ports and capacity until they expire: the log of the S2CS names them, and its operator can release them "
        "with `twistd s2cs --release-unknown`"
    )


def _user(link: Link) -> str:
    """Return the user at the other end of a link, in the form in which records keep the owner.

    :raises StreamError: if the peer has no certificate, or the certificate of a controller.
    """
    peer: Identity | None = link.peer
    if peer is None:
        raise StreamError("not-authenticated", "this command needs a client certificate; only Hello needs none")
    if peer.name.startswith("scistream:controller:"):
        raise StreamError("not-authorized", f"{peer.name} is the certificate of a controller, not of a user")
    return owner_of(peer)

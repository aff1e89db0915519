"""The initiator of an S2DS as a Twisted service: it obeys one controller, and owns what streams hold here.

`DataServer` takes commands; each stream has a `_Holding` that carries out what its machine decides:
ports, capacity, the stream's key, listeners, and the element that forwards.
"""

from __future__ import annotations

import resource
import secrets
import socket
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from OpenSSL import SSL
from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred, succeed
from twisted.internet.interfaces import IDelayedCall, IListeningPort, IResolutionReceiver
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from scistream.config import (
    S2DSConfig,
    beside,
    networks,
    parse_ports,
    parse_rate,
    parse_seconds,
)
from scistream.logs import trace
from scistream.s2ds.capacity import Capacity
from scistream.s2ds.elements import Arming, Element
from scistream.s2ds.machine import Core, Stream, new_stream
from scistream.s2ds.ports import Listener, Ports
from scistream.security.control import PLAIN_IDENTITY, Door, Trust
from scistream.security.stream import StreamSecret
from scistream.wire.address import Address, Network, inside, parse_network
from scistream.wire.errors import StreamError
from scistream.wire.line import Link
from scistream.wire.link import Caller
from scistream.wire.messages import (
    PROD,
    Answer,
    Error,
    Message,
    Rel,
    ReqListeners,
    Resp,
    Room,
    Status,
    StreamKey,
    StreamStatus,
    UpdateTargets,
)

REMEMBER_SECONDS = 24 * 3600.0


class DataServer(Service):
    """An S2DS.

    :param reactor: the reactor, with monotonic timers.
    :param config: the settings, checked.
    :param config_file: where they came from: relative paths start there.
    :raises CertificateProblem: if the certificates are not usable.
    :raises StreamError: if it would serve plain TCP beyond loopback.
    """

    log = Logger()

    def __init__(self, reactor: Any, config: S2DSConfig, config_file: Path) -> None:
        self.reactor = reactor
        self.config = config
        trust = None
        if not config.insecure:
            trust = Trust(
                beside(config_file, config.certificate),
                beside(config_file, config.key),
                tuple(beside(config_file, name) for name in config.authorities),
            )
        self._door = Door(reactor, Address.parse(config.listen), trust, client_certificate="required")
        self._port: IListeningPort | None = None
        self._links: set[Link] = set()
        self.boot = secrets.token_hex(16)
        self.ports = Ports(*parse_ports(config.ports))
        self.capacity = Capacity(parse_rate(config.capacity))
        self.element = Element(reactor, wan_timeout=parse_seconds(config.wan_timeout))
        self.app_networks = networks(config.app_networks)
        self.wan_networks = networks(config.wan_networks)
        self._holdings: dict[StreamKey, _Holding] = {}

    # -- the service

    def startService(self) -> None:
        _raise_descriptor_limit()
        if self.config.insecure:
            self.log.warn("INSECURE: control links are plain TCP on loopback; anybody on this machine may command us")
        self._port = self._door.open(lambda: self)
        super().startService()
        self.log.info(
            "party=s2ds listens on {listen} for {controller}, boot {boot}",
            listen=self.config.listen,
            controller=self.config.controller or "anybody on loopback",
            boot=self.boot,
        )

    def stopService(self) -> Deferred[Any]:
        super().stopService()
        for holding in self._holdings.values():
            holding.close_all()
        for link in list(self._links):
            link.close()
        port, self._port = self._port, None
        stopping = [maybeDeferred(port.stopListening)] if port is not None else []
        return DeferredList(stopping) if stopping else succeed(None)

    # -- LinkOwner

    def link_up(self, link: Link) -> None:
        if link.peer != PLAIN_IDENTITY and link.peer.name != self.config.controller:
            self.log.warn("refused {peer} at {address}: not our controller", peer=link.peer, address=link.address)
            msg = f"this gateway obeys its controller alone, and {link.peer.name} is not it"
            link.send(Error(uid=None, code="not-authorized", msg=msg))
            link.close()
            return
        self._links.add(link)

    def link_down(self, link: Link, reason: Failure) -> None:
        self._links.discard(link)

    def answer_received(self, link: Link, answer: Answer) -> None:
        """Nothing is ever asked of a controller: an answer is noise."""

    def message_received(self, link: Link, message: Message) -> None:
        if isinstance(message, Status):
            self._answer_status(link, message)
        elif isinstance(message, ReqListeners | UpdateTargets | Rel):
            self._command(link, message)
        elif not isinstance(message, Resp | Error):
            link.refuse(message, "not-authorized", "an S2DS takes ReqListeners, UpdateTargets, REL and Status")

    def _command(self, link: Link, command: ReqListeners | UpdateTargets | Rel) -> None:
        holding = self._holdings.get((command.uid, command.role))
        if holding is None and isinstance(command, UpdateTargets):
            link.refuse(command, "unknown-uid", f"no stream {command.uid} is reserved here")
            return
        if holding is None:
            self._forget_old()
            holding = self._holdings[command.uid, command.role] = _Holding(self, command)
        caller = Caller(link, command.seq)
        if isinstance(command, ReqListeners):
            holding.machine.req_listeners(caller, command)
        elif isinstance(command, UpdateTargets):
            holding.machine.update_targets(caller, command)
        else:
            holding.machine.rel(caller)

    def _forget_old(self) -> None:
        now = self.reactor.seconds()
        for key, holding in list(self._holdings.items()):
            if holding.released_at is not None and now - holding.released_at > REMEMBER_SECONDS:
                del self._holdings[key]

    def _answer_status(self, link: Link, command: Status) -> None:
        after = command.after or ""
        chosen = sorted(
            (_page_key(key), holding)
            for key, holding in self._holdings.items()
            if command.uid in (None, key[0]) and command.role in (None, key[1]) and _page_key(key) > after
            if command.uid is not None or holding.released_at is None
        )
        page = chosen[: command.limit]
        more = page[-1][0] if len(chosen) > len(page) else None
        link.answer(
            command,
            "",
            f"{len(page)} streams",
            boot=self.boot,
            room=Room(ports=self.ports.last - self.ports.first + 1, rate=parse_rate(self.config.capacity)),
            streams=[holding.status() for _, holding in page],
            more=more,
        )


def _page_key(key: StreamKey) -> str:
    return f"{key[0]}/{key[1]}"


def _raise_descriptor_limit() -> None:
    """Each connection takes two descriptors: take as many as this process may have."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class _Holding:
    """What one stream holds on this gateway; the `Effects` of its machine."""

    log = Logger()

    def __init__(self, server: DataServer, command: ReqListeners | Rel | UpdateTargets) -> None:
        self._server = server
        self._core = Core(self, command.uid, command.role, server.boot)
        self.machine: Stream = new_stream(self._core)
        trace(self.machine, self.log, party="s2ds", uid=command.uid, role=command.role)
        self.released_at: float | None = None
        self._listeners: dict[int, tuple[socket.socket, Listener]] = {}
        self._told: dict[str, int] = {}
        self._rate = 0.0
        self._secret: StreamSecret | None = None
        self._allowed: Callable[[str], bool] = _nobody
        self._timer: IDelayedCall | None = None
        self._expires_at = 0.0
        if isinstance(command, Rel):
            self.released_at = server.reactor.seconds()

    def __lt__(self, other: _Holding) -> bool:
        return (self._core.uid, self._core.role) < (other._core.uid, other._core.role)

    # -- effects

    def bind(self, request: ReqListeners) -> None:
        server = self._server
        try:
            server.capacity.reserve(request.rate)
        except StreamError as error:
            self._not_bound(error)
            return
        leg = server.config.wan if request.role == PROD else server.config.lan
        try:
            sockets = server.ports.reserve(leg.bind, len(request.channels))
        except StreamError as error:
            server.capacity.release(request.rate)
            self._not_bound(error)
            return
        self._rate = request.rate
        self._secret = StreamSecret()
        self._listeners = {
            channel: (sock, Listener(server.reactor, sock))
            for channel, sock in zip(request.channels, sockets, strict=True)
        }
        told = [str(Address(leg.told, sock.getsockname()[1])) for sock in sockets]
        self._told = dict(zip(told, request.channels, strict=True))
        self._allowed = self._source_check(request)
        server.element.open(request.uid, request.role, request.rate, request.channels)
        self.machine.bound(told, self._secret.csr)

    def _not_bound(self, error: StreamError) -> None:
        self.released_at = self._server.reactor.seconds()
        self.machine.not_bound(error)

    def arm(self, command: UpdateTargets) -> None:
        try:
            targets = self._targets(command)
            assert self._secret is not None
            context = self._secret.context(command.data_conn_key, command.uid, command.role)
        except StreamError as error:
            self.machine.not_armed(error)
            return
        names = [target for target in targets.values() if target.numeric is None]
        if not names:
            self._arm(command, targets, context, {})
            return
        found: dict[str, str] = {}
        waiting = DeferredList([self._resolve(name.host, found) for name in names])
        waiting.addCallback(lambda _: self._arm(command, targets, context, found))

    def close(self) -> None:
        self.close_all()
        self.released_at = self._server.reactor.seconds()
        self.machine.closed()

    def answer(self, caller: Caller, message: Resp | Error) -> None:
        caller.link.send(message)

    def start_timer(self, seconds: float) -> None:
        self._expires_at = self._server.reactor.seconds() + seconds
        self._timer = self._server.reactor.callLater(seconds, self.machine.expired)

    def stop_timer(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()

    # -- for the server

    def close_all(self) -> None:
        """Let go of everything; idempotent."""
        server = self._server
        self.stop_timer()
        listeners, self._listeners = self._listeners, {}
        for sock, listener in listeners.values():
            listener.stop()
            server.ports.release(sock)
        server.element.close(self._core.uid, self._core.role)
        if self._rate:
            server.capacity.release(self._rate)
            self._rate = 0.0
        self._secret = None

    def status(self) -> StreamStatus:
        """This stream, for an answer to Status."""
        core = self._core
        return StreamStatus(
            uid=core.uid,
            role=core.role,
            state=core.state,
            rate=self._rate,
            channels=list(core.request.channels) if core.request is not None else [],
            listeners=core.listeners,
            csr=core.csr,
            generation=core.generation,
            connection_map=dict(core.current.connection_map) if core.current is not None else {},
            figures=self._server.element.figures(core.uid, core.role),
            seconds_left=max(0.0, self._expires_at - self._server.reactor.seconds()) if self._listeners else 0.0,
            last_error=core.last_error,
        )

    # -- inside

    def _targets(self, command: UpdateTargets) -> dict[int, Address]:
        missing = next((listener for listener in self._told if listener not in command.connection_map), None)
        if missing is not None or len(command.connection_map) != len(self._told):
            raise StreamError("bad-message", "field connection_map: it must give each listener here a target, no more")
        targets = {self._told[here]: Address.parse(there) for here, there in command.connection_map.items()}
        for target in targets.values():
            self._check_target(target)
        return targets

    def _check_target(self, target: Address) -> None:
        key, allowed = self._reach()
        numeric = target.numeric
        if numeric is None and self._core.role == PROD:
            raise StreamError("target-refused", f"target {target} is a name; on the LAN targets are numeric")
        if numeric is not None and not inside(numeric, allowed):
            raise StreamError(
                "target-refused",
                f"target {target} is outside the {key} of this gateway ({', '.join(map(str, allowed))})",
            )

    def _reach(self) -> tuple[str, tuple[Network, ...]]:
        """The networks that this side's targets lie in: ProdApp's on the LAN, the other gateway's on the WAN."""
        server = self._server
        if self._core.role == PROD:
            return "app_networks", server.app_networks
        return "wan_networks", server.wan_networks

    def _resolve(self, name: str, found: dict[str, str]) -> Deferred[None]:
        """Look a gateway's name up, once for a generation: what was checked is what is dialled."""
        lookup = _Lookup()
        self._server.reactor.nameResolver.resolveHostName(lookup, name)

        def note(hosts: list[str]) -> None:
            _, allowed = self._reach()
            fit = [host for host in hosts if inside(ip_address(host), allowed)]
            if hosts:
                found[name] = (fit or hosts)[0]

        return lookup.finished.addCallback(note)

    def _arm(
        self, command: UpdateTargets, targets: dict[int, Address], context: SSL.Context, found: dict[str, str]
    ) -> None:
        if not self._listeners:
            return
        try:
            for channel, target in targets.items():
                targets[channel] = self._numeric(target, found)
            for channel, target in targets.items():
                self._server.element.arm(Arming(command.uid, command.role, channel, target, context))
            for channel, (_, listener) in self._listeners.items():
                listener.start(self._acceptor(channel))
        except StreamError as error:
            self.machine.not_armed(error)
            return
        self.machine.armed()

    def _numeric(self, target: Address, found: dict[str, str]) -> Address:
        if target.numeric is not None:
            return target
        if target.host not in found:
            raise StreamError("target-refused", f"target {target}: no such name is known to this gateway")
        numeric = Address(found[target.host], target.port)
        self._check_target(numeric)
        return numeric

    def _source_check(self, request: ReqListeners) -> Callable[[str], bool]:
        server = self._server
        allowed = server.wan_networks if request.role == PROD else server.app_networks
        narrowed = None
        if request.role != PROD and request.app_from is not None:
            narrowed = tuple(parse_network(text) for text in request.app_from)

        def check(host: str) -> bool:
            address = ip_address(host.partition("%")[0])
            return inside(address, allowed) and (narrowed is None or inside(address, narrowed))

        return check

    def _acceptor(self, channel: int) -> Callable[[socket.socket, tuple[Any, ...]], None]:
        core = self._core

        def accepted(sock: socket.socket, peer: tuple[Any, ...]) -> None:
            if not self._allowed(peer[0]):
                self.log.warn(
                    "refused a connection from {peer}: outside the networks of this channel",
                    peer=peer[0],
                    uid=core.uid,
                    channel=channel,
                )
                sock.close()
                return
            self._server.element.carry(core.uid, core.role, channel, sock)

        return accepted


@implementer(IResolutionReceiver)
class _Lookup:
    """Gathers the addresses of a name; `finished` fires with them, or with none if there are none."""

    def __init__(self) -> None:
        self.finished: Deferred[list[str]] = Deferred()
        self._hosts: list[str] = []

    def resolutionBegan(self, resolutionInProgress: Any) -> None:
        """The resolver has started."""

    def addressResolved(self, address: Any) -> None:
        self._hosts.append(address.host)

    def resolutionComplete(self) -> None:
        self.finished.callback(self._hosts)


def _nobody(_host: str) -> bool:
    return False

"""The stream of a gateway: it carries out what the stream's machine decides.

A `GatewayStream` holds the ports, capacity, key and listeners of one stream, and tells the elements where to forward.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Protocol

from twisted.internet.defer import Deferred, DeferredList, DeferredSemaphore, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from scistream import timing
from scistream.logs import Tally
from scistream.protocol.address import Address, Network, has_every_address, inside, parse_network, peer_address
from scistream.protocol.errors import StreamError
from scistream.protocol.messages import (
    CONS,
    MAX_NOTICES,
    PROD,
    BrokenChannel,
    Cause,
    ChannelFigures,
    Error,
    Extend,
    Rel,
    ReqListeners,
    Resp,
    Role,
    StreamKey,
    StreamStatus,
    UpdateTargets,
)
from scistream.protocol.port_ranges import in_words
from scistream.protocol.wan_abilities import ACCEPT, DIAL, needed
from scistream.s2ds.capacity import Capacity
from scistream.s2ds.elements.commands import Reset
from scistream.s2ds.elements.pool import Elements
from scistream.s2ds.machine import Core, Stream, new_stream
from scistream.s2ds.names import look_up
from scistream.s2ds.path_figures import PathFiguresLog
from scistream.s2ds.ports import ChannelListener, ListenPorts, Paths
from scistream.s2ds.probe.measure import Probe
from scistream.s2ds.probe.responder import Responder
from scistream.s2ds.resets import Outages, ResetLog
from scistream.s2ds.self_target import has_family_of, is_own_address
from scistream.s2ds.settings import S2DSConfig, parse_proxy
from scistream.s2ds.stream_listeners import OnAccept, StreamListeners
from scistream.s2ds.tcp_bounds import BoundCheck
from scistream.state_machines import OUR_FAULT, Caller, guarded, trace
from scistream.tls.stream_channels import Credentials, StreamSecret

MOST_LOOKUPS = 16
"""The number of names of one stream that are looked up at a time."""


_REFUSED_TARGET = "targets refused because no address of their name may be dialled"
_IGNORED_ADDRESS = "other addresses of ProdApp ignored because they may not be dialled"


class GatewayServices(Protocol):
    """The parts of its gateway that a stream uses."""

    reactor: Any
    config: S2DSConfig
    boot: str
    ports: ListenPorts
    wan_paths: Paths
    capacity: Capacity
    elements: Elements
    app_networks: tuple[Network, ...]
    wan_networks: tuple[Network, ...]

    def wan_listeners(self, key: StreamKey) -> set[int]:
        """Return the ports of this gateway on which one side of a stream listens for other gateways."""

    def released(self, stream: GatewayStream) -> None:
        """Note that a stream is released and holds no resources."""

    resets: Counter[tuple[Cause, Role]]
    """The connections of all streams that were reset, by cause and side."""

    dialled: Counter[int]
    """For ports of this gateway that are or were targets of live streams: the number of these streams."""


class GatewayStream:
    """One stream on this gateway, with its resources: the `Effects` of its machine."""

    log = Logger()

    def __init__(self, server: GatewayServices, command: ReqListeners | Rel | UpdateTargets | Extend) -> None:
        self._server = server
        self._core = Core(guarded(self, self.log, self._failed, command.uid), command.uid, command.role, server.boot)
        self._core.wan = server.config.wan.abilities
        self.machine: Stream = new_stream(self._core)
        trace(self.machine, self.log, server.reactor.seconds, party="s2ds", uid=command.uid, role=command.role)
        self.released_at: float | None = None
        config, new_listeners = server.config, partial(StreamListeners, server.reactor, server.ports)
        self._for_wan = new_listeners(config.wan, server.wan_paths)
        """Where other gateways dial this one: at a consumer's gateway only if the producer's side dials."""
        self._listeners = self._for_wan if command.role == PROD else new_listeners(config.lan)
        """The listeners whose addresses RESP gives to S2UC."""
        self.own_targets: set[int] = set()
        """Ports of this gateway that are or were targets of this stream, as its own WAN listeners.

        An earlier target stays here, since a connection may still be on its way to it.
        """
        self._advertised: dict[str, int] = {}
        """The listeners as announced to others, and their channels."""
        self._rate = 0.0
        self._secret: StreamSecret | None = None
        self._credentials: Credentials | None = None
        self._allowed: Callable[[str], bool] = _allow_none
        self._responder: Responder | None = None
        self._probe: Probe | None = None
        self.outages = Outages(server.reactor)
        self.resets = ResetLog(server.reactor, (command.uid, command.role), server.resets)
        self.paths = PathFiguresLog(server.reactor, (command.uid, command.role))
        self._bounds = BoundCheck(self.key, 0.0)
        self._refused: Tally[str] = Tally(server.reactor, self._log_refused, _REFUSED_TARGET)
        self._timer: IDelayedCall | None = None
        self._expires_at = 0.0
        if isinstance(command, Rel):
            self.released_at = server.reactor.seconds()

    @property
    def key(self) -> StreamKey:
        """The uid and role that identify the stream on this gateway."""
        return self._core.uid, self._core.role

    @property
    def state(self) -> str:
        """The state of the stream's machine."""
        return self._core.state

    def __lt__(self, other: GatewayStream) -> bool:
        return (self._core.uid, self._core.role) < (other._core.uid, other._core.role)

    # -- effects

    def _failed(self, effect: str, error: StreamError) -> None:
        """Release everything and end the stream, after a fault in an effect."""
        if effect == "close":
            self._release_all()
            self._closed([])
            return
        if effect == "bind":
            self._release_all()
            self._not_bound(error)
        self.machine.failed(error)

    def bind(self, request: ReqListeners) -> None:
        """Reserve capacity and ports, and make a key; then give the machine `bound` or `not_bound`."""
        server = self._server
        try:
            server.capacity.reserve(request.rate)
        except StreamError as error:
            self._not_bound(error)
            return
        self._rate = request.rate
        self._bounds = BoundCheck(self.key, request.rate)
        # A LAN listener on a port that streams dial as a WAN listener would make a loop.
        excluded = server.dialled if request.role == CONS else ()
        try:
            self._listeners.reserve(request.channels, request.listen_ports, excluded)
        except StreamError as error:
            self._return_resources()
            self._not_bound(error)
            return
        self._advertised = self._listeners.announced
        self._secret = StreamSecret()
        self._allowed = self._source_check(request)
        server.elements.open(request.uid, request.role, request.rate, self._listeners.ports, request.owner or "")
        self.machine.bound([*self._advertised], self._secret.csr)

    def _not_bound(self, error: StreamError) -> None:
        self._note_release()
        self.machine.not_bound(error)

    def _note_release(self) -> None:
        self.released_at = self._server.reactor.seconds()
        self._server.released(self)

    def arm(self, command: UpdateTargets) -> None:
        """Check the targets, tell the elements and listen; then give the machine `armed` or `not_armed`."""
        try:
            self._refuse_dialer(command.wan_dialer)
            targets, gateways = self._targets(command), self._wan_targets(command)
            credentials = self._credentials_of(command)
        except StreamError as error:
            self.machine.not_armed(error)
            return
        found: dict[str, list[str]] = {}
        dialled = [*targets.values(), *gateways.values()]
        names = sorted({target.host for target in dialled if target.numeric is None and not self._proxy_looks_up})
        waiting: Deferred[Any] = succeed(None)
        if names:
            semaphore = DeferredSemaphore(MOST_LOOKUPS)
            waiting = DeferredList([semaphore.run(self._resolve, name, found) for name in names])
            waiting.addTimeout(timing.TARGET_LOOKUP, self._server.reactor, lambda _, __: None)
        waiting.addCallback(lambda _: self._arm(command, targets, gateways, credentials, found))
        waiting.addErrback(self._not_armed)

    def close(self) -> None:
        """Release everything; then give the machine `closed` with the last figures."""
        self.close_all().addCallback(self._closed).addErrback(self._not_closed)

    def _not_closed(self, failure: Failure) -> None:
        self.log.failure("uid={uid} failed to close", failure=failure, uid=self._core.uid)
        self._release_all()
        self._closed([])

    def _closed(self, figures: list[ChannelFigures]) -> None:
        self._note_release()
        self._core.resets = self.resets.latest()
        self._core.paths = self.paths.latest()
        self.machine.closed(figures)

    def answer(self, caller: Caller, message: Resp | Error) -> None:
        """Send an answer."""
        caller.link.send(message)

    def start_timer(self, seconds: float) -> None:
        """Give the machine `expired` after `seconds`."""
        self._expires_at = self._server.reactor.seconds() + seconds
        self._timer = self._server.reactor.callLater(seconds, self.machine.expired)

    def shorten_life(self, seconds: float) -> None:
        """Give the machine `expired` after `seconds`, unless it is due earlier."""
        expires_at = self._server.reactor.seconds() + seconds
        if self._timer is not None and self._timer.active() and expires_at < self._expires_at:
            self._expires_at = expires_at
            self._timer.reset(seconds)

    def life_problem(self, seconds: float) -> StreamError | None:
        """Return why the stream cannot live for `seconds` from now, or None: its certificates may end earlier."""
        if self._credentials is None:
            return None
        end = self._credentials.ends_at
        if datetime.now(UTC) + timedelta(seconds=seconds) <= end:
            return None
        return StreamError(
            "wrong-state",
            f"the certificates of this stream are valid until {end:%Y-%m-%d %H:%M} UTC only, since the client that "
            "issued them is of an earlier version: request a new stream",
        )

    def set_life(self, seconds: float) -> None:
        """Give the machine `expired` after `seconds`, in place of the time when it was due."""
        if self._timer is not None and self._timer.active():
            self._expires_at = self._server.reactor.seconds() + seconds
            self._timer.reset(seconds)

    def stop_timer(self) -> None:
        """Cancel `expired`."""
        self._cancel_timer()

    def _cancel_timer(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()

    # -- for the server

    def note_reset(self, reset: Reset) -> None:
        """Count connections that were reset."""
        self.resets.add(reset.channel, reset.cause, reset.reason, reset.count, reset.detail)
        if reset.cause == "wan":
            joined = self._server.elements.joined(self._core.uid, self._core.role, reset.channel)
            self.outages.failed(reset.channel, reset.reason, joined)

    def _broken(self) -> list[BrokenChannel]:
        uid, role = self._core.uid, self._core.role
        return self.outages.current(lambda channel: self._server.elements.joined(uid, role, channel))

    def close_all(self) -> Deferred[list[ChannelFigures]]:
        """Release everything; fire with the last figures, or with none if everything is released already."""
        server = self._server
        self._cancel_timer()
        self._stop_probe()
        listeners = self._take_listeners()
        self._secret = self._credentials = None
        for listener in listeners:
            listener.stop()

        def return_resources(figures: list[ChannelFigures]) -> list[ChannelFigures]:
            # Not earlier: another stream that gets one of the ports overwrites the figures in its slot.
            self._return_resources()
            self._stop_counting()
            return figures

        return server.elements.close(self._core.uid, self._core.role).addCallback(return_resources)

    def _take_listeners(self) -> list[ChannelListener]:
        """Forget all listeners, and return them so that they can be stopped."""
        return [*self._listeners.take(), *self._for_wan.take()]

    def _stop_counting(self) -> None:
        """Log the counts that are not logged yet. Idempotent."""
        self.resets.stop()
        self.paths.stop()
        self._refused.stop()

    def _return_resources(self) -> None:
        """Return ports and capacity. Idempotent."""
        self._listeners.release()
        self._for_wan.release()
        rate, self._rate = self._rate, 0.0
        if rate:
            self._server.capacity.release(rate)
        ports, self.own_targets = self.own_targets, set()
        for port in ports:
            self._server.dialled[port] -= 1
            if not self._server.dialled[port]:
                del self._server.dialled[port]

    def _release_all(self) -> None:
        """Release everything after a fault: if one step fails, go on with the others."""
        self._secret = self._credentials = None
        close = partial(self._server.elements.close, self._core.uid, self._core.role)
        stops = [listener.stop for listener in self._take_listeners()]
        steps: list[Callable[[], object]] = [
            self._cancel_timer,
            self._stop_probe,
            *stops,
            close,
            self._return_resources,
        ]
        for step in (*steps, self._stop_counting):
            try:
                step()
            except Exception:
                self.log.failure("uid={uid} could not release everything", uid=self._core.uid)

    def belongs_to_another(self, store: str | None) -> bool:
        """Return True if an S2CS with another store has reserved this stream; False if either store is not known."""
        request = self._core.request
        reserved_by = request.store if request is not None else None
        return None not in (reserved_by, store) and reserved_by != store

    def wan_listeners(self) -> set[int]:
        """Return the ports of this gateway on which the stream listens for other gateways."""
        return set(self._for_wan.ports.values())

    def status(self) -> StreamStatus:
        """Return the state of this stream, for an answer to Status."""
        core = self._core
        figures = self._server.elements.figures(core.uid, core.role)
        self._bounds.look(figures, partial(self._server.elements.held, core.uid, core.role))
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
            figures=figures or core.figures,
            seconds_left=max(0.0, self._expires_at - self._server.reactor.seconds()) if self._listeners else 0.0,
            last_error=core.last_error,
            probe=self._probe.result if self._probe is not None else None,
            store=core.request.store if core.request is not None else None,
            resets=self.resets.latest(),
            broken=self._broken(),
            notices=[*self._bounds.notices, *self.paths.notices][:MAX_NOTICES],
            paths=self.paths.latest(),
            wan_dialer=core.current.wan_dialer if core.current is not None else None,
            wan_listeners=core.wan_listeners,
        )

    # -- targets

    def _refuse_dialer(self, wan_dialer: Role) -> None:
        """Check that this gateway may do its part if the gateways of this side dial.

        :raises StreamError: `target-refused`.
        """
        ability = needed(self._core.role, wan_dialer)
        if ability not in self._core.wan:
            what = "does not dial other gateways" if ability == DIAL else "accepts no connections from other gateways"
            raise StreamError("target-refused", f"this gateway {what}: `{ability}` in [wan] of its settings is false")

    def _by_channel(self, field: str, targets: Mapping[str, str]) -> dict[int, Address]:
        """Return the target of each channel.

        :raises StreamError: `bad-message`, if the map does not have exactly the listeners of this gateway.
        """
        missing = next((listener for listener in self._advertised if listener not in targets), None)
        if missing is not None or len(targets) != len(self._advertised):
            raise StreamError(
                "bad-message",
                f"field {field}: it must have exactly one target for each listener of the stream here",
            )
        return {self._advertised[here]: Address.parse(there) for here, there in targets.items()}

    def _targets(self, command: UpdateTargets) -> dict[int, Address]:
        """Return what this gateway dials for each channel, besides the gateways of a consumer; empty if nothing.

        :raises StreamError: if a target is not allowed, or the map does not fit.
        """
        targets = self._by_channel("connection_map", command.connection_map)
        if self._core.role == CONS and command.wan_dialer == PROD:
            return {}
        if self._is_probe and self._core.role == PROD:
            return dict.fromkeys(targets, self._answer_probe())  # no ProdApp is dialled, whatever the map names
        for target in targets.values():
            self._check_target(target, to_wan=self._core.role == CONS)
        return targets

    def _wan_targets(self, command: UpdateTargets) -> dict[int, Address]:
        """Return the consumer's gateway for each channel, if this gateway dials it; otherwise nothing.

        :raises StreamError: if one is not allowed, or the map does not fit.
        """
        if command.wan_targets is None:
            return {}
        targets = self._by_channel("wan_targets", command.wan_targets)
        for target in targets.values():
            self._check_target(target, to_wan=True)
        return targets

    def _check_target(self, target: Address, *, to_wan: bool) -> None:
        """Check that this gateway may dial an address.

        :param to_wan: True for another gateway, False for an application.
        :raises StreamError: `target-refused`.
        """
        key, allowed = self._target_networks(to_wan)
        numeric = target.numeric
        if numeric is None and not to_wan:
            raise StreamError(
                "target-refused", f"target {target} is a name: targets on the LAN must be numeric addresses"
            )
        if numeric is not None and not inside(numeric, allowed):
            raise StreamError(
                "target-refused",
                f"target {target} is outside the {key} of this gateway ({', '.join(map(str, allowed))})",
            )
        if numeric is not None and not has_family_of(numeric):
            kind = f"IPv{numeric.version}"
            raise StreamError(
                "target-refused", f"target {target} is an {kind} address, but this gateway does not support {kind}"
            )
        self._refuse_own_address(target, to_wan)
        if to_wan and target.port in self._server.wan_listeners(self._other_side):
            self._note_dialled(target.port)

    @property
    def _other_side(self) -> StreamKey:
        """The key of the other side of this stream, which may be on this gateway, too."""
        return self._core.uid, PROD if self._core.role == CONS else CONS

    def _note_dialled(self, port: int) -> None:
        if port not in self.own_targets:
            self.own_targets.add(port)
            self._server.dialled[port] += 1

    @property
    def _proxy_looks_up(self) -> bool:
        """True if a proxy looks up the names of other gateways, since this gateway may dial every address."""
        return bool(self._server.config.wan.proxy) and has_every_address(self._server.config.wan_networks)

    def _refuse_own_address(self, target: Address, to_wan: bool) -> None:
        server = self._server
        config, lent = server.config, server.ports.ranges
        own = [address.port for address in (Address.parse(config.listen), config.http.address) if address is not None]
        if is_own_address(target, own, lent, server.wan_listeners(self._other_side), to_wan=to_wan):
            raise StreamError(
                "target-refused",
                f"target {target} is this gateway itself: its control port, its HTTP port and the ports "
                f"{in_words(dict.fromkeys(lent))} that it lends to streams cannot be targets",
            )

    def _target_networks(self, to_wan: bool) -> tuple[str, tuple[Network, ...]]:
        """Return the networks in which targets must be, and the name of their setting."""
        server = self._server
        return ("wan_networks", server.wan_networks) if to_wan else ("app_networks", server.app_networks)

    def _resolve(self, name: str, found: dict[str, list[str]]) -> Deferred[None]:
        """Look up the name of a gateway, so that a target that could not be dialled is refused at once.

        Elements look the name up again when they dial, under the same rules.
        """

        def note(hosts: list[str]) -> None:
            if hosts:
                found[name] = hosts

        return look_up(self._server.reactor, name, timing.TARGET_LOOKUP).addCallback(note)

    def _credentials_of(self, command: UpdateTargets) -> Credentials:
        """Return the credentials in the command, or the current ones if it has none.

        :raises StreamError: `bad-message` if there are neither.
        """
        if not command.data_conn_key and self._credentials is not None:
            return self._credentials
        assert self._secret is not None
        return self._secret.credentials(command.data_conn_key, command.uid, command.role)

    def _arm(
        self,
        command: UpdateTargets,
        targets: dict[int, Address],
        gateways: dict[int, Address],
        credentials: Credentials,
        found: dict[str, list[str]],
    ) -> None:
        if not self._listeners:
            return
        to_wan = command.role == CONS
        try:
            numeric = {channel: self._numeric(target, found, to_wan) for channel, target in targets.items()}
            for gateway in gateways.values():
                self._numeric(gateway, found, True)
            if to_wan and command.wan_dialer == PROD and not self._for_wan:
                self._reserve_for_wan()
        except StreamError as error:
            self.machine.not_armed(error)
            return
        arming = self._server.elements.arm(
            command.uid,
            command.role,
            targets,
            credentials,
            self._server.wan_listeners(self._other_side),
            self._other_addresses(command, targets),
            wan_dialer=command.wan_dialer,
            wan_targets=gateways,
        )
        arming.addCallback(lambda _: self._listen(numeric, credentials, command.wan_dialer))
        arming.addErrback(self._not_armed)

    def _reserve_for_wan(self) -> None:
        """Reserve listeners for the gateways of the producer's side.

        :raises StreamError: `no-ports` or `gateway-failed`, with nothing reserved.
        """
        try:
            self._for_wan.reserve([*self._listeners.by_channel])
        except StreamError as error:
            why = "the producer's gateways dial, so each channel needs a second port here, for the WAN"
            raise StreamError(error.code, f"{why}: {error.msg}") from None

    def _other_addresses(self, command: UpdateTargets, targets: Mapping[int, Address]) -> dict[int, list[Address]]:
        """Return the other addresses of ProdApp for each channel, without those that this gateway may not dial."""
        found: dict[int, list[Address]] = {}
        for channel, target in targets.items() if self._core.role == PROD else ():
            for text in (command.other_addresses or {}).get(str(target), ()):
                try:
                    self._check_target(Address.parse(text), to_wan=False)
                except StreamError as error:
                    self._refused.add(_IGNORED_ADDRESS, last=error.msg)
                else:
                    found.setdefault(channel, []).append(Address.parse(text))
        return found

    def _listen(self, targets: dict[int, Address], credentials: Credentials, wan_dialer: Role) -> None:
        """Listen on all channels, once every element knows the targets.

        The listeners of a producer's gateway that dials stay closed.
        """
        if not self._listeners:
            return  # the stream was released in the meantime
        self._credentials = credentials
        if self._core.role == CONS:
            self._listen_at(self._listeners, wan=False)
        if needed(self._core.role, wan_dialer) == ACCEPT:
            self._listen_at(self._for_wan, wan=True)
        self.machine.armed([*self._for_wan.announced] if self._core.role == CONS else [])
        if self._is_probe and self._core.role == CONS and self._probe is None:
            self._start_probe({channel: targets.get(channel) for channel in self._listeners.by_channel})

    def _listen_at(self, listeners: StreamListeners, *, wan: bool) -> None:
        listeners.start(partial(self._acceptor, wan=wan), partial(self._room_check, wan=wan))

    def _not_armed(self, failure: Failure) -> None:
        if not failure.check(StreamError):
            self.log.failure("uid={uid} failed to set targets", failure=failure, uid=self._core.uid)
        error = failure.value if isinstance(failure.value, StreamError) else StreamError("gateway-failed", OUR_FAULT)
        self.machine.not_armed(error)

    def _numeric(self, target: Address, found: dict[str, list[str]], to_wan: bool) -> Address:
        """Return the numeric form of a target: for a name, its first address that may be dialled.

        :raises StreamError: `target-refused` if there is none.
        """
        if target.numeric is not None or (to_wan and self._proxy_looks_up):
            return target
        addresses = [Address(host, target.port) for host in found.get(target.host, [])]
        if not addresses:
            raise StreamError("target-refused", f"target {target}: this gateway finds no address for this name")
        refusals = []
        for address in addresses:
            try:
                self._check_target(address, to_wan=to_wan)
            except StreamError as error:
                refusals.append(error.msg)
            else:
                return address
        # The answer must not contain the addresses: users could resolve internal names of this facility.
        self._refused.add(_REFUSED_TARGET, last="; ".join(refusals))
        key, _ = self._target_networks(to_wan)
        raise StreamError(
            "target-refused",
            f"target {target}: this gateway may not dial any address of this name: they are outside its {key}, "
            "or belong to this gateway itself",
        )

    def _log_refused(self, kind: str, count: int, last: str) -> None:
        self.log.warn(
            "uid={uid} role={role} {kind}, so far: {count}; the last one: {last}",
            uid=self._core.uid,
            role=self._core.role,
            kind=kind,
            count=count,
            last=last,
        )

    def _source_check(self, request: ReqListeners) -> Callable[[str], bool]:
        server = self._server
        if request.protocol == "probe" or request.role == PROD:
            return _allow_none  # no application connects: the connections of a probe do not come through a listener
        narrowed = None
        if request.app_from is not None:
            narrowed = tuple(parse_network(text) for text in request.app_from)

        def check(host: str) -> bool:
            address = peer_address(host)
            return inside(address, server.app_networks) and (narrowed is None or inside(address, narrowed))

        return check

    # -- a probe

    @property
    def _is_probe(self) -> bool:
        request = self._core.request
        return request is not None and request.protocol == "probe"

    def _answer_probe(self) -> Address:
        """Start a responder in place of ProdApp, and return its address.

        :raises StreamError: `gateway-failed` if it cannot listen.
        """
        if self._responder is None:
            self._responder = Responder(self._server.reactor, self._core.uid)
        return self._responder.address

    def _start_probe(self, targets: dict[int, Address | None]) -> None:
        uid, role, request = self._core.uid, self._core.role, self._core.request
        assert request is not None
        assert request.probe_seconds is not None

        def carry(channel: int, sock: socket.socket) -> None:
            self._server.elements.carry(uid, role, channel, sock, wan=False)

        proxy = self._server.config.wan.proxy
        through = parse_proxy(proxy) if proxy else None
        self._probe = Probe(self._server.reactor, uid, carry, targets, request.probe_seconds, through)
        self._probe.start()

    def _stop_probe(self) -> None:
        probe, self._probe = self._probe, None
        if probe is not None:
            probe.stop()
        responder, self._responder = self._responder, None
        if responder is not None:
            responder.stop()

    def _acceptor(self, channel: int, *, wan: bool) -> OnAccept:
        core = self._core
        is_allowed = self._is_gateway if wan else self._allowed

        def accepted(sock: socket.socket, peer: tuple[Any, ...]) -> None:
            if not is_allowed(peer[0]):
                sock.close()
                outside = "its address is outside the networks that may use the channel"
                self.resets.add(channel, "stranger", outside, last=f"the last one came from {peer[0]}")
                return
            self._server.elements.carry(core.uid, core.role, channel, sock, wan=wan)

        return accepted

    def _is_gateway(self, host: str) -> bool:
        """Return True if a gateway may connect from this address."""
        return inside(peer_address(host), self._server.wan_networks)

    def _room_check(self, channel: int, *, wan: bool) -> Callable[[], bool]:
        return lambda: self._server.elements.has_room(self._core.uid, self._core.role, channel, wan=wan)


def _allow_none(_host: str) -> bool:
    return False

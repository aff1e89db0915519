"""The initiator of an S2DS as a Twisted service: it obeys one controller, and owns what streams hold here.

`DataServer` takes commands; each stream has a `GatewayStream` that carries out what its machine decides:
ports, capacity, the stream's key, listeners, and the elements that forward.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger
from twisted.python.failure import Failure

from scistream import timing
from scistream.config import ConfigError
from scistream.links.admission import AdmissionController
from scistream.links.link import Link
from scistream.links.outbox import Caller
from scistream.links.tls_links import PLAIN_IDENTITY, LinkListener, close_refused, log_refusal
from scistream.os_process import raise_descriptor_limit
from scistream.paging import PageOrder, page_key
from scistream.protocol.address import Address
from scistream.protocol.errors import ErrorCode
from scistream.protocol.messages import (
    CONS,
    PROD,
    Answer,
    Error,
    GatewayCapacity,
    Message,
    Rel,
    ReqListeners,
    Resp,
    Role,
    Status,
    StreamKey,
    UpdateTargets,
)
from scistream.protocol.port_ranges import in_words
from scistream.reloading import Change, merge
from scistream.s2ds.capacity import Capacity
from scistream.s2ds.elements.commands import Reset
from scistream.s2ds.elements.element import ElementSettings
from scistream.s2ds.elements.pool import Elements
from scistream.s2ds.ports import ListenPorts, shared_with_connections
from scistream.s2ds.relay.leg import congestion_control
from scistream.s2ds.relay.token_bucket import SharedTokenStore
from scistream.s2ds.settings import S2DSConfig
from scistream.s2ds.stream import GatewayStream
from scistream.setup_problems import SetupProblems
from scistream.shared_settings import networks, parse_ports, trust_of
from scistream.tls.expiry import ExpiryWatch
from scistream.tls.reloadable import ReloadableCredentials
from scistream.twistd import end_daemon
from scistream.units import parse_rate, parse_seconds

LAN_CONGESTION = "cubic"
"""What suits a LAN: pacing, as bbr does it, costs a timer for each burst and gains nothing there."""
MOST_RELEASED = 1000
"""Released streams that are remembered, or as many as there are ports: an S2CS that was away asks for their figures."""
ROLES: tuple[Role, ...] = (CONS, PROD)
_FIXED = ("listen", "insecure", "ports", "chosen_ports", "elements", "order", "lan", "wan", "wan_timeout", "wan_cipher")
"""The settings that sockets, elements and their streams were made with: a restart is needed to change one."""


class DataServer(Service):
    """An S2DS.

    :param reactor: the reactor, with monotonic timers.
    :param config: the settings, checked.
    :param config_file: where they came from: relative paths start there.
    :param problems: what is known to be wrong already.
    :raises CertificateError: if the certificates are not usable.
    :raises StreamError: if it would serve plain TCP beyond loopback.
    :raises ConfigError: if this system has not what a setting names.
    """

    log = Logger()

    def __init__(
        self, reactor: Any, config: S2DSConfig, config_file: Path, problems: SetupProblems | None = None
    ) -> None:
        self.reactor = reactor
        self.config = config
        self._config_file = config_file
        problems = problems or SetupProblems()
        trust = None if config.insecure else trust_of(config, config_file)
        with problems.of_step():
            self._listener = LinkListener(reactor, Address.parse(config.listen), trust, client_certificate="required")
        with problems.of_step():
            settings = self._settings()
        problems.raise_if_any()
        self._watch = ExpiryWatch(reactor, self._all_credentials(), time.time, self.log)
        self._admission_controller = AdmissionController(
            reactor,
            config.limits.bounds,
            f"the listener at {config.listen}",
            known_refusal=0.0,
            known=networks(config.limits.controller_networks),
        )
        self._port: IListeningPort | None = None
        self._links: set[Link] = set()
        self.boot = secrets.token_hex(16)
        self.ports = ListenPorts(*parse_ports(config.ports), config.chosen_ranges)
        self.capacity = Capacity(parse_rate(config.capacity))
        self.elements = Elements(
            reactor,
            config.element_count,
            self.ports.slots,
            settings,
            self._shared(),
            self._note_reset,
            partial(end_daemon, reactor),
            in_order=config.order,
        )
        self.app_networks = networks(config.app_networks)
        self.wan_networks = networks(config.wan_networks)
        self._holdings: dict[StreamKey, GatewayStream] = {}
        self._live: dict[StreamKey, GatewayStream] = {}
        """Those of them that hold something, or are about to."""
        self._over: dict[StreamKey, GatewayStream] = {}
        """The others, which only tell their last figures, in the order of their release."""
        self._pages = PageOrder()
        """The live ones, in the order in which Status tells them."""
        self.dialled: Counter[int] = Counter()
        """The ports of this gateway that live streams have as their targets, or have had, and how many have."""
        self._most_over = max(MOST_RELEASED, self.ports.last - self.ports.first + 1)

    def _shared(self) -> SharedTokenStore:
        config = self.config
        return SharedTokenStore(
            config.limits.half_open, config.most_connections, config.most_unread, config.limits.owner_share
        )

    def _settings(self) -> ElementSettings:
        config = self.config
        return ElementSettings(
            wan_timeout=parse_seconds(config.wan_timeout),
            wan_cipher=config.wan_cipher,
            wan_networks=list(config.wan_networks),
            control=Address.parse(config.listen).port,
            lent=[parse_ports(config.ports), *config.chosen_ranges],
            lan_congestion=self._congestion("lan", config.lan.congestion, LAN_CONGESTION),
            wan_congestion=self._congestion("wan", config.wan.congestion, ""),
        )

    def _congestion(self, key: str, setting: str, suited: str) -> str:
        try:
            return congestion_control(setting, suited)
        except ValueError as wrong:
            raise ConfigError(f"{key}.congestion: {wrong}") from None

    # -- the service

    def startService(self) -> None:
        raise_descriptor_limit()
        if self.config.insecure:
            self.log.warn("INSECURE: control links are plain TCP on loopback; anybody on this machine may command us")
        self._warn_of_shared_ports()
        self._tell_budget()
        self._port = self._listener.open(lambda: self, self._admission_controller)
        self.elements.start()
        super().startService()
        if self._all_credentials():
            self._watch.start()
        self.log.info(
            "party=s2ds listens on {listen} for {controller}, boot {boot}",
            listen=self.config.listen,
            controller=self.config.controller or "anybody on loopback",
            boot=self.boot,
        )

    def _tell_budget(self) -> None:
        """Say what the streams have in all, and what it comes from: nobody can work it out from the settings alone."""
        config = self.config
        by_files = self.elements.most_connections()
        source = "`connections` in [limits]" if config.limits.connections else "the memory of this machine"
        if by_files < config.most_connections:
            source = "the limit of open files (LimitNOFILE)"
        is_auto = config.limits.unread == "auto"
        self.log.info(
            "all streams together have at most {connections} connections, by {source}, and {unread} MiB that wait for "
            "programs to read them, by {unread_source}",
            connections=min(by_files, config.most_connections),
            source=source,
            unread=config.most_unread // 2**20,
            unread_source="the memory of this machine and net.ipv4.tcp_mem" if is_auto else "`unread` in [limits]",
        )

    def _warn_of_shared_ports(self) -> None:
        shared = shared_with_connections(self.ports.chosen)
        if shared:
            self.log.warn(
                "Streams may ask for ports {ports}, which this system gives to outgoing connections, too: while one "
                "has the port, such a stream is refused. Set `chosen_ports` to ports outside "
                "net.ipv4.ip_local_port_range, or add these ports to net.ipv4.ip_local_reserved_ports",
                ports=in_words(shared),
            )

    def stopService(self) -> Deferred[Any]:
        super().stopService()
        self._watch.stop()
        self._admission_controller.stop()
        for link in list(self._links):
            link.close()
        port, self._port = self._port, None
        stopping: list[Deferred[Any]] = [maybeDeferred(port.stopListening)] if port is not None else []
        for holding in self._holdings.values():
            holding.close_all()  # what an element does not answer in time ends with it
        stopping.append(self.elements.stop())
        return DeferredList(stopping)

    def reload(self, config: S2DSConfig) -> Change:
        """Put new settings in force, and read certificates, keys, authorities and CRLs again: all, or nothing changes.

        A controller that is not believed any more loses its link; streams go on. Networks and limits count for what
        comes from now on.

        :raises CertificateError: if a file is not usable.
        :raises ConfigError: if the settings contradict those that need a restart to change.
        """
        merged, change = merge(self._config_file, self.config, config, _FIXED)
        all_credentials = self._all_credentials().values()
        for put_in_force in [credentials.read(trust_of(merged, self._config_file)) for credentials in all_credentials]:
            put_in_force()
        self.config = merged
        self.app_networks, self.wan_networks = networks(merged.app_networks), networks(merged.wan_networks)
        self.capacity.total = parse_rate(merged.capacity)
        self._admission_controller.set_bounds(merged.limits.bounds, networks(merged.limits.controller_networks))
        self.elements.share(self._shared())
        if "wan_networks" in change.changed:
            self.elements.set_networks(list(merged.wan_networks))
        for credentials in all_credentials:
            close_refused(list(self._links), credentials)
        for link in list(self._links):
            if not self._is_controller(link):
                self._turn_away(link)
        self._watch.look()
        return change

    def _all_credentials(self) -> dict[str, ReloadableCredentials]:
        return {} if self._listener.credentials is None else {"server": self._listener.credentials}

    # -- LinkOwner

    def link_up(self, link: Link) -> None:
        if not self._is_controller(link):
            self._turn_away(link)
            return
        self._links.add(link)
        link.prove(str(link.peer) if link.peer != PLAIN_IDENTITY else None)

    def _is_controller(self, link: Link) -> bool:
        return bool(link.peer == PLAIN_IDENTITY or link.peer.name == self.config.controller)

    def _turn_away(self, link: Link) -> None:
        link.note("refused a peer that is not its controller", str(link.peer))
        msg = f"this gateway obeys its controller alone, and {link.peer.name} is not it"
        link.send(Error(uid=None, code="not-authorized", msg=msg))
        link.distrust("not our controller")
        link.close()

    def link_down(self, link: Link, reason: Failure) -> None:
        self._links.discard(link)
        log_refusal(link, reason)

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
        if holding is not None and holding.is_of_another(command.store):
            code: ErrorCode = "uid-in-use" if isinstance(command, ReqListeners) else "not-authorized"
            link.refuse(command, code, f"stream {command.uid} was reserved here by another S2CS, and is not yours")
            return
        if holding is None:
            self._forget_old()
            holding = self._holdings[command.uid, command.role] = GatewayStream(self, command)
            if holding.released_at is None:
                self._live[holding.key] = holding
                self._pages.add(holding.key)
            else:  # the release of what was never reserved here
                self.released(holding)
        caller = Caller(link, command.seq)
        if isinstance(command, ReqListeners):
            holding.machine.req_listeners(caller, command)
        elif isinstance(command, UpdateTargets):
            holding.machine.update_targets(caller, command)
        else:
            holding.machine.rel(caller)

    def released(self, holding: GatewayStream) -> None:
        """A stream is over, and holds nothing any more: its last figures are remembered for some time."""
        if self._live.pop(holding.key, None) is not None:
            self._pages.remove(holding.key)
        self._over[holding.key] = holding
        self._forget_old()

    def _forget_old(self) -> None:
        now = self.reactor.seconds()
        while self._over:
            key, oldest = next(iter(self._over.items()))
            is_recent = oldest.released_at is None or now - oldest.released_at <= timing.REMEMBER_FIGURES
            if is_recent and len(self._over) <= self._most_over:
                return
            del self._over[key], self._holdings[key]

    def wan_listeners(self, uid: str) -> set[int]:
        """The ports that a stream has here towards other gateways."""
        holding = self._holdings.get((uid, PROD))
        return holding.wan_listeners() if holding is not None else set()

    def _note_reset(self, reset: Reset) -> None:
        holding = self._holdings.get((reset.uid, reset.role))
        if holding is not None:
            holding.note_reset(reset)

    def _room(self) -> GatewayCapacity:
        told = (self.config.lan.bind, self.config.lan.told, self.config.wan.bind, self.config.wan.told)
        return GatewayCapacity(
            ports=self.ports.last - self.ports.first + 1,
            rate=parse_rate(self.config.capacity),
            hosts=sorted(set(told) - {"0.0.0.0", "::"}),
            first_port=self.ports.first,
            chosen_ports=self.ports.chosen,
        )

    def _answer_status(self, link: Link, command: Status) -> None:
        after = command.after or ""
        if command.uid is not None:
            named: list[StreamKey] = [(command.uid, role) for role in ROLES]
            keys: Iterator[StreamKey] = iter([key for key in named if key in self._holdings and page_key(key) > after])
        else:
            keys = self._pages.after(after)
        chosen = list(islice((key for key in keys if command.role in (None, key[1])), command.limit + 1))
        page = chosen[: command.limit]
        more = page_key(page[-1]) if len(chosen) > len(page) else None
        link.answer(
            command,
            "",
            f"{len(page)} streams",
            boot=self.boot,
            room=self._room(),
            app_networks=self.config.app_networks,
            streams=[self._holdings[key].status() for key in page],
            more=more,
        )

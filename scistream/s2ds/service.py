"""The initiator of an S2DS as a Twisted service.

`DataServer` takes commands from one controller and owns the ports, capacity and elements of the gateway. Each stream
has a `GatewayStream`, which carries out what its machine decides.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Collection, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger
from twisted.python.failure import Failure

from scistream import timing
from scistream.config import raise_if_any
from scistream.links.admission import AdmissionController
from scistream.links.link import Link
from scistream.links.tls_links import PLAIN_IDENTITY, LinkListener, close_refused, handshake_failure, log_refusal
from scistream.os_process import raise_descriptor_limit
from scistream.paging import PageOrder, page_key
from scistream.protocol.address import Address
from scistream.protocol.errors import ErrorCode
from scistream.protocol.messages import (
    CONS,
    PROD,
    Answer,
    Cause,
    Error,
    Extend,
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
from scistream.s2ds.capacity import Capacity, SharedLimits
from scistream.s2ds.drain import GatewayDrain
from scistream.s2ds.elements.commands import PathsReport, Reset
from scistream.s2ds.elements.pool import Elements
from scistream.s2ds.http import http_server, http_trust
from scistream.s2ds.paths import PathManager, wan_paths
from scistream.s2ds.ports import ONE_PATH, ListenPorts, shared_with_connections
from scistream.s2ds.settings import S2DSConfig
from scistream.s2ds.start import element_settings, machine_problems
from scistream.s2ds.stream import GatewayStream
from scistream.setup_problems import SetupProblems
from scistream.shared_settings import networks, parse_ports, trust_of
from scistream.state_machines import Caller
from scistream.tls.expiry import ExpiryWatch
from scistream.tls.reloadable import ReloadableCredentials
from scistream.twistd import end_daemon
from scistream.units import parse_grace, parse_rate

MOST_RELEASED = 1000
"""The least number of released streams to remember: an S2CS that was away asks for their last figures."""
ROLES: tuple[Role, ...] = (CONS, PROD)
SLOTS = 65536
"""One for the figures of the channel at each port. Those of ports that are not used take no memory."""
NEEDS_RESTART = ("listen", "insecure", "elements", "order", "wan.multipath", "wan.paths")
"""The settings that need a restart to change, since sockets, elements and the kernel's paths were made with them."""


_COMMANDS = "an S2DS accepts ReqListeners, UpdateTargets, Extend, REL and Status only"


class DataServer(Service):
    """An S2DS.

    :param reactor: the reactor, with monotonic timers.
    :param config: the checked settings.
    :param config_file: the file of the settings; relative paths in it are relative to its folder.
    :param problems: the problems that are known already.
    :raises CertificateError: if the certificates are not usable.
    :raises StreamError: if it would serve plain TCP beyond loopback.
    :raises ConfigError: if a setting names something that this system does not have.
    """

    log = Logger()

    def __init__(
        self, reactor: Any, config: S2DSConfig, config_file: Path, problems: SetupProblems | None = None
    ) -> None:
        self.reactor = reactor
        self.config = config
        self.config_file = config_file
        problems = problems or SetupProblems()
        self.wan_paths = ONE_PATH
        trust = None if config.insecure else trust_of(config, config_file)
        with problems.of_step():
            self._listener = LinkListener(reactor, Address.parse(config.listen), trust, client_certificate="required")
        with problems.of_step():
            self._http = http_server(self)
        with problems.of_step():
            self.wan_paths = wan_paths(config.wan)
        with problems.of_step():
            settings = element_settings(config, self.wan_paths)
        problems.raise_if_any()
        self._expiry = ExpiryWatch(reactor, self.all_credentials(), time.time, self.log)
        self.admission_controller = AdmissionController(
            reactor,
            config.limits.bounds,
            f"the listener at {config.listen}",
            known_refusal=0.0,
            known=networks(config.limits.controller_networks),
        )
        self._port: IListeningPort | None = None
        self._path_manager: PathManager | None = None
        self._links: set[Link] = set()
        self.boot = secrets.token_hex(16)
        self.ports = ListenPorts(*parse_ports(config.ports), config.chosen_ranges)
        self.capacity = Capacity(parse_rate(config.capacity))
        self.elements = Elements(
            reactor,
            config.element_count,
            SLOTS,
            settings,
            self._limits(),
            self._note_reset,
            partial(end_daemon, reactor),
            self._note_paths,
            in_order=config.order,
        )
        self.app_networks = networks(config.app_networks)
        self.wan_networks = networks(config.wan_networks)
        self._streams: dict[StreamKey, GatewayStream] = {}
        self._live: dict[StreamKey, GatewayStream] = {}
        """The streams that are not released."""
        self._ended: dict[StreamKey, GatewayStream] = {}
        """The released streams, kept for their last figures, in the order of their release."""
        self._pages = PageOrder()
        """The keys of live streams, in the order in which Status lists them."""
        self.resets: Counter[tuple[Cause, Role]] = Counter()
        """Connections that were reset since this gateway started, by cause and side."""
        self.handshakes: Counter[str] = Counter()
        """Control links that were not authenticated, by reason."""
        self.dialled: Counter[int] = Counter()
        """For ports of this gateway that are or were targets of live streams: the number of these streams."""
        self._drain = GatewayDrain(reactor, lambda: len(self._live))
        self._lent = settings.lent
        """All ranges of ports that were lent since the start."""
        self._count_ended()

    def _count_ended(self) -> None:
        """Set how many released streams to remember."""
        self._most_ended = max(MOST_RELEASED, self.ports.last - self.ports.first + 1)

    def _limits(self) -> SharedLimits:
        config = self.config
        return SharedLimits(
            config.limits.half_open, config.most_connections, config.most_unread, config.limits.owner_share
        )

    # -- the service

    def startService(self) -> None:
        """Start the elements and listen for the controller."""
        raise_descriptor_limit()
        if self.config.insecure:
            self.log.warn(
                "INSECURE: control links are plain TCP on loopback; any user of this machine can control this gateway"
            )
        self._warn_of_shared_ports()
        self._log_budget()
        self._port = self._listener.open(lambda: self, self.admission_controller)
        self._http.start()
        self.elements.start()
        if self.wan_paths.multipath and self.config.wan.paths:
            self._path_manager = PathManager(self.reactor, self.config.wan.paths)
            self._path_manager.start()
        super().startService()
        if self.all_credentials():
            self._expiry.start()
        self.log.info(
            "party=s2ds listens on {listen} for {controller}, boot {boot}",
            listen=self.config.listen,
            controller=self.config.controller or "any user on loopback",
            boot=self.boot,
        )

    def when_ready(self) -> Deferred[None]:
        """Return a Deferred that fires when all elements have started."""
        return self.elements.when_ready()

    def status_line(self) -> str:
        """Return how many streams and elements there are, and the reserved rate, in one line."""
        reserved = self.capacity.total - self.capacity.free
        return (
            f"{len(self._live)} streams; elements ready: {self.elements.ready_count()} of "
            f"{self.config.element_count or 1}; reserved: {reserved / 1000:g} of {self.capacity.total / 1000:g} Gbit/s"
        )

    def _log_budget(self) -> None:
        """Log the limits of all streams together and their source, which the settings alone do not show."""
        config = self.config
        by_files = self.elements.most_connections()
        source = "`connections` in [limits]" if config.limits.connections else "the memory of this machine"
        if by_files < config.most_connections:
            source = "the limit of open files (LimitNOFILE)"
        is_auto = config.limits.unread == "auto"
        self.log.info(
            "limits of all streams together: {connections} connections (from {source}) and {unread} MiB waiting to be "
            "read by programs (from {unread_source})",
            connections=min(by_files, config.most_connections),
            source=source,
            unread=config.most_unread // 2**20,
            unread_source="the memory of this machine and net.ipv4.tcp_mem" if is_auto else "`unread` in [limits]",
        )

    def _warn_of_shared_ports(self) -> None:
        shared = shared_with_connections(self.ports.chosen)
        if shared:
            self.log.warn(
                "Streams may ask for ports {ports}, but this system also gives these ports to outgoing connections: a "
                "stream is refused while such a connection uses its port. Set `chosen_ports` to ports outside "
                "net.ipv4.ip_local_port_range, or add these ports to net.ipv4.ip_local_reserved_ports",
                ports=in_words(shared),
            )

    @property
    def is_draining(self) -> bool:
        """True if this gateway is about to stop, and takes no new streams."""
        return self._drain.seconds_left is not None

    def shut_down(self) -> Deferred[None]:
        """Fire when this gateway may stop: when it has no stream left, or after `shutdown_grace`."""
        stopped = self._drain.begin(parse_grace(self.config.shutdown_grace))
        if self.is_draining:
            self.log.info("takes no new streams; streams left: {streams}", streams=len(self._live))
            for link in self._links:
                link.send(Error(uid=None, code="no-capacity", msg=self._drain.refusal))
        return stopped

    def stopService(self) -> Deferred[Any]:
        """Close all links and streams, and stop the elements; fire when no element is left."""
        super().stopService()
        self._drain.cancel()
        self._expiry.stop()
        self.admission_controller.stop()
        if self._path_manager is not None:
            self._path_manager.stop()
        for link in list(self._links):
            link.close()
        port, self._port = self._port, None
        stopping: list[Deferred[Any]] = [self._http.stop()]
        if port is not None:
            stopping.append(maybeDeferred(port.stopListening))
        for stream in self._streams.values():
            stream.close_all()  # not awaited: connections end with their element at the latest
        stopping.append(self.elements.stop())
        return DeferredList(stopping)

    def reload(self, config: S2DSConfig) -> Change:
        """Apply new settings, and read certificates, keys, authorities and CRLs again; on an error nothing changes.

        Close the link of a controller that is no longer accepted; streams go on. New networks, limits and settings of
        connections apply to later connections and targets, and new ports and addresses to later streams.

        :raises CertificateError: if a file is not usable.
        :raises ConfigError: if the settings contradict the ones that need a restart to change.
        """
        merged, change = merge(self.config_file, self.config, config, NEEDS_RESTART)
        raise_if_any(self.config_file, list(machine_problems(merged, may_run=True)))
        settings = element_settings(merged, self.wan_paths)
        all_credentials = self.all_credentials().values()
        new = [credentials.read(trust_of(merged, self.config_file)) for credentials in all_credentials]
        new.append(self._http.prepare(merged.http, http_trust(merged, self.config_file)))
        self.config = merged
        for apply in new:
            apply()
        self.app_networks, self.wan_networks = networks(merged.app_networks), networks(merged.wan_networks)
        self.capacity.total = parse_rate(merged.capacity)
        self.admission_controller.set_bounds(merged.limits.bounds, networks(merged.limits.controller_networks))
        self.elements.set_limits(self._limits())
        self.ports.change(*parse_ports(merged.ports), merged.chosen_ranges)
        self._lent = list(dict.fromkeys([*settings.lent, *self._lent]))  # streams may keep ports that are not lent anew
        self.elements.change_settings(msgspec.structs.replace(settings, lent=self._lent))
        self._count_ended()
        for credentials in all_credentials:
            close_refused(list(self._links), credentials)
        for link in list(self._links):
            if not self._is_controller(link):
                self._refuse_link(link)
        self._expiry.look()
        return change

    def all_credentials(self) -> dict[str, ReloadableCredentials]:
        """Return the certificates of this gateway, by name."""
        return {} if self._listener.credentials is None else {"server": self._listener.credentials}

    # -- LinkOwner

    def link_up(self, link: Link) -> None:
        """Accept the controller's link, and close any other."""
        if not self._is_controller(link):
            self._refuse_link(link)
            return
        self._links.add(link)
        link.mark_proven(str(link.peer) if link.peer != PLAIN_IDENTITY else None)

    @property
    def is_controlled(self) -> bool:
        """True if the controller is connected."""
        return bool(self._links)

    def _is_controller(self, link: Link) -> bool:
        return bool(link.peer == PLAIN_IDENTITY or link.peer.name == self.config.controller)

    def _refuse_link(self, link: Link) -> None:
        link.note("refused a peer that is not its controller", str(link.peer))
        self.handshakes["certificate"] += 1
        msg = f"{link.peer.name} is not the controller of this gateway: check `controller` in its configuration"
        link.send(Error(uid=None, code="not-authorized", msg=msg))
        link.record_failure("not our controller")
        link.close()

    def link_down(self, link: Link, reason: Failure) -> None:
        """Forget a link, and log why it was refused if it was."""
        failure = None if link in self._links else handshake_failure(reason)
        if failure is not None:
            self.handshakes[failure] += 1
        self._links.discard(link)
        log_refusal(link, reason)

    def answer_received(self, link: Link, answer: Answer) -> None:
        """Ignore an answer: a gateway sends its controller no commands."""

    def message_received(self, link: Link, message: Message) -> None:
        """Carry out a command of the controller, or refuse it."""
        if isinstance(message, Status):
            self._answer_status(link, message)
        elif isinstance(message, ReqListeners | UpdateTargets | Extend | Rel):
            self._command(link, message)
        elif not isinstance(message, Resp | Error):
            link.refuse(message, "not-authorized", _COMMANDS)

    def _command(self, link: Link, command: ReqListeners | UpdateTargets | Extend | Rel) -> None:
        stream = self._streams.get((command.uid, command.role))
        if stream is None and isinstance(command, UpdateTargets | Extend):
            link.refuse(command, "unknown-uid", f"no stream {command.uid} is reserved here")
            return
        if stream is not None and stream.belongs_to_another(command.store):
            code: ErrorCode = "uid-in-use" if isinstance(command, ReqListeners) else "not-authorized"
            link.refuse(command, code, f"stream {command.uid} on this gateway belongs to another S2CS")
            return
        if stream is None and isinstance(command, ReqListeners) and self.is_draining:
            link.refuse(command, "no-capacity", self._drain.refusal)
            return
        if stream is None:
            self._forget_old()
            stream = self._streams[command.uid, command.role] = GatewayStream(self, command)
            if stream.released_at is None:
                self._live[stream.key] = stream
                self._pages.add(stream.key)
            else:  # the release of a stream that was never reserved here
                self.released(stream)
        caller = Caller(link, command.seq)
        if isinstance(command, ReqListeners):
            stream.machine.req_listeners(caller, command)
        elif isinstance(command, UpdateTargets):
            stream.machine.update_targets(caller, command)
        elif isinstance(command, Extend):
            stream.machine.extend(caller, command)
        else:
            stream.machine.rel(caller)

    def live_streams(self) -> Collection[GatewayStream]:
        """Return the streams that are not released."""
        return self._live.values()

    def released(self, stream: GatewayStream) -> None:
        """Keep a stream that is released for its last figures, for some time."""
        if self._live.pop(stream.key, None) is not None:
            self._pages.remove(stream.key)
            self._drain.streams_changed()
        self._ended[stream.key] = stream
        self._forget_old()

    def _forget_old(self) -> None:
        now = self.reactor.seconds()
        while self._ended:
            key, oldest = next(iter(self._ended.items()))
            is_recent = oldest.released_at is None or now - oldest.released_at <= timing.REMEMBER_FIGURES
            if is_recent and len(self._ended) <= self._most_ended:
                return
            del self._ended[key], self._streams[key]

    def wan_listeners(self, key: StreamKey) -> set[int]:
        """Return the ports of this gateway on which one side of a stream listens for other gateways."""
        stream = self._streams.get(key)
        return stream.wan_listeners() if stream is not None else set()

    def _note_reset(self, reset: Reset) -> None:
        stream = self._streams.get((reset.uid, reset.role))
        if stream is not None:
            stream.note_reset(reset)

    def _note_paths(self, report: PathsReport) -> None:
        stream = self._streams.get((report.uid, report.role))
        if stream is not None:
            stream.paths.hear(report)

    def _gateway_capacity(self) -> GatewayCapacity:
        lan, wan = self.config.lan, self.config.wan
        return GatewayCapacity(
            ports=self.ports.last - self.ports.first + 1,
            rate=parse_rate(self.config.capacity),
            hosts=sorted({lan.bind, lan.advertised, wan.bind, wan.advertised} - {"0.0.0.0", "::"}),
            first_port=self.ports.first,
            chosen_ports=self.ports.chosen,
            wan=wan.abilities,
            draining=self._drain.seconds_left,
            elements=self.elements.count,
            elements_ready=self.elements.ready_count(),
        )

    def _answer_status(self, link: Link, command: Status) -> None:
        after = command.after or ""
        if command.uid is not None:
            named: list[StreamKey] = [(command.uid, role) for role in ROLES]
            keys: Iterator[StreamKey] = iter([key for key in named if key in self._streams and page_key(key) > after])
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
            room=self._gateway_capacity(),
            app_networks=self.config.app_networks,
            streams=[self._streams[key].status() for key in page],
            more=more,
        )

"""Settings of an S2DS."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address
from typing import Annotated

from msgspec import Meta, field

from scistream.config import SettingProblem, below, unless
from scistream.http.settings import GatewayHttpSettings, listener_problems
from scistream.log_output import log_problems
from scistream.protocol.address import Address, parse_network
from scistream.protocol.wan_abilities import ACCEPT, DIAL
from scistream.resources import memory, processors, tcp_memory
from scistream.shared_settings import (
    LOOPBACK,
    Count,
    Limits,
    SettingsSection,
    _controller_name,
    files_problems,
    networks,
    numeric_address,
    parse_chosen_ports,
    parse_ports,
    plain_problems,
    trust_problems,
)
from scistream.text_kinds import (
    AddressText,
    Auto,
    CipherText,
    FileText,
    LogFormatText,
    LogLevelText,
    MultipathText,
    NetworkText,
    PortRangeText,
    PortsOrNone,
    RateText,
    SizeOrAuto,
    TimeText,
)
from scistream.units import parse_grace, parse_rate, parse_seconds, parse_size

MAX_ELEMENTS = 256
MOST_READY = 64
"""The ready connections that one channel may have, over all elements of a gateway."""
CONNECTION_BYTES = 2**20
"""The assumed memory of one connection. Without a setting, connections may use half of the memory."""
WAN_CIPHERS = ("aes", "chacha20")
MULTIPATH = ("auto", "yes", "no")
MOST_PATHS = 8
"""The number of addresses that Linux can use for the paths of one connection."""
OWNER_SHARE = 75
"""Percent of a shared resource that all streams of one user may have."""


def parse_elements(value: int | str, available: int | None = None) -> int:
    """Return the number of element processes that the setting `elements` stands for.

    ``auto`` is one for each processor that this process may use, up to `MAX_ELEMENTS`.

    :param available: the number of processors; None: count them.
    :raises ValueError: if the value is not allowed; the text says which values are.
    """
    if value == "auto":
        return min(available or processors(), MAX_ELEMENTS)
    if isinstance(value, str) or not 0 <= value <= MAX_ELEMENTS:
        raise ValueError(
            f'{value!r}: write "auto", or a number from 0 (the main process carries the data) to {MAX_ELEMENTS}'
        )
    return value


def parse_proxy(text: str) -> Address:
    """Return the address of a proxy.

    :param text: as ``http://proxy.example:3128``.
    :raises ValueError: if the text has another form. The text of the error has no password.
    """
    if "@" in text:
        raise ValueError(
            "the address has a user name or a password, which gateways do not send to a proxy: write http://HOST:PORT, "
            "and let the proxy admit this gateway by its address"
        )
    scheme, found, rest = text.partition("://")
    if not found or scheme.lower() != "http":
        why = f"it speaks {scheme!r}, but gateways use plain HTTP with a proxy" if found else "it has no http://"
        raise ValueError(f"{text!r} is not the address of an HTTP proxy ({why}): write http://HOST:PORT")
    try:
        return Address.parse(rest.removesuffix("/"))
    except ValueError as wrong:
        raise ValueError(f"{text!r} is not the address of an HTTP proxy ({wrong}): write http://HOST:PORT") from None


class GatewayLimits(Limits, frozen=True, kw_only=True):
    """The limits of a gateway: those of any control port, and those of its streams."""

    half_open: Count = 64
    connections: Annotated[int, Meta(ge=0)] = 0
    unread: SizeOrAuto = "auto"
    owner_share: Annotated[int, Meta(ge=1, le=100)] = OWNER_SHARE
    controller_networks: list[NetworkText] = field(default_factory=lambda: list(LOOPBACK))

    def problems(self) -> Iterator[SettingProblem]:
        """Yield what is wrong with the values."""
        yield from super().problems()
        if self.unread != "auto":
            yield from unless(parse_size, self.unread, "unread")
        for text in self.controller_networks:
            yield from unless(parse_network, text, "controller_networks")


def usual_unread(tcp: int, memory: int) -> int:
    """Return how many bytes may wait at a gateway if the setting `unread` is "auto".

    :param tcp: bytes of memory that the kernel may use for TCP without pressure.
    :param memory: bytes of memory that this process may use, the kernel's buffers included.
    """
    return max(1, min(tcp // 2, memory // 4))


class LegSettings(SettingsSection, frozen=True, kw_only=True):
    """The settings of one side of a gateway: [lan] or [wan].

    :ivar bind: the numeric address to bind.
    :ivar advertise: the host to announce to others; empty: `bind`.
    :ivar congestion: the congestion control of connections: a name, "auto", or empty for the system's.
    """

    bind: str = "127.0.0.1"
    advertise: str = ""
    congestion: str = "auto"

    @property
    def advertised(self) -> str:
        """The host that is announced to others."""
        return self.advertise or self.bind

    def problems(self) -> Iterator[SettingProblem]:
        """Yield what is wrong with the values."""
        try:
            bound = ip_address(self.bind)
        except ValueError:
            yield SettingProblem(("bind",), f"{self.bind!r} is not a numeric address: write one of this machine")
            return
        if bound.is_unspecified and not self.advertise:
            why = f"needed if bind is {self.bind}: write the address at which others reach this gateway"
            yield SettingProblem(("advertise", "bind"), why)
            return
        if bound.is_multicast:
            yield SettingProblem(("bind",), f"{self.bind!r} is a multicast address: write an address of this machine")
        yield from unless(Address.parse, str(Address(self.advertised, 1)), "advertise")
        advertised = numeric_address(self.advertised)
        if advertised is None or not self.advertise:
            return
        if advertised.is_unspecified or advertised.is_multicast:
            why = (
                f"{self.advertise!r} is not the address of a machine: write the one at which others reach this gateway"
            )
            yield SettingProblem(("advertise",), why)
        elif advertised.version != bound.version:
            why = (
                f"{self.advertise!r} is an IPv{advertised.version} address, but bind, {self.bind!r}, accepts "
                f"connections over IPv{bound.version} only: write two addresses of the same version"
            )
            yield SettingProblem(("advertise", "bind"), why)
        elif advertised.is_loopback and not bound.is_loopback and not bound.is_unspecified:
            why = (
                f"{self.advertise!r} is a loopback address, but bind, {self.bind!r}, is not: write an address at which "
                "others reach this gateway"
            )
            yield SettingProblem(("advertise", "bind"), why)

    def networks_problem(self, texts: list[str]) -> str | None:
        """Return why nobody in these networks could connect to this side, or None."""
        allowed = networks(texts)
        bound, advertised = ip_address(self.bind), numeric_address(self.advertised)
        if not allowed:
            return "is empty, so nobody could connect: name the networks of others"
        if all(network.version != bound.version for network in allowed):
            return (
                f"has no IPv{bound.version} network, but bind, {self.bind!r}, accepts connections over "
                f"IPv{bound.version} only: add one"
            )
        if advertised is not None and not advertised.is_loopback and all(network.is_loopback for network in allowed):
            key = "advertise" if self.advertise else "bind"
            return (
                f"has only loopback networks, but {self.advertised} ({key}) is not a loopback address: name the "
                "networks of others"
            )
        return None


class WanSettings(LegSettings, frozen=True, kw_only=True):
    """The settings of the side to other gateways: [wan].

    :ivar multipath: whether connections may use several paths: "yes", "no", or "auto".
    :ivar paths: the numeric addresses of this gateway on the WAN, one for each path.
    :ivar accept: whether other gateways may connect to this one.
    :ivar dial: whether this gateway may connect to others.
    :ivar proxy: the HTTP proxy through which it does so; empty for none.
    :ivar ready: the verified connections to the other gateway to keep open for each channel, or "auto".
    """

    ready: int | Auto = 2
    multipath: MultipathText = "auto"
    paths: list[str] = field(default_factory=list)
    accept: bool = True
    dial: bool = True
    proxy: str = ""

    @property
    def abilities(self) -> list[str]:
        """What this gateway can do to connect to others, as the protocol names it."""
        return [ACCEPT] * self.accept + [DIAL] * self.dial

    @property
    def other_paths(self) -> tuple[str, ...]:
        """The addresses of paths at which `bind` alone would not listen."""
        bound = ip_address(self.bind)
        return tuple(
            path
            for path in self.paths
            if ip_address(path) != bound and not (bound.is_unspecified and ip_address(path).version == bound.version)
        )

    def problems(self) -> Iterator[SettingProblem]:
        """Yield what is wrong with the values."""
        yield from super().problems()
        if self.ready != "auto" and (isinstance(self.ready, str) or not 0 <= self.ready <= MOST_READY):
            why = f'{self.ready!r}: write "auto", or how many connections of a channel to keep ready, 0 to {MOST_READY}'
            yield SettingProblem(("ready",), why)
        if self.proxy:
            yield from unless(parse_proxy, self.proxy, "proxy")
        if not self.accept and not self.dial:
            why = "both are false, so no stream could reach another gateway: set one of them to true"
            yield SettingProblem(("accept", "dial"), why)
        if self.multipath not in MULTIPATH:
            allowed = ", ".join(f'"{value}"' for value in MULTIPATH)
            yield SettingProblem(("multipath",), f"{self.multipath!r} is not a choice: write one of {allowed}")
        addresses = []
        for text in self.paths:
            address = numeric_address(text)
            if address is None or address.is_unspecified or address.is_multicast or address.is_link_local:
                why = (
                    f"{text!r} is not the numeric address of a path: write an address of this machine that other "
                    "gateways can reach"
                )
                yield SettingProblem(("paths",), why)
                return
            if address in addresses:
                yield SettingProblem(("paths",), f"{text!r} is there twice: write each address once")
            addresses.append(address)
        if len(addresses) > MOST_PATHS:
            why = f"has {len(addresses)} addresses, but the kernel uses {MOST_PATHS} at most: leave the others out"
            yield SettingProblem(("paths",), why)
        bound = numeric_address(self.bind)
        if addresses and bound is not None and not bound.is_unspecified and bound not in addresses:
            why = f"bind, {self.bind!r}, is not among the paths: add it, since connections begin there"
            yield SettingProblem(("paths", "bind"), why)


class S2DSConfig(SettingsSection, frozen=True, kw_only=True):
    """The settings of an S2DS; rates and times as text (``10Gbit``, ``60s``)."""

    listen: AddressText = "127.0.0.1:5001"
    controller: str = ""
    certificate: FileText = ""
    key: FileText = ""
    authorities: list[FileText] = field(default_factory=list)
    crl: list[FileText] = field(default_factory=list)
    insecure: bool = False
    ports: PortRangeText = "5100-5200"
    chosen_ports: PortsOrNone = ""
    capacity: RateText = "10Gbit"
    elements: int | Auto = "auto"
    order: bool = True
    lan: LegSettings = field(default_factory=LegSettings)
    wan: WanSettings = field(default_factory=WanSettings)
    app_networks: list[NetworkText] = field(default_factory=lambda: list(LOOPBACK))
    wan_networks: list[NetworkText] = field(default_factory=lambda: list(LOOPBACK))
    wan_timeout: TimeText = "60s"
    wan_cipher: CipherText = "aes"
    shutdown_grace: TimeText = "0s"
    log_format: LogFormatText = "auto"
    log_level: LogLevelText = "info"
    limits: GatewayLimits = field(default_factory=GatewayLimits)
    http: GatewayHttpSettings = field(default_factory=GatewayHttpSettings)

    @property
    def most_connections(self) -> int:
        """The number of connections that all streams together may have, apart from the limit of open files."""
        return self.limits.connections or max(1, memory() // (2 * CONNECTION_BYTES))

    @property
    def most_unread(self) -> int:
        """The number of bytes of all streams together that may wait in this gateway and its sockets."""
        return usual_unread(tcp_memory(), memory()) if self.limits.unread == "auto" else parse_size(self.limits.unread)

    @property
    def chosen_ranges(self) -> list[tuple[int, int]]:
        """The ranges of ports that streams may ask for by number: `chosen_ports`, or `ports` if that is empty."""
        return parse_chosen_ports(self.chosen_ports) if self.chosen_ports else [parse_ports(self.ports)]

    @property
    def element_count(self) -> int:
        """The number of element processes; 0: the initiator's process carries the data."""
        return parse_elements(self.elements)

    def problems(self) -> Iterator[SettingProblem]:
        """Yield what is wrong with the values."""
        yield from unless(Address.parse, self.listen, "listen")
        yield from plain_problems(self.insecure, self.listen, "listen")
        yield from below("limits", self.limits.problems())
        yield from below("http", self.http.problems())
        yield from listener_problems(self.http, self.listen, insecure=self.insecure)
        yield from unless(parse_elements, self.elements, "elements")
        yield from unless(parse_ports, self.ports, "ports")
        if self.chosen_ports:
            yield from unless(parse_chosen_ports, self.chosen_ports, "chosen_ports")
        yield from unless(parse_rate, self.capacity, "capacity")
        yield from unless(parse_seconds, self.wan_timeout, "wan_timeout")
        yield from unless(parse_grace, self.shutdown_grace, "shutdown_grace")
        if self.wan_cipher not in WAN_CIPHERS:
            allowed = " or ".join(WAN_CIPHERS)
            yield SettingProblem(
                ("wan_cipher",), f"{self.wan_cipher!r} is not a cipher that a gateway can prefer: write {allowed}"
            )
        yield from below("lan", self.lan.problems())
        yield from below("wan", self.wan.problems())
        for key, texts, side, leg in (
            ("app_networks", self.app_networks, "lan", self.lan),
            ("wan_networks", self.wan_networks, "wan", self.wan),
        ):
            wrong = [problem for text in texts for problem in unless(parse_network, text, key)]
            yield from wrong
            if not wrong and not any(leg.problems()):
                why = leg.networks_problem(texts)
                if why is not None:
                    yield SettingProblem((key, f"{side}.bind", f"{side}.advertise"), why)
        yield from self._ports_problems()
        if self.controller:
            yield from unless(_controller_name, self.controller, "controller")
        yield from log_problems(self)
        yield from files_problems(self)
        yield from trust_problems(self, "certificate", "key", "authorities", "controller")

    def _ports_problems(self) -> Iterator[SettingProblem]:
        """Yield a problem if a port of this gateway is among the ports of streams, at an address that both use."""
        yield from self._port_problems("listen", self.listen, "for its controller")
        if self.http.listen:
            yield from self._port_problems("http.listen", self.http.listen, "for HTTP")

    def _port_problems(self, setting: str, address: str, purpose: str) -> Iterator[SettingProblem]:
        try:
            listen = Address.parse(address)
            lent = {"ports": [parse_ports(self.ports)], "chosen_ports": self.chosen_ranges}
        except ValueError:
            return
        hosts = {self.lan.bind, self.wan.bind, listen.host}
        shared = listen.host in (self.lan.bind, self.wan.bind) or any(
            address is not None and address.is_unspecified for address in map(numeric_address, hosts)
        )
        if not shared:
            return
        for key, ranges in lent.items():
            text = getattr(self, key)
            if text and any(first <= listen.port <= last for first, last in ranges):
                why = (
                    f"{text!r} has port {listen.port}, on which this gateway listens {purpose} ({setting}): "
                    "choose another port for one of them"
                )
                yield SettingProblem((key, setting, "lan.bind", "wan.bind"), why)

"""Settings of an S2DS."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address
from typing import Annotated

from msgspec import Meta, field

from scistream.config import SettingProblem, below, unless
from scistream.protocol.address import Address, parse_network
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
from scistream.units import parse_rate, parse_seconds, parse_size

MAX_ELEMENTS = 256
CONNECTION_BYTES = 2**20
"""What a connection is taken to need of the memory, half of which connections may have if no number of them is set."""
WAN_CIPHERS = ("aes", "chacha20")
OWNER_SHARE = 75
"""Percent of what there is for others as well that the streams of one user have together at most."""


def parse_elements(value: int | str, available: int | None = None) -> int:
    """How many element processes: ``auto`` is one for each processor that this process may use, up to `MAX_ELEMENTS`.

    :param available: how many processors that are, if it is known.
    :raises ValueError: with a sentence that names the value and what is allowed.
    """
    if value == "auto":
        return min(available or processors(), MAX_ELEMENTS)
    if isinstance(value, str) or not 0 <= value <= MAX_ELEMENTS:
        raise ValueError(f'{value!r}: write "auto", or a number from 0 (none: one process does all) to {MAX_ELEMENTS}')
    return value


class GatewayLimits(Limits, frozen=True, kw_only=True):
    """The same for a gateway, and what the ports of its streams take."""

    half_open: Count = 64
    connections: Annotated[int, Meta(ge=0)] = 0
    unread: str = "auto"
    owner_share: Annotated[int, Meta(ge=1, le=100)] = OWNER_SHARE
    controller_networks: list[str] = field(default_factory=lambda: list(LOOPBACK))

    def problems(self) -> Iterator[SettingProblem]:
        """What is wrong with the values."""
        yield from super().problems()
        if self.unread != "auto":
            yield from unless(parse_size, self.unread, "unread")
        for text in self.controller_networks:
            yield from unless(parse_network, text, "controller_networks")


def usual_unread(tcp: int, memory: int) -> int:
    """How many bytes may wait at a gateway if no setting says it.

    :param tcp: bytes that the kernel uses for TCP before it becomes sparing with them.
    :param memory: bytes that this process may use, of which the kernel's buffers are a part.
    """
    return max(1, min(tcp // 2, memory // 4))


class LegSettings(SettingsSection, frozen=True, kw_only=True):
    """One side of a gateway: the address that it binds, the one that it tells others, and what keeps its connections
    from congesting the network ("auto": what suits and can be had; empty: what the system does)."""

    bind: str = "127.0.0.1"
    advertise: str = ""
    congestion: str = "auto"

    @property
    def told(self) -> str:
        """The host that others are told."""
        return self.advertise or self.bind

    def problems(self) -> Iterator[SettingProblem]:
        """What is wrong with the values."""
        try:
            bound = ip_address(self.bind)
        except ValueError:
            yield SettingProblem(("bind",), f"{self.bind!r} is no numeric address of this machine")
            return
        if bound.is_unspecified and not self.advertise:
            why = f"needed when bind is {self.bind}: which address do others reach?"
            yield SettingProblem(("advertise", "bind"), why)
            return
        if bound.is_multicast:
            yield SettingProblem(("bind",), f"{self.bind!r} is an address of many machines: write one of this machine")
        yield from unless(Address.parse, str(Address(self.told, 1)), "advertise")
        told = numeric_address(self.told)
        if told is None or not self.advertise:
            return
        if told.is_unspecified or told.is_multicast:
            yield SettingProblem(
                ("advertise",), f"{self.advertise!r} is no address of one machine: which one do others reach?"
            )
        elif told.version != bound.version:
            why = (
                f"{self.advertise!r} is an IPv{told.version} address, and bind, {self.bind!r}, takes connections over "
                f"IPv{bound.version} only: write two of one kind"
            )
            yield SettingProblem(("advertise", "bind"), why)
        elif told.is_loopback and not bound.is_loopback and not bound.is_unspecified:
            why = f"{self.advertise!r} is on loopback, and bind, {self.bind!r}, is not: nobody reaches it by that"
            yield SettingProblem(("advertise", "bind"), why)

    def networks_problem(self, texts: list[str]) -> str | None:
        """Why nobody of some networks could ever connect to this side, or None."""
        allowed = networks(texts)
        bound, told = ip_address(self.bind), numeric_address(self.told)
        if not allowed:
            return "is empty: nobody could ever connect"
        if all(network.version != bound.version for network in allowed):
            return f"has no network of IPv{bound.version}, over which bind, {self.bind!r}, takes connections"
        if told is not None and not told.is_loopback and all(network.is_loopback for network in allowed):
            key = "advertise" if self.advertise else "bind"
            return (
                f"has nothing but loopback, and from there nobody comes to {self.told} ({key}): name the networks of "
                "others"
            )
        return None


class S2DSConfig(SettingsSection, frozen=True, kw_only=True):
    """The settings of an S2DS; rates and times as text (``10Gbit``, ``60s``)."""

    listen: str = "127.0.0.1:5001"
    controller: str = ""
    certificate: str = ""
    key: str = ""
    authorities: list[str] = field(default_factory=list)
    crl: list[str] = field(default_factory=list)
    insecure: bool = False
    ports: str = "5100-5200"
    chosen_ports: str = ""
    capacity: str = "10Gbit"
    elements: int | str = "auto"
    order: bool = True
    lan: LegSettings = field(default_factory=LegSettings)
    wan: LegSettings = field(default_factory=LegSettings)
    app_networks: list[str] = field(default_factory=lambda: list(LOOPBACK))
    wan_networks: list[str] = field(default_factory=lambda: list(LOOPBACK))
    wan_timeout: str = "60s"
    wan_cipher: str = "aes"
    limits: GatewayLimits = field(default_factory=GatewayLimits)

    @property
    def most_connections(self) -> int:
        """How many connections there may be of all streams together, whatever the limit of open files is."""
        return self.limits.connections or max(1, memory() // (2 * CONNECTION_BYTES))

    @property
    def most_unread(self) -> int:
        """How many bytes of all streams together may wait in this gateway and its sockets."""
        return usual_unread(tcp_memory(), memory()) if self.limits.unread == "auto" else parse_size(self.limits.unread)

    @property
    def chosen_ranges(self) -> list[tuple[int, int]]:
        """The ranges of ports that streams may ask for by number: those of `ports`, unless `chosen_ports` is set."""
        return parse_chosen_ports(self.chosen_ports) if self.chosen_ports else [parse_ports(self.ports)]

    @property
    def element_count(self) -> int:
        """How many element processes there are; 0: none, the initiator's own process carries the data."""
        return parse_elements(self.elements)

    def problems(self) -> Iterator[SettingProblem]:
        """What is wrong with the values."""
        yield from unless(Address.parse, self.listen, "listen")
        yield from plain_problems(self.insecure, self.listen, "listen")
        yield from below("limits", self.limits.problems())
        yield from unless(parse_elements, self.elements, "elements")
        yield from unless(parse_ports, self.ports, "ports")
        if self.chosen_ports:
            yield from unless(parse_chosen_ports, self.chosen_ports, "chosen_ports")
        yield from unless(parse_rate, self.capacity, "capacity")
        yield from unless(parse_seconds, self.wan_timeout, "wan_timeout")
        if self.wan_cipher not in WAN_CIPHERS:
            allowed = " or ".join(WAN_CIPHERS)
            yield SettingProblem(
                ("wan_cipher",), f"{self.wan_cipher!r} is no cipher that can be preferred: write {allowed}"
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
        yield from files_problems(self)
        yield from trust_problems(self, "certificate", "key", "authorities", "controller")

    def _ports_problems(self) -> Iterator[SettingProblem]:
        """The control port must not be among those of the streams, at an address that both have."""
        try:
            listen = Address.parse(self.listen)
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
                why = f"{text!r} has port {listen.port}, on which this gateway listens for its controller (listen)"
                yield SettingProblem((key, "listen", "lan.bind", "wan.bind"), why)

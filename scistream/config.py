"""The settings of each party, and the values that people write in them: rates, times, sizes.

`scistream.toml_file` reads them from a file; what is wrong with a value is told by `problems` of its section. Relative
paths in a file are relative to the file's own folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Annotated, Protocol

from msgspec import Meta, Struct, field

from scistream.resources import memory, processors, tcp_memory
from scistream.security.guard import Bounds
from scistream.security.material import Trust
from scistream.toml_file import ConfigProblem as ConfigProblem
from scistream.toml_file import Problem, below, expanded, unless
from scistream.toml_file import load as load
from scistream.units import parse_life, parse_rate, parse_seconds, parse_size
from scistream.wire.address import Address, IPAddress, Network, parse_network
from scistream.wire.messages import MAX_RANGES

MAX_ELEMENTS = 256
CONNECTION_BYTES = 2**20
"""What a connection is taken to need of the memory, half of which connections may have if no number of them is set."""
WAN_CIPHERS = ("aes", "chacha20")
OWNER_SHARE = 75
"""Percent of what there is for others as well that the streams of one user have together at most."""
FIRST_USER_PORT = 1024
"""The lowest port that `chosen_ports` may have."""
LOOPBACK = ["127.0.0.0/8", "::1/128"]


_PORTS = re.compile(r"\s*(\d{1,5})\s*-\s*(\d{1,5})\s*\Z")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:\S+|[^\s@]+@[^\s@]+")
"""A URI or an e-mail address."""


DEFAULT_RATE = 1000.0
"""Mbit/s of a stream whose user does not say."""


def parse_ports(text: str) -> tuple[int, int]:
    """Read a range of ports, ``5100-5200``, both ends included.

    :raises ValueError: with a sentence that names the text and what is allowed.
    """
    match = _PORTS.match(text)
    if match is None:
        raise ValueError(f"{text!r} is no range of ports: write it like 5100-5200")
    low, high = int(match[1]), int(match[2])
    if not 1 <= low <= high <= 65535:
        raise ValueError(f"{text!r} is no range of ports: it runs upwards between 1 and 65535")
    return low, high


def parse_port_ranges(text: str) -> list[tuple[int, int]]:
    """Read ports and ranges of ports, ``5075, 5100-5200``.

    :raises ValueError: with a sentence that names the text and what is allowed.
    """
    ranges = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        try:
            ranges.append(parse_ports(f"{first}-{last if dash else first}"))
        except ValueError:
            raise ValueError(
                f"{text!r} is no list of ports: write ports from 1 to 65535 and ranges that run upwards, like "
                "5075, 5100-5200"
            ) from None
    return ranges


def parse_chosen_ports(text: str) -> list[tuple[int, int]]:
    """Read the ranges of ports that a stream may ask for by number; ``none`` means that it may ask for none.

    :raises ValueError: with a sentence that names the text and what is allowed.
    """
    if text.strip() == "none":
        return []
    ranges = parse_port_ranges(text)
    if len(ranges) > MAX_RANGES:
        raise ValueError(f"{text!r} has {len(ranges)} ranges of ports: write at most {MAX_RANGES}")
    low = next((first for first, _ in ranges if first < FIRST_USER_PORT), None)
    if low is not None:
        raise ValueError(
            f"{text!r} has port {low}: ports below {FIRST_USER_PORT} belong to services of the system, and no stream "
            "may choose one"
        )
    return ranges


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


class _Section(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all sections share."""


_Count = Annotated[int, Meta(ge=1)]


_PARTS_OF_LIMITS = (
    ("links_per_address", "links"),
    ("links_per_identity", "links"),
    ("unproven", "links"),
    ("unproven_per_address", "unproven"),
    ("unproven_per_address", "links_per_address"),
)
"""Which limits bound a part of what others bound; a default never contradicts what somebody has set."""


class Limits(_Section, frozen=True, kw_only=True):
    """How much the door for control links takes; see `scistream.security.guard.Bounds`."""

    links: _Count = 4096
    links_per_address: _Count = 512
    unproven: _Count = 512
    unproven_per_address: _Count = 32
    links_per_identity: _Count = 64
    commands_per_second: _Count = 200
    failures: _Count = 20
    longest_refusal: str = "30s"

    def problems(self) -> Iterator[Problem]:
        """What is wrong with the values."""
        yield from unless(parse_seconds, self.longest_refusal, "longest_refusal")
        for part, whole in _PARTS_OF_LIMITS:
            if getattr(self, part) > getattr(self, whole) and getattr(self, part) != getattr(Limits(), part):
                why = f"{getattr(self, part)} is more than {whole}, {getattr(self, whole)}, of which it is a part"
                yield Problem((part, whole), why)

    @property
    def bounds(self) -> Bounds:
        """The same for a guard."""
        return Bounds(
            links=self.links,
            links_per_address=self.links_per_address,
            unproven=self.unproven,
            unproven_per_address=self.unproven_per_address,
            links_per_identity=self.links_per_identity,
            commands_per_second=self.commands_per_second,
            failures=self.failures,
            longest_refusal=parse_seconds(self.longest_refusal),
        )


class ServerLimits(Limits, frozen=True, kw_only=True):
    """The limits of an S2CS, and what one user may take of a facility if no rule of its policy sets another limit."""

    streams_per_identity: _Count = 100
    requests_per_minute: _Count = 1000


class GatewayLimits(Limits, frozen=True, kw_only=True):
    """The same for a gateway, and what the ports of its streams take."""

    half_open: _Count = 64
    connections: Annotated[int, Meta(ge=0)] = 0
    unread: str = "auto"
    owner_share: Annotated[int, Meta(ge=1, le=100)] = OWNER_SHARE
    controller_networks: list[str] = field(default_factory=lambda: list(LOOPBACK))

    def problems(self) -> Iterator[Problem]:
        """What is wrong with the values."""
        yield from super().problems()
        if self.unread != "auto":
            yield from unless(parse_size, self.unread, "unread")
        for text in self.controller_networks:
            yield from unless(parse_network, text, "controller_networks")


class Controller(_Section, frozen=True, kw_only=True):
    """With what an S2CS shows itself to its gateways, and whom it takes for one."""

    certificate: str
    key: str
    authorities: list[str]
    crl: list[str] = field(default_factory=list)

    def problems(self) -> Iterator[Problem]:
        """What is wrong with the values."""
        yield from _files_problems(self)
        yield from _missing(self, "certificate", "key", "authorities")


class Gateway(_Section, frozen=True, kw_only=True):
    """One S2DS of the pool: a name for logs, and where it listens for its controller."""

    name: str
    address: str


def usual_unread(tcp: int, memory: int) -> int:
    """How many bytes may wait at a gateway if no setting says it.

    :param tcp: bytes that the kernel uses for TCP before it becomes sparing with them.
    :param memory: bytes that this process may use, of which the kernel's buffers are a part.
    """
    return max(1, min(tcp // 2, memory // 4))


_USUAL_LIFE = "24h"


class S2CSConfig(_Section, frozen=True, kw_only=True):
    """The settings of an S2CS; times as text (``1h``)."""

    gateways: list[Gateway]
    listen: str = "127.0.0.1:5000"
    state: str = "s2cs.sqlite"
    audit: str = "auto"
    certificate: str = ""
    key: str = ""
    authorities: list[str] = field(default_factory=list)
    crl: list[str] = field(default_factory=list)
    controller: Controller | None = None
    insecure: bool = False
    expires: str = _USUAL_LIFE
    longest_expires: str = "7d"
    hello_timeout: str = "1h"
    release_broken_after: str = ""
    policy: str = ""
    limits: ServerLimits = field(default_factory=ServerLimits)

    def problems(self) -> Iterator[Problem]:
        """What is wrong with the values."""
        yield from unless(Address.parse, self.listen, "listen")
        yield from _plain_problems(self.insecure, self.listen, "listen")
        yield from below("limits", self.limits.problems())
        if not self.gateways:
            yield Problem(("gateways",), "name at least one, as a section [[gateways]] with name and address")
        for number, gateway in enumerate(self.gateways):
            if not gateway.name.strip() or not gateway.name.isprintable():
                why = f"{gateway.name!r} is no name that a log could show: give the gateway one, as dtn1"
                yield Problem((f"gateways[{number}].name",), why)
        names = [gateway.name for gateway in self.gateways]
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield Problem(("gateways",), f"{names.count(name)} of them have the name {name!r}: give each its own")
        yield from self._addresses_problems()
        if not self.audit:
            yield Problem(("audit",), "is empty; allowed are 'auto', 'journal', 'none', and the name of a file")
        for key in ("expires", "longest_expires", "hello_timeout"):
            yield from unless(parse_life, getattr(self, key), key)
        if self.release_broken_after:
            yield from unless(parse_seconds, self.release_broken_after, "release_broken_after")
        if self.expires != _USUAL_LIFE and _exceeds(parse_seconds, self.expires, self.longest_expires):
            why = f"{self.expires!r} is longer than longest_expires, {self.longest_expires!r}"
            yield Problem(("expires", "longest_expires"), why)
        for key in ("state", "audit", "policy"):
            yield from unless(expanded, getattr(self, key), key)
        yield from _files_problems(self)
        if self.controller is not None:
            yield from below("controller", self.controller.problems())
        yield from _trust_problems(self, "certificate", "key", "authorities", "controller")

    def _addresses_problems(self) -> Iterator[Problem]:
        taken = {_place(self.listen): "listen"}
        for number, gateway in enumerate(self.gateways):
            key = f"gateways[{number}].address"
            yield from unless(Address.parse, gateway.address, key)
            yield from _plain_problems(self.insecure, gateway.address, key)
            place = _place(gateway.address)
            other = taken.setdefault(place, key) if place is not None else key
            if other != key:
                why = f"{gateway.address!r} is the address of {other} too: each gateway is a place of its own"
                yield Problem((key, other), why)


class Leg(_Section, frozen=True, kw_only=True):
    """One side of a gateway: the address that it binds, the one that it tells others, and what keeps its connections
    from congesting the network ("auto": what suits and can be had; empty: what the system does)."""

    bind: str = "127.0.0.1"
    advertise: str = ""
    congestion: str = "auto"

    @property
    def told(self) -> str:
        """The host that others are told."""
        return self.advertise or self.bind

    def problems(self) -> Iterator[Problem]:
        """What is wrong with the values."""
        try:
            bound = ip_address(self.bind)
        except ValueError:
            yield Problem(("bind",), f"{self.bind!r} is no numeric address of this machine")
            return
        if bound.is_unspecified and not self.advertise:
            why = f"needed when bind is {self.bind}: which address do others reach?"
            yield Problem(("advertise", "bind"), why)
            return
        if bound.is_multicast:
            yield Problem(("bind",), f"{self.bind!r} is an address of many machines: write one of this machine")
        yield from unless(Address.parse, str(Address(self.told, 1)), "advertise")
        told = numeric_address(self.told)
        if told is None or not self.advertise:
            return
        if told.is_unspecified or told.is_multicast:
            yield Problem(
                ("advertise",), f"{self.advertise!r} is no address of one machine: which one do others reach?"
            )
        elif told.version != bound.version:
            why = (
                f"{self.advertise!r} is an IPv{told.version} address, and bind, {self.bind!r}, takes connections over "
                f"IPv{bound.version} only: write two of one kind"
            )
            yield Problem(("advertise", "bind"), why)
        elif told.is_loopback and not bound.is_loopback and not bound.is_unspecified:
            why = f"{self.advertise!r} is on loopback, and bind, {self.bind!r}, is not: nobody reaches it by that"
            yield Problem(("advertise", "bind"), why)

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


class S2DSConfig(_Section, frozen=True, kw_only=True):
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
    lan: Leg = field(default_factory=Leg)
    wan: Leg = field(default_factory=Leg)
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

    def problems(self) -> Iterator[Problem]:
        """What is wrong with the values."""
        yield from unless(Address.parse, self.listen, "listen")
        yield from _plain_problems(self.insecure, self.listen, "listen")
        yield from below("limits", self.limits.problems())
        yield from unless(parse_elements, self.elements, "elements")
        yield from unless(parse_ports, self.ports, "ports")
        if self.chosen_ports:
            yield from unless(parse_chosen_ports, self.chosen_ports, "chosen_ports")
        yield from unless(parse_rate, self.capacity, "capacity")
        yield from unless(parse_seconds, self.wan_timeout, "wan_timeout")
        if self.wan_cipher not in WAN_CIPHERS:
            allowed = " or ".join(WAN_CIPHERS)
            yield Problem(("wan_cipher",), f"{self.wan_cipher!r} is no cipher that can be preferred: write {allowed}")
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
                    yield Problem((key, f"{side}.bind", f"{side}.advertise"), why)
        yield from self._ports_problems()
        if self.controller:
            yield from unless(_controller_name, self.controller, "controller")
        yield from _files_problems(self)
        yield from _trust_problems(self, "certificate", "key", "authorities", "controller")

    def _ports_problems(self) -> Iterator[Problem]:
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
                yield Problem((key, "listen", "lan.bind", "wan.bind"), why)


class FacilityAuthorities(_Section, frozen=True, kw_only=True):
    """A facility by the address of its S2CS, and the authorities that alone vouch for it."""

    address: str
    authorities: list[str]
    crl: list[str] = field(default_factory=list)

    def problems(self) -> Iterator[Problem]:
        """What is wrong with the values."""
        yield from unless(Address.parse, self.address, "address")
        for key in ("authorities", "crl"):
            for text in getattr(self, key):
                yield from unless(expanded, text, key)
        if not self.authorities:
            yield Problem(("authorities",), "names none, and then nothing vouches for that facility: name one, or more")


class S2UCConfig(_Section, frozen=True, kw_only=True):
    """The settings of a user: her certificate and key, and the authorities of the facilities."""

    certificate: str = ""
    key: str = ""
    authorities: list[str] = field(default_factory=list)
    crl: list[str] = field(default_factory=list)
    insecure: bool = False
    facilities: list[FacilityAuthorities] = field(default_factory=list)

    def problems(self) -> Iterator[Problem]:
        """What is wrong with the values."""
        yield from _files_problems(self)
        for number, one in enumerate(self.facilities):
            yield from below(f"facilities[{number}]", one.problems())
        addresses = [_place(one.address) or one.address for one in self.facilities]
        if len(set(addresses)) != len(addresses):
            yield Problem(
                ("facilities",), "two of them have one address: name all authorities of a facility in one place"
            )
        if self.insecure:
            yield from _superfluous(self, "certificate", "key", "authorities", "facilities")


def beside(config_file: Path, name: str) -> Path:
    """The path that a setting names: relative ones start at the folder of the configuration file.

    :raises ValueError: if it has a home folder that there is not; the settings of a file that `load` has read have
        been checked.
    """
    return config_file.resolve().parent / expanded(name)


def user_folder(variable: str, default: str) -> Path:
    """The folder of a user's files that an environment variable names, as ``XDG_STATE_HOME``, or else the default.

    :param default: with ``~``.
    :raises ConfigProblem: naming the variable, if neither is a folder that can be found again.
    """
    named = os.environ.get(variable)
    if named and os.path.isabs(named):
        return Path(named)
    if named:
        raise ConfigProblem(f"{variable}: {named!r} is no absolute path: write a whole one, or unset the variable")
    try:
        return expanded(default)
    except ValueError as wrong:
        raise ConfigProblem(f"{variable}: is not set, and its default {wrong}, into {variable}") from None


class _WithCertificates(Protocol):
    """A section that names certificates."""

    @property
    def certificate(self) -> str: ...

    @property
    def key(self) -> str: ...

    @property
    def authorities(self) -> list[str]: ...

    @property
    def crl(self) -> list[str]: ...


def trust_of(section: _WithCertificates, config_file: Path) -> Trust:
    """The files that a section names."""
    return Trust(
        beside(config_file, section.certificate),
        beside(config_file, section.key),
        tuple(beside(config_file, name) for name in section.authorities),
        tuple(beside(config_file, name) for name in section.crl),
    )


def networks(texts: list[str]) -> tuple[Network, ...]:
    """The networks of a setting that has been checked."""
    return tuple(parse_network(text) for text in texts)


def numeric_address(host: str) -> IPAddress | None:
    """A host as an address, or None if it is a name."""
    return Address(host, 1).numeric


def _place(text: str) -> Address | None:
    """An address in one form, whichever way it is written; None if it is none."""
    try:
        return one_form(Address.parse(text))
    except ValueError:
        return None


def one_form(address: Address) -> Address:
    """Return the canonical form of an address, which is the same however the address is written."""
    host, port = address
    host = host.rstrip(".").lower()
    numeric = numeric_address("127.0.0.1" if host == "localhost" else host)
    mapped = numeric.ipv4_mapped if isinstance(numeric, IPv6Address) else None
    return Address(str(mapped or numeric or host), port)


def _exceeds(parse: Callable[[str], float], text: str, most: str) -> bool:
    try:
        return parse(text) > parse(most)
    except ValueError:  # which is a problem of its own
        return False


def _controller_name(text: str) -> None:
    """:raises ValueError: if no controller's certificate can have this name."""
    if not _NAME.fullmatch(text):
        raise ValueError(f"{text!r} is no name in a certificate: write the whole of it, as scistream:controller:{text}")
    if text.startswith("scistream:user:"):
        raise ValueError(f"{text!r} is a user, and a gateway obeys an S2CS: write scistream:controller:NAME")


def _files_problems(section: _WithCertificates) -> Iterator[Problem]:
    for key in ("certificate", "key"):
        yield from unless(expanded, getattr(section, key), key)
    for key in ("authorities", "crl"):
        for text in getattr(section, key):
            yield from unless(expanded, text, key)


def _plain_problems(insecure: bool, text: str, key: str) -> Iterator[Problem]:
    """Plain TCP does not leave this machine."""
    place = _place(text) if insecure else None
    if place is not None and not place.is_on_loopback:
        why = f"{text} is not on loopback, and plain TCP goes no further: use certificates (`scistream pki`)"
        yield Problem((key, "insecure"), why)


def _trust_problems(config: S2CSConfig | S2DSConfig, *keys: str) -> Iterator[Problem]:
    yield from _superfluous(config, *keys) if config.insecure else _missing(config, *keys)


def _superfluous(config: Struct, *keys: str) -> Iterator[Problem]:
    there = [key for key in keys if getattr(config, key)]
    if there:
        why = f"true turns all certificates off, and there are settings for them: {', '.join(there)}; take out either"
        yield Problem(("insecure", *there), why)


def _missing(config: Struct, *keys: str) -> Iterator[Problem]:
    for key in keys:
        if not getattr(config, key):
            yield Problem(
                (key, "insecure"),
                "is needed (make certificates with `scistream pki`); only on loopback, for a trial, "
                "`insecure = true` does without",
            )

"""Configuration files (TOML) and the values that people write in them: rates, times, sizes.

A mistake is a `ConfigProblem` that names the file, the key and what is allowed there. Relative
paths in a file are relative to the file's own folder.
"""

from __future__ import annotations

import os
import re
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Protocol, TypeVar

import msgspec
from msgspec import Meta, Struct, field

from scistream.security.guard import Bounds
from scistream.security.material import Trust
from scistream.wire.address import Address, Network, parse_network
from scistream.wire.messages import MAX_LIFE, MAX_RATE

MAX_ELEMENTS = 256
LOOPBACK = ["127.0.0.0/8", "::1/128"]


class ConfigProblem(Exception):
    """A configuration file or a setting that cannot be used; the message is a sentence for a person."""


_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:bit(?:/s)?|bps)?\Z", re.IGNORECASE)
_TIME = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|min|h|d)?\Z", re.IGNORECASE)
_SIZE = re.compile(r"(\d{1,18}(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?\Z", re.IGNORECASE)
_PORTS = re.compile(r"\s*(\d{1,5})\s*-\s*(\d{1,5})\s*\Z")
_MBIT = {"k": 1e-3, "m": 1.0, "g": 1e3, "t": 1e6}
_SECONDS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


def parse_rate(text: str) -> float:
    """Read ``10Gbit``, ``500Mbit`` or a plain number of Mbit/s; gives Mbit/s.

    :raises ValueError: with a sentence that names the text and what is allowed.
    """
    match = _RATE.match(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no rate: write it like 10Gbit, 500Mbit, or a plain number of Mbit/s")
    rate = float(match[1]) * _MBIT[match[2].lower() or "m"]
    if not 0 < rate <= MAX_RATE:
        raise ValueError(f"{text!r} is out of range: a rate is above 0 and at most {MAX_RATE / 1e6:g} Tbit/s")
    return rate


def parse_seconds(text: str) -> float:
    """Read ``90s``, ``15m``, ``8h``, ``2d`` or a plain number of seconds.

    :raises ValueError: with a sentence that names the text and what is allowed.
    """
    match = _TIME.match(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no time: write it like 30s, 15m, 8h or 2d")
    seconds = float(match[1]) * _SECONDS[(match[2] or "s").lower()]
    if not 0 < seconds <= MAX_LIFE:
        raise ValueError(f"{text!r} is out of range: a time is above 0 and at most {MAX_LIFE / 86400:g}d")
    return seconds


def parse_size(text: str) -> int:
    """Read a number of bytes, with K, M, G or T for powers of 1024.

    :raises ValueError: with a sentence that names the text and what is allowed.
    """
    match = _SIZE.match(text.strip())
    if match is None or (size := int(float(match[1]) * _BYTES[match[2].lower()])) < 1:
        raise ValueError(f"{text!r} is no size: write it like 4096, 64K, 512M or 2G")
    return size


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


def parse_elements(value: int | str) -> int:
    """How many element processes: ``auto`` is one a processor that this process may use.

    :raises ValueError: with a sentence that names the value and what is allowed.
    """
    if value == "auto":
        return len(os.sched_getaffinity(0))
    if isinstance(value, str) or not 0 <= value <= MAX_ELEMENTS:
        raise ValueError(f'{value!r}: write "auto", or a number from 0 (none: one process does all) to {MAX_ELEMENTS}')
    return value


class _Section(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all sections share."""


_Count = Annotated[int, Meta(ge=1)]


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

    def check(self) -> None:
        """:raises ValueError: naming the key."""
        _parsed("limits.longest_refusal", parse_seconds, self.longest_refusal)

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


class GatewayLimits(Limits, frozen=True, kw_only=True):
    """The same for a gateway, and what the ports of its streams take."""

    half_open: _Count = 64
    controller_networks: list[str] = field(default_factory=lambda: list(LOOPBACK))

    def check(self) -> None:
        """:raises ValueError: naming the key."""
        super().check()
        for text in self.controller_networks:
            _parsed("limits.controller_networks", parse_network, text)


class Controller(_Section, frozen=True, kw_only=True):
    """With what an S2CS shows itself to its gateways, and whom it takes for one."""

    certificate: str
    key: str
    authorities: list[str]
    crl: list[str] = field(default_factory=list)


class Gateway(_Section, frozen=True, kw_only=True):
    """One S2DS of the pool: a name for logs, and where it listens for its controller."""

    name: str
    address: str


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
    expires: str = "24h"
    longest_expires: str = "7d"
    hello_timeout: str = "1h"
    policy: str = ""
    limits: Limits = field(default_factory=Limits)

    def check(self) -> None:
        """:raises ValueError: naming the key."""
        _address("listen", self.listen)
        self.limits.check()
        if not self.gateways:
            raise ValueError("gateways: name at least one, as a section [[gateways]] with name and address")
        names = [gateway.name for gateway in self.gateways]
        if len(set(names)) != len(names):
            raise ValueError(f"gateways: two of them have one name, among {', '.join(names)}")
        for gateway in self.gateways:
            _address(f"gateways: {gateway.name}: address", gateway.address)
        if not self.audit:
            raise ValueError("audit: is empty; allowed are 'auto', 'journal', 'none', and the name of a file")
        for key in ("expires", "longest_expires", "hello_timeout"):
            _parsed(key, parse_seconds, getattr(self, key))
        if not self.insecure:
            _needed(self, "certificate", "key", "authorities", "controller")


class Leg(_Section, frozen=True, kw_only=True):
    """One side of a gateway: the address that it binds, the one that it tells others, and what keeps its connections
    from congesting the network (empty: what the system does)."""

    bind: str = "127.0.0.1"
    advertise: str = ""
    congestion: str = ""

    @property
    def told(self) -> str:
        """The host that others are told."""
        return self.advertise or self.bind

    def check(self, name: str) -> None:
        """:raises ValueError: naming the key."""
        try:
            bound = ip_address(self.bind)
        except ValueError:
            raise ValueError(f"{name}.bind: {self.bind!r} is no numeric address of this machine") from None
        if bound.is_unspecified and not self.advertise:
            raise ValueError(f"{name}.advertise: needed when bind is {self.bind}: which address do others reach?")
        _address(f"{name}.advertise", str(Address(self.told, 1)))


class LanLeg(Leg, frozen=True, kw_only=True):
    """The side of the applications. Pacing, as bbr does it, costs a timer for each burst and gains nothing on a LAN."""

    congestion: str = "cubic"


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
    capacity: str = "10Gbit"
    elements: int | str = "auto"
    lan: LanLeg = field(default_factory=LanLeg)
    wan: Leg = field(default_factory=Leg)
    app_networks: list[str] = field(default_factory=lambda: list(LOOPBACK))
    wan_networks: list[str] = field(default_factory=lambda: list(LOOPBACK))
    wan_timeout: str = "60s"
    limits: GatewayLimits = field(default_factory=GatewayLimits)

    @property
    def element_count(self) -> int:
        """How many element processes there are; 0: none, the initiator's own process carries the data."""
        return parse_elements(self.elements)

    def check(self) -> None:
        """:raises ValueError: naming the key."""
        _address("listen", self.listen)
        self.limits.check()
        _parsed("elements", parse_elements, self.elements)
        _parsed("ports", parse_ports, self.ports)
        _parsed("capacity", parse_rate, self.capacity)
        _parsed("wan_timeout", parse_seconds, self.wan_timeout)
        self.lan.check("lan")
        self.wan.check("wan")
        for key in ("app_networks", "wan_networks"):
            for text in getattr(self, key):
                _parsed(key, parse_network, text)
        if not self.insecure:
            _needed(self, "certificate", "key", "authorities", "controller")


class S2UCConfig(_Section, frozen=True, kw_only=True):
    """The settings of a user: her certificate and key, and the authorities of the facilities."""

    certificate: str = ""
    key: str = ""
    authorities: list[str] = field(default_factory=list)
    crl: list[str] = field(default_factory=list)
    insecure: bool = False

    def check(self) -> None:
        """All that can be checked is in the types."""


class Checked(Protocol):
    """A file's settings, which can look at themselves."""

    def check(self) -> None:
        """:raises ValueError: naming the key."""


AnyConfig = TypeVar("AnyConfig", bound=Checked)


def load(path: Path, kind: type[AnyConfig]) -> AnyConfig:
    """Read a configuration file.

    :raises ConfigProblem: if it cannot be read, is not TOML, or has a wrong, unknown or missing key.
    """
    try:
        config = msgspec.toml.decode(path.read_bytes(), type=kind)
        config.check()
    except OSError as problem:
        raise ConfigProblem(f"{path}: cannot be read: {problem.strerror}") from None
    except msgspec.ValidationError as wrong:
        raise ConfigProblem(f"{path}: {_explain(wrong, kind)}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as wrong:
        raise ConfigProblem(f"{path}: is not TOML: {wrong}") from None
    except ValueError as wrong:
        raise ConfigProblem(f"{path}: {wrong}") from None
    return config


def beside(config_file: Path, name: str) -> Path:
    """The path that a setting names: relative ones start at the folder of the configuration file."""
    return config_file.resolve().parent / Path(name).expanduser()


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


def _explain(wrong: msgspec.ValidationError, kind: Any) -> str:
    reason, found_path, path = str(wrong).rpartition(" - at ")
    if not found_path:
        reason, path = path, ""
    path = path.strip("`").removeprefix("$").removeprefix(".")
    section: Any = kind
    for part in path.split("."):
        found = next((f.type for f in msgspec.structs.fields(section) if f.name == part.partition("[")[0]), None)
        options = [t for t in (found, *getattr(found, "__args__", ())) if isinstance(t, type) and issubclass(t, Struct)]
        section = options[0] if options else section
    unknown = re.search(r"unknown field `(.*)`", reason)
    if unknown is not None:
        key = f"{path}.{unknown[1]}" if path else unknown[1]
        return f"{key}: no such key; allowed are {', '.join(sorted(section.__struct_fields__))}"
    missing = re.search(r"missing required field `(.*)`", reason)
    if missing is not None:
        key = f"{path}.{missing[1]}" if path else missing[1]
        return f"{key}: is missing and has no default"
    return f"{path}: {reason}"


def _address(key: str, text: str) -> None:
    _parsed(key, Address.parse, text)


def _parsed(key: str, parse: Any, text: str | int) -> None:
    try:
        parse(text)
    except ValueError as wrong:
        raise ValueError(f"{key}: {wrong}") from None


def _needed(config: Struct, *keys: str) -> None:
    for key in keys:
        if not getattr(config, key):
            raise ValueError(
                f"{key}: is needed (make certificates with `scistream pki`); "
                "only on loopback, for a trial, `insecure = true` does without"
            )

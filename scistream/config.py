"""The settings of each party, and the values that people write in them: rates, times, sizes.

`scistream.toml_file` reads them from a file; what is wrong with a value is told by `problems` of its section. Relative
paths in a file are relative to the file's own folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Protocol

from msgspec import Meta, Struct, field

from scistream.security.guard import Bounds
from scistream.security.material import Trust
from scistream.toml_file import ConfigProblem as ConfigProblem
from scistream.toml_file import Problem, below, expanded, unless
from scistream.toml_file import load as load
from scistream.wire.address import Address, Network, parse_network
from scistream.wire.messages import MAX_LIFE, MAX_RATE

MAX_ELEMENTS = 256
LOOPBACK = ["127.0.0.0/8", "::1/128"]


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

    def problems(self) -> Iterator[Problem]:
        """What is wrong with the values."""
        yield from unless(parse_seconds, self.longest_refusal, "longest_refusal")

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

    def problems(self) -> Iterator[Problem]:
        """What is wrong with the values."""
        yield from super().problems()
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

    def problems(self) -> Iterator[Problem]:
        """What is wrong with the values."""
        yield from unless(Address.parse, self.listen, "listen")
        yield from below("limits", self.limits.problems())
        if not self.gateways:
            yield Problem(("gateways",), "name at least one, as a section [[gateways]] with name and address")
        names = [gateway.name for gateway in self.gateways]
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield Problem(("gateways",), f"{names.count(name)} of them have the name {name!r}: give each its own")
        for number, gateway in enumerate(self.gateways):
            yield from unless(Address.parse, gateway.address, f"gateways[{number}].address")
        if not self.audit:
            yield Problem(("audit",), "is empty; allowed are 'auto', 'journal', 'none', and the name of a file")
        for key in ("expires", "longest_expires", "hello_timeout"):
            yield from unless(parse_seconds, getattr(self, key), key)
        for key in ("state", "audit", "policy"):
            yield from unless(expanded, getattr(self, key), key)
        yield from _files_problems(self)
        if self.controller is not None:
            yield from below("controller", self.controller.problems())
        if not self.insecure:
            yield from _missing(self, "certificate", "key", "authorities", "controller")


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
        yield from unless(Address.parse, str(Address(self.told, 1)), "advertise")


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
    lan: Leg = field(default_factory=Leg)
    wan: Leg = field(default_factory=Leg)
    app_networks: list[str] = field(default_factory=lambda: list(LOOPBACK))
    wan_networks: list[str] = field(default_factory=lambda: list(LOOPBACK))
    wan_timeout: str = "60s"
    limits: GatewayLimits = field(default_factory=GatewayLimits)

    @property
    def element_count(self) -> int:
        """How many element processes there are; 0: none, the initiator's own process carries the data."""
        return parse_elements(self.elements)

    def problems(self) -> Iterator[Problem]:
        """What is wrong with the values."""
        yield from unless(Address.parse, self.listen, "listen")
        yield from below("limits", self.limits.problems())
        yield from unless(parse_elements, self.elements, "elements")
        yield from unless(parse_ports, self.ports, "ports")
        yield from unless(parse_rate, self.capacity, "capacity")
        yield from unless(parse_seconds, self.wan_timeout, "wan_timeout")
        yield from below("lan", self.lan.problems())
        yield from below("wan", self.wan.problems())
        for key in ("app_networks", "wan_networks"):
            for text in getattr(self, key):
                yield from unless(parse_network, text, key)
        yield from _files_problems(self)
        if not self.insecure:
            yield from _missing(self, "certificate", "key", "authorities", "controller")


class S2UCConfig(_Section, frozen=True, kw_only=True):
    """The settings of a user: her certificate and key, and the authorities of the facilities."""

    certificate: str = ""
    key: str = ""
    authorities: list[str] = field(default_factory=list)
    crl: list[str] = field(default_factory=list)
    insecure: bool = False

    def problems(self) -> Iterator[Problem]:
        """What is wrong with the values."""
        yield from _files_problems(self)


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


def _files_problems(section: _WithCertificates) -> Iterator[Problem]:
    for key in ("certificate", "key"):
        yield from unless(expanded, getattr(section, key), key)
    for key in ("authorities", "crl"):
        for text in getattr(section, key):
            yield from unless(expanded, text, key)


def _missing(config: Struct, *keys: str) -> Iterator[Problem]:
    for key in keys:
        if not getattr(config, key):
            yield Problem(
                (key, "insecure"),
                "is needed (make certificates with `scistream pki`); only on loopback, for a trial, "
                "`insecure = true` does without",
            )

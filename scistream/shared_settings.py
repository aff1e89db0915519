"""Settings that several parties have in common, and their checks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from ipaddress import IPv6Address
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

from msgspec import Meta, Struct, field

from scistream.config import SettingProblem, expanded, unless
from scistream.protocol.address import Address, IPAddress, Network, parse_network
from scistream.protocol.messages import MAX_RANGES
from scistream.text_kinds import FileText, TimeText
from scistream.tls.files import CertificateFiles
from scistream.units import parse_seconds

if TYPE_CHECKING:
    from scistream.links.admission import Bounds

FIRST_USER_PORT = 1024
"""The lowest port that `chosen_ports` may have."""
LOOPBACK = ["127.0.0.0/8", "::1/128"]


_PORTS = re.compile(r"\s*(\d{1,5})\s*-\s*(\d{1,5})\s*\Z")
IDENTITY_NAME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:\S+|[^\s@]+@[^\s@]+")
"""A URI or an e-mail address."""


def parse_ports(text: str) -> tuple[int, int]:
    """Parse a range of ports, ``5100-5200``, both ends included.

    :raises ValueError: with a sentence that names the text and what is allowed.
    """
    match = _PORTS.match(text)
    if match is None:
        raise ValueError(f"{text!r} is not a range of ports: write it like 5100-5200")
    low, high = int(match[1]), int(match[2])
    if not 1 <= low <= high <= 65535:
        raise ValueError(f"{text!r} is not a range of ports: use two ports from 1 to 65535, the lower one first")
    return low, high


def parse_port_ranges(text: str) -> list[tuple[int, int]]:
    """Parse ports and ranges of ports, ``5075, 5100-5200``.

    :raises ValueError: with a sentence that names the text and what is allowed.
    """
    ranges = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        try:
            ranges.append(parse_ports(f"{first}-{last if dash else first}"))
        except ValueError:
            raise ValueError(
                f"{text!r} is not a list of ports: write ports from 1 to 65535 and ranges with the lower port first, "
                "like 5075, 5100-5200"
            ) from None
    return ranges


def parse_chosen_ports(text: str) -> list[tuple[int, int]]:
    """Parse the ranges of ports that a stream may ask for by number; ``none`` means no port at all.

    :raises ValueError: with a sentence that names the text and what is allowed.
    """
    if text.strip() == "none":
        return []
    ranges = parse_port_ranges(text)
    if len(ranges) > MAX_RANGES:
        raise ValueError(f"{text!r} has {len(ranges)} ranges of ports: at most {MAX_RANGES} are allowed")
    low = next((first for first, _ in ranges if first < FIRST_USER_PORT), None)
    if low is not None:
        raise ValueError(
            f"{text!r} has port {low}: ports below {FIRST_USER_PORT} are reserved for system services, so streams may "
            "not choose them"
        )
    return ranges


class SettingsSection(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base class of all sections."""


Count = Annotated[int, Meta(ge=1)]


_PARTS_OF_LIMITS = (
    ("links_per_address", "links"),
    ("links_per_identity", "links"),
    ("unproven", "links"),
    ("unproven_per_address", "unproven"),
    ("unproven_per_address", "links_per_address"),
)
"""Pairs of limits of which the first must not exceed the second, unless the first one is a default."""


class Limits(SettingsSection, frozen=True, kw_only=True):
    """The limits of a listener for control links; see `scistream.links.admission.Bounds`."""

    links: Count = 4096
    links_per_address: Count = 512
    unproven: Count = 512
    unproven_per_address: Count = 32
    links_per_identity: Count = 64
    commands_per_second: Count = 200
    failures: Count = 20
    longest_refusal: TimeText = "30s"

    def problems(self) -> Iterator[SettingProblem]:
        """Yield the problems with the values."""
        yield from unless(parse_seconds, self.longest_refusal, "longest_refusal")
        for part, whole in _PARTS_OF_LIMITS:
            if getattr(self, part) > getattr(self, whole) and getattr(self, part) != getattr(Limits(), part):
                why = f"{getattr(self, part)} is more than {whole}, {getattr(self, whole)}, which includes it"
                yield SettingProblem((part, whole), why)

    @property
    def bounds(self) -> Bounds:
        """The limits, as an admission controller takes them."""
        from scistream.links.admission import Bounds  # of Twisted, which a user's command may not need

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


class ControllerSettings(SettingsSection, frozen=True, kw_only=True):
    """The certificate that an S2CS shows to its gateways, and the authorities of theirs."""

    certificate: FileText
    key: FileText
    authorities: list[FileText]
    crl: list[FileText] = field(default_factory=list)

    def problems(self) -> Iterator[SettingProblem]:
        """Yield the problems with the values."""
        yield from files_problems(self)
        yield from missing(self, "certificate", "key", "authorities")


def resolve_path(config_file: Path, name: str) -> Path:
    """Return the path that a setting names; relative paths start at the folder of the configuration file.

    :raises ValueError: if it has a home folder that does not exist; never for settings that `load` has checked.
    """
    return config_file.resolve().parent / expanded(name)


class _WithCertificates(Protocol):
    """A section that names certificates."""

    @property
    def certificate(self) -> str:
        """The file of the certificate chain."""

    @property
    def key(self) -> str:
        """The file of its private key."""

    @property
    def authorities(self) -> list[str]:
        """The files of trusted authorities."""

    @property
    def crl(self) -> list[str]:
        """The files of CRLs."""


def trust_of(section: _WithCertificates, config_file: Path) -> CertificateFiles:
    """Return the paths of the files that a section names."""
    return CertificateFiles(
        resolve_path(config_file, section.certificate),
        resolve_path(config_file, section.key),
        tuple(resolve_path(config_file, name) for name in section.authorities),
        tuple(resolve_path(config_file, name) for name in section.crl),
    )


def networks(texts: list[str]) -> tuple[Network, ...]:
    """Parse the networks of a setting that has been checked."""
    return tuple(parse_network(text) for text in texts)


def numeric_address(host: str) -> IPAddress | None:
    """Return a host as an IP address, or None if it is a name."""
    return Address(host, 1).numeric


def address_or_none(text: str) -> Address | None:
    """Parse an address and return its canonical form, or None if the text is not an address."""
    try:
        return canonical(Address.parse(text))
    except ValueError:
        return None


def canonical(address: Address) -> Address:
    """Return the canonical form of an address, which is the same however the address is written."""
    host, port = address
    host = host.rstrip(".").lower()
    numeric = numeric_address("127.0.0.1" if host == "localhost" else host)
    mapped = numeric.ipv4_mapped if isinstance(numeric, IPv6Address) else None
    return Address(str(mapped or numeric or host), port)


def exceeds(parse: Callable[[str], float], text: str, most: str) -> bool:
    """Return True if one setting is more than another; False if either cannot be parsed."""
    try:
        return parse(text) > parse(most)
    except ValueError:  # reported as a separate problem
        return False


def _controller_name(text: str) -> None:
    """Check the name of a controller.

    :raises ValueError: if the certificate of a controller cannot have this name.
    """
    if not IDENTITY_NAME.fullmatch(text):
        raise ValueError(f"{text!r} is not a whole name of a certificate: write it like scistream:controller:{text}")
    if text.startswith("scistream:user:"):
        raise ValueError(f"{text!r} is a user, but the controller is an S2CS: write scistream:controller:NAME")


def files_problems(section: _WithCertificates) -> Iterator[SettingProblem]:
    """Yield the file names of a section that cannot be expanded."""
    for key in ("certificate", "key"):
        yield from unless(expanded, getattr(section, key), key)
    for key in ("authorities", "crl"):
        for text in getattr(section, key):
            yield from unless(expanded, text, key)


def plain_problems(insecure: bool, text: str, key: str) -> Iterator[SettingProblem]:
    """Yield a problem if plain TCP would leave this machine."""
    address = address_or_none(text) if insecure else None
    if address is not None and not address.is_on_loopback:
        why = f"{text} is not on loopback, and plain TCP is allowed there only: use certificates (`scistream pki`)"
        yield SettingProblem((key, "insecure"), why)


def trust_problems(config: Any, *keys: str) -> Iterator[SettingProblem]:
    """Yield a problem if settings for certificates contradict `insecure`."""
    yield from superfluous(config, *keys) if config.insecure else missing(config, *keys)


def superfluous(config: Struct, *keys: str) -> Iterator[SettingProblem]:
    """Yield a problem if settings are present that `insecure` forbids."""
    present = [key for key in keys if getattr(config, key)]
    if present:
        why = (
            f"true turns all certificates off, but these settings need them: {', '.join(present)}; remove one or other"
        )
        yield SettingProblem(("insecure", *present), why)


def missing(config: Struct, *keys: str) -> Iterator[SettingProblem]:
    """Yield a problem for each setting that is missing and required without `insecure`."""
    for key in keys:
        if not getattr(config, key):
            yield SettingProblem(
                (key, "insecure"),
                "is required (create certificates with `scistream pki`); on loopback, for a trial, `insecure = true` "
                "works without",
            )

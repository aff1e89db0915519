"""Addresses as the protocol writes them, ``host:port`` and ``[v6]:port``: protocol section 4.2."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import NamedTuple

IPAddress = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_SCOPE = re.compile(r"[A-Za-z0-9_.-]{1,15}\Z")
_HOST_LABEL = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)\Z")


class Address(NamedTuple):
    """One end of a TCP connection: a host (a name, or a numeric address without brackets) and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> Address:
        """Parse ``host:port`` or ``[v6]:port``; the port is 1 to 65535.

        :raises ValueError: with a sentence that names the text and what is wrong with it.
        """
        host, colon, port = text.rpartition(":")
        if not colon:
            raise ValueError(f"{text!r} has no port: write HOST:PORT or [IPV6]:PORT")
        if not (port.isascii() and port.isdigit() and len(port) <= 5 and 1 <= int(port) <= 65535):
            raise ValueError(f"{text!r} has the invalid port {port!r}: a port is a number from 1 to 65535")
        if host.startswith("[") and host.endswith("]"):
            return cls(_ipv6(host[1:-1], text), int(port))
        if ":" in host:
            raise ValueError(f"{text!r} has an IPv6 address without brackets: write [IPV6]:PORT")
        return cls(_host(host, text), int(port))

    @property
    def numeric(self) -> IPAddress | None:
        """The host as an IP address, or None if it is a name."""
        return _numeric(self.host)

    @property
    def is_on_loopback(self) -> bool:
        """True if the address is a loopback address, so that traffic to it stays on this machine."""
        return self.numeric.is_loopback if self.numeric is not None else self.host == "localhost"


@lru_cache(1024)  # called for each connection, with few different hosts
def _numeric(host: str) -> IPAddress | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


@lru_cache(1024)
def peer_address(host: str) -> IPAddress:
    """Return the address of a peer as the system gives it, which may have a zone."""
    return ip_address(host.partition("%")[0])


def _ipv6(host: str, text: str) -> str:
    _, percent, scope = host.partition("%")
    if percent and not _SCOPE.match(scope):
        raise ValueError(f"{text!r} has the zone {scope!r}, which is not an interface name")
    try:
        return str(IPv6Address(host))
    except ValueError:
        raise ValueError(f"{text!r} does not have an IPv6 address between its brackets") from None


def _host(host: str, text: str) -> str:
    labels = host.rstrip(".").split(".")
    if len(host) > 253 or not all(_HOST_LABEL.match(label) for label in labels):
        raise ValueError(f"{text!r} has the host {host!r}, which is neither a host name nor an IP address")
    if labels[-1].isdigit():
        try:
            return str(IPv4Address(host))
        except ValueError:
            raise ValueError(f"{text!r} has the host {host!r}, which is not a valid IPv4 address") from None
    return host


@lru_cache(1024)  # called for each connection, with few different networks
def parse_network(text: str) -> Network:
    """Parse a network in CIDR notation; host bits may be set.

    :raises ValueError: with a sentence that names the text.
    """
    try:
        return ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f"{text!r} is not a network: write it like 192.0.2.0/24 or 2001:db8::/32") from None


def inside(address: IPAddress, networks: tuple[Network, ...]) -> bool:
    """Return True if `address` is in one of `networks`; an IPv4 address mapped into IPv6 counts as IPv4."""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    plain = mapped or address
    return any(plain.version == network.version and plain in network for network in networks)


@lru_cache(1024)
def address_group(host: str) -> str:
    """Return the key under which an address is counted: an IPv4 address (also if mapped into IPv6) or an IPv6 /64."""
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:  # not an IP transport
        return host
    if not isinstance(address, IPv6Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(IPv6Network((address, 64), strict=False))


def has_every_address(networks: Iterable[str]) -> bool:
    """Return True if networks have every address of both IPv4 and IPv6."""
    return {"0.0.0.0/0", "::/0"} <= {str(parse_network(text)) for text in networks}

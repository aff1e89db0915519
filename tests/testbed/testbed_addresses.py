"""The addresses of a testbed's hosts, the same in every testbed."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass


@dataclass(frozen=True)
class Addresses:
    """Who has which address, in one version of IP. Networks are written ``address/length``."""

    producer_lan: str
    plan: str
    pgw_lan: str
    consumer_lan: str
    clan: str
    cgw_lan: str
    wan: str
    pgw: str
    cgw: str
    user: str

    def at(self, network: str, address: str) -> str:
        """Return an address with its prefix length, as interfaces need it."""
        return f"{address}/{ipaddress.ip_network(network).prefixlen}"

    def only(self, address: str) -> str:
        """Return the network that contains only this address."""
        return str(ipaddress.ip_network(address))


V4 = Addresses(  # from the range for benchmarks, which nobody routes
    producer_lan="198.18.1.0/24",
    plan="198.18.1.2",
    pgw_lan="198.18.1.1",
    consumer_lan="198.18.2.0/24",
    clan="198.18.2.2",
    cgw_lan="198.18.2.1",
    wan="198.19.0.0/24",
    pgw="198.19.0.10",
    cgw="198.19.0.20",
    user="198.19.0.30",
)

V6 = Addresses(  # unique local ones
    producer_lan="fd73:c150:0:1::/64",
    plan="fd73:c150:0:1::2",
    pgw_lan="fd73:c150:0:1::1",
    consumer_lan="fd73:c150:0:2::/64",
    clan="fd73:c150:0:2::2",
    cgw_lan="fd73:c150:0:2::1",
    wan="fd73:c150:0:99::/64",
    pgw="fd73:c150:0:99::10",
    cgw="fd73:c150:0:99::20",
    user="fd73:c150:0:99::30",
)

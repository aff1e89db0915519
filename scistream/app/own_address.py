"""The address of this machine from which it reaches another one, as a batch job needs it on a node that it gets."""

from __future__ import annotations

import socket

from scistream.protocol.address import Address

_ANY_PORT = 9
"""The port is not used: the kernel only looks up the route, and no packet is sent."""


def address_toward(host: str) -> str:
    """Return the numeric address from which this machine would send to a host.

    :raises OSError: if the name is unknown, or there is no route.
    """
    problem = OSError("it has no address")
    for family, kind, protocol, _, address in socket.getaddrinfo(host, _ANY_PORT, type=socket.SOCK_DGRAM):
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.connect(address)
                return str(probe.getsockname()[0])
        except OSError as refused:
            problem = refused
    raise problem


def in_place_of_wildcard(address: Address, own: str) -> Address:
    """Return the address with `own` in place of 0.0.0.0 or ::."""
    is_wildcard = address.numeric is not None and address.numeric.is_unspecified
    return Address(own, address.port) if is_wildcard else address

"""Detection of targets that lead back to the gateway itself: a loop, or a way into its control port.

`stream.py` uses it when targets are set, and elements use it when they dial. Nothing here sends a packet.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Collection, Set
from ipaddress import IPv6Address

from scistream.protocol.address import Address, IPAddress
from scistream.protocol.port_ranges import Ranges, is_in

_ANY_PORT = 9


def is_own_address(
    target: Address, own_ports: Collection[int], lent: Ranges, wan_listeners: Set[int], *, to_wan: bool
) -> bool:
    """Return True if only this gateway can listen on `target`, so that connecting to it would loop.

    :param own_ports: the ports on which this gateway listens for its controller, and for HTTP.
    :param lent: the ports that this gateway lends to streams.
    :param wan_listeners: ports of the same stream's WAN listeners here, which are allowed since one gateway may serve
        both sides of a stream. While they are targets, nobody gets them as LAN listeners: see
        `GatewayStream.own_targets`.
    :param to_wan: True if the target is another gateway's WAN listener; False if it is an application's.
    """
    if target.port not in own_ports and not is_in(target.port, lent):
        return False
    if to_wan and target.port in wan_listeners:
        return False
    return target.numeric is not None and _is_this_machine(target.numeric)


def _is_this_machine(host: IPAddress) -> bool:
    mapped = host.ipv4_mapped if isinstance(host, IPv6Address) else None
    host = mapped or host
    return host.is_loopback or host.is_unspecified or source_towards(host) == str(host)


def has_family_of(host: IPAddress) -> bool:
    """Return True if this machine supports the address family of `host`: some have no IPv6."""
    try:
        socket.socket(_family_of(host), socket.SOCK_DGRAM).close()
    except OSError as problem:
        return problem.errno != errno.EAFNOSUPPORT
    return True


def _family_of(host: IPAddress) -> int:
    return socket.AF_INET6 if isinstance(host, IPv6Address) else socket.AF_INET


def source_towards(host: IPAddress) -> str | None:
    """Return the source address that this machine would use towards `host`.

    For an address of this machine that is `host` itself. Return None if there is no route, or if this machine does not
    support the address family.
    """
    if not has_family_of(host):
        return None
    with socket.socket(_family_of(host), socket.SOCK_DGRAM) as sock:
        try:
            sock.connect((str(host), _ANY_PORT))
        except OSError:
            return None
        return str(sock.getsockname()[0])

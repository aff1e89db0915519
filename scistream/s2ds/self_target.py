"""Whether a target leads back to the gateway that would dial it: a loop, or a way to its control port from within.

Asked by `stream.py` when targets are set. Sends nothing.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Set
from ipaddress import IPv6Address

from scistream.protocol.address import Address, IPAddress
from scistream.protocol.port_ranges import Ranges, is_in

_ANY_PORT = 9


def is_own_address(target: Address, control: int, lent: Ranges, wan_listeners: Set[int], *, to_wan: bool) -> bool:
    """Whether nobody but this gateway listens at a numeric target, or ever will.

    :param control: the port that the controller speaks to.
    :param lent: the ports that the gateway lends to streams.
    :param wan_listeners: those that the same stream has as its WAN listeners now: one gateway may serve both ends. As
        long as it has them as targets they are lent to nobody as LAN listeners: see `Holding.dials_here`.
    :param to_wan: the target is to be another gateway's WAN listener; otherwise an application's.
    """
    if target.port != control and not is_in(target.port, lent):
        return False
    if to_wan and target.port in wan_listeners:
        return False
    return target.numeric is not None and _is_this_machine(target.numeric)


def _is_this_machine(host: IPAddress) -> bool:
    mapped = host.ipv4_mapped if isinstance(host, IPv6Address) else None
    host = mapped or host
    return host.is_loopback or host.is_unspecified or source_towards(host) == str(host)


def has_family_of(host: IPAddress) -> bool:
    """Whether the system of this machine knows the family of an address: some have no IPv6."""
    try:
        socket.socket(_family_of(host), socket.SOCK_DGRAM).close()
    except OSError as problem:
        return problem.errno != errno.EAFNOSUPPORT
    return True


def _family_of(host: IPAddress) -> int:
    return socket.AF_INET6 if isinstance(host, IPv6Address) else socket.AF_INET


def source_towards(host: IPAddress) -> str | None:
    """The address that this machine has towards another one: towards one of its own, that address itself. None if no
    way leads there, as to any address of a family that the system has not."""
    if not has_family_of(host):
        return None
    with socket.socket(_family_of(host), socket.SOCK_DGRAM) as sock:
        try:
            sock.connect((str(host), _ANY_PORT))
        except OSError:
            return None
        return str(sock.getsockname()[0])

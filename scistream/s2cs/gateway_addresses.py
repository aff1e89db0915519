"""The addresses of the facility's own gateways and control ports, which no stream may have as a target. No I/O.

A stream to a port that a gateway lends to streams would make a loop, and one to a control port would reach it from
inside the facility's network.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from ipaddress import IPv6Address

from scistream.protocol.address import Address
from scistream.protocol.messages import GatewayCapacity
from scistream.protocol.port_ranges import Ranges, is_in


class PoolAddresses:
    """The control ports of a facility, and the ports that its gateways lend to streams.

    :param control: the addresses of the S2CS and of its gateways, as in the configuration.
    """

    def __init__(self, control: Iterable[str]) -> None:
        self._lent: dict[str, tuple[frozenset[str], Ranges]] = {}
        self.set_control(control)

    def set_control(self, control: Iterable[str]) -> None:
        """Replace the addresses of the S2CS and of its gateways."""
        self._control = {_normalized(Address.parse(text)) for text in control}

    def forget(self, gateway: str) -> None:
        """Forget the ports of a gateway that has left the pool."""
        self._lent.pop(gateway, None)

    def learn(self, gateway: str, room: GatewayCapacity | None) -> None:
        """Note the ports that a gateway lends to streams. None keeps what the gateway has reported before."""
        if room is not None and room.hosts and room.first_port is not None:
            hosts = frozenset(_normalized_host(host) for host in room.hosts)
            ranges = [(room.first_port, room.first_port + room.ports - 1), *(room.chosen_ports or [])]
            self._lent[gateway] = hosts, ranges

    def problem(self, targets: Iterable[str], allowed: Collection[str]) -> str | None:
        """Return why one of these addresses must not be a target, or None if all of them may be.

        :param allowed: the listeners that the other side of the same stream has here.
        """
        for text in targets:
            if text in allowed:
                continue
            host, port = _normalized(Address.parse(text))
            if (host, port) in self._control:
                return f"target {text} is a control port of this facility, which cannot be the target of a stream"
            for gateway, (hosts, ports) in self._lent.items():
                if host in hosts and is_in(port, ports):
                    return (
                        f"target {text} is a port that gateway {gateway} of this facility lends to streams, so the "
                        "stream would make a loop: name the address of the program itself"
                    )
        return None


def _normalized(address: Address) -> tuple[str, int]:
    return _normalized_host(address.host), address.port


def _normalized_host(host: str) -> str:
    """Return a host in a form that is equal for all ways to write it."""
    numeric = Address(host.partition("%")[0], 1).numeric
    mapped = numeric.ipv4_mapped if isinstance(numeric, IPv6Address) else None
    return str(mapped or numeric or host.lower().rstrip("."))

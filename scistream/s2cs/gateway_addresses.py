"""The addresses of a pool itself: what its gateways lend to streams, and the control ports. None is a target of a
stream: bytes would go in a circle through gateways that use each other up, or reach a control port from within. No I/O.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from ipaddress import IPv6Address

from scistream.protocol.address import Address
from scistream.protocol.messages import GatewayCapacity
from scistream.protocol.port_ranges import Ranges, is_in


class PoolAddresses:
    """What is known of them.

    :param control: addresses of the S2CS and of its gateways, as the configuration names them.
    """

    def __init__(self, control: Iterable[str]) -> None:
        self._lent: dict[str, tuple[frozenset[str], Ranges]] = {}
        self.set_control(control)

    def set_control(self, control: Iterable[str]) -> None:
        """The addresses of the S2CS and of its gateways from now on."""
        self._control = {_place(Address.parse(text)) for text in control}

    def forget(self, gateway: str) -> None:
        """A gateway belongs to the pool no longer."""
        self._lent.pop(gateway, None)

    def learn(self, gateway: str, room: GatewayCapacity | None) -> None:
        """A gateway has said what it lends. What it said last stays known while it is silent."""
        if room is not None and room.hosts and room.first_port is not None:
            hosts = frozenset(_host(host) for host in room.hosts)
            ranges = [(room.first_port, room.first_port + room.ports - 1), *(room.chosen_ports or [])]
            self._lent[gateway] = hosts, ranges

    def problem(self, targets: Iterable[str], allowed: Collection[str]) -> str | None:
        """Why one of these addresses is no target, as a sentence; None if all may be.

        :param allowed: the listeners that the other side of the same stream has here.
        """
        for text in targets:
            if text in allowed:
                continue
            place = _place(Address.parse(text))
            if place in self._control:
                return f"target {text} is a control port of this facility, and never the target of a stream"
            for gateway, (hosts, ports) in self._lent.items():
                if place[0] in hosts and is_in(place[1], ports):
                    return (
                        f"target {text} is an address that the gateway {gateway} of this facility lends to streams: "
                        "bytes would go in a circle. Name the address of the program itself"
                    )
        return None


def _place(address: Address) -> tuple[str, int]:
    return _host(address.host), address.port


def _host(host: str) -> str:
    """One way of writing each host."""
    numeric = Address(host.partition("%")[0], 1).numeric
    mapped = numeric.ipv4_mapped if isinstance(numeric, IPv6Address) else None
    return str(mapped or numeric or host.lower().rstrip("."))

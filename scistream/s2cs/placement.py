"""The pool: which gateways an S2CS has, and how the channels of a stream are spread over them. No I/O."""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from scistream.protocol.errors import StreamError
from scistream.protocol.messages import MAX_CHANNELS, GatewayCapacity
from scistream.protocol.port_ranges import Ranges, already_lent, is_in, not_to_choose
from scistream.s2cs.in_use import GatewayUse

_ROUNDING = 1e-6


_MOST_NAMED = 4
"""Gateways that a refusal names."""


@dataclass(frozen=True)
class GatewayState:
    """What a gateway can still take: free ports of its range, and Mbit/s each way.

    :param chosen: ranges of the ports that may be asked for by number; None for a gateway that knows of no such thing.
    :param lent: the ports that streams have already.
    """

    name: str
    ports: int
    rate: float
    chosen: Ranges | None = None
    lent: Collection[int] = ()

    def channels(self, rate_each: float, *, by_number: bool = False) -> int:
        """How many channels of that rate it can take; of those whose ports are asked for, as far as the rate goes."""
        ports = math.inf if by_number else float(self.ports)
        return int(max(0.0, min(ports, self.rate / rate_each + _ROUNDING, float(MAX_CHANNELS))))  # it may be infinite

    def refusal(self, port: int) -> str | None:
        """Why a stream that asks for this port does not get it here, or None."""
        if self.chosen is None:
            return f"port {port} was asked for, and its version of SciStream grants none by number: have it upgraded"
        if not is_in(port, self.chosen):
            return not_to_choose(port, self.chosen)
        return already_lent(port) if port in self.lent else None


def gateway_state(name: str, room: GatewayCapacity, *uses: GatewayUse) -> GatewayState:
    """What is left of a gateway's room.

    :param uses: what is held there: by the live streams, and by those that are nobody's here.
    """
    ports = room.ports - sum(use.ports_of(room) for use in uses)
    rate = room.rate - sum(use.rate for use in uses)
    return GatewayState(name, ports, rate, room.chosen_ports, ChainMap(*(use.lent for use in uses)))


def place_channels(
    members: Iterable[GatewayState], num_conn: int, rate: float, listen_ports: Sequence[int] | None = None
) -> dict[str, list[int]]:
    """Give each channel to a gateway, as evenly as their room allows.

    :param rate: of the whole stream, in Mbit/s.
    :param listen_ports: the port that each channel shall have; None leaves them to the gateways.
    :returns: for each gateway that gets any, its channels.
    :raises StreamError: `gateway-failed`, `no-ports` or `no-capacity`; then nothing is taken.
    """
    pool = list(members)
    if not pool:
        raise StreamError("gateway-failed", "no gateway of this facility can be reached: tell its operator")
    rate_each = rate / num_conn
    if listen_ports is not None:
        return _place_by_number(pool, listen_ports, rate)
    left = {one.name: one.channels(rate_each) for one in pool}
    if sum(left.values()) < num_conn:
        raise _refusal(pool, num_conn, rate)
    plan: dict[str, list[int]] = {one.name: [] for one in pool}
    for channel in range(num_conn):
        name = min((name for name in left if left[name]), key=lambda name: (len(plan[name]), -left[name], name))
        plan[name].append(channel)
        left[name] -= 1
    return {name: channels for name, channels in plan.items() if channels}


def _place_by_number(pool: list[GatewayState], listen_ports: Sequence[int], rate: float) -> dict[str, list[int]]:
    """Give each channel to a gateway that can have its port; those with the least choice come first."""
    num_conn = len(listen_ports)
    granting = [[one.name for one in pool if one.refusal(port) is None] for port in listen_ports]
    for port, names in zip(listen_ports, granting, strict=True):
        if not names:
            raise StreamError("no-ports", _refusals(pool, port))
    left = {one.name: one.channels(rate / num_conn, by_number=True) for one in pool}
    plan: dict[str, list[int]] = {one.name: [] for one in pool}
    for channel in sorted(range(num_conn), key=lambda channel: (len(granting[channel]), channel)):
        names = [name for name in granting[channel] if left[name]]
        if not names:
            raise _no_capacity(pool, num_conn, rate)
        name = min(names, key=lambda name: (len(plan[name]), -left[name], name))
        plan[name].append(channel)
        left[name] -= 1
    return {name: sorted(channels) for name, channels in plan.items() if channels}


def spares(
    members: Iterable[GatewayState], plan: Mapping[str, Sequence[int]], listen_ports: Sequence[int], rate: float
) -> dict[str, list[str]]:
    """For each gateway of a plan, those outside it that could take its place if another program has a port there."""
    rate_each = rate / len(listen_ports)
    others = [one for one in members if one.name not in plan]
    return {
        name: [
            one.name
            for one in others
            if one.channels(rate_each, by_number=True) >= len(channels)
            and all(one.refusal(listen_ports[channel]) is None for channel in channels)
        ]
        for name, channels in plan.items()
    }


def _refusals(pool: list[GatewayState], port: int) -> str:
    """Why no gateway grants a port."""
    named = "; ".join(f"gateway {one.name}: {one.refusal(port)}" for one in pool[:_MOST_NAMED])
    return f"{named}; and {len(pool) - _MOST_NAMED} more" if len(pool) > _MOST_NAMED else named


def _refusal(pool: list[GatewayState], num_conn: int, rate: float) -> StreamError:
    ports = sum(max(one.ports, 0) for one in pool)
    if ports < num_conn:
        return StreamError(
            "no-ports", f"asked for {num_conn} channels, and {ports} ports are free: ask for fewer, or later"
        )
    return _no_capacity(pool, num_conn, rate)


def _no_capacity(pool: list[GatewayState], num_conn: int, rate: float) -> StreamError:
    free = " + ".join(f"{max(one.rate, 0.0):g}" for one in pool)
    return StreamError(
        "no-capacity",
        f"asked for {num_conn} x {rate / num_conn:g} = {rate:g} Mbit/s, and {free} Mbit/s are free "
        "(a channel is on one gateway): ask for less, or later",
    )

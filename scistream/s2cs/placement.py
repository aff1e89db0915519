"""Placement: how the channels of a stream are spread over the gateways of the pool. No I/O."""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from scistream.protocol.errors import StreamError
from scistream.protocol.messages import CONS, MAX_CHANNELS, PROD, GatewayCapacity, Req
from scistream.protocol.port_ranges import Ranges, already_lent, is_in, not_to_choose
from scistream.protocol.wan_abilities import abilities, needed
from scistream.s2cs.in_use import GatewayUse

_ROUNDING = 1e-6
_MOST_NAMED = 4
"""Gateways that a refusal names at most."""


@dataclass(frozen=True)
class GatewayState:
    """What a gateway can still take: the number of free ports, and the free Mbit/s in each direction.

    :param chosen: ranges of the ports that may be requested by number; None for a gateway of an older version.
    :param lent: the ports that streams already use.
    :param wan: what the gateway can do to connect to others; None for a gateway of an older version.
    """

    name: str
    ports: int
    rate: float
    chosen: Ranges | None = None
    lent: Collection[int] = ()
    wan: Collection[str] | None = None

    def channels(self, rate_each: float, *, by_number: bool = False) -> int:
        """Return how many channels the gateway can take.

        :param rate_each: Mbit/s of one channel.
        :param by_number: the ports are requested by number, so only the rate limits the channels.
        """
        ports = math.inf if by_number else float(self.ports)
        return int(max(0.0, min(ports, self.rate / rate_each + _ROUNDING, float(MAX_CHANNELS))))  # no int of infinity

    def refusal(self, port: int) -> str | None:
        """Return why this gateway cannot grant a port that is requested by number, or None if it can."""
        if self.chosen is None:
            return (
                f"port {port} was requested, but this gateway's version of SciStream cannot grant ports by number: "
                "upgrade it"
            )
        if not is_in(port, self.chosen):
            return not_to_choose(port, self.chosen)
        return already_lent(port) if port in self.lent else None


def gateway_state(name: str, room: GatewayCapacity, *uses: GatewayUse) -> GatewayState:
    """Return what is left of a gateway's capacity.

    :param uses: what streams use there: the live streams, and streams of which the S2CS has no record.
    """
    ports = room.ports - sum(use.ports_of(room) for use in uses)
    rate = room.rate - sum(use.rate for use in uses)
    return GatewayState(name, ports, rate, room.chosen_ports, ChainMap(*(use.lent for use in uses)), room.wan)


def place_stream(members: Sequence[GatewayState], request: Req) -> tuple[Sequence[GatewayState], dict[str, list[int]]]:
    """Assign each channel of a request to a gateway, if possible only to gateways that can connect to the other side.

    A stream that is spread over gateways can only do what all of them can. If the request does not say which side
    dials, gateways that fit a consumer that dials come first, and then those that fit a producer that dials.

    :returns: the gateways among which the channels were placed, and the channels of each gateway that gets any.
    :raises StreamError: as `place_channels` does.
    """
    for wan_dialer in (request.wan_dialer,) if request.wan_dialer is not None else (CONS, PROD):
        ability = needed(request.role, wan_dialer)
        able = [one for one in members if ability in abilities(request.role, one.wan)]
        if 0 < len(able) < len(members):
            with suppress(StreamError):
                return able, place_channels(able, request.num_conn, request.rate, request.listen_ports)
        elif able:
            break  # all gateways are able
    return members, place_channels(members, request.num_conn, request.rate, request.listen_ports)


def place_channels(
    members: Iterable[GatewayState], num_conn: int, rate: float, listen_ports: Sequence[int] | None = None
) -> dict[str, list[int]]:
    """Assign each channel to a gateway, as evenly as the free capacity allows.

    :param members: the gateways that can be reached.
    :param rate: Mbit/s of the whole stream.
    :param listen_ports: the requested port of each channel; None lets the gateways choose.
    :returns: the channels of each gateway that gets any.
    :raises StreamError: `gateway-failed`, `no-ports` or `no-capacity`.
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
    """Assign each channel to a gateway that can grant its port, starting with the channels with the fewest choices."""
    num_conn = len(listen_ports)
    candidates = [[one.name for one in pool if one.refusal(port) is None] for port in listen_ports]
    for port, names in zip(listen_ports, candidates, strict=True):
        if not names:
            raise StreamError("no-ports", _refusals(pool, port))
    left = {one.name: one.channels(rate / num_conn, by_number=True) for one in pool}
    plan: dict[str, list[int]] = {one.name: [] for one in pool}
    for channel in sorted(range(num_conn), key=lambda channel: (len(candidates[channel]), channel)):
        names = [name for name in candidates[channel] if left[name]]
        if not names:
            raise _no_capacity(pool, num_conn, rate)
        name = min(names, key=lambda name: (len(plan[name]), -left[name], name))
        plan[name].append(channel)
        left[name] -= 1
    return {name: sorted(channels) for name, channels in plan.items() if channels}


def spares(
    members: Iterable[GatewayState], plan: Mapping[str, Sequence[int]], listen_ports: Sequence[int], rate: float
) -> dict[str, list[str]]:
    """Return, for each gateway of a plan, the other gateways that could replace it if it cannot grant its ports.

    A port may be in use there by another program, which only the gateway itself can find out.
    """
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
    """Return why no gateway can grant a port."""
    named = "; ".join(f"gateway {one.name}: {one.refusal(port)}" for one in pool[:_MOST_NAMED])
    return f"{named}; and {len(pool) - _MOST_NAMED} more" if len(pool) > _MOST_NAMED else named


def _refusal(pool: list[GatewayState], num_conn: int, rate: float) -> StreamError:
    ports = sum(max(one.ports, 0) for one in pool)
    if ports < num_conn:
        return StreamError(
            "no-ports",
            f"{num_conn} channels were requested, but {ports} ports are free: request fewer, or try again later",
        )
    return _no_capacity(pool, num_conn, rate)


def _no_capacity(pool: list[GatewayState], num_conn: int, rate: float) -> StreamError:
    free = " + ".join(f"{max(one.rate, 0.0):g}" for one in pool)
    return StreamError(
        "no-capacity",
        f"{num_conn} x {rate / num_conn:g} = {rate:g} Mbit/s were requested, but {free} Mbit/s are free "
        "(a channel cannot be split over gateways): request a lower rate, or try again later",
    )

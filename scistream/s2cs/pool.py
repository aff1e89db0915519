"""The pool: which gateways an S2CS has, and how the channels of a stream are spread over them. No I/O."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from scistream.s2cs.record import Record
from scistream.wire.errors import StreamError
from scistream.wire.messages import Room

_ROUNDING = 1e-6


@dataclass(frozen=True)
class Member:
    """What a gateway can still take: free ports, and Mbit/s each way."""

    name: str
    ports: int
    rate: float

    def channels(self, rate_each: float) -> int:
        """How many channels of that rate it can take."""
        return int(max(0.0, min(float(self.ports), self.rate / rate_each + _ROUNDING)))  # it may be infinite


class Taken(NamedTuple):
    """What a stream that is nobody's here holds on a gateway: ports, and Mbit/s."""

    ports: int
    rate: float


def member(name: str, room: Room, records: Iterable[Record], strangers: Iterable[Taken] = ()) -> Member:
    """What is left of a gateway's room after what the live streams hold there.

    :param strangers: what it says of streams there that are nobody's here.
    """
    ports, rate = room.ports, room.rate
    for taken in strangers:
        ports -= taken.ports
        rate -= taken.rate
    for record in records:
        if record.state == "Released" or record.request is None or name not in record.plan:
            continue
        held = len(record.plan[name])
        ports -= held
        rate -= record.request.rate * held / record.request.num_conn
    return Member(name, ports, rate)


def spread(members: Iterable[Member], num_conn: int, rate: float) -> dict[str, list[int]]:
    """Give each channel to a gateway, as evenly as their room allows.

    :param rate: of the whole stream, in Mbit/s.
    :returns: for each gateway that gets any, its channels.
    :raises StreamError: `gateway-failed`, `no-ports` or `no-capacity`; then nothing is taken.
    """
    pool = list(members)
    if not pool:
        raise StreamError("gateway-failed", "no gateway of this facility can be reached: tell its operator")
    rate_each = rate / num_conn
    left = {one.name: one.channels(rate_each) for one in pool}
    if sum(left.values()) < num_conn:
        raise _refusal(pool, num_conn, rate)
    plan: dict[str, list[int]] = {one.name: [] for one in pool}
    for channel in range(num_conn):
        name = min((name for name in left if left[name]), key=lambda name: (len(plan[name]), -left[name], name))
        plan[name].append(channel)
        left[name] -= 1
    return {name: channels for name, channels in plan.items() if channels}


def _refusal(pool: list[Member], num_conn: int, rate: float) -> StreamError:
    ports = sum(max(one.ports, 0) for one in pool)
    if ports < num_conn:
        return StreamError(
            "no-ports", f"asked for {num_conn} channels, and {ports} ports are free: ask for fewer, or later"
        )
    free = " + ".join(f"{max(one.rate, 0.0):g}" for one in pool)
    return StreamError(
        "no-capacity",
        f"asked for {num_conn} x {rate / num_conn:g} = {rate:g} Mbit/s, and {free} Mbit/s are free "
        "(a channel is on one gateway): ask for less, or later",
    )

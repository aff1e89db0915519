"""How many ports and how much rate the live streams of an S2CS use, for each gateway and each owner. No I/O.

The sums are updated as streams come, change and go, so the cost of a new request does not depend on the number of
streams. Rates are added as fractions, so that subtracting one leaves no rounding error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable
from fractions import Fraction
from typing import NamedTuple

from scistream.protocol.messages import PROD, GatewayCapacity, Role, StreamKey
from scistream.s2cs.record import Record, ports_at

NOTHING = Fraction(0)


class StreamUse(NamedTuple):
    """What one stream uses on a gateway: a number of ports, and Mbit/s.

    :param lent: the numbers of these ports, as far as they are known.
    """

    ports: int
    rate: float
    lent: tuple[int, ...] = ()


def is_counted(record: Record) -> bool:
    """Return True if a stream uses ports and rate: it has a request, and is not released."""
    return record.request is not None and record.state != "Released"


def stream_use(record: Record, gateway: str) -> StreamUse:
    """Return what a counted stream uses on a gateway of its plan."""
    assert record.request is not None
    channels = len(record.plan[gateway])
    rate = record.request.rate * channels / record.request.num_conn
    for_wan = sum(channel in record.wan_listeners for channel in record.plan[gateway])
    return StreamUse(channels + for_wan, rate, tuple(ports_at(record, gateway)))


class GatewayUse:
    """What streams use on one gateway."""

    def __init__(self) -> None:
        self._streams: dict[Hashable, StreamUse] = {}
        self._ports = 0
        self._rate = NOTHING
        self._lent: Counter[int] = Counter()
        self._range = range(0)
        self._outside = 0
        """Number of lent ports outside `_range`."""

    @property
    def rate(self) -> float:
        """The Mbit/s in use."""
        return float(self._rate)

    @property
    def lent(self) -> Counter[int]:
        """The numbers of the ports in use. The counter changes as streams come and go."""
        return self._lent

    def ports_of(self, room: GatewayCapacity) -> int:
        """Return how many ports are in use of the range from which the gateway chooses ports itself."""
        if room.first_port is None:
            return self._ports
        own_range = range(room.first_port, room.first_port + room.ports)
        if own_range != self._range:
            self._range = own_range
            self._outside = sum(count for port, count in self._lent.items() if port not in own_range)
        return self._ports - self._outside

    def put(self, stream: Hashable, use: StreamUse) -> None:
        """Set what a stream uses, replacing what was set before."""
        if self._streams.get(stream) != use:
            self.drop(stream)
            self._streams[stream] = use
            self._add(use, 1)

    def drop(self, stream: Hashable) -> None:
        """Remove a stream. Idempotent."""
        use = self._streams.pop(stream, None)
        if use is not None:
            self._add(use, -1)

    def _add(self, use: StreamUse, sign: int) -> None:
        self._ports += sign * use.ports
        self._rate += sign * Fraction(use.rate)
        for port in use.lent:
            self._lent[port] += sign
            if not self._lent[port]:
                del self._lent[port]
            self._outside += sign * (port not in self._range)


class OwnerUse:
    """The live streams of one owner.

    A stream with both ends at this S2CS counts as one stream, but its rate counts twice, since each end reserves it.
    """

    def __init__(self) -> None:
        self._rates: dict[Role, dict[str, Fraction]] = {"CONS": {}, "PROD": {}}
        self._sums: dict[Role, Fraction] = {"CONS": NOTHING, "PROD": NOTHING}
        self._both = 0
        """Number of streams with both ends here."""

    def put(self, key: StreamKey, rate: float) -> None:
        """Set the Mbit/s of one end of a stream, replacing what was set before."""
        self.drop(key)
        uid, role = key
        self._rates[role][uid] = Fraction(rate)
        self._sums[role] += Fraction(rate)
        self._both += uid in self._rates[_other(role)]

    def drop(self, key: StreamKey) -> None:
        """Remove one end of a stream. Idempotent."""
        uid, role = key
        rate = self._rates[role].pop(uid, None)
        if rate is not None:
            self._sums[role] -= rate
            self._both -= uid in self._rates[_other(role)]

    def excluding(self, key: StreamKey, roles: Collection[Role]) -> tuple[int, float]:
        """Return the number of streams and the total Mbit/s of the owner in these roles, without the stream `key`."""
        uid, role = key
        streams = sum(len(self._rates[one]) for one in set(roles))
        if len(set(roles)) > 1:
            streams -= self._both
        is_counted = any(uid in self._rates[one] for one in roles)
        rate = sum((self._sums[one] for one in set(roles)), NOTHING)
        if role in roles:
            rate -= self._rates[role].get(uid, NOTHING)
        return streams - is_counted, float(rate)


def _other(role: Role) -> Role:
    return "CONS" if role == PROD else "PROD"

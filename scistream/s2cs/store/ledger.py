"""The ledger of an S2CS: how many bytes each stream has carried, and each identity on each day (UTC).

Gateways tell the figures of a stream since it was reserved there. The ledger remembers in the store what it has heard
last and books the difference on the day on which it hears it: so nothing is counted twice, whoever restarts, and what
could not be written is in the next difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

from scistream import timing
from scistream.protocol.errors import StreamError
from scistream.protocol.messages import ChannelFigures, Role
from scistream.s2cs.record import Record
from scistream.s2cs.store.database import NO_COUNTS, Booking, Counts, Store

_Place = tuple[str, Role, str]
"""Where figures come from: uid, role, gateway."""
_MOST = 2**60
_TIMES_THE_RATE = 2.0
"""A gateway keeps a stream's rate, so what it tells above this is no measurement."""
_AT_ONCE = 2**30
"""Bytes that may have gone over before the rate bound them, and clocks that differ a little."""
_CONNECTIONS_A_SECOND = 100_000


class Implausible(NamedTuple):
    """What a gateway has told that cannot be: the bytes of both directions and connections, and what is possible."""

    bytes_to_consumer: int
    bytes_to_producer: int
    connections: int
    most_bytes: int


@dataclass(frozen=True)
class Total:
    """What a stream has carried, over its gateways; at least that unless it is `complete`."""

    bytes_to_consumer: int
    bytes_to_producer: int
    connections: int
    reset: int
    complete: bool


class Ledger:
    """The books of one S2CS.

    :param wall: seconds since the epoch.
    :raises StoreError: if the store cannot be read.
    """

    def __init__(self, store: Store, wall: Callable[[], float]) -> None:
        self._store = store
        self._wall = wall
        self._written: dict[_Place, tuple[str, Counts]] = store.load_heard()
        self._heard = dict(self._written)
        self._due: dict[_Place, str] = {}
        self._final: set[_Place] = set()
        self._closed: set[_Place] = set()

    def hear(
        self, record: Record, gateway: str, boot: str, figures: Iterable[ChannelFigures], age: float
    ) -> Implausible | None:
        """A gateway has told the figures of a stream; `write` books them. Figures of another run of it, which has
        nothing of this stream, and figures that are older than what is known, change nothing. Neither do figures that
        the stream's rate does not allow: these are given back.

        :param age: seconds since the stream was asked for.
        """
        if record.boots.get(gateway, boot) != boot:
            return None
        told = _summed(figures)
        refused = _implausible(record, gateway, told, age)
        if refused is not None:
            return refused
        place = (record.uid, record.role, gateway)
        before, known = self._heard.get(place, (boot, NO_COUNTS))
        if before != boot:
            known = NO_COUNTS
        now = Counts(*map(max, known, told))
        if now != NO_COUNTS and self._heard.get(place) != (boot, now):
            self._heard[place] = (boot, now)
            self._due[place] = record.owner
        return None

    def hear_last(
        self, record: Record, gateway: str, boot: str | None, figures: Iterable[ChannelFigures] | None, age: float
    ) -> Implausible | None:
        """A gateway has released a stream, and has told its last figures, or has never had any of it (None)."""
        reserved_in = record.boots.get(gateway)
        refused = None
        if figures is not None and boot is not None:
            refused = self.hear(record, gateway, boot, figures, age)
        if refused is None and (reserved_in is None or (figures is not None and boot == reserved_in)):
            self._final.add((record.uid, record.role, gateway))
        self.write()
        return refused

    def write(self) -> None:
        """Book all that was heard since the last time; what cannot be written now is booked later."""
        due = [
            _booking(place, owner, self._heard[place], self._written.get(place)) for place, owner in self._due.items()
        ]
        if not due:
            return
        try:
            self._store.book(_day(self._wall()), due)
        except StreamError:  # the store has told it
            return
        for place in self._due:
            self._written[place] = self._heard[place]
        self._due = {}
        self._drop(self._closed)
        self._closed = set()

    def total(self, record: Record) -> Total:
        """What is known of a stream's bytes."""
        places = [(record.uid, record.role, gateway) for gateway in record.plan]
        known = [self._heard[place][1] for place in places if place in self._heard]
        summed = _added(known)
        return Total(*summed, complete=self._final.issuperset(places))

    def usage_today(self, owner: str) -> int:
        """Bytes of an owner's streams since midnight UTC, both ways together.

        :param owner: as records keep it.
        :raises StreamError: if the store cannot be read.
        """
        return self._store.bytes_on(_day(self._wall()), owner)

    def close(self, record: Record) -> None:
        """A stream is over: nothing of it is heard any more. What could not be written of it is kept until it can."""
        places = {(record.uid, record.role, gateway) for gateway in record.plan}
        self._final -= places
        self._closed |= places & self._due.keys()
        self._drop(places - self._due.keys())

    def _drop(self, places: Iterable[_Place]) -> None:
        for place in places:
            self._written.pop(place, None)
            self._heard.pop(place, None)


def _summed(figures: Iterable[ChannelFigures]) -> Counts:
    rows = [(one.bytes_to_consumer, one.bytes_to_producer, one.accepted, one.reset) for one in figures]
    return _added(rows)


def _added(rows: Sequence[tuple[int, ...]]) -> Counts:
    """Sums that stop at a bound, beyond which the store could not keep them."""
    return Counts(*(min(sum(column), _MOST) for column in zip(*rows, strict=True))) if rows else NO_COUNTS


def _implausible(record: Record, gateway: str, told: Counts, age: float) -> Implausible | None:
    if record.request is None or gateway not in record.plan:
        return None
    share = record.request.rate * len(record.plan[gateway]) / record.request.num_conn
    seconds = max(0.0, age) + timing.FIGURES_GRACE
    most = int(share * 1e6 / 8 * seconds * _TIMES_THE_RATE) + _AT_ONCE
    if (
        max(told.bytes_to_consumer, told.bytes_to_producer) <= most
        and told.connections <= _CONNECTIONS_A_SECOND * seconds
    ):
        return None
    return Implausible(*told[:3], most)


def _booking(place: _Place, owner: str, now: tuple[str, Counts], before: tuple[str, Counts] | None) -> Booking:
    boot, counts = now
    known = before[1] if before is not None and before[0] == boot else NO_COUNTS
    return Booking(*place, owner, boot, counts, Counts(*(new - old for new, old in zip(counts, known, strict=True))))


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")

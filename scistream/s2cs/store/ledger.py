"""The ledger of an S2CS: how many bytes each stream has carried, and each identity on each day (UTC).

Gateways report the totals of a stream since it was reserved there. The ledger keeps the last report of each gateway in
the store, and books the difference to the next report on the day on which that report arrives. So nothing is counted
twice when a server restarts, and a difference that could not be written is part of the next one.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

from scistream import timing
from scistream.protocol.errors import StreamError
from scistream.protocol.messages import CONS, PROD, ChannelFigures, Role
from scistream.s2cs.record import Record
from scistream.s2cs.store.database import NO_COUNTS, Booking, Counts, Store

_Source = tuple[str, Role, str]
"""Where figures come from: uid, role, gateway."""
_MOST = 2**60
_MOST_TIMES_RATE = 2.0
"""A gateway enforces the rate of a stream, so a report of more than this multiple of it is not plausible."""
_BYTES_ALLOWANCE = 2**30
"""Bytes allowed beyond the rate: for bursts, and for clocks that differ a little."""
_MOST_CONNECTIONS_PER_SECOND = 100_000


class Implausible(NamedTuple):
    """Figures that a gateway cannot have measured: bytes in both directions and connections, and the possible bytes."""

    bytes_to_consumer: int
    bytes_to_producer: int
    connections: int
    most_bytes: int


@dataclass(frozen=True)
class Total:
    """What a stream has carried on all its gateways. Unless `complete`, it may have carried more."""

    bytes_to_consumer: int
    bytes_to_producer: int
    connections: int
    reset: int
    complete: bool


class Ledger:
    """The ledger of one S2CS.

    :param wall: returns the seconds since the epoch.
    :raises StoreError: if the store cannot be read.
    """

    def __init__(self, store: Store, wall: Callable[[], float]) -> None:
        self._store = store
        self._wall = wall
        self._written: dict[_Source, tuple[str, Counts]] = store.load_heard()
        self._heard = dict(self._written)
        self._due: dict[_Source, str] = {}
        """The sources with figures that are not written yet, and the owners of their streams."""
        self.carried: dict[Role, Counts] = {PROD: NO_COUNTS, CONS: NO_COUNTS}
        """What all streams have carried since this object was made, whether they are over or not."""
        self._final: set[_Source] = set()
        self._closed: set[_Source] = set()

    def hear(
        self, record: Record, gateway: str, boot: str, figures: Iterable[ChannelFigures], age: float
    ) -> Implausible | None:
        """Take figures of a stream from a gateway; `write` books them later.

        Figures from another boot than the one that reserved the stream are ignored, and so are figures below those
        that are already known. Return figures that the rate of the stream does not allow; they are ignored, too.

        :param age: seconds since the stream was requested.
        """
        if record.boots.get(gateway, boot) != boot:
            return None
        reported = _summed(figures)
        refused = _implausible(record, gateway, reported, age)
        if refused is not None:
            return refused
        source = (record.uid, record.role, gateway)
        known_boot, known = self._heard.get(source, (boot, NO_COUNTS))
        if known_boot != boot:
            known = NO_COUNTS
        now = Counts(*map(max, known, reported))
        if now != NO_COUNTS and self._heard.get(source) != (boot, now):
            self._heard[source] = (boot, now)
            more = (new - old for new, old in zip(now, known, strict=True))
            self.carried[record.role] = Counts(*map(operator.add, self.carried[record.role], more))
            self._due[source] = record.owner
        return None

    def hear_last(
        self, record: Record, gateway: str, boot: str | None, figures: Iterable[ChannelFigures] | None, age: float
    ) -> Implausible | None:
        """Take the last figures of a stream from a gateway that has released it, and write them.

        :param boot: the boot of the gateway; None if it does not know the stream.
        :param figures: None if the gateway does not know the stream.
        :returns: figures that the rate of the stream does not allow, as in `hear`.
        """
        reserving_boot = record.boots.get(gateway)
        refused = None
        if figures is not None and boot is not None:
            refused = self.hear(record, gateway, boot, figures, age)
        if refused is None and (reserving_boot is None or (figures is not None and boot == reserving_boot)):
            self._final.add((record.uid, record.role, gateway))
        self.write()
        return refused

    def write(self) -> None:
        """Write the figures taken since the last call. If that fails, the next call tries again."""
        due = [
            _booking(source, owner, self._heard[source], self._written.get(source))
            for source, owner in self._due.items()
        ]
        if not due:
            return
        try:
            self._store.book(_day(self._wall()), due)
        except StreamError:  # the store has logged it
            return
        for source in self._due:
            self._written[source] = self._heard[source]
        self._due = {}
        self._drop(self._closed)
        self._closed = set()

    def total(self, record: Record) -> Total:
        """Return what a stream has carried so far."""
        sources = [(record.uid, record.role, gateway) for gateway in record.plan]
        known = [self._heard[source][1] for source in sources if source in self._heard]
        summed = _added(known)
        return Total(*summed, complete=self._final.issuperset(sources))

    def usage_today(self, owner: str) -> int:
        """Return the bytes of an owner's streams since midnight UTC, both directions together.

        :param owner: in the form in which records keep it.
        :raises StreamError: `no-capacity` if the store cannot be read.
        """
        return self._store.bytes_on(_day(self._wall()), owner)

    def close(self, record: Record) -> None:
        """Forget a stream that is over. Figures that could not be written yet are kept until they are."""
        sources = {(record.uid, record.role, gateway) for gateway in record.plan}
        self._final -= sources
        self._closed |= sources & self._due.keys()
        self._drop(sources - self._due.keys())

    def _drop(self, sources: Iterable[_Source]) -> None:
        for source in sources:
            self._written.pop(source, None)
            self._heard.pop(source, None)


def _summed(figures: Iterable[ChannelFigures]) -> Counts:
    rows = [(one.bytes_to_consumer, one.bytes_to_producer, one.accepted, one.reset) for one in figures]
    return _added(rows)


def _added(rows: Sequence[tuple[int, ...]]) -> Counts:
    """Return the sum of each column, limited to what the store can keep."""
    return Counts(*(min(sum(column), _MOST) for column in zip(*rows, strict=True))) if rows else NO_COUNTS


def _implausible(record: Record, gateway: str, reported: Counts, age: float) -> Implausible | None:
    if record.request is None or gateway not in record.plan:
        return None
    share = record.request.rate * len(record.plan[gateway]) / record.request.num_conn
    seconds = max(0.0, age) + timing.FIGURES_GRACE
    most = int(share * 1e6 / 8 * seconds * _MOST_TIMES_RATE) + _BYTES_ALLOWANCE
    if (
        max(reported.bytes_to_consumer, reported.bytes_to_producer) <= most
        and reported.connections <= _MOST_CONNECTIONS_PER_SECOND * seconds
    ):
        return None
    return Implausible(*reported[:3], most)


def _booking(source: _Source, owner: str, now: tuple[str, Counts], before: tuple[str, Counts] | None) -> Booking:
    boot, counts = now
    known = before[1] if before is not None and before[0] == boot else NO_COUNTS
    difference = Counts(*(new - old for new, old in zip(counts, known, strict=True)))
    return Booking(*source, owner, boot, counts, difference)


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")

"""The ledger of an S2CS: how many bytes each stream has carried, and each identity on each day (UTC).

Gateways tell the figures of a stream since it was reserved there. The ledger remembers in the store what it has heard
last and books the difference on the day on which it hears it: so nothing is counted twice, whoever restarts, and what
could not be written is in the next difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from twisted.logger import Logger

from scistream.s2cs.record import Record
from scistream.s2cs.streams import NO_COUNTS, Booking, Counts, Store
from scistream.wire.errors import StreamError
from scistream.wire.messages import ChannelFigures, Role, StreamKey

_Place = tuple[str, Role, str]
"""Where figures come from: uid, role, gateway."""
_MOST = 2**60


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
    :raises StoreProblem: if the store cannot be read.
    """

    log = Logger()

    def __init__(self, store: Store, wall: Callable[[], float]) -> None:
        self._store = store
        self._wall = wall
        self._written: dict[_Place, tuple[str, Counts]] = store.load_heard()
        self._heard = dict(self._written)
        self._due: dict[_Place, str] = {}
        self._final: set[_Place] = set()

    def hear(self, record: Record, gateway: str, boot: str, figures: Iterable[ChannelFigures]) -> None:
        """A gateway has told the figures of a stream; `write` books them. Figures of another run of it, which has
        nothing of this stream, and figures that are older than what is known, change nothing."""
        if record.boots.get(gateway, boot) != boot:
            return
        place = (record.uid, record.role, gateway)
        before, known = self._heard.get(place, (boot, NO_COUNTS))
        if before != boot:
            known = NO_COUNTS
        now = Counts(*map(max, known, _summed(figures)))
        if now != NO_COUNTS and self._heard.get(place) != (boot, now):
            self._heard[place] = (boot, now)
            self._due[place] = record.owner

    def hear_last(
        self, record: Record, gateway: str, boot: str | None, figures: Iterable[ChannelFigures] | None
    ) -> None:
        """A gateway has released a stream, and has told its last figures, or has never had any of it (None)."""
        reserved_in = record.boots.get(gateway)
        if figures is not None and boot is not None:
            self.hear(record, gateway, boot, figures)
        if reserved_in is None or (figures is not None and boot == reserved_in):
            self._final.add((record.uid, record.role, gateway))
        self.write()

    def write(self) -> None:
        """Book all that was heard since the last time; what cannot be written now is booked later."""
        due = [
            _booking(place, owner, self._heard[place], self._written.get(place)) for place, owner in self._due.items()
        ]
        if not due:
            return
        try:
            self._store.book(_day(self._wall()), due)
        except StreamError as error:
            self.log.error("{reason}: what streams have carried is booked later", reason=error.msg)
            return
        for place in self._due:
            self._written[place] = self._heard[place]
        self._due = {}

    def total(self, record: Record) -> Total:
        """What is known of a stream's bytes."""
        places = [(record.uid, record.role, gateway) for gateway in record.plan]
        known = [self._heard[place][1] for place in places if place in self._heard]
        summed = Counts(*map(sum, zip(*known, strict=True))) if known else NO_COUNTS
        return Total(*summed, complete=self._final.issuperset(places))

    def usage_today(self, owner: str) -> int:
        """Bytes of an owner's streams since midnight UTC, both ways together.

        :param owner: as records keep it.
        :raises StreamError: if the store cannot be read.
        """
        return self._store.bytes_on(_day(self._wall()), owner)

    def forget(self, key: StreamKey) -> None:
        """The record of this stream goes; what was booked stays."""
        for kept in (self._written, self._heard, self._due):
            for place in [place for place in kept if place[:2] == key]:
                del kept[place]
        self._final = {place for place in self._final if place[:2] != key}


def _summed(figures: Iterable[ChannelFigures]) -> Counts:
    rows = [(one.bytes_to_consumer, one.bytes_to_producer, one.accepted, one.reset) for one in figures]
    return Counts(*(min(sum(column), _MOST) for column in zip(*rows, strict=True))) if rows else NO_COUNTS


def _booking(place: _Place, owner: str, now: tuple[str, Counts], before: tuple[str, Counts] | None) -> Booking:
    boot, counts = now
    known = before[1] if before is not None and before[0] == boot else NO_COUNTS
    return Booking(*place, owner, boot, counts, Counts(*(new - old for new, old in zip(counts, known, strict=True))))


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")

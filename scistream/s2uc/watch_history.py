"""What `s2uc watch` has learnt of a stream: what both sides reported, each few seconds, and the rates between reports.

Nothing here does I/O. `watch_view` and `watch` show it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Literal

from msgspec import structs

from scistream.protocol.errors import StreamError
from scistream.protocol.messages import CONS, PROD, LastError, Role, StreamStatus

Direction = Literal["to_consumer", "to_producer"]
DIRECTIONS: tuple[Direction, ...] = ("to_consumer", "to_producer")
_ARRIVES_AT: dict[Direction, tuple[Role, Role]] = {"to_consumer": (CONS, PROD), "to_producer": (PROD, CONS)}
"""The side that counts the bytes of a direction when they leave towards the application, and the other one."""

SPAN = 300.0
"""Seconds of the past that are kept and shown."""

_WAITS_FOR: dict[str, dict[Role, str]] = {
    "Reserving": dict.fromkeys((PROD, CONS), "its gateways"),
    "Listening": {PROD: "the producer (appctrl prod)", CONS: "the consumer (appctrl cons) or the producer"},
    "Ready": {PROD: "the targets, which s2uc request or attach sets", CONS: "the producer (appctrl prod)"},
    "Updating": dict.fromkeys((PROD, CONS), "its gateways"),
    "Releasing": dict.fromkeys((PROD, CONS), "its gateways, to confirm the release"),
}


@dataclass(frozen=True)
class WatchMoment:
    """What both sides reported at one time.

    :ivar at: seconds, on a clock that never goes back.
    :ivar failures: why a side did not answer. A side that does not know the stream is in neither mapping.
    """

    at: float
    sides: Mapping[Role, StreamStatus]
    failures: Mapping[Role, str] = field(default_factory=dict)

    @property
    def is_over(self) -> bool:
        """True if the stream is over at both sides."""
        return not self.failures and all(side.state == "Released" for side in self.sides.values())

    def count(self, role: Role, direction: Direction) -> int | None:
        """Return the bytes that a side has counted in a direction; None if it has not answered."""
        side = self.sides.get(role)
        return None if side is None else sum(getattr(one, f"bytes_{direction}") for one in side.figures)

    def total(self, direction: Direction) -> int:
        """Return the bytes of a direction, as the side counts them at which they arrive, or else the other one."""
        counts = [count for role in _ARRIVES_AT[direction] if (count := self.count(role, direction)) is not None]
        return counts[0] if counts else 0

    def state(self, role: Role) -> str:
        """Return the state of a side, as users read it."""
        side = self.sides.get(role)
        return side.state if side is not None else "no answer" if role in self.failures else "unknown"

    def waits_for(self, role: Role) -> str:
        """Return who or what a side waits for; empty if for nobody."""
        side = self.sides.get(role)
        if side is None:
            return self.failures.get(role, "")
        if side.silent:
            return "its gateway " + ", ".join(side.silent)
        return _WAITS_FOR.get(side.state, {}).get(role, "")


class WatchHistory:
    """The moments of the last `SPAN` seconds, the oldest first.

    :param uid: of the stream.
    """

    def __init__(self, uid: str, label: str | None = None) -> None:
        self.uid = uid
        self.label = label
        self.moments: tuple[WatchMoment, ...] = ()

    @property
    def last(self) -> WatchMoment:
        """The latest moment."""
        return self.moments[-1]

    def add(self, moment: WatchMoment) -> None:
        """Add a moment, and drop those that are too old to be shown.

        A side that has released the stream reports no figures any more: the ones before are kept.
        """
        if self.moments:
            kept_sides = {role: _with_figures(side, self.last.sides.get(role)) for role, side in moment.sides.items()}
            moment = replace(moment, sides=kept_sides)
        kept = tuple(old for old in self.moments if moment.at - old.at <= SPAN)
        older = self.moments[-len(kept) - 1 : len(self.moments) - len(kept)]  # for the rate at the left edge
        self.moments = (*older, *kept, moment)

    def rate(self, direction: Direction) -> float | None:
        """Return the rate since the moment before, in Mbit/s; None if it is not known."""
        times, counts = _counted(self.moments[-2:], direction)
        if len(times) < 2 or times[1] <= times[0]:
            return None
        return max(0.0, (counts[1] - counts[0]) * 8e-6 / (times[1] - times[0]))

    def rates(self, direction: Direction, columns: int, span: float) -> list[float | None]:
        """Return the mean rates in `columns` equal parts of the last `span` seconds, in Mbit/s; None if not known."""
        times, counts = _counted(self.moments, direction)
        part = span / columns
        edges = [self.last.at - span + part * number for number in range(columns + 1)]
        found: list[float | None] = []
        for left, right in pairwise(_interpolated(edges, times, counts)):
            found.append(None if left is None or right is None else max(0.0, (right - left) * 8e-6 / part))
        return found


def _with_figures(side: StreamStatus, before: StreamStatus | None) -> StreamStatus:
    """Return the status of a side, with the figures from before if it has released the stream and has none."""
    if side.state != "Released" or before is None or any(one.accepted for one in side.figures):
        return side
    last = [structs.replace(one, connections=0, ready=0, waiting=0) for one in before.figures]
    return structs.replace(side, figures=last)


def _counted(moments: tuple[WatchMoment, ...], direction: Direction) -> tuple[list[float], list[int]]:
    """Return when a side has told the bytes of a direction, and how many: the side at which they arrive, if it has."""
    for role in _ARRIVES_AT[direction]:
        known = [(moment.at, count) for moment in moments if (count := moment.count(role, direction)) is not None]
        if len(known) >= min(2, len(moments)):
            break
    return [at for at, _ in known], [count for _, count in known]


def _interpolated(edges: list[float], times: list[float], counts: list[int]) -> Iterator[float | None]:
    """Yield the bytes at each edge; None before the first time and after the last one."""
    after = 0
    for edge in edges:
        while after < len(times) and times[after] < edge:
            after += 1
        if after < len(times) and (times[after] == edge or (after == 0 and times[0] - edge < 1e-6)):
            yield float(counts[after])
        elif 0 < after < len(times):
            share = (edge - times[after - 1]) / (times[after] - times[after - 1])
            yield counts[after - 1] + share * (counts[after] - counts[after - 1])
        else:
            yield float(counts[-1]) if times and abs(edge - times[-1]) < 1e-6 else None


def reason_of_end(moment: WatchMoment) -> StreamError | None:
    """Return the error with which a stream has ended; None if it was released in order."""
    reasons: list[tuple[Role, LastError]] = [
        (role, side.last_error)
        for role, side in moment.sides.items()
        if side.last_error is not None and side.last_error.code != "released"
    ]
    if not reasons:
        return None
    role, last = reasons[0]
    return StreamError.from_peer(last.code, f"{'producer' if role == PROD else 'consumer'} side: {last.msg}")

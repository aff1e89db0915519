"""The figures of the paths of one stream over the WAN, and the news that one has come or gone.

A `PathFiguresLog` belongs to one stream (`stream.py`). Elements report what they have sampled; memory, answers and log
lines are bounded, whatever addresses a peer uses.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from twisted.logger import Logger, LogLevel

from scistream import timing
from scistream.logs import Tally
from scistream.protocol.messages import MAX_NOTICE, MAX_PATHS, PROD, PathFigures, StreamKey
from scistream.s2ds.elements.commands import PathsReport

_Pair = tuple[str, str]
_OTHERS: _Pair = "", ""
"""All paths for which there is no place."""


@dataclass
class _Path:
    """A pair of addresses, with what went over it so far.

    `channels` are those whose connections have used it, `since` is when it last came or went.
    """

    since: float
    is_up: bool = False
    sent: int = 0
    received: int = 0
    retransmits: int = 0
    failures: int = 0
    channels: set[int] = field(default_factory=set)


class PathFiguresLog:
    """The paths of one stream.

    :param clock: an `IReactorTime`.
    """

    log = Logger()

    def __init__(self, clock: Any, key: StreamKey) -> None:
        self._clock = clock
        self._uid, self._role = key
        self._paths: dict[_Pair, _Path] = {}
        self._latest: dict[tuple[int, int], tuple[float, PathsReport]] = {}
        """The last report of each element on each channel, with its time."""
        self._is_over = False
        self._tally: Tally[tuple[bool, str]] = Tally(clock, self._log, (False, "other paths"))

    def hear(self, report: PathsReport) -> None:
        """Take a report of an element."""
        if self._is_over:
            return
        now = self._clock.seconds()
        source = report.element, report.channel
        self._latest.pop(source, None)
        if report.settled or any(one.up for one in report.paths):
            self._latest[source] = now, report
        for one in report.paths:
            path = self._path((one.local, one.remote), now)
            path.channels.add(report.channel)
            path.sent += one.sent
            path.received += one.received
            path.retransmits += one.retransmits
        self._judge(now)

    def latest(self) -> list[PathFigures]:
        """Return the paths, in the order in which they came; at most `MAX_PATHS`, of which the last may be others."""
        now = self._clock.seconds()
        self._forget_old(now)
        return [self._figures(pair, path, now) for pair, path in self._paths.items()]

    @property
    def notices(self) -> list[str]:
        """A sentence for the user about each path that is down."""
        down = [pair for pair, path in self._paths.items() if pair != _OTHERS and path.failures and not path.is_up]
        left = any(path.is_up for path in self._paths.values())
        rest = "its connections go on over the others" if left else "no other path is left"
        return [f"the path of the WAN {_named(pair)} is down: {rest}"[:MAX_NOTICE] for pair in down]

    def stop(self) -> None:
        """Log the counts that are not logged yet, and take no more reports."""
        self._is_over = True
        self._tally.stop()

    def _path(self, pair: _Pair, now: float) -> _Path:
        """Return a path; the oldest of those that are down gives its place, and otherwise the others are one."""
        if pair not in self._paths and len(self._paths) >= MAX_PATHS - 1:
            gone = next((each for each, path in self._paths.items() if each != _OTHERS and not path.is_up), None)
            if gone is None:
                pair = _OTHERS
            else:
                self._merge(self._paths.pop(gone), now)
        return self._paths.setdefault(pair, _Path(now))

    def _merge(self, gone: _Path, now: float) -> None:
        others = self._paths.setdefault(_OTHERS, _Path(now))
        others.sent += gone.sent
        others.received += gone.received
        others.retransmits += gone.retransmits

    def _forget_old(self, now: float) -> None:
        """Forget the last reports of elements that are no more."""
        self._latest = {
            source: latest for source, latest in self._latest.items() if now - latest[0] <= timing.PATHS_STALE
        }

    def _judge(self, now: float) -> None:
        """Find the paths that have come or gone.

        One has gone if no connection delivers over it, though a channel that has used it has connections which are
        old enough to do so.
        """
        self._forget_old(now)
        settled = {channel for (_, channel), (_, report) in self._latest.items() if report.settled}
        up = {
            self._place((one.local, one.remote))
            for _, report in self._latest.values()
            for one in report.paths
            if one.up
        }
        for pair, path in self._paths.items():
            if pair == _OTHERS:
                path.is_up = pair in up
            elif pair in up and not path.is_up:
                path.is_up, path.since = True, now
                self._tally.add((True, _named(pair)))
            elif pair not in up and path.is_up and path.channels & settled:
                path.is_up, path.since = False, now
                path.failures += 1
                self._tally.add((False, _named(pair)))

    def _place(self, pair: _Pair) -> _Pair:
        return pair if pair in self._paths else _OTHERS

    def _figures(self, pair: _Pair, path: _Path, now: float) -> PathFigures:
        samples = [
            one
            for _, report in self._latest.values()
            for one in report.paths
            if one.up and self._place((one.local, one.remote)) == pair
        ]
        connections = sum(one.up for one in samples)
        to_consumer, to_producer = path.sent, path.received
        if self._role != PROD:
            to_consumer, to_producer = to_producer, to_consumer
        return PathFigures(
            local=pair[0],
            remote=pair[1],
            up=path.is_up,
            connections=connections,
            rtt_ms=round(sum(one.rtt * one.up for one in samples) * 1000 / connections, 3) if connections else 0.0,
            bytes_to_consumer=to_consumer,
            bytes_to_producer=to_producer,
            retransmits=path.retransmits,
            failures=path.failures,
            seconds=round(max(0.0, now - path.since), 1),
        )

    def _log(self, key: tuple[bool, str], count: int, _last: str) -> None:
        came, name = key
        self.log.emit(
            LogLevel.info if came else LogLevel.warn,
            "uid={uid} role={role} the path of the WAN {path} {what}; times so far: {count}",
            uid=self._uid,
            role=self._role,
            path=name,
            what="is used" if came else "is down",
            count=count,
        )


def _named(pair: _Pair) -> str:
    return f"{pair[0]} - {pair[1]}"

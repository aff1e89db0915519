"""Why connections of a stream were reset, as a gateway keeps it for its users and tells it in its log.

`ResetLog` belongs to one stream (`stream.py`). Its elements report what they reset, and the initiator what it refuses
itself. It is bounded in memory, in what it tells, and in the lines that it logs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from twisted.logger import Logger, LogLevel

from scistream import timing
from scistream.logs import Tally
from scistream.protocol.messages import MAX_REASON, MAX_RESETS, BrokenChannel, Cause, ResetReason, StreamKey

MOST_KEPT = 64
"""Reasons that are kept of one stream, all its channels together."""

_LEVELS = {"wan": LogLevel.warn, "gateway": LogLevel.warn}


@dataclass
class _Kept:
    """One reason of one channel."""

    count: int = 0
    last: float = 0.0


class ResetLog:
    """The reasons of one stream.

    :param clock: an `IReactorTime`.
    """

    log = Logger()

    def __init__(self, clock: Any, key: StreamKey) -> None:
        self._clock = clock
        self._uid, self._role = key
        self._kept: dict[tuple[int, Cause, str], _Kept] = {}
        self._tally: Tally[tuple[Cause, str]] = Tally(clock, self._log, ("gateway", "other reasons"))

    def add(self, channel: int, cause: Cause, reason: str, count: int = 1, last: str = "") -> None:
        """So many connections of a channel were reset.

        :param reason: a sentence in which nothing is different for each connection.
        :param last: what was special about the last one, for the log alone.
        """
        reason = reason[:MAX_REASON]
        key = channel, cause, reason
        kept = self._kept.pop(key, None) or _Kept()
        if len(self._kept) >= MOST_KEPT:
            self._forget_one()
        self._kept[key] = kept  # at the end: they are in the order of their last time
        kept.count += count
        kept.last = self._clock.seconds()
        self._tally.add((cause, reason), count, f" ({last})" if last else "")

    def told(self) -> list[ResetReason]:
        """The last reasons, the newest first; strangers come after all others, whom they shall not hide."""
        now = self._clock.seconds()
        newest = list(self._kept.items())
        newest.reverse()
        newest.sort(key=lambda item: item[0][1] == "stranger")
        return [
            ResetReason(
                channel=channel,
                cause=cause,
                reason=reason,
                count=kept.count,
                seconds_ago=round(max(0.0, now - kept.last), 1),
            )
            for (channel, cause, reason), kept in newest[:MAX_RESETS]
        ]

    def stop(self) -> None:
        """Nothing more will come: log what is not logged yet."""
        self._tally.stop()

    def _forget_one(self) -> None:
        strangers = (key for key in self._kept if key[1] == "stranger")
        del self._kept[next(strangers, next(iter(self._kept)))]

    def _log(self, key: tuple[Cause, str], count: int, last: str) -> None:
        cause, reason = key
        self.log.emit(
            _LEVELS.get(cause, LogLevel.info),
            "uid={uid} role={role} connections reset so far: {count} ({cause}): {reason}{last}",
            uid=self._uid,
            role=self._role,
            count=count,
            cause=cause,
            reason=reason,
            last=last,
        )


@dataclass
class _Outage:
    """Since when, until when at least, and why connections of a channel fail; how many had come about before."""

    since: float
    last: float
    reason: str
    joined: int


class Outages:
    """The channels of one stream whose WAN fails. A connection that comes about ends an outage, and so does a time in
    which none is tried.

    :param clock: an `IReactorTime`.
    """

    def __init__(self, clock: Any) -> None:
        self._clock = clock
        self._outages: dict[int, _Outage] = {}

    def failed(self, channel: int, reason: str, joined: int) -> None:
        """A connection over the WAN has failed.

        :param joined: how many of the channel have come about so far.
        """
        now = self._clock.seconds()
        outage = self._outages.get(channel)
        if outage is None or not _goes_on(outage, joined, now):
            outage = self._outages[channel] = _Outage(now, now, reason, joined)
        outage.last, outage.reason = now, reason

    def told(self, joined: Callable[[int], int]) -> list[BrokenChannel]:
        """The channels that are broken now, those first that have been so for longest."""
        now = self._clock.seconds()
        self._outages = {
            channel: outage for channel, outage in self._outages.items() if _goes_on(outage, joined(channel), now)
        }
        lasting = [
            (outage.since, channel, outage)
            for channel, outage in self._outages.items()
            if outage.last - outage.since >= timing.CHANNEL_BROKEN
        ]
        return [
            BrokenChannel(channel=channel, reason=outage.reason[:MAX_REASON], seconds=round(max(0.0, now - since), 1))
            for since, channel, outage in sorted(lasting, key=lambda one: one[:2])[:MAX_RESETS]
        ]


def _goes_on(outage: _Outage, joined: int, now: float) -> bool:
    return outage.joined == joined and now - outage.last <= timing.OUTAGE_FORGOTTEN

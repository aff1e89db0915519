"""The reasons why connections of a stream were reset, for its users and for the gateway's log.

A `ResetLog` belongs to one stream (`stream.py`). Elements report the connections that they reset, and the initiator
those that it refuses. Memory, reports and log lines are bounded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from twisted.logger import Logger, LogLevel

from scistream import timing
from scistream.logs import Tally
from scistream.protocol.messages import MAX_REASON, MAX_RESETS, BrokenChannel, Cause, ResetReason, Role, StreamKey

MOST_KEPT = 64
"""The number of reasons kept for one stream, over all its channels."""

_LEVELS = {"wan": LogLevel.warn, "gateway": LogLevel.warn}


@dataclass
class _Kept:
    """The count of one reason on one channel, and when it last occurred."""

    count: int = 0
    last: float = 0.0


class ResetLog:
    """The reset connections of one stream, counted by channel and reason.

    :param clock: an `IReactorTime`.
    :param totals: where the resets of all streams are counted, too, by cause and side.
    """

    log = Logger()

    def __init__(self, clock: Any, key: StreamKey, totals: Counter[tuple[Cause, Role]] | None = None) -> None:
        self._clock = clock
        self._uid, self._role = key
        self._totals = totals if totals is not None else Counter()
        self._kept: dict[tuple[int, Cause, str], _Kept] = {}
        self._tally: Tally[tuple[Cause, str]] = Tally(clock, self._log, ("gateway", "other reasons"))

    def add(self, channel: int, cause: Cause, reason: str, count: int = 1, last: str = "") -> None:
        """Count `count` connections of a channel that were reset for one reason.

        :param reason: a sentence that is the same for all connections reset for this reason.
        :param last: details of the last connection, for the log only.
        """
        reason = reason[:MAX_REASON]
        self._totals[cause, self._role] += count
        key = channel, cause, reason
        kept = self._kept.pop(key, None) or _Kept()
        if len(self._kept) >= MOST_KEPT:
            self._forget_one()
        self._kept[key] = kept  # at the end: the reasons are in the order in which they last occurred
        kept.count += count
        kept.last = self._clock.seconds()
        self._tally.add((cause, reason), count, f" ({last})" if last else "")

    def latest(self) -> list[ResetReason]:
        """Return the latest reasons, newest first; those of strangers come last, so that they hide no others."""
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
        """Log the counts that are not logged yet."""
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
    """A time in which connections of a channel fail: its start, the last failure, and its reason.

    `joined` is the number of connections that the channel had joined before.
    """

    since: float
    last: float
    reason: str
    joined: int


class Outages:
    """The channels of one stream whose connections over the WAN fail.

    An outage ends when a connection is joined, or when none has been tried for some time.

    :param clock: an `IReactorTime`.
    """

    def __init__(self, clock: Any) -> None:
        self._clock = clock
        self._outages: dict[int, _Outage] = {}

    def failed(self, channel: int, reason: str, joined: int) -> None:
        """Count a connection over the WAN that has failed.

        :param joined: how many connections of the channel have been joined so far.
        """
        now = self._clock.seconds()
        outage = self._outages.get(channel)
        if outage is None or not _goes_on(outage, joined, now):
            outage = self._outages[channel] = _Outage(now, now, reason, joined)
        outage.last, outage.reason = now, reason

    def current(self, joined: Callable[[int], int]) -> list[BrokenChannel]:
        """Return the channels that are broken now, the longest outage first.

        :param joined: returns how many connections of a channel have been joined so far.
        """
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

"""Why connections of a stream were reset, as a gateway keeps it for its users and tells it in its log.

`Resets` belongs to one stream (`effects.py`). Its elements report what they reset, and the initiator what it refuses
itself. It is bounded in memory, in what it tells, and in the lines that it logs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from twisted.logger import Logger, LogLevel

from scistream.logs import Tally
from scistream.wire.messages import MAX_REASON, MAX_RESETS, Cause, ResetReason, StreamKey

MOST_KEPT = 64
"""Reasons that are kept of one stream, all its channels together."""

_LEVELS = {"wan": LogLevel.warn, "gateway": LogLevel.warn}


@dataclass
class _Kept:
    """One reason of one channel."""

    count: int = 0
    last: float = 0.0


class Resets:
    """The reasons of one stream.

    :param clock: an `IReactorTime`.
    """

    log = Logger()

    def __init__(self, clock: Any, key: StreamKey) -> None:
        self._clock = clock
        self._uid, self._role = key
        self._kept: dict[tuple[int, Cause, str], _Kept] = {}
        self._tally: Tally[tuple[Cause, str]] = Tally(clock, self._log, ("gateway", "other reasons"))

    def add(self, channel: int, cause: Cause, reason: str, count: int = 1, peer: str = "") -> None:
        """So many connections of a channel were reset.

        :param reason: a sentence in which nothing is different for each connection.
        :param peer: where the last one came from, for the log alone.
        """
        reason = reason[:MAX_REASON]
        key = channel, cause, reason
        kept = self._kept.pop(key, None) or _Kept()
        if len(self._kept) >= MOST_KEPT:
            self._forget_one()
        self._kept[key] = kept  # at the end: they are in the order of their last time
        kept.count += count
        kept.last = self._clock.seconds()
        self._tally.add((cause, reason), count, f"; the last one came from {peer}" if peer else "")

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

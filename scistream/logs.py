"""What keeps the log short: failures that last, and events that others can cause without end.

Every party logs through `twisted.logger`, lines as events with fields. Nothing secret may be a field of an event.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from scistream import timing


class Lasting:
    """Logs the beginning and the end of a failure that may last, and not each time that it is met in between. A failure
    that comes and goes is logged once a minute.

    :param seconds: tells the time.
    """

    def __init__(self, log: Logger, seconds: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._seconds = seconds
        self._count = 0
        self._is_told = False
        self._quiet_until = 0.0

    def has_come(self, what: str) -> None:
        """Count a failure; log it if it has just begun."""
        self._count += 1
        now = self._seconds()
        if not self._is_told and (not self._quiet_until or now >= self._quiet_until):
            self._is_told, self._quiet_until = True, now + timing.TALLY
            self._log.error("{what}", what=what)

    def is_over(self, what: str) -> None:
        """Log the end of the failure, with its count; do nothing if there was none."""
        if self._is_told:
            self._log.info("{what}; times that it failed: {count}", what=what, count=self._count)
            self._is_told, self._count = False, 0


Key = TypeVar("Key", bound=Hashable)

MOST_COUNTED = 64
"""Keys that a `Tally` counts at the same time."""


@dataclass
class _Count:
    """How often it has happened, how often that was when it was told last, and what was said of the last time."""

    seen: int = 0
    told: int = 0
    last: str = ""
    is_quiet: bool = False


class Tally(Generic[Key]):
    """Counts what others can cause without end, and tells of it in few words: of each key the first, the tenth, the
    hundredth and so on, and once a minute what has come since. A key begins anew after a minute without any.

    :param clock: an `IReactorTime`.
    :param tell: called with a key, how many there were, and what was said of the last one.
    :param other: under which those are counted that come while there are as many keys as there may be.
    """

    def __init__(self, clock: Any, tell: Callable[[Key, int, str], None], other: Key) -> None:
        self._clock = clock
        self._other = other
        self._tell = tell
        self._counts: dict[Key, _Count] = {}
        self._timer: IDelayedCall | None = None

    def add(self, key: Key, number: int = 1, last: str = "") -> None:
        """It has happened so many times."""
        if key not in self._counts and len(self._counts) >= MOST_COUNTED:
            key = self._other
        count = self._counts.setdefault(key, _Count())
        count.seen += number
        count.last = last
        count.is_quiet = False
        if self._timer is None:
            self._timer = self._clock.callLater(timing.TALLY, self._minute)
        if not count.told or len(str(count.seen)) > len(str(count.told)):
            self._say(key, count)

    def stop(self) -> None:
        """Tell what is not told yet, and forget all."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._tell_rest()
        self._counts.clear()

    def _minute(self) -> None:
        self._timer = None
        self._tell_rest()
        self._counts = {key: count for key, count in self._counts.items() if not count.is_quiet}
        for count in self._counts.values():
            count.is_quiet = True
        if self._counts:
            self._timer = self._clock.callLater(timing.TALLY, self._minute)

    def _tell_rest(self) -> None:
        for key, count in list(self._counts.items()):
            if count.seen > count.told:
                self._say(key, count)

    def _say(self, key: Key, count: _Count) -> None:
        count.told = count.seen
        self._tell(key, count.seen, count.last)

"""Keep the log short: log a lasting failure once, and count events that peers can cause without limit.

Every party logs through `twisted.logger`, as events with fields. A field must not contain a secret.
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
    """Logs the beginning and the end of a lasting failure, but not each occurrence in between.

    A failure that comes and goes is logged once a minute.

    :param seconds: returns the time.
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
            self._log.info("{what}; failures before that: {count}", what=what, count=self._count)
            self._is_told, self._count = False, 0


Key = TypeVar("Key", bound=Hashable)

MOST_COUNTED = 64
"""How many keys a `Tally` counts at the same time."""


@dataclass
class _Count:
    """How many events there were, how many of them have been reported, and the detail of the last one."""

    seen: int = 0
    told: int = 0
    last: str = ""
    is_quiet: bool = False


class Tally(Generic[Key]):
    """Counts events that peers can cause without limit, and reports only some of them.

    For each key it reports the 1st, 10th, 100th event and so on, and once a minute those that came since. A minute
    without events resets a key.

    :param clock: an `IReactorTime`.
    :param tell: called with a key, the number of events, and the detail of the last one.
    :param other: the key for events with a new key while there are `MOST_COUNTED` already.
    """

    def __init__(self, clock: Any, tell: Callable[[Key, int, str], None], other: Key) -> None:
        self._clock = clock
        self._other = other
        self._tell = tell
        self._counts: dict[Key, _Count] = {}
        self._timer: IDelayedCall | None = None

    def add(self, key: Key, number: int = 1, last: str = "") -> None:
        """Count `number` events of `key`.

        :param last: the detail of the last one.
        """
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
        """Report everything that has not been reported, and reset all counts."""
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

"""Keep the log short: log a lasting failure once, and count events that peers can cause without limit.

Every party logs through `twisted.logger`, as events with fields. A field must not contain a secret.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger, LogLevel

from scistream import timing

shows_debug = False
"""Whether a daemon's log shows events of the level debug. Check it before you log many of them."""

covers_errors = False
"""Whether a daemon's log goes to the same place as its standard error, so that no line needs to go to both."""


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


# -- events

_OF_TWISTED = ("twisted.internet", "twisted.names", "twisted.protocols", "twisted.web", "log_legacy")
"""Twisted's own events about sockets and factories; events without a namespace are from its oldest parts."""
_INTERNAL = frozenset({"always", "message", "time", "system", "isError", "failure", "why", "format"})
"""Keys of events that are not fields: those of Twisted's older log, and `always`, which is ours."""


def fields_of(event: Mapping[str, Any]) -> dict[str, str | int | float | bool]:
    """Return the fields of an event, apart from those of `twisted.logger` itself.

    Other objects than text, numbers and truth values are shown as the text of the event shows them, or not at all.
    """
    if event.get("log_namespace") == "log_legacy":
        return {}
    shown = event.get("log_format") or ""
    found: dict[str, str | int | float | bool] = {}
    for name, value in event.items():
        if name.startswith("log_") or name in _INTERNAL or value is None or value == "":
            continue
        if isinstance(value, str | bool | int | float):
            found[name] = value
        elif f"{{{name}}}" in shown:
            found[name] = str(value)
    return found


def level_of(event: Mapping[str, Any]) -> Any:
    """Return the level of an event; debug for what Twisted says about itself."""
    level = event.get("log_level") or LogLevel.info
    if level == LogLevel.info and str(event.get("log_namespace", "log_legacy")).startswith(_OF_TWISTED):
        return LogLevel.debug
    return level

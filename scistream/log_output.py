"""The log of a daemon: lines for people, lines of JSON, or entries of the systemd journal.

An event of `twisted.logger` has a level, a text, and fields such as `party`, `uid`, `role`, `peer` and `state`.
Events of Twisted itself that say nothing about streams are shown at the level debug only.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, cast

from twisted.logger import (
    ILogObserver,
    LegacyLogObserverWrapper,
    Logger,
    LogLevel,
    formatEvent,
    formatEventAsClassicLogText,
)
from twisted.python.logfile import LogFile
from zope.interface import implementer

from scistream import logs, timing
from scistream.config import ConfigError, SettingProblem
from scistream.logs import fields_of, level_of
from scistream.systemd.journal import JOURNAL, JournalSocket, field_name

LEVELS: dict[str, Any] = {
    "debug": LogLevel.debug,
    "info": LogLevel.info,
    "warning": LogLevel.warn,
    "error": LogLevel.error,
    "critical": LogLevel.critical,
}
FORMATS = ("auto", "text", "json", "journal")
RESERVED = frozenset({"time", "level", "message", "logger", "traceback"})
"""The keys of a line of JSON that are not fields of the event."""
_NAMES = {level: name for name, level in LEVELS.items()}
_PRIORITIES = {"debug": "7", "info": "6", "warning": "4", "error": "3", "critical": "2"}


class HasLogSettings(Protocol):
    """The settings of a daemon's log."""

    @property
    def log_format(self) -> str:
        """One of `FORMATS`."""

    @property
    def log_level(self) -> str:
        """One of `LEVELS`."""


def log_problems(settings: HasLogSettings) -> Iterator[SettingProblem]:
    """Yield the problems with the values."""
    for key, value, allowed in (
        ("log_format", settings.log_format, FORMATS),
        ("log_level", settings.log_level, tuple(LEVELS)),
    ):
        if value not in allowed:
            choices = ", ".join(f'"{one}"' for one in allowed)
            yield SettingProblem((key,), f"{value!r} is not a choice: write one of {choices}")


def text_of(event: Mapping[str, Any]) -> tuple[str, str]:
    """Return the text of an event, and the traceback of its failure or an empty string."""
    text = formatEvent(cast(Any, event))
    failure = event.get("log_failure")
    if failure is None:
        return text, ""
    return text or str(failure.value), failure.getTraceback()


def as_json(event: Mapping[str, Any], party: str) -> str:
    """Return an event as a line of JSON: time (RFC 3339, UTC), level, message, logger, and the fields of the event."""
    text, traceback = text_of(event)
    time = datetime.fromtimestamp(event["log_time"], UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    line: dict[str, Any] = {
        "time": time,
        "level": _NAMES[level_of(event)],
        "message": text,
        "logger": event.get("log_namespace", ""),
        "party": party,
    }
    for name, value in fields_of(event).items():
        is_finite = not isinstance(value, float) or value - value == 0.0
        line[f"{name}_" if name in RESERVED else name] = value if is_finite else str(value)
    if traceback:
        line["traceback"] = traceback
    return json.dumps(line)


def as_journal_entry(event: Mapping[str, Any], party: str) -> dict[str, str]:
    """Return an event as fields of the journal; the fields of the event begin with ``SCISTREAM_``."""
    text, traceback = text_of(event)
    fields = {"PARTY": party, "LOGGER": event.get("log_namespace", "")}
    fields |= {field_name(name): str(value) for name, value in fields_of(event).items()}
    return {
        "MESSAGE": f"{text}\n{traceback}".rstrip("\n") if traceback else text,
        "PRIORITY": _PRIORITIES[_NAMES[level_of(event)]],
        "SYSLOG_IDENTIFIER": party,
        **{field_name(f"SCISTREAM_{name}"): value for name, value in fields.items()},
    }


class Destination(Protocol):
    """A file, or a rotating file of Twisted."""

    def write(self, text: str, /) -> object:
        """Write text."""

    def flush(self) -> object:
        """Flush what was written."""


@implementer(ILogObserver)
class LogOutput:
    """Writes the log of a daemon, from a level on.

    :param party: the field `party` of each line that has none of its own.
    :param settings: the checked settings.
    :param destination: opens the file to which text and JSON go; None: to standard output.
    :param syslog: takes all events instead, in the text format only.
    :param errors: the descriptor of standard error.
    :raises ConfigError: if the format is not possible here.
    """

    log = Logger()

    def __init__(
        self,
        party: str,
        settings: HasLogSettings,
        destination: Callable[[], Destination] | None = None,
        syslog: Callable[[dict[str, Any]], None] | None = None,
        *,
        environ: Mapping[str, str] = os.environ,
        journal: Path = JOURNAL,
        errors: int = 2,
    ) -> None:
        self._party = party
        self._open = destination
        self._destination: Destination = sys.stdout
        self._syslog = LegacyLogObserverWrapper(cast(Any, syslog)) if syslog is not None else None
        self._journal_address = journal
        self._errors = errors
        self._stream = environ.get("JOURNAL_STREAM", "")
        self._journal: JournalSocket | None = None
        self._write = self._write_text
        self._level = LogLevel.info
        self.prepare(settings)()

    @property
    def level(self) -> str:
        """The level from which on events are shown."""
        return _NAMES[self._level]

    def begin(self) -> LogOutput:
        """Open the file, and return this output. Events may come from now on.

        :raises OSError: if the file cannot be opened.
        """
        if self._open is not None:
            self._destination = self._open()
        logs.covers_errors = self._covers_errors()
        return self

    def _covers_errors(self) -> bool:
        """Return True if the log and standard error are the same terminal, file or journal."""
        if self._journal is not None:
            return self._errors_are_journal()
        try:
            place = self._destination.fileno()  # type: ignore[attr-defined]
            return os.path.samestat(os.fstat(place), os.fstat(self._errors))
        except (AttributeError, OSError, ValueError):
            return False

    def prepare(self, settings: HasLogSettings) -> Callable[[], None]:
        """Return a function that applies the settings and cannot fail.

        :raises ConfigError: if the format is not possible here.
        """
        format_ = settings.log_format
        journal: JournalSocket | None = None
        if self._syslog is not None:
            if format_ not in ("auto", "text"):
                raise ConfigError(f"log_format: {format_!r} is not possible with `twistd --syslog`: remove either")
        elif format_ == "journal" or (format_ == "auto" and self._open is None and self._errors_are_journal()):
            journal = self._open_journal(required=format_ == "journal")
        write = self._write_text if journal is None else self._write_journal
        if format_ == "json":
            write = self._write_json

        def apply() -> None:
            before, self._journal = self._journal, journal
            if before is not None:
                before.close()
            self._write = write
            self._set_level(LEVELS[settings.log_level])

        return apply

    def _open_journal(self, *, required: bool) -> JournalSocket | None:
        try:
            return JournalSocket(self._journal_address, timing.JOURNAL)
        except OSError as problem:
            if not required:
                return None
            raise ConfigError(
                f"log_format: there is no journal at {self._journal_address} ({problem.strerror}): write 'text' or "
                "'json' in place of 'journal'"
            ) from None

    def _errors_are_journal(self) -> bool:
        """Return True if systemd has connected standard error to the journal, whose inode JOURNAL_STREAM has."""
        try:
            found = os.fstat(self._errors)
        except OSError:
            return False
        return self._stream == f"{found.st_dev}:{found.st_ino}"

    def reopen(self) -> None:
        """Open the file of the log again, if it is one, because it may have been moved away."""
        if isinstance(self._destination, LogFile):
            self._destination.reopen()

    def more(self) -> None:
        """Show events of the next lower level, too."""
        self._step(-1)

    def less(self) -> None:
        """Show no events of the lowest level that is shown now."""
        self._step(1)

    def _step(self, step: int) -> None:
        levels = list(LEVELS.values())
        self._set_level(levels[min(max(levels.index(self._level) + step, 0), len(levels) - 1)])
        self.log.info("the log level is now {shown_from}", shown_from=self.level, always=True)

    def _set_level(self, level: Any) -> None:
        self._level = level
        logs.shows_debug = level == LogLevel.debug

    def __call__(self, event: Any) -> None:
        """Write an event, if its level is shown."""
        if level_of(event) >= self._level or event.get("always"):
            self._write(event)

    def _write_text(self, event: Any) -> None:
        if self._syslog is not None:
            self._syslog(event)
            return
        text = formatEventAsClassicLogText(event)
        if text:
            self._put(text)

    def _write_json(self, event: Any) -> None:
        self._put(as_json(event, self._party) + "\n")

    def _write_journal(self, event: Any) -> None:
        assert self._journal is not None
        try:
            self._journal.send(as_journal_entry(event, self._party))
        except OSError:  # no line is lost: standard output leads to the journal as well, or to a file
            self._write_text(event)

    def _put(self, text: str) -> None:
        self._destination.write(text)
        self._destination.flush()

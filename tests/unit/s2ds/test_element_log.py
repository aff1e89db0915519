"""Lines of an element in the log of its gateway."""

from __future__ import annotations

from typing import Any, cast

from twisted.internet.task import Clock
from twisted.logger import Logger, LogLevel, LogPublisher, globalLogPublisher

from scistream.logs import fields_of
from scistream.s2ds.elements.commands import LogLine, encode
from scistream.s2ds.elements.process import CommandLink
from scistream.s2ds.elements.worker import MOST_TEXT, log_line


def events_of(line: LogLine) -> list[Any]:
    """Return what the gateway logs when its element 3 sends a line."""
    found: list[Any] = []

    def ignore(*_: object) -> None:
        pass

    link = CommandLink(Clock(), 3, lambda: 0.0, ignore, ignore, ignore, ignore)
    globalLogPublisher.addObserver(cast(Any, found.append))
    try:
        link.lineReceived(encode(line))
    finally:
        globalLogPublisher.removeObserver(cast(Any, found.append))
    return found


def said(level: LogLevel, text: str, **fields: Any) -> LogLine | None:
    """Return the line that an element sends for an event."""
    events: list[Any] = []
    Logger("scistream.here", observer=LogPublisher(cast(Any, events.append))).emit(level, text, **fields)
    return log_line(events[0])


def test_a_line_of_an_element_keeps_its_level_and_fields() -> None:
    line = said(LogLevel.warn, "uid={uid} {reason}", uid="u-1", role="PROD", reason="refused", number=9)
    assert line is not None
    (event,) = events_of(line)
    assert event["log_level"] == LogLevel.warn
    shown = {"text": "uid=u-1 refused", "uid": "u-1", "role": "PROD", "reason": "refused", "number": 3}
    assert fields_of(event) == shown, "the number is that of the element"


def test_only_lines_for_operators_are_sent_and_they_are_bounded() -> None:
    assert said(LogLevel.debug, "a detail") is None
    long = said(LogLevel.info, "{value}", value="x" * 100_000, **{f"field_{number}": number for number in range(100)})
    assert long is not None
    assert len(encode(long)) < 3 * MOST_TEXT

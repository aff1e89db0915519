"""What the log gets while a test runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from twisted.logger import LogLevel, formatEvent, globalLogPublisher


@contextmanager
def logged() -> Iterator[list[str]]:
    """The lines that a log has got meanwhile, those for debugging left out."""
    lines: list[str] = []

    def observe(event: Any) -> None:
        if event.get("log_level", LogLevel.info) >= LogLevel.info:
            lines.append(formatEvent(event))

    globalLogPublisher.addObserver(cast(Any, observe))
    try:
        yield lines
    finally:
        globalLogPublisher.removeObserver(cast(Any, observe))

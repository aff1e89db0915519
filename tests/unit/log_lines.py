"""The lines that are logged while a test runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from twisted.logger import formatEvent, globalLogPublisher


@contextmanager
def logged() -> Iterator[list[str]]:
    """Yield the lines logged meanwhile, of any level, as twistd writes them."""
    lines: list[str] = []

    def observe(event: Any) -> None:
        lines.append(formatEvent(event))

    globalLogPublisher.addObserver(cast(Any, observe))
    try:
        yield lines
    finally:
        globalLogPublisher.removeObserver(cast(Any, observe))

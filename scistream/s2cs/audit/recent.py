"""The latest refusals and ends of streams, in memory, for the status page."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from scistream.s2cs.audit.events import BadLineEvent, EndEvent, Event, LinkRefusedEvent, RefusedEvent

MOST_RECENT = 200
"""Refusals that are kept, and ends of streams."""

RefusalEvent = RefusedEvent | BadLineEvent | LinkRefusedEvent


class RecentEvents:
    """The latest refusals and ends since the server started, each with its number in the order in which they came."""

    def __init__(self) -> None:
        self.count = 0
        self._refusals: deque[tuple[int, RefusalEvent]] = deque(maxlen=MOST_RECENT)
        self._ends: deque[tuple[int, EndEvent]] = deque(maxlen=MOST_RECENT)

    def note(self, event: Event) -> None:
        """Keep a line of the audit trail if it is a refusal or an end."""
        if isinstance(event, RefusedEvent | BadLineEvent | LinkRefusedEvent):
            self.count += 1
            self._refusals.append((self.count, event))
        elif isinstance(event, EndEvent):
            self.count += 1
            self._ends.append((self.count, event))

    def refusals(self, after: int = 0) -> Iterator[tuple[int, RefusalEvent]]:
        """Yield the refusals with higher numbers than `after`, newest first."""
        for number, event in reversed(self._refusals):
            if number <= after:
                return
            yield number, event

    def ends(self, after: int = 0) -> Iterator[tuple[int, EndEvent]]:
        """Yield the ends with higher numbers than `after`, newest first."""
        for number, event in reversed(self._ends):
            if number <= after:
                return
            yield number, event

"""Releases of streams that nobody has asked for. Each may have overtaken its request on the way, which must be refused
when it comes, so an S2CS keeps a record of it; and anybody with a certificate can send any number of them, so there is
a limit for each owner. Beyond it the oldest one goes: its request, if there was one, has come long since, while that of
the newest may still be on its way. No I/O.
"""

from __future__ import annotations

from scistream.s2cs.record import Record
from scistream.wire.messages import StreamKey

MOST_OF_ONE_OWNER = 100


class EarlyReleases:
    """Those that are remembered, by owner."""

    def __init__(self) -> None:
        self._of: dict[str, dict[StreamKey, None]] = {}  # the oldest first

    def add(self, record: Record) -> StreamKey | None:
        """One more, if it is such a record; gives the one that has to be forgotten for it, if any."""
        if record.state != "Released" or record.request is not None:
            return None
        mine = self._of.setdefault(record.owner, {})
        mine[record.key] = None
        if len(mine) <= MOST_OF_ONE_OWNER:
            return None
        oldest = next(iter(mine))
        del mine[oldest]
        return oldest

    def forget(self, record: Record) -> None:
        """One less, if it is there."""
        mine = self._of.get(record.owner, {})
        mine.pop(record.key, None)
        if not mine:
            self._of.pop(record.owner, None)

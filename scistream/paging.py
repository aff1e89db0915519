"""The order of streams on the pages of Status: by uid and role, kept sorted so that a page needs no full scan."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator

from scistream.protocol.messages import CONS, PROD, StreamKey


def page_key(key: StreamKey) -> str:
    """Return the text by which a stream is sorted, and which marks the end of a page."""
    uid, role = key
    return f"{uid}/{role}"


class PageOrder:
    """The keys of some streams, in the order of their pages."""

    def __init__(self) -> None:
        self._keys: list[str] = []

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, key: StreamKey) -> None:
        """Add a stream, which must not be present."""
        insort(self._keys, page_key(key))

    def remove(self, key: StreamKey) -> None:
        """Remove a stream, which must be present."""
        del self._keys[bisect_left(self._keys, page_key(key))]

    def after(self, last: str) -> Iterator[StreamKey]:
        """Yield the streams after the one whose page key is `last`; all of them after the empty text."""
        for at in range(bisect_right(self._keys, last), len(self._keys)):
            uid, _, role = self._keys[at].partition("/")
            yield uid, PROD if role == PROD else CONS

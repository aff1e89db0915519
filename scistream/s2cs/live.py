"""The live streams of an S2CS, found by key, owner, link or page, without a look at all the others."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator

from scistream.s2cs.effects import Held
from scistream.wire.line import Link
from scistream.wire.messages import PROD, StreamKey


class LiveStreams(dict[StreamKey, Held]):
    """The live streams by key. They are put in by `add` and taken out by `remove`, and in no other way."""

    def __init__(self, streams: Iterable[Held] = ()) -> None:
        super().__init__()
        self._of_owner: dict[str, dict[StreamKey, Held]] = {}
        self._of_link: dict[Link, dict[StreamKey, Held]] = {}
        self._links: dict[StreamKey, set[Link]] = {}
        self._pages: list[str] = []
        for held in streams:
            self.add(held)

    def add(self, held: Held) -> None:
        """A stream has begun."""
        key = held.record.key
        self[key] = held
        self._of_owner.setdefault(held.record.owner, {})[key] = held
        insort(self._pages, held.page_key)

    def remove(self, held: Held) -> None:
        """A stream is over. One that is not here, or whose key another one has now, changes nothing."""
        key, owner = held.record.key, held.record.owner
        if self.get(key) is not held:
            return
        del self[key]
        del self._of_owner[owner][key]
        if not self._of_owner[owner]:
            del self._of_owner[owner]
        del self._pages[bisect_left(self._pages, held.page_key)]
        for link in self._links.pop(key, ()):
            del self._of_link[link][key]

    # -- who is concerned

    def of_owner(self, owner: str) -> list[Held]:
        """The streams of an owner, in the order of their pages."""
        return sorted(self._of_owner.get(owner, {}).values(), key=lambda held: held.page_key)

    def after(self, page_key: str) -> Iterator[Held]:
        """All streams that come after a key, in the order of their pages."""
        for at in range(bisect_right(self._pages, page_key), len(self._pages)):
            uid, _, role = self._pages[at].partition("/")
            yield self[uid, PROD if role == PROD else "CONS"]

    def note_link(self, held: Held, link: Link) -> None:
        """Somebody speaks of a stream on a link."""
        key = held.record.key
        if self.get(key) is held:
            self._links.setdefault(key, set()).add(link)
            self._of_link.setdefault(link, {})[key] = held

    def of_link(self, link: Link) -> list[Held]:
        """The streams that somebody has spoken of on a link."""
        return list(self._of_link.get(link, {}).values())

    def forget_link(self, link: Link) -> None:
        """A link is down."""
        for key in self._of_link.pop(link, {}):
            self._links[key].discard(link)

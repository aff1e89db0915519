"""Hellos with a wrong key: counted, and answered late where there are many.

Counted are those from one address and those for one stream. Late is the answer to a wrong one alone: a right key is
answered at once, from wherever it comes, so nobody can shut an application out by guessing at its stream. A uid that
nobody has asked for is treated just as a wrong key is, so that the two cannot be told apart.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from twisted.internet.interfaces import IDelayedCall

from scistream import timing
from scistream.links.admission import DecayingCounter, doubling, place_of
from scistream.links.link import Link
from scistream.protocol.messages import Hello

AT_ONCE = 3
"""So many wrong ones are answered at once."""
MOST_COUNTS = 10_000

_HIGHEST = 1000.0


class WrongKeys:
    """The wrong Hellos of one S2CS.

    :param reactor: an `IReactorTime`.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._counts: OrderedDict[tuple[str, ...], DecayingCounter] = OrderedDict()
        self._late: dict[Link, IDelayedCall] = {}

    def has(self, link: Link) -> bool:
        """Whether this link has said a wrong one, and waits for its answer."""
        return link in self._late

    def refuse(self, link: Link, hello: Hello, why: str) -> None:
        """Answer a wrong one, sooner or later, and close its link."""
        from_place = self._count("from", place_of(link.host))
        for_stream = self._count("for", hello.uid, hello.role)
        delay = doubling(
            timing.FIRST_WRONG_KEY, round(max(from_place, for_stream)) - AT_ONCE - 1, timing.LONGEST_WRONG_KEY
        )
        link.note(
            "refused a Hello with a wrong key",
            f"for {hello.uid} ({hello.role}); lately {round(from_place)} from that address were wrong, and "
            f"{round(for_stream)} for that stream; answered after {delay:g} s",
        )
        link.distrust("a Hello with a wrong key")
        if delay:
            self._late[link] = self._reactor.callLater(delay, self._answer, link, hello, why)
        else:
            self._answer(link, hello, why)

    def forget(self, link: Link) -> None:
        """The link is gone."""
        late = self._late.pop(link, None)
        if late is not None and late.active():
            late.cancel()

    def stop(self) -> None:
        """Answer no more."""
        for link in list(self._late):
            self.forget(link)

    def _answer(self, link: Link, hello: Hello, why: str) -> None:
        self._late.pop(link, None)
        link.refuse(hello, "not-authorized", why)
        link.close()

    def _count(self, *key: str) -> float:
        """One more; gives how many there were lately."""
        count = self._counts.setdefault(key, DecayingCounter())
        self._counts.move_to_end(key)
        if len(self._counts) > MOST_COUNTS:
            self._counts.popitem(last=False)
        return count.add(self._reactor.seconds(), _HIGHEST)

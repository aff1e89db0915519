"""Throttle Hellos with a wrong key: the more of them there are, the later they are answered.

Hellos with a wrong key are counted for each address and for each stream. A Hello with the right key is always answered
at once, so guessing keys cannot lock an application out. A Hello for an unknown uid is treated like one with a wrong
key, so that a client cannot tell the two apart.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from twisted.internet.interfaces import IDelayedCall

from scistream import timing
from scistream.links.admission import DecayingCounter, doubling
from scistream.links.link import Link
from scistream.protocol.address import address_group
from scistream.protocol.messages import Hello

AT_ONCE = 3
"""Hellos with a wrong key that are answered without a delay."""
MOST_COUNTS = 10_000

_HIGHEST = 1000.0


class WrongKeys:
    """The Hellos with a wrong key at one S2CS.

    :param reactor: an `IReactorTime`.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._counts: OrderedDict[tuple[str, ...], DecayingCounter] = OrderedDict()
        self._late: dict[Link, IDelayedCall] = {}

    def has(self, link: Link) -> bool:
        """Return True if this link has sent a wrong key and still waits for the answer."""
        return link in self._late

    def refuse(self, link: Link, hello: Hello, why: str) -> None:
        """Refuse a Hello with a wrong key and close its link, after a delay if there were many."""
        from_place = self._count("from", address_group(link.host))
        for_stream = self._count("for", hello.uid, hello.role)
        delay = doubling(
            timing.FIRST_WRONG_KEY, round(max(from_place, for_stream)) - AT_ONCE - 1, timing.LONGEST_WRONG_KEY
        )
        link.note(
            "refused a Hello with a wrong key",
            f"for {hello.uid} ({hello.role}); recent wrong keys: {round(from_place)} from that address, "
            f"{round(for_stream)} for that stream; answered after {delay:g} s",
        )
        link.record_failure("a Hello with a wrong key")
        if delay:
            self._late[link] = self._reactor.callLater(delay, self._answer, link, hello, why)
        else:
            self._answer(link, hello, why)

    def forget(self, link: Link) -> None:
        """Drop the answer to a link that is down."""
        late = self._late.pop(link, None)
        if late is not None and late.active():
            late.cancel()

    def stop(self) -> None:
        """Drop all answers that are still to be sent."""
        for link in list(self._late):
            self.forget(link)

    def _answer(self, link: Link, hello: Hello, why: str) -> None:
        self._late.pop(link, None)
        link.refuse(hello, "not-authorized", why)
        link.close()

    def _count(self, *key: str) -> float:
        """Count one more wrong key. Return how many there were recently, older ones counting less."""
        count = self._counts.setdefault(key, DecayingCounter())
        self._counts.move_to_end(key)
        if len(self._counts) > MOST_COUNTS:
            self._counts.popitem(last=False)
        return count.add(self._reactor.seconds(), _HIGHEST)

"""Requests that come before it is known what the gateways of the pool have to promise.

That is so for a moment after an S2CS is started, and while a gateway comes back. Such a request waits for a bounded
time, and there is a bound on how many wait.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

from twisted.internet.interfaces import IDelayedCall

from scistream import timing
from scistream.links.link import Link
from scistream.protocol.errors import StreamError
from scistream.protocol.messages import Req, Role
from scistream.s2cs.record import same_request

MOST_EARLY = 1000
"""Requests that wait at the same time."""
MOST_EARLY_OF_OWNER = 100
"""The same of one owner."""


class _Early(NamedTuple):
    """A request that waits, the link that it came from, and the timer that ends the wait."""

    link: Link
    request: Req
    over: IDelayedCall


class EarlyRequests:
    """The requests that wait, by owner and stream.

    :param reactor: an `IReactorTime`.
    :param go_on: is called once for each request, when all gateways are known or its time is over.
    """

    def __init__(self, reactor: Any, go_on: Callable[[Link, Req], None]) -> None:
        self._reactor = reactor
        self._go_on = go_on
        self._waiting: dict[tuple[str, str, Role], _Early] = {}
        self._of_owner: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, owner: str, link: Link, request: Req) -> tuple[Link, Req] | None:
        """Let a request wait; gives the command of the same owner and stream whose place it takes, which then needs an
        answer, unless the two are repetitions of each other.

        :raises StreamError: `no-capacity` if too many wait already.
        """
        key = owner, request.uid, request.role
        earlier = self._waiting.get(key)
        of_owner = self._of_owner[owner]
        if earlier is None and (of_owner >= MOST_EARLY_OF_OWNER or len(self._waiting) >= MOST_EARLY):
            raise StreamError(
                "no-capacity",
                f"this S2CS does not know its gateways yet, and {len(self._waiting)} requests wait for them, "
                f"{of_owner} of them yours: ask again in a few seconds",
            )
        # A repetition waits no longer than the first one would have.
        over = self._reactor.callLater(timing.EARLY_REQUEST, self._over, key) if earlier is None else earlier.over
        self._take(key)
        self._waiting[key] = _Early(link, request, over)
        self._of_owner[owner] += 1
        if earlier is None or not earlier.link.is_up or same_request(request, earlier.request):
            return None
        return earlier.link, earlier.request

    def go_on(self) -> None:
        """All gateways are known."""
        for key in list(self._waiting):
            self._over(key)

    def stop(self) -> None:
        """Let none of them go on."""
        for early in self._waiting.values():
            early.over.cancel()
        self._waiting = {}
        self._of_owner.clear()

    def _take(self, key: tuple[str, str, Role]) -> _Early | None:
        """Take out a request that waits, if it is there."""
        early = self._waiting.pop(key, None)
        if early is not None:
            self._of_owner[key[0]] -= 1
            if not self._of_owner[key[0]]:
                del self._of_owner[key[0]]
        return early

    def _over(self, key: tuple[str, str, Role]) -> None:
        early = self._take(key)
        assert early is not None, "its timer runs only while it waits"
        if early.over.active():
            early.over.cancel()
        self._go_on(early.link, early.request)

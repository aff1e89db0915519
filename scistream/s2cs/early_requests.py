"""Requests that arrive before the S2CS knows the capacity of all its gateways.

This happens for a moment after the S2CS starts, and while a gateway reconnects. Such requests wait for a limited time,
and only a limited number of them.
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
"""Requests that may wait at the same time."""
MOST_EARLY_OF_OWNER = 100
"""Requests of one owner that may wait at the same time."""


class _Early(NamedTuple):
    """A request that waits, the link that it came from, and the timer that ends the wait."""

    link: Link
    request: Req
    timer: IDelayedCall


class EarlyRequests:
    """The requests that wait, by owner and stream.

    :param reactor: an `IReactorTime`.
    :param go_on: called once for each request, when all gateways are known or its time to wait is over.
    """

    def __init__(self, reactor: Any, go_on: Callable[[Link, Req], None]) -> None:
        self._reactor = reactor
        self._go_on = go_on
        self._waiting: dict[tuple[str, str, Role], _Early] = {}
        self._of_owner: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, owner: str, link: Link, request: Req) -> tuple[Link, Req] | None:
        """Let a request wait, in place of an earlier one of the same owner for the same stream.

        Return that earlier request if it differs and still has a link: the caller must refuse it.

        :raises StreamError: `no-capacity` if too many requests already wait.
        """
        key = owner, request.uid, request.role
        earlier = self._waiting.get(key)
        of_owner = self._of_owner[owner]
        if earlier is None and (of_owner >= MOST_EARLY_OF_OWNER or len(self._waiting) >= MOST_EARLY):
            raise StreamError(
                "no-capacity",
                f"this S2CS is still waiting for its gateways, and so are {len(self._waiting)} requests, "
                f"{of_owner} of them yours: try again in a few seconds",
            )
        # A repetition keeps the deadline of the first request.
        timer = self._reactor.callLater(timing.EARLY_REQUEST, self._over, key) if earlier is None else earlier.timer
        self._take(key)
        self._waiting[key] = _Early(link, request, timer)
        self._of_owner[owner] += 1
        if earlier is None or not earlier.link.is_up or same_request(request, earlier.request):
            return None
        return earlier.link, earlier.request

    def go_on(self) -> None:
        """Let all requests go on, because all gateways are known."""
        for key in list(self._waiting):
            self._over(key)

    def stop(self) -> None:
        """Drop all requests."""
        for early in self._waiting.values():
            early.timer.cancel()
        self._waiting = {}
        self._of_owner.clear()

    def _take(self, key: tuple[str, str, Role]) -> _Early | None:
        """Remove and return a request that waits, or return None if there is none."""
        early = self._waiting.pop(key, None)
        if early is not None:
            self._of_owner[key[0]] -= 1
            if not self._of_owner[key[0]]:
                del self._of_owner[key[0]]
        return early

    def _over(self, key: tuple[str, str, Role]) -> None:
        early = self._take(key)
        assert early is not None, "the timer of a request runs only while the request waits"
        if early.timer.active():
            early.timer.cancel()
        self._go_on(early.link, early.request)

"""The wait of a channel's connections for a ProdApp that does not listen yet."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall


class ProdAppStart:
    """The start of a ProdApp, for which all connections to one target wait together, and only once.

    Connections that are refused may wait. One at a time tries again. When one succeeds, all others go on; when the time
    is up, all of them fail, and later connections do not wait.
    """

    def __init__(self) -> None:
        self._until: float | None = None
        self._timer: IDelayedCall | None = None
        self._waiting: dict[Deferred[bool], None] = {}

    def wait(self, reactor: Any, again: float, timeout: float) -> Deferred[bool]:
        """Fire with True when the caller should try again, with False when the time is up. Cancelling stops the wait.

        :param reactor: an `IReactorTime`.
        :param again: the seconds between two tries.
        :param timeout: the seconds for all tries together, from the first refused connection.
        """
        now = reactor.seconds()
        if self._until is None:
            self._until = now + timeout
        waits: Deferred[bool] = Deferred(self._leave)
        self._waiting[waits] = None
        if now + again > self._until:
            self._go(worthwhile=False)
        elif self._timer is None:
            self._timer = reactor.callLater(again, self._try, reactor, again)
        return waits

    def finish(self) -> None:
        """Let all waiting connections try again, since ProdApp listens."""
        self._go(worthwhile=True)

    def _try(self, reactor: Any, again: float) -> None:
        first = next(iter(self._waiting))
        del self._waiting[first]
        # Do not wait for the result of this try: its connection may end before it is known.
        self._timer = reactor.callLater(again, self._try, reactor, again) if self._waiting else None
        first.callback(True)

    def _go(self, *, worthwhile: bool) -> None:
        self._stop()
        waiting, self._waiting = self._waiting, {}
        for one in waiting:
            one.callback(worthwhile)

    def _leave(self, waits: Deferred[bool]) -> None:
        self._waiting.pop(waits, None)
        if not self._waiting:
            self._stop()

    def _stop(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

"""How long connections wait for a ProdApp that does not listen yet: all those of a channel together, and once."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall


class WorkerStart:
    """The start of a ProdApp, as the connections to one target see it.

    Whoever is refused may wait. Of those who wait one at a time tries again; the others go on when that one gets in,
    and are refused with it when the time is up. From then on nobody waits any more.
    """

    def __init__(self) -> None:
        self._until: float | None = None
        self._timer: IDelayedCall | None = None
        self._waiting: dict[Deferred[bool], None] = {}

    def wait(self, reactor: Any, again: float, timeout: float) -> Deferred[bool]:
        """Fires with True when it is worth another try, with False when it is not. Cancelling it is leaving.

        :param reactor: an `IReactorTime`.
        :param again: seconds between two tries.
        :param timeout: seconds that all may take, from the first that was refused.
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

    def over(self) -> None:
        """It listens."""
        self._go(worthwhile=True)

    def _try(self, reactor: Any, again: float) -> None:
        first = next(iter(self._waiting))
        del self._waiting[first]
        # The next one tries after that in any case: the first may be gone before it is answered.
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

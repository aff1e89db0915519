"""The drain of a gateway that is about to stop: it takes no new streams, and waits for those that it has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall

from scistream import timing
from scistream.links.outbox import cancel_call
from scistream.units import spoken_seconds


class GatewayDrain:
    """Whether a gateway is about to stop, and when.

    :param reactor: for time.
    :param live: returns the number of streams that are not released.
    """

    def __init__(self, reactor: Any, live: Callable[[], int]) -> None:
        self._reactor = reactor
        self._live = live
        self._ends_at: float | None = None
        self._timer: IDelayedCall | None = None
        self._stopped: Deferred[None] | None = None

    @property
    def seconds_left(self) -> float | None:
        """The seconds after which the streams that are left end; None if the gateway is not about to stop."""
        return None if self._ends_at is None else max(0.0, self._ends_at - self._reactor.seconds())

    @property
    def refusal(self) -> str:
        """A sentence for whoever asks for a new stream."""
        return f"it is about to stop, in {spoken_seconds(self.seconds_left or 0.0)} at the latest: try again later"

    def begin(self, grace: float) -> Deferred[None]:
        """Take no new streams; fire when no stream is left, or soon after `grace` seconds.

        The S2CS gets a moment at the end to release the streams that are left, so that their users learn why.
        """
        if grace <= 0 or not self._live():
            return succeed(None)
        self._ends_at = self._reactor.seconds() + grace
        self._stopped = Deferred()
        self._timer = self._reactor.callLater(grace + timing.DRAIN_FAREWELL, self._stop)
        return self._stopped

    def streams_changed(self) -> None:
        """Note that a stream has ended. The answer to its release is sent before the gateway stops."""
        if self._stopped is not None and not self._live():
            self._reactor.callLater(0.0, self._stop)

    def cancel(self) -> None:
        """Stop the timer."""
        cancel_call(self._timer)
        self._stopped = None

    def _stop(self) -> None:
        cancel_call(self._timer)
        stopped, self._stopped = self._stopped, None
        if stopped is not None:
            stopped.callback(None)

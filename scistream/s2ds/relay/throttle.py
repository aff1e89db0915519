"""One direction of one stream: its rate, and whose turn it is when the rate is used up."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from scistream.s2ds.relay.token_bucket import TokenBucket


class Throttle:
    """Hands out a bucket's bytes to many connections; those that must wait are served in turn, by one timer.

    :param reactor: an `IReactorTime`.
    :param tell_busy: hears how many connections wait, so that those on other elements get no more and no less.
    """

    def __init__(
        self, reactor: Any, bucket: TokenBucket, tell_busy: Callable[[int], None] = lambda _count: None
    ) -> None:
        self._reactor = reactor
        self._tell_busy = tell_busy
        self._bucket = bucket
        self._waiting: deque[Callable[[], None]] = deque()
        self._timer: Any = None
        self._serving = False
        self._its_turn = False  # who is served may take once, while others wait

    def take(self, wanted: int) -> int:
        """How many bytes may go now. 0: `wait`, and be called when it is worth asking again."""
        if self._waiting:
            if not self._its_turn:
                return 0  # others were first
            self._its_turn = False
        return self._bucket.take(wanted)

    def give_back(self, unused: int) -> None:
        """Return bytes that were taken and did not go."""
        self._bucket.give_back(unused)

    def wait(self, resume: Callable[[], None]) -> None:
        """Call `resume` once, in turn. The caller does not wait twice."""
        self._waiting.append(resume)
        if not self._serving:
            self._tell_busy(len(self._waiting))
        if self._timer is None and not self._serving:
            self._timer = self._reactor.callLater(self._bucket.wait(), self._serve)

    def stop(self) -> None:
        """Forget who waits."""
        self._waiting.clear()
        self._tell_busy(0)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _serve(self) -> None:
        self._timer = None
        self._serving = True
        try:
            # Each that waits now is served at most once; one that takes all leaves the rest their turn.
            for _ in range(len(self._waiting)):
                if not self._waiting or self._bucket.wait() > 0:
                    break
                self._its_turn = True
                self._waiting.popleft()()
        finally:
            self._serving = self._its_turn = False
            self._tell_busy(len(self._waiting))
            if self._waiting:
                self._timer = self._reactor.callLater(self._bucket.wait(), self._serve)

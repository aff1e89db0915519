"""The rate limit of one direction of a stream, shared fairly by its connections."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from scistream.s2ds.relay.token_bucket import TokenBucket


class Throttle:
    """A throttle that gives the tokens of a bucket to many connections; waiting ones are served in turn by one timer.

    :param reactor: an `IReactorTime`.
    :param tell_busy: called with the number of waiting connections, so that elements can share the rate fairly.
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
        self._its_turn = False  # the connection being served may take tokens once although others wait

    @property
    def turn(self) -> int:
        """The bytes that a connection may take at once: a few milliseconds of the stream's rate."""
        return self._bucket.turn

    def take(self, wanted: int) -> int:
        """Return how many of `wanted` bytes may be sent now. After 0, call `wait`."""
        if self._waiting and not self._its_turn:
            return 0  # others wait already
        granted = self._bucket.take(wanted)
        if granted:
            self._its_turn = False
        return granted

    def give_back(self, unused: int) -> None:
        """Return bytes that were taken and not sent."""
        self._bucket.give_back(unused)

    def wait(self, resume: Callable[[], None]) -> None:
        """Call `resume` once, in turn. The caller must not be waiting already."""
        if self._its_turn:  # it got nothing: another element has locked the tokens, or was faster
            self._its_turn = False
            self._waiting.appendleft(resume)
        else:
            self._waiting.append(resume)
        if not self._serving:
            self._tell_busy(len(self._waiting))
        if self._timer is None and not self._serving:
            self._timer = self._reactor.callLater(self._bucket.wait(), self._serve)

    def stop(self) -> None:
        """Resume none of the waiting connections."""
        self._waiting.clear()
        self._tell_busy(0)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _serve(self) -> None:
        self._timer = None
        self._serving = True
        try:
            # Serve each waiting connection at most once; if one takes all tokens, the others keep their place.
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

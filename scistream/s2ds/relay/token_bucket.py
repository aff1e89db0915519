"""A token bucket, of one process or shared by several."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from scistream import timing
from scistream.s2ds.settings import OWNER_SHARE

BYTES_PER_MBIT = 125_000
"""One Mbit/s is this many bytes a second."""

LEAST_BURST = 256 * 1024
LEAST_TURN = 1024
"""A connection that waits for a stream's rate gets `timing.RATE_TURN` of it at a time, or at least so many bytes."""


@dataclass(frozen=True)
class SharedTokenStore:
    """What the streams of a gateway share.

    :param half_open: connections of one channel that are not joined to the other side yet, at most.
    :param connections: of all streams together, at most; 0: as many as there are descriptors for.
    :param unread: bytes of all streams together that wait in the gateway and its sockets; 0: without a bound.
    :param owner_share: percent of the connections, and of the unread bytes, that the streams of one user have together
        at most.
    """

    half_open: int = 64
    connections: int = 0
    unread: int = 0
    owner_share: int = OWNER_SHARE


class TokenStore(Protocol):
    """Where the tokens of a bucket are kept. Several processes may share them."""

    def lock(self) -> bool:
        """Keep others out until `unlock`; False if one of them is in."""

    def unlock(self) -> None:
        """Let others in."""

    def get(self) -> tuple[float, float]:
        """How many tokens there were, and when; 0 and 0 at the very first."""

    def put(self, count: float, when: float) -> None:
        """Keep these."""


class PrivateTokenStore:
    """The store of a bucket that one process has for itself."""

    def __init__(self) -> None:
        self._kept = 0.0, 0.0

    def lock(self) -> bool:
        return True

    def unlock(self) -> None:
        """There are no others."""

    def get(self) -> tuple[float, float]:
        return self._kept

    def put(self, count: float, when: float) -> None:
        self._kept = count, when


class TokenBucket:
    """A token bucket over application bytes: one direction of one stream, shared by all its connections.

    What was taken and given back is kept here and serves the next, so that little messages cost no lock.

    :param rate: Mbit/s.
    :param clock: seconds on a clock that is never set back, the same for all who share the store.
    :param store: shared with the buckets of the same stream and direction in other elements.
    :param share: the part of the rate, above 0 and up to 1, that is this bucket's while others ask for it as well.
    """

    def __init__(
        self,
        rate: float,
        clock: Callable[[], float],
        store: TokenStore | None = None,
        share: Callable[[], float] = lambda: 1.0,
    ) -> None:
        self._speed = rate * BYTES_PER_MBIT
        self._burst = max(LEAST_BURST, self._speed * timing.RATE_BURST)
        self._turn = int(min(self._burst, max(LEAST_TURN, self._speed * timing.RATE_TURN)))
        self._clock = clock
        self._store = store if store is not None else PrivateTokenStore()
        self._share = share
        self._own = 0.0  # what is this bucket's, of what all share
        self._own_at = clock()
        self._spare = 0

    def take(self, wanted: int) -> int:
        """How many of `wanted` bytes may go now: a turn at most, 0 rather than a crumb. Give back what is not used."""
        wanted = min(wanted, self._turn)
        if self._spare < wanted:
            self._spare += self._draw(wanted - self._spare)
            if self._spare < wanted:
                return 0
        granted = min(wanted, self._spare)
        self._spare -= granted
        return granted

    def give_back(self, unused: int) -> None:
        """Return bytes that were taken and did not go."""
        self._spare += unused

    def wait(self) -> float:
        """Seconds until it is worth asking again; 0.0 when it is now."""
        now, needed = self._clock(), self._turn - self._spare
        missing, speed = needed - self._tokens(now), self._speed
        share = self._share()
        if share < 1.0 and needed - self._owned(now, share) > missing:
            missing, speed = needed - self._owned(now, share), speed * share
        return max(missing / speed, timing.LEAST_WAIT) if missing > 0 else 0.0

    def _draw(self, wanted: int) -> int:
        if not self._store.lock():
            return 0  # asked again soon: nobody is in for long
        try:
            now, share = self._clock(), self._share()
            tokens = self._tokens(now)
            self._own, self._own_at = self._owned(now, share), now
            allowed = min(tokens, self._own) if share < 1.0 else tokens
            granted = min(wanted, int(allowed)) if allowed + self._spare >= self._turn else 0
            self._own -= granted
            self._store.put(tokens - granted, now)
        finally:
            self._store.unlock()
        return granted

    def _owned(self, now: float, share: float) -> float:
        """What is this bucket's, and little more than a turn: what it leaves is for the others."""
        return min(2.0 * self._turn, max(0.0, self._own) + (now - self._own_at) * self._speed * share)

    def _tokens(self, now: float) -> float:
        tokens, counted_at = self._store.get()
        if not counted_at:
            return self._burst
        return min(self._burst, tokens + (now - counted_at) * self._speed)

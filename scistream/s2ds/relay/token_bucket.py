"""A token bucket, of one process or shared by several."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from scistream import timing

BYTES_PER_MBIT = 125_000
"""One Mbit/s is this many bytes a second."""

LEAST_BURST = 256 * 1024
LEAST_TURN = 1024
"""The least number of bytes in one turn of a connection that waits for its stream's rate: see `timing.RATE_TURN`."""


class TokenStore(Protocol):
    """The tokens of a bucket, which several processes may share."""

    def lock(self) -> bool:
        """Take the lock until `unlock`. Return False if another process holds it."""

    def unlock(self) -> None:
        """Release the lock."""

    def get(self) -> tuple[float, float]:
        """Return the number of tokens and the time at which they were counted; both are 0 before the first `put`."""

    def put(self, count: float, when: float) -> None:
        """Store the number of tokens and the time at which they were counted."""


class PrivateTokenStore:
    """The store of a bucket that only one process uses."""

    def __init__(self) -> None:
        self._kept = 0.0, 0.0

    def lock(self) -> bool:
        """Return True: no other process uses this store."""
        return True

    def unlock(self) -> None:
        """Do nothing."""

    def get(self) -> tuple[float, float]:
        """Return the number of tokens and the time at which they were counted."""
        return self._kept

    def put(self, count: float, when: float) -> None:
        """Store the number of tokens and the time at which they were counted."""
        self._kept = count, when


class TokenBucket:
    """A token bucket over application bytes: one direction of one stream, shared by all its connections.

    Tokens that were taken and given back are kept here for the next caller, so that small messages need no lock.

    :param rate: Mbit/s.
    :param clock: returns seconds of a monotonic clock, the same for all users of the store.
    :param store: shared with the buckets of the same stream and direction in other elements.
    :param share: returns the part of the rate, above 0 and up to 1, that this bucket may use while others use it too.
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
        self._own = 0.0  # tokens that this bucket may take while others use the store
        self._own_at = clock()
        self._spare = 0

    def take(self, wanted: int) -> int:
        """Return how many of `wanted` bytes may be sent now: one turn at most, or 0 if less than a turn is available.

        Call `give_back` with the bytes that were not sent.
        """
        wanted = min(wanted, self._turn)
        if self._spare < wanted:
            self._spare += self._draw(wanted - self._spare)
            if self._spare < wanted:
                return 0
        granted = min(wanted, self._spare)
        self._spare -= granted
        return granted

    def give_back(self, unused: int) -> None:
        """Return bytes that were taken and not sent."""
        self._spare += unused

    def wait(self) -> float:
        """Return the seconds until a turn is available; 0.0 if it is available now."""
        now, needed = self._clock(), self._turn - self._spare
        missing, speed = needed - self._tokens(now), self._speed
        share = self._share()
        if share < 1.0 and needed - self._owned(now, share) > missing:
            missing, speed = needed - self._owned(now, share), speed * share
        return max(missing / speed, timing.LEAST_WAIT) if missing > 0 else 0.0

    def _draw(self, wanted: int) -> int:
        if not self._store.lock():
            return 0  # the caller tries again soon: the lock is never held for long
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
        """Return the tokens that this bucket may take, two turns at most: the others may use the rest."""
        return min(2.0 * self._turn, max(0.0, self._own) + (now - self._own_at) * self._speed * share)

    def _tokens(self, now: float) -> float:
        tokens, counted_at = self._store.get()
        if not counted_at:
            return self._burst
        return min(self._burst, tokens + (now - counted_at) * self._speed)

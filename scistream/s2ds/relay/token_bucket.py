"""A token bucket, of one process or shared by several."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from scistream import timing

BYTES_PER_MBIT = 125_000
"""One Mbit/s is this many bytes a second."""

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

    In any time t it lets through t x rate + `timing.RATE_BURST` x rate at most, over all buckets of one store together.
    Tokens that were taken and given back are kept here for the next caller, so that small messages need no lock; they
    count as part of the burst.

    :param rate: Mbit/s.
    :param clock: returns seconds of a monotonic clock, the same for all users of the store.
    :param store: shared with the buckets of the same stream and direction in other elements.
    :param share: returns the part of the rate, above 0 and up to 1, that this bucket may use while others use it too.
    :param buckets: the number of buckets that share the store.
    """

    def __init__(
        self,
        rate: float,
        clock: Callable[[], float],
        store: TokenStore | None = None,
        share: Callable[[], float] = lambda: 1.0,
        buckets: int = 1,
    ) -> None:
        self._speed = rate * BYTES_PER_MBIT
        burst = self._speed * timing.RATE_BURST
        self._turn = max(LEAST_TURN, int(self._speed * timing.RATE_TURN))
        self._most_spare = min(self._turn, int(burst / 2 / buckets))
        self._burst = max(self._turn, burst - (buckets - 1) * self._most_spare)
        self._reserve = self._burst / 2
        self._clock = clock
        self._store = store if store is not None else PrivateTokenStore()
        self._share = share
        self._own = 0.0  # tokens that this bucket may take while others use the store
        self._own_at = clock()
        self._spare = 0
        self._put_aside = 0  # the most that `_spare` was since the tokens were counted here
        self._locked_until = 0.0

    @property
    def turn(self) -> int:
        """The most bytes of one turn."""
        return self._turn

    def take(self, wanted: int) -> int:
        """Return how many of `wanted` bytes may be sent now: one turn at most, or 0 if less than a turn is available.

        Fewer are granted if that saves a look at the store. Call `give_back` with the bytes that were not sent.
        """
        if wanted > self._turn:
            wanted = self._turn
        spare = self._spare
        if 2 * spare < wanted:
            spare += self._draw(wanted - spare)
            if spare < wanted:
                self._spare = spare
                return 0
        granted = wanted if wanted < spare else spare
        self._spare = spare - granted
        return granted

    def give_back(self, unused: int) -> None:
        """Return bytes that were taken and not sent."""
        self._spare = spare = self._spare + unused
        if spare > self._put_aside:
            self._put_aside = spare
        if spare > self._most_spare:
            self._return_spare()

    def wait(self) -> float:
        """Return the seconds until a turn is available; 0.0 if it is available now."""
        now, needed, share = self._clock(), self._turn - self._spare, self._share()
        tokens = self._tokens(now)
        seconds = (needed - tokens) / self._speed
        if share < 1.0:
            until_owned = (needed - self._owned(now, share)) / (self._speed * share)
            if needed + self._reserve < self._burst:
                until_owned = min(until_owned, (needed + self._reserve - tokens) / self._speed)
            seconds = max(seconds, until_owned)
        seconds = max(seconds, self._locked_until - now)
        return max(seconds, timing.LEAST_WAIT) if seconds > 0 else 0.0

    def _draw(self, wanted: int) -> int:
        if not self._store.lock():
            # Its holder may have lost the processor, which it gets back sooner if nobody tries again all the time.
            self._locked_until = self._clock() + timing.RATE_LOCK
            return 0
        try:
            now, share = self._clock(), self._share()
            tokens = self._tokens(now)
            self._own, self._own_at = self._owned(now, share), now
            allowed = tokens
            if share < 1.0:  # tokens beyond the reserve are there because the others do not take theirs
                allowed = min(tokens, max(self._own, tokens - self._reserve))
            granted = min(wanted, int(allowed)) if allowed + self._spare >= self._turn else 0
            self._own -= granted
            self._put_aside = self._spare + granted
            self._store.put(tokens - granted, now)
        finally:
            self._store.unlock()
        return granted

    def _return_spare(self) -> None:
        """Return tokens to the store, unless another process has locked it."""
        if not self._store.lock():
            return
        try:
            now, unused = self._clock(), self._spare - self._most_spare
            tokens = self._tokens(now)
            self._spare = self._put_aside = self._most_spare
            self._own += unused
            self._store.put(min(self._burst - self._spare, tokens + unused), now)
        finally:
            self._store.unlock()

    def _owned(self, now: float, share: float) -> float:
        """Return the tokens that this bucket may take, two turns at most: the others may use the rest."""
        return min(2.0 * self._turn, max(0.0, self._own) + (now - self._own_at) * self._speed * share)

    def _tokens(self, now: float) -> float:
        most = self._burst - self._put_aside
        tokens, counted_at = self._store.get()
        if not counted_at:
            return most
        return min(most, tokens + (now - counted_at) * self._speed)

"""How much a gateway has promised, and how fast a stream may go.

`Capacity` belongs to the initiator, which reserves from it when a stream is admitted; `Bucket`
belongs to an element, one for each direction of a stream. Neither does any I/O or knows a clock of its own.
"""

from __future__ import annotations

from collections.abc import Callable

from scistream.wire.errors import StreamError

BYTES_PER_MBIT = 125_000
"""One Mbit/s is this many bytes a second."""

LEAST_BURST = 256 * 1024
BURST_SECONDS = 0.05
PAUSE_SECONDS = 0.01


class Capacity:
    """The rate in Mbit/s that a gateway can carry, and what of it is promised to streams."""

    def __init__(self, total_mbit: float) -> None:
        self.total = total_mbit
        self._reserved = 0.0

    @property
    def free(self) -> float:
        """What can still be promised, in Mbit/s."""
        return max(0.0, self.total - self._reserved)

    def reserve(self, rate: float) -> None:
        """Promise `rate` Mbit/s.

        :raises StreamError: ``no-capacity`` when that is more than is free.
        """
        if self._reserved + rate > self.total + self._rounding:
            raise StreamError(
                "no-capacity",
                f"{rate:g} Mbit/s were asked for and {self.free:g} of this gateway's {self.total:g} Mbit/s are free: "
                "ask for a lower rate, or wait until another stream ends",
            )
        self._reserved += rate

    def release(self, rate: float) -> None:
        """Take back a promise of `rate` Mbit/s."""
        self._reserved -= rate
        if self._reserved < self._rounding:
            self._reserved = 0.0

    @property
    def _rounding(self) -> float:
        return 1e-9 * self.total


class Bucket:
    """A token bucket over application bytes: one direction of one stream, shared by all its connections.

    :param rate: Mbit/s.
    :param clock: seconds on a clock that is never set back.
    """

    def __init__(self, rate: float, clock: Callable[[], float]) -> None:
        self._speed = rate * BYTES_PER_MBIT
        self._burst = max(LEAST_BURST, self._speed * BURST_SECONDS)
        self._worthwhile = min(self._burst, max(1.0, self._speed * PAUSE_SECONDS))
        self._clock = clock
        self._tokens = self._burst
        self._filled_at = clock()

    def take(self, wanted: int) -> int:
        """How many of `wanted` bytes may go now, 0 rather than a crumb; what is not used of them is given back."""
        self._fill()
        granted = min(wanted, int(self._tokens)) if self._tokens >= self._worthwhile else 0
        self._tokens -= granted
        return granted

    def give_back(self, unused: int) -> None:
        """Return bytes that were taken and did not go."""
        self._tokens += unused

    def wait(self) -> float:
        """Seconds until it is worth asking again; 0.0 when it is now."""
        self._fill()
        missing = self._worthwhile - self._tokens
        return missing / self._speed if missing > 0 else 0.0

    def _fill(self) -> None:
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._filled_at) * self._speed)
        self._filled_at = now

"""Count how long operations take, cheaply, for the metrics of a daemon."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate


class Durations:
    """A histogram of durations.

    :param bounds: the upper bounds of its buckets in seconds, ascending; there is one more, without a bound.
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.sum = 0.0
        """The sum of all durations in seconds."""
        self._counts = [0] * (len(self.bounds) + 1)

    def add(self, seconds: float) -> None:
        """Count one operation."""
        self._counts[bisect_left(self.bounds, seconds)] += 1
        self.sum += max(0.0, seconds)

    @contextmanager
    def of_block(self) -> Iterator[None]:
        """Count the block as one operation, even if it raises an exception."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(time.perf_counter() - began)

    @property
    def cumulative(self) -> list[int]:
        """How many durations are at most each of the bounds, and last how many there are."""
        return list(accumulate(self._counts))

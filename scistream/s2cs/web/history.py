"""The rates of streams in the last minutes, computed from the reports of their gateways. No I/O.

Each gateway of a stream reports totals, at its own times. The rate of a gateway is the difference between two of its
reports; the rate of the stream is the sum over its gateways, and gets a new point with each report.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable
from typing import NamedTuple

from scistream import timing
from scistream.paging import page_key
from scistream.protocol.messages import ChannelFigures, StreamKey
from scistream.s2cs.web.api_types import RateHistory

MOST_POINTS = 300
"""Points of one stream that are kept: those of ten minutes at one in two seconds."""


class Rates(NamedTuple):
    """The rates of a stream, or of its part on one gateway.

    :param at: when they were measured, in the seconds of the clock.
    :param to_consumer: Mbit/s; `to_producer` likewise.
    :param rtt_ms: the mean round-trip time; 0 if unknown.
    :param retransmits: segments per second.
    """

    at: float
    to_consumer: float
    to_producer: float
    rtt_ms: float
    retransmits: float


class _Totals(NamedTuple):
    at: float
    to_consumer: int
    to_producer: int
    retransmits: int


class _OfStream:
    """The points of one stream, and what its gateways reported last."""

    def __init__(self) -> None:
        self.totals: dict[str, _Totals] = {}
        self.rates: dict[str, Rates] = {}
        self.times = array("d")
        self.columns = tuple(array("f") for _ in range(4))

    def add(self, point: Rates) -> None:
        """Add a point. One that follows the last point closely replaces it: gateways report one after the other."""
        if self.times and point.at - self.times[-1] < timing.BETWEEN_POINTS / 2:
            for column in (self.times, *self.columns):
                column.pop()
        self.times.append(point.at)
        for column, value in zip(self.columns, point[1:], strict=True):
            column.append(value)
        old = len(self.times) - MOST_POINTS
        while len(self.times) > max(0, old) and self.times[max(0, old)] < point.at - timing.HISTORY_KEPT:
            old = max(0, old) + 1
        if old > 0:
            for column in (self.times, *self.columns):
                del column[:old]


class FiguresHistory:
    """The last minutes of all live streams.

    :param clock: returns monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._streams: dict[StreamKey, _OfStream] = {}

    def heard(self, key: StreamKey, gateway: str, figures: Iterable[ChannelFigures]) -> None:
        """Take the figures that a gateway has reported about a stream."""
        of_stream = self._streams.setdefault(key, _OfStream())
        reported = list(figures)
        now = _Totals(
            self._clock(),
            sum(one.bytes_to_consumer for one in reported),
            sum(one.bytes_to_producer for one in reported),
            sum(one.retransmits for one in reported),
        )
        before = of_stream.totals.get(gateway)
        if before is not None and now.at - before.at < timing.BETWEEN_POINTS:
            return  # the difference would be mostly noise
        of_stream.totals[gateway] = now
        if before is None or any(new < old for new, old in zip(now, before, strict=True)):
            of_stream.rates.pop(gateway, None)  # the gateway has restarted, or this is its first report
            return
        of_stream.rates[gateway] = _rates(before, now, reported)
        of_stream.add(_summed(now.at, self._fresh(of_stream)))

    def forget(self, key: StreamKey) -> None:
        """Forget a stream that is over."""
        self._streams.pop(key, None)

    def latest(self, key: StreamKey) -> Rates | None:
        """Return the rates of a stream now, or None if its gateways have not reported any lately."""
        of_stream = self._streams.get(key)
        fresh = self._fresh(of_stream) if of_stream is not None else []
        return _summed(max(one.at for one in fresh), fresh) if fresh else None

    def _fresh(self, of_stream: _OfStream) -> list[Rates]:
        oldest = self._clock() - timing.RATES_STALE
        return [one for one in of_stream.rates.values() if one.at >= oldest]

    def of(self, key: StreamKey, to_wall: float) -> RateHistory:
        """Return the points of a stream.

        :param to_wall: the seconds to add to the clock for seconds since the epoch.
        """
        of_stream = self._streams.get(key) or _OfStream()
        to_consumer, to_producer, rtt_ms, retransmits = ([round(one, 3) for one in each] for each in of_stream.columns)
        return RateHistory(
            key=page_key(key),
            gap=timing.RATES_STALE,
            times=[round(at + to_wall, 2) for at in of_stream.times],
            mbit_to_consumer=to_consumer,
            mbit_to_producer=to_producer,
            rtt_ms=rtt_ms,
            retransmits=retransmits,
        )


def _rates(before: _Totals, now: _Totals, figures: list[ChannelFigures]) -> Rates:
    seconds = now.at - before.at
    rtts = [one.rtt_ms for one in figures if one.rtt_ms]
    return Rates(
        now.at,
        (now.to_consumer - before.to_consumer) * 8e-6 / seconds,
        (now.to_producer - before.to_producer) * 8e-6 / seconds,
        sum(rtts) / len(rtts) if rtts else 0.0,
        (now.retransmits - before.retransmits) / seconds,
    )


def _summed(at: float, parts: list[Rates]) -> Rates:
    """Return the rates of all gateways together; their round-trip time is the mean of those that are known."""
    rtts = [one.rtt_ms for one in parts if one.rtt_ms]
    return Rates(
        at,
        sum(one.to_consumer for one in parts),
        sum(one.to_producer for one in parts),
        sum(rtts) / len(rtts) if rtts else 0.0,
        sum(one.retransmits for one in parts),
    )

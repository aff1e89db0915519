"""The rates of streams in the last minutes, from the totals that gateways report."""

from __future__ import annotations

import pytest

from scistream import timing
from scistream.protocol.messages import CONS, ChannelFigures, StreamKey
from scistream.s2cs.web.history import MOST_POINTS, FiguresHistory

KEY: StreamKey = ("00000000-0000-4000-8000-000000000000", CONS)
MBIT = 125_000
"""Bytes."""


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def history(clock: Clock) -> FiguresHistory:
    return FiguresHistory(clock)


def figures(to_consumer: int, to_producer: int = 0, **others: float) -> list[ChannelFigures]:
    return [ChannelFigures(channel=0, bytes_to_consumer=to_consumer, bytes_to_producer=to_producer, **others)]  # type: ignore[arg-type]


def test_a_rate_is_the_difference_of_two_reports_over_the_time_between_them(
    history: FiguresHistory, clock: Clock
) -> None:
    history.heard(KEY, "dtn1", figures(1000 * MBIT, 10 * MBIT, retransmits=5, rtt_ms=3.0))
    assert history.latest(KEY) is None
    clock.now += 10.0
    history.heard(KEY, "dtn1", figures(3000 * MBIT, 30 * MBIT, retransmits=25, rtt_ms=4.0))
    now = history.latest(KEY)
    assert now is not None
    assert (now.to_consumer, now.to_producer, now.retransmits, now.rtt_ms) == (200.0, 2.0, 2.0, 4.0)
    told = history.of(KEY, 500.0)
    assert (told.times, told.mbit_to_consumer, told.mbit_to_producer) == ([1510.0], [200.0], [2.0])
    assert (told.retransmits, told.rtt_ms) == ([2.0], [4.0])


def test_the_rates_of_gateways_that_report_at_different_times_are_added(history: FiguresHistory, clock: Clock) -> None:
    for second in range(4):
        clock.now = 1000.0 + 15.0 * second
        history.heard(KEY, "dtn1", figures(1500 * MBIT * second))
        clock.now += 7.0
        history.heard(KEY, "dtn2", figures(3000 * MBIT * second))
    now = history.latest(KEY)
    assert now is not None
    assert now.to_consumer == pytest.approx(300.0)
    assert history.of(KEY, 0.0).mbit_to_consumer == pytest.approx([100.0, 300.0, 300.0, 300.0, 300.0, 300.0])


def test_reports_that_follow_each_other_at_once_make_no_noise(history: FiguresHistory, clock: Clock) -> None:
    history.heard(KEY, "dtn1", figures(0))
    for step in range(1, 41):  # a user watches
        clock.now += 0.5
        history.heard(KEY, "dtn1", figures(25 * MBIT * step))
    told = history.of(KEY, 0.0)
    assert told.mbit_to_consumer == pytest.approx([50.0] * len(told.times))
    gaps = [later - earlier for earlier, later in zip(told.times, told.times[1:], strict=False)]
    assert min(gaps) >= timing.BETWEEN_POINTS


def test_a_gateway_that_restarts_gives_no_negative_rate(history: FiguresHistory, clock: Clock) -> None:
    history.heard(KEY, "dtn1", figures(5000 * MBIT))
    clock.now += 10.0
    history.heard(KEY, "dtn1", figures(100 * MBIT))
    assert history.latest(KEY) is None
    clock.now += 10.0
    history.heard(KEY, "dtn1", figures(200 * MBIT))
    now = history.latest(KEY)
    assert now is not None
    assert now.to_consumer == 10.0


def test_the_rate_of_a_gateway_that_does_not_report_any_more_is_unknown(history: FiguresHistory, clock: Clock) -> None:
    history.heard(KEY, "dtn1", figures(0))
    clock.now += 10.0
    history.heard(KEY, "dtn1", figures(1000 * MBIT))
    clock.now += timing.RATES_STALE - 1.0
    assert history.latest(KEY) is not None
    clock.now += 2.0
    assert history.latest(KEY) is None


def test_the_points_of_a_stream_are_limited_in_number_and_age(history: FiguresHistory, clock: Clock) -> None:
    for second in range(2000):
        clock.now += 2.0
        history.heard(KEY, "dtn1", figures(MBIT * second))
    told = history.of(KEY, 0.0)
    assert len(told.times) == len(told.mbit_to_consumer) == MOST_POINTS
    assert told.times[-1] == clock.now
    clock.now += 1000.0
    history.heard(KEY, "dtn1", figures(MBIT * 2001))
    told = history.of(KEY, 0.0)
    assert told.times == [clock.now]
    assert len(told.mbit_to_consumer) == len(told.rtt_ms) == 1


def test_nothing_is_kept_of_a_stream_that_is_over(history: FiguresHistory, clock: Clock) -> None:
    history.heard(KEY, "dtn1", figures(0))
    clock.now += 10.0
    history.heard(KEY, "dtn1", figures(MBIT))
    history.forget(KEY)
    assert history.latest(KEY) is None
    assert history.of(KEY, 0.0).times == []

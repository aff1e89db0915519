"""Whose turn it is when a stream's rate is used up."""

from __future__ import annotations

import pytest
from twisted.internet.task import Clock

from scistream.s2ds.capacity import BYTES_PER_MBIT, Bucket
from scistream.s2ds.relay.throttle import Throttle


class Talker:
    """Takes as much as it gets, or a message now and then."""

    def __init__(self, throttle: Throttle) -> None:
        self.throttle = throttle
        self.got = 0
        self.wants = 0

    def go_on(self) -> None:
        while self.wants:
            granted = self.throttle.take(min(self.wants, 262144))
            if not granted:
                self.throttle.wait(self.go_on)
                return
            self.got += granted
            self.wants -= granted


def run(clock: Clock, seconds: float) -> None:
    for _ in range(round(seconds * 1000)):
        clock.advance(0.001)


@pytest.mark.parametrize("rate", [2.0, 10.0, 100.0, 1000.0])
def test_a_small_message_beside_eight_busy_connections_waits_milliseconds(rate: float) -> None:
    clock = Clock()
    clock.advance(1000.0)
    throttle = Throttle(clock, Bucket(rate, clock.seconds))
    busy = [Talker(throttle) for _ in range(8)]
    for talker in busy:
        talker.wants = 1 << 40
        talker.go_on()
    run(clock, 1.0)
    waits = []
    for pause in (0.011, 0.05, 0.123, 0.3, 0.5):
        run(clock, pause)
        small, since = Talker(throttle), clock.seconds()
        small.wants = 1
        small.go_on()
        while not small.got:
            clock.advance(0.001)
            assert clock.seconds() < since + 10.0, "it never had its turn"
        waits.append(clock.seconds() - since)
    assert max(waits) <= (0.04 if rate >= 10.0 else 0.08)
    throttle.stop()


@pytest.mark.parametrize("rate", [2.0, 100.0, 1000.0])
def test_busy_connections_share_a_rate_evenly_and_use_all_of_it(rate: float) -> None:
    clock = Clock()
    clock.advance(1000.0)
    throttle = Throttle(clock, Bucket(rate, clock.seconds))
    busy = [Talker(throttle) for _ in range(5)]
    for talker in busy:
        talker.wants = 1 << 40
        talker.go_on()
    run(clock, 1.0)
    before = [talker.got for talker in busy]
    run(clock, 10.0)
    got = [talker.got - had for talker, had in zip(busy, before, strict=True)]
    assert sum(got) == pytest.approx(rate * BYTES_PER_MBIT * 10.0, rel=0.02)
    assert max(got) - min(got) <= 0.1 * max(got)
    throttle.stop()

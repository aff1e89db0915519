"""The order of turns when a stream's rate is used up."""

from __future__ import annotations

import pytest
from twisted.internet.task import Clock

from scistream.s2ds.elements import element
from scistream.s2ds.elements.shared_figures import SharedFigures
from scistream.s2ds.relay.throttle import Throttle
from scistream.s2ds.relay.token_bucket import BYTES_PER_MBIT, PrivateTokenStore, TokenBucket


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


def make_throttle(clock: Clock, figures: SharedFigures, rate: float, number: int) -> Throttle:
    """As an element has it, on the clock of the test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(element.time, "monotonic", clock.seconds)
        return element._throttle(clock, figures, number, rate, 0, 0)


def run(clock: Clock, seconds: float) -> None:
    for _ in range(round(seconds * 1000)):
        clock.advance(0.001)


@pytest.mark.parametrize("rate", [2.0, 10.0, 100.0, 1000.0])
def test_a_small_message_beside_eight_busy_connections_waits_milliseconds(rate: float) -> None:
    clock = Clock()
    clock.advance(1000.0)
    throttle = Throttle(clock, TokenBucket(rate, clock.seconds))
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
    throttle = Throttle(clock, TokenBucket(rate, clock.seconds))
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


@pytest.mark.parametrize("rate", [20.0, 400.0])
@pytest.mark.parametrize("spread", [(1, 3), (4, 1), (1, 1, 2)])
def test_busy_connections_have_equal_shares_on_any_element(rate: float, spread: tuple[int, ...]) -> None:
    clock = Clock()
    clock.advance(1000.0)
    figures = SharedFigures.create(1, len(spread))
    throttles = [make_throttle(clock, figures, rate, element) for element in range(len(spread))]
    busy = [Talker(throttle) for throttle, count in zip(throttles, spread, strict=True) for _ in range(count)]
    for talker in busy:
        talker.wants = 1 << 40
        talker.go_on()
    run(clock, 1.0)
    before = [talker.got for talker in busy]
    run(clock, 5.0)
    got = [talker.got - had for talker, had in zip(busy, before, strict=True)]
    for throttle in throttles:
        throttle.stop()
    figures.close()
    assert sum(got) == pytest.approx(rate * BYTES_PER_MBIT * 5.0, rel=0.02)
    assert max(got) - min(got) <= 0.1 * max(got), got


def test_an_element_whose_connections_are_idle_leaves_the_whole_rate_to_the_others() -> None:
    clock = Clock()
    clock.advance(1000.0)
    figures = SharedFigures.create(1, 2)
    throttles = [make_throttle(clock, figures, 100.0, element) for element in range(2)]
    talkers = [Talker(throttle) for throttle in throttles]
    for talker in talkers:
        talker.wants = 5_000_000
        talker.go_on()
    talkers[1].wants = 1 << 40
    run(clock, 2.0)
    assert talkers[0].wants == 0
    before = talkers[1].got
    run(clock, 2.0)
    assert talkers[1].got - before == pytest.approx(100.0 * BYTES_PER_MBIT * 2.0, rel=0.02)
    for throttle in throttles:
        throttle.stop()
    figures.close()


class CountingStore(PrivateTokenStore):
    """Counts how often it is locked."""

    locked = 0

    def lock(self) -> bool:
        """Take the lock."""
        self.locked += 1
        return super().lock()


def test_a_thousand_small_messages_lock_the_shared_tokens_once() -> None:
    clock, store = Clock(), CountingStore()
    throttle = Throttle(clock, TokenBucket(10_000.0, clock.seconds, store, lambda: 0.5, 2))
    sent = 0
    for _ in range(1000):
        granted = throttle.take(262144)
        assert granted >= 131072
        throttle.give_back(granted - 64)
        sent += 64
    assert store.locked == 1

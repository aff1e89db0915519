"""The rate of a stream over several elements, in virtual time: no more in any time, and no less than it may have."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from twisted.internet.task import Clock

from scistream import timing
from scistream.s2ds.elements import element
from scistream.s2ds.elements.commands import ArmChannels
from scistream.s2ds.elements.places import Places
from scistream.s2ds.elements.ready import ReadyBudget
from scistream.s2ds.elements.shared_figures import SharedFigures
from scistream.s2ds.relay.receive_windows import Windows
from scistream.s2ds.relay.throttle import Throttle
from scistream.s2ds.relay.token_bucket import BYTES_PER_MBIT, PrivateTokenStore, TokenBucket

READ = 262144
FOR_EVER = 1 << 50
STEP = 0.001
RATES = [1.0, 50.0, 500.0, 2000.0]


class Connection:
    """A connection that moves what it may of the bytes that it has, and remembers when."""

    def __init__(self, throttle: Throttle, now: Callable[[], float], waiting: int = 0) -> None:
        self._throttle = throttle
        self._now = now
        self._is_queued = False
        self.waiting = waiting
        self.moved: list[tuple[float, int]] = []

    @property
    def total(self) -> int:
        return sum(count for _, count in self.moved)

    def go_on(self) -> None:
        """Move bytes, as a pump does that was told of some."""
        while not self._is_queued and self.waiting:
            granted = self._throttle.take(READ)
            if not granted:
                self._is_queued = True
                self._throttle.wait(self._resume)
                return
            count = min(granted, self.waiting)
            self._throttle.give_back(granted - count)
            self.waiting -= count
            self.moved.append((self._now(), count))

    def _resume(self) -> None:
        self._is_queued = False
        self.go_on()


class Machine:
    """The elements of one gateway, each with timers of its own, which stand still while it has no processor."""

    def __init__(self, elements: int, slots: int = 1) -> None:
        self.time = Clock()
        self.time.advance(1000.0)
        self.clocks = [Clock() for _ in range(elements)]
        for clock in self.clocks:
            clock.advance(1000.0)
        self.figures = SharedFigures.create(slots, elements)

    def throttle(self, number: int, rate: float, slot: int = 0, direction: int = 0) -> Throttle:
        """Return the throttle of a stream at an element, as the element makes it."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(element.time, "monotonic", self.time.seconds)
            return element._throttle(self.clocks[number], self.figures, number, rate, slot, direction)

    def busy(self, throttle: Throttle, count: int = 1) -> list[Connection]:
        """Return connections that have bytes without end."""
        made = [Connection(throttle, self.time.seconds, FOR_EVER) for _ in range(count)]
        for connection in made:
            connection.go_on()
        return made

    def run(self, seconds: float, has_processor: Callable[[int, float], bool] = lambda _number, _at: True) -> None:
        """Let time pass.

        :param has_processor: tells for the number of an element, and seconds from now, whether it runs.
        """
        began = self.time.seconds()
        for _ in range(round(seconds / STEP)):
            self.time.advance(STEP)
            now = self.time.seconds()
            for number, clock in enumerate(self.clocks):
                if has_processor(number, now - began):
                    clock.advance(now - clock.seconds())


@pytest.fixture
def make() -> Iterator[Callable[..., Machine]]:
    made: list[Machine] = []

    def make_one(*arguments: Any) -> Machine:
        made.append(Machine(*arguments))
        return made[-1]

    yield make_one
    for machine in made:
        machine.figures.close()


def excess(moved: list[tuple[float, int]], rate: float) -> float:
    """Return by how much any window of time is above the rate, in seconds of the rate."""
    speed, total, lowest, most = rate * BYTES_PER_MBIT, 0, 0.0, 0.0
    for when, count in sorted(moved):
        due = speed * (when - moved[0][0])
        lowest = min(lowest, total - due)
        total += count
        most = max(most, total - due - lowest)
    return most / speed


def share_of(connections: list[Connection], rate: float, seconds: float) -> float:
    return sum(one.total for one in connections) / (rate * BYTES_PER_MBIT * seconds)


@pytest.mark.parametrize("elements", [1, 2, 20])
@pytest.mark.parametrize("rate", RATES)
def test_no_time_has_more_than_its_rate_and_fifty_milliseconds(
    make: Callable[..., Machine], rate: float, elements: int
) -> None:
    machine, random_ones = make(elements), random.Random(f"{rate} {elements}")
    throttles = [machine.throttle(number, rate) for number in range(elements)]
    connections = [Connection(throttle, machine.time.seconds) for throttle in throttles for _ in range(2)]
    for _ in range(60):  # a message here, a lot there, and nothing anywhere for a while
        for connection in random_ones.sample(connections, random_ones.randint(1, len(connections))):
            connection.waiting += random_ones.choice((1, 1, 64, 5000, int(rate * BYTES_PER_MBIT / 10)))
            connection.go_on()
        machine.run(random_ones.choice((0.001, 0.005, 0.05, 0.3)))
    moved = sorted(entry for connection in connections for entry in connection.moved)
    assert excess(moved, rate) <= timing.RATE_BURST + 1e-6
    assert excess(moved, rate) > 0.5 * timing.RATE_BURST, "a rest has saved up something"


@pytest.mark.parametrize("elements", [1, 2, 20])
def test_what_elements_have_put_aside_is_part_of_the_burst(make: Callable[..., Machine], elements: int) -> None:
    machine, rate = make(elements), 50.0
    throttles = [machine.throttle(number, rate) for number in range(elements)]
    for throttle in throttles:
        throttle.give_back(throttle.take(READ))  # as a pump does that finds nothing to read
        machine.run(0.2)
    busy = [connection for throttle in throttles for connection in machine.busy(throttle)]
    burst = sum(connection.total for connection in busy) / (rate * BYTES_PER_MBIT)
    assert 0.5 * timing.RATE_BURST < burst <= timing.RATE_BURST + 1e-6


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("spread", [(4, 4), (1, 7)])
def test_elements_that_lose_the_processor_for_a_while_cost_the_stream_nothing(
    make: Callable[..., Machine], rate: float, spread: tuple[int, int]
) -> None:
    machine = make(2)
    busy = [one for number, count in enumerate(spread) for one in machine.busy(machine.throttle(number, rate), count)]

    def has_processor(number: int, at: float) -> bool:  # each rests for 20 of 50 ms, at different times
        return (at + 0.031 * number) % 0.05 >= 0.02

    machine.run(10.0, has_processor)
    assert share_of(busy, rate, 10.0) == pytest.approx(1.0, abs=0.01)
    assert excess([entry for one in busy for entry in one.moved], rate) <= timing.RATE_BURST + 1e-6


def test_an_element_that_hangs_leaves_its_share_to_the_others(make: Callable[..., Machine]) -> None:
    machine = make(2)
    hung, going_on = (machine.busy(machine.throttle(number, 500.0), 4) for number in range(2))
    machine.run(1.0)
    before = sum(one.total for one in going_on)
    machine.run(2.0, lambda number, _at: number == 1)
    assert sum(one.total for one in going_on) - before == pytest.approx(500.0 * BYTES_PER_MBIT * 2.0, rel=0.02)
    before = sum(one.total for one in hung)
    machine.run(2.0)
    assert sum(one.total for one in hung) - before == pytest.approx(500.0 * BYTES_PER_MBIT, rel=0.03)


@pytest.mark.parametrize("rate", RATES)
def test_a_timer_that_is_late_costs_the_stream_nothing(make: Callable[..., Machine], rate: float) -> None:
    machine, random_ones = make(1), random.Random(1)
    busy = machine.busy(machine.throttle(0, rate), 3)
    machine.run(10.0, lambda _number, _at: random_ones.random() < 0.15)
    assert share_of(busy, rate, 10.0) == pytest.approx(1.0, abs=0.01)


class LockedStore(PrivateTokenStore):
    """Tokens that another process has locked at some times."""

    def __init__(self, now: Callable[[], float], is_locked: Callable[[float], bool]) -> None:
        super().__init__()
        self._now = now
        self._is_locked = is_locked
        self.refused = 0

    def lock(self) -> bool:
        """Return False while another process has the lock."""
        locked = self._is_locked(self._now())
        self.refused += locked
        return not locked


def test_locked_tokens_are_tried_again_each_millisecond_and_cost_the_stream_nothing() -> None:
    clock = Clock()
    clock.advance(1000.0)
    store = LockedStore(clock.seconds, lambda now: now % 0.05 < 0.03)
    throttle = Throttle(clock, TokenBucket(500.0, clock.seconds, store))
    busy = [Connection(throttle, clock.seconds, FOR_EVER) for _ in range(4)]
    for connection in busy:
        connection.go_on()
    for _ in range(40_000):
        clock.advance(0.00025)
    throttle.stop()
    assert share_of(busy, 500.0, 10.0) == pytest.approx(1.0, abs=0.01)
    locked = 10.0 * 0.6
    assert 0.4 * locked / timing.RATE_LOCK < store.refused <= 1.1 * locked / timing.RATE_LOCK


def test_a_connection_keeps_its_turn_when_the_tokens_are_locked() -> None:
    clock, random_ones = Clock(), random.Random(2)
    clock.advance(1000.0)
    store = LockedStore(clock.seconds, lambda _now: random_ones.random() < 0.5)
    throttle = Throttle(clock, TokenBucket(50.0, clock.seconds, store))
    busy = [Connection(throttle, clock.seconds, FOR_EVER) for _ in range(5)]
    for connection in busy:
        connection.go_on()
    for _ in range(3000):
        clock.advance(STEP)
        turns = [len(connection.moved) for connection in busy[1:]]  # the first one has had the burst
        assert max(turns) - min(turns) <= 1
    throttle.stop()
    assert share_of(busy, 50.0, 3.0) == pytest.approx(1.0, abs=0.02)


def test_one_busy_channel_of_four_has_the_whole_rate(make: Callable[..., Machine]) -> None:
    machine, rate = make(2, 4), 50.0
    command = ArmChannels(uid="", role="CONS", rate=rate, slots={channel: channel for channel in range(4)}, owner="")

    def context(clock: Clock) -> Any:
        """Return what a channel without connections uses of its context."""
        return SimpleNamespace(reactor=clock, dial_timeout=1.0, wan_timeout=1.0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(element.time, "monotonic", machine.time.seconds)
        windows = Windows(4).of_stream("")
        streams = [
            element._ElementStream(
                context(clock),
                machine.figures,
                number,
                command,
                windows,
                ReadyBudget(1),
                Places(lambda _request: None),
                0,
                lambda *_: None,
                lambda: None,
            )
            for number, clock in enumerate(machine.clocks)
        ]
    for stream in streams:  # all channels were busy once
        for channel in (0, 1, 3):
            short = Connection(stream.channels[channel]._to_consumer.throttle, machine.time.seconds, 100_000)
            short.go_on()
    machine.run(1.0)
    busy = machine.busy(streams[1].channels[2]._to_consumer.throttle)
    machine.run(1.0)
    before = busy[0].total
    machine.run(3.0)
    assert busy[0].total - before == pytest.approx(rate * BYTES_PER_MBIT * 3.0, rel=0.01)


def test_two_streams_and_two_directions_have_rates_of_their_own(make: Callable[..., Machine]) -> None:
    machine = make(2, 2)
    kinds = {(slot, direction): 100.0 * (1 + slot) for slot in range(2) for direction in range(2)}
    moving = {
        (slot, direction): [
            one for number in range(2) for one in machine.busy(machine.throttle(number, rate, slot, direction), 2)
        ]
        for (slot, direction), rate in kinds.items()
        if (slot, direction) != (1, 1)  # which is idle, and leaves nothing to the others
    }
    machine.run(5.0)
    for kind, busy in moving.items():
        assert share_of(busy, kinds[kind], 5.0) == pytest.approx(1.01, abs=0.01), kind


def test_two_gateways_in_a_row_keep_the_rate_of_one() -> None:
    clock = Clock()
    clock.advance(1000.0)
    rate, random_ones = 500.0, random.Random(3)
    first, second = (TokenBucket(rate, clock.seconds) for _ in range(2))
    between = out = 0
    for _ in range(10_000):
        clock.advance(STEP)
        if random_ones.random() < 0.2:  # neither has the processor all the time
            while granted := first.take(READ):
                between += granted
        if random_ones.random() < 0.2:
            while between and (granted := second.take(min(READ, between))):
                between -= granted
                out += granted
    assert out / (rate * BYTES_PER_MBIT * 10.0) == pytest.approx(1.0, abs=0.01)

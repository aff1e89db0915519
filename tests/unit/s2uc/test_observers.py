"""Callbacks of a program about its stream: when they are called, with what, and what their faults do."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.task import Clock
from twisted.logger import LogLevel, capturedLogs

from scistream.protocol.errors import StreamError
from scistream.protocol.messages import CONS, PROD, ChannelFigures, Role, StreamStatus
from scistream.s2uc.observers import Observers, Sides, StateChange, StreamFigures

UID = "11111111-2222-4333-8444-555555555555"


class Facilities:
    """Both sides of a stream, which answer at once."""

    def __init__(self) -> None:
        self.asked = 0
        self.sides: dict[Role, StreamStatus] = {}
        self.unreachable: dict[Role, StreamError] = {}

    def report(self, role: Role, state: str = "Streaming", **figures: Any) -> None:
        self.unreachable.pop(role, None)
        one = ChannelFigures(channel=0, **figures)
        self.sides[role] = StreamStatus(uid=UID, role=role, state=state, figures=[one])

    async def ask(self) -> Sides:
        self.asked += 1
        return dict(self.sides), dict(self.unreachable)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def facilities() -> Facilities:
    return Facilities()


@pytest.fixture
def observers(clock: Clock, facilities: Facilities) -> Observers:
    return Observers(clock, UID, facilities.ask)


def test_changes_of_state_are_told_later_in_order_and_with_the_error(clock: Clock, observers: Observers) -> None:
    told: list[StateChange] = []
    error: list[StreamError] = []
    observers.on_state(told.append)
    observers.state_changed("Streaming", "Releasing", lambda: error[0] if error else None)
    error.append(StreamError("expired", "its time is over"))
    assert told == []
    clock.advance(0)
    observers.state_changed("Releasing", "Released", lambda: error[0])
    clock.advance(0)
    assert [(one.before, one.state, one.error) for one in told] == [
        ("Streaming", "Releasing", error[0]),
        ("Releasing", "Released", error[0]),
    ]


def test_a_callback_that_fails_is_logged_and_the_others_are_called(clock: Clock, observers: Observers) -> None:
    told: list[StateChange] = []

    def bad(change: StateChange) -> None:
        raise ValueError("a fault of the program")

    observers.on_state(bad)
    kept = observers.on_state(told.append)
    with capturedLogs() as logs:
        for state in ("Reserved", "Provisioning"):
            observers.state_changed("Reserving", state, lambda: None)
            clock.advance(0)
        kept.cancel()
        kept.cancel()
        observers.state_changed("Provisioning", "Updating", lambda: None)
        clock.advance(0)
    assert [one.state for one in told] == ["Reserved", "Provisioning"]
    failures = [event for event in logs if event["log_level"] == LogLevel.critical]
    assert [event["log_failure"].value.args for event in failures] == [("a fault of the program",)] * 3


def test_figures_have_the_rate_since_the_last_ones_and_keep_what_a_silent_side_has_said(
    clock: Clock, facilities: Facilities, observers: Observers
) -> None:
    told: list[StreamFigures] = []
    facilities.report(PROD, bytes_to_consumer=10, bytes_to_producer=7, rtt_ms=10.0, retransmits=2, connections=3)
    facilities.report(CONS, bytes_to_consumer=1000, bytes_to_producer=9, rtt_ms=20.0, connections=2)
    observers.on_figures(told.append, 2.0)
    facilities.report(CONS, bytes_to_consumer=1_001_000, connections=2)
    clock.advance(2.0)
    del facilities.sides[CONS]
    facilities.unreachable[CONS] = StreamError("timeout", "no answer")
    clock.advance(2.0)
    assert [one.bytes_to_consumer for one in told] == [1000, 1_001_000, 1_001_000]
    assert {one.bytes_to_producer for one in told} == {7}
    assert [one.mbit_to_consumer for one in told] == [0.0, 4.0, 0.0]
    assert [one.rtt_ms for one in told] == [15.0, 10.0, 10.0]
    assert (told[0].connections, told[0].retransmits) == (3, 2)
    assert [list(one.unreachable) for one in told] == [[], [], [CONS]]


def test_figures_end_when_both_sides_have_released_or_do_not_know_the_stream(
    clock: Clock, facilities: Facilities, observers: Observers
) -> None:
    told: list[StreamFigures] = []
    facilities.report(PROD, "Released")
    facilities.report(CONS)
    observers.on_figures(told.append, 1.0)
    facilities.report(CONS, "Released")
    clock.advance(1.0)
    assert len(told) == 2
    assert clock.getDelayedCalls() == []
    facilities.sides.clear()
    observers.on_figures(told.append, 1.0)
    assert len(told) == 2
    assert clock.getDelayedCalls() == []


def test_a_subscription_and_the_client_can_end_the_figures(
    clock: Clock, facilities: Facilities, observers: Observers
) -> None:
    told: list[StreamFigures] = []
    for role in (PROD, CONS):
        facilities.report(role)
    with capturedLogs() as logs:
        observers.on_figures(told.append, 1.0).cancel()
        observers.on_figures(told.append, 1.0)
        observers.stop_polling()
        clock.advance(10.0)
    assert facilities.asked == len(told) == 2
    assert clock.getDelayedCalls() == []
    assert logs == []


async def _coroutine(_event: object) -> None:
    """Do nothing."""


@pytest.mark.parametrize("callback", [_coroutine, None, "print"])
def test_what_cannot_be_called_or_would_have_to_be_awaited_is_refused(observers: Observers, callback: Any) -> None:
    with pytest.raises(TypeError, match="pass a"):
        observers.on_state(callback)
    with pytest.raises(TypeError, match="pass a"):
        observers.on_figures(callback, 1.0)


@pytest.mark.parametrize("interval", [0.0, 0.1, -1.0, float("nan")])
def test_an_interval_that_would_burden_the_gateways_is_refused(observers: Observers, interval: float) -> None:
    with pytest.raises(StreamError, match=r"at least 0\.2 s"):
        observers.on_figures(print, interval)

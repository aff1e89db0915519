"""The poller of an element: real descriptors in a reactor of the test."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Iterator

import pytest
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import LogEvent, globalLogPublisher

from scistream import timing
from scistream.reactors import run_on_monotonic_time
from scistream.s2ds.relay.poller import ElementReactor, Poller

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="gateways run on Linux")


class Ear:
    """Hears events of one end of a pair."""

    batch_added = 0

    def __init__(self, poller: Poller) -> None:
        self.poller = poller
        self.sock, self.peer = socket.socketpair()
        self.sock.setblocking(False)
        self.heard: list[int] = []
        self.answer = lambda: None
        poller.add(self)

    def fileno(self) -> int:
        return self.sock.fileno()

    def event(self, mask: int) -> None:
        self.heard.append(mask)
        self.answer()

    def close(self) -> None:
        self.poller.remove(self)
        self.sock.close()
        self.peer.close()


class Walker:
    """Goes on again and again."""

    def __init__(self, poller: Poller, name: str, steps: int, seen: list[str]) -> None:
        self.poller, self.name, self.steps, self.seen = poller, name, steps, seen

    def resume(self) -> None:
        self.seen.append(self.name)
        self.steps -= 1
        if self.steps:
            self.poller.queue_turn(self)


@pytest.fixture
def clock() -> Iterator[MemoryReactorClock]:
    clock = MemoryReactorClock()
    yield clock
    assert clock.getReaders() == []
    assert clock.getDelayedCalls() == []


def test_an_event_is_told_once_until_there_is_another(clock: MemoryReactorClock) -> None:
    poller = Poller(clock)
    ear = Ear(poller)
    assert clock.getReaders() == [poller]
    poller.doRead()  # it can be written
    ear.heard.clear()
    ear.peer.send(b"1")
    poller.doRead()
    poller.doRead()
    assert len(ear.heard) == 1
    ear.peer.send(b"2")
    poller.doRead()
    assert len(ear.heard) == 2
    ear.close()


def test_a_late_event_of_a_descriptor_does_not_reach_its_next_owner(clock: MemoryReactorClock) -> None:
    poller = Poller(clock)
    ears = [Ear(poller), Ear(poller)]
    poller.doRead()
    later: list[Ear] = []

    def replace(me: Ear, other: Ear) -> None:
        """Whoever hears first closes the other, and its descriptor goes to a new one, before its event is told."""
        me.answer = lambda: None
        fd = other.fileno()
        other.close()
        ears.remove(other)
        while not later or later[-1].fileno() != fd:
            later.append(Ear(poller))

    for ear, other in zip(ears, reversed(list(ears)), strict=True):
        ear.heard.clear()
        ear.answer = lambda ear=ear, other=other: replace(ear, other)  # type: ignore[misc]
        ear.peer.send(b"x")
    poller.doRead()
    assert later
    assert all(not ear.heard for ear in later)
    poller.doRead()
    assert all(len(ear.heard) == 1 for ear in later), "their own news comes with the next batch"
    for ear in [*ears, *later]:
        ear.close()


def test_continuing_connections_take_turns(clock: MemoryReactorClock) -> None:
    poller = Poller(clock)
    seen: list[str] = []
    for name in "abc":
        poller.queue_turn(Walker(poller, name, 3, seen))
    while clock.getDelayedCalls():
        clock.advance(0)
    assert "".join(seen) == "abcabcabc"


def test_nobody_goes_on_when_the_last_leg_is_gone(clock: MemoryReactorClock) -> None:
    poller = Poller(clock)
    ear, seen = Ear(poller), list[str]()
    poller.queue_turn(Walker(poller, "a", 3, seen))
    ear.close()
    clock.advance(0)
    assert seen == []


def test_messages_are_looked_for_again_before_all_that_wait_had_a_long_turn(
    clock: MemoryReactorClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing, "TURNS", 0.0)
    poller = Poller(clock)
    seen: list[str] = []
    for name in "abc":
        poller.queue_turn(Walker(poller, name, 2, seen))
    for given in range(1, 7):
        poller._give_turns()
        assert "".join(seen) == "abcabc"[:given]
    clock.advance(0)


def test_timers_keep_their_time_while_messages_never_cease() -> None:
    reactor = ElementReactor()
    run_on_monotonic_time(reactor)
    ear = Ear(reactor.poller)
    rung: list[float] = []

    def pass_on() -> None:
        ear.sock.recv(1)
        ear.peer.send(b"!")
        if len(ear.heard) == 100:  # a timer that is set while the others wait
            reactor.callLater(0.01, rung.append, len(ear.heard))
        if len(ear.heard) > 2_000_000:
            reactor.crash()

    ear.answer = pass_on
    ear.peer.send(b"!")
    failures: list[object] = []

    def note(event: LogEvent) -> None:
        failures.extend([event["log_failure"]] if "log_failure" in event else [])

    globalLogPublisher.addObserver(note)
    began = time.monotonic()
    reactor.callLater(0.02, rung.append, 0)
    reactor.callLater(0.03, reactor.callLater, 0.0, reactor.stop)
    reactor.run(installSignalHandlers=False)
    ear.close()
    globalLogPublisher.removeObserver(note)
    assert failures == []
    assert rung == [100, 0]
    assert 0.03 <= time.monotonic() - began < 5.0

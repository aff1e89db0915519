"""The order in which a channel's connections are dialled, whichever element carries each."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.task import Clock

from scistream import timing
from scistream.s2ds.elements.commands import ElementCommand, HandOver
from scistream.s2ds.elements.element_settings import ElementSettings
from scistream.s2ds.elements.pool import Elements
from scistream.s2ds.elements.shared_figures import SharedFigures
from scistream.s2ds.relay.turns import TURNS, Turn, Turns


class Channel:
    """One channel at several elements."""

    def __init__(self, board: SharedFigures, elements: int) -> None:
        self.clock = Clock()
        self.elements = [Turns(self.clock, board.words, board.turns(0)) for _ in range(elements)]
        self.dialled: list[int] = []

    def come(self, element: int, number: int, timeout: float = timing.TURN) -> Deferred[None]:
        turn = Turn(self.elements[element], number)

        async def dial() -> None:
            try:
                await turn.wait(timeout)
                self.dialled.append(number)
            finally:
                turn.finish()

        return Deferred.fromCoroutine(dial()).addErrback(lambda failure: failure.trap(CancelledError) and None)

    def look(self, times: int = 1) -> None:
        """Let every element look as often at what the others have written."""
        self.clock.pump([timing.LONGEST_TURN_POLL] * times)


@contextmanager
def channel(elements: int) -> Iterator[Channel]:
    board = SharedFigures.create(1, elements)
    yield Channel(board, elements)
    board.close()


@given(st.permutations(range(1, 40)), st.integers(1, 4))
def test_connections_are_dialled_by_number_in_any_order_of_readiness(ready: list[int], elements: int) -> None:
    with channel(elements) as made:
        for number in ready:
            made.come(number % elements, number)
        made.look(len(ready))
        assert made.dialled == sorted(ready)
        assert made.clock.getDelayedCalls() == []


@given(st.permutations(range(1, 40)), st.sets(st.integers(1, 39)), st.integers(1, 4))
def test_those_that_end_before_their_turn_are_skipped(ready: list[int], ending: set[int], elements: int) -> None:
    with channel(elements) as made:
        comes = {number: made.come(number % elements, number) for number in ready if number in ending or number > 1}
        for number in ending:
            comes[number].cancel()
        if 1 not in comes:
            Turn(made.elements[0], 1).finish()
        made.look(len(ready))
        left = [number for number in made.dialled if number not in ending]
        assert left == sorted(set(comes) - ending)
        assert made.clock.getDelayedCalls() == []


@given(st.sets(st.integers(1, 3 * TURNS), min_size=1), st.integers(1, 4))
def test_nobody_waits_longer_for_one_that_does_not_come(numbers: set[int], elements: int) -> None:
    with channel(elements) as made:
        for number in sorted(numbers):
            made.come(number % elements, number)
        made.look(round(timing.TURN / timing.LONGEST_TURN_POLL) + len(numbers) + 1)
        assert sorted(made.dialled) == sorted(numbers)
        assert made.clock.getDelayedCalls() == []


@given(st.permutations(range(2, 40)), st.lists(st.floats(0.05, 0.2), min_size=38, max_size=38), st.integers(1, 4))
def test_those_that_wait_keep_their_order_when_one_before_them_is_given_up(
    ready: list[int], timeout: list[float], elements: int
) -> None:
    with channel(elements) as made:
        for number, seconds in zip(ready, timeout, strict=True):
            made.come(number % elements, number, seconds)
        made.look(round(0.2 / timing.LONGEST_TURN_POLL) + len(ready) + 1)
        assert made.dialled == sorted(ready)
        assert made.clock.getDelayedCalls() == []


def test_connections_without_a_number_wait_for_nobody() -> None:
    with channel(2) as made:
        made.come(0, 2)
        made.come(1, 0)
        assert made.dialled == [0]
        made.look(round(timing.TURN / timing.LONGEST_TURN_POLL) + 1)
        assert made.dialled == [0, 2]


@pytest.mark.parametrize(("in_order", "numbers"), [(True, [1, 2, 3]), (False, [0, 0, 0])])
def test_connections_are_numbered_where_their_order_counts(in_order: bool, numbers: list[int]) -> None:
    elements = Elements(Clock(), 1, 1, ElementSettings(), in_order=in_order)
    member = Member()
    elements._members = [member]
    elements.open("uid", "CONS", 1.0, {0: 0})
    for _ in numbers:
        with socket.socket() as sock:
            elements.carry("uid", "CONS", 0, sock, wan=False)
    assert member.numbers == numbers
    elements._figures.close()


class Member:
    """An element that takes whatever it is given."""

    number = 0
    ready = True

    def __init__(self) -> None:
        self.numbers: list[int] = []

    def start(self) -> None:
        """Start, and do nothing else."""

    def stop(self) -> Deferred[None]:
        return succeed(None)

    def ask(self, _order: ElementCommand) -> Deferred[None]:
        return succeed(None)

    def carry(self, carry: HandOver, _sock: socket.socket) -> bool:
        self.numbers.append(carry.number)
        return True

    def most_descriptors(self) -> int:
        return 1024

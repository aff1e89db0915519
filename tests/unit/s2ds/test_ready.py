"""How many ready connections there are, and how many a channel needs, in virtual time."""

from __future__ import annotations

import pytest
from twisted.internet.task import Clock

from scistream import timing
from scistream.protocol.messages import CONS, PROD, StreamKey
from scistream.s2ds.elements.ready import HELD, OPENING_AT_ONCE, STREAM_SHARE, ReadyBudget, ReadyDemand, ReadySetting
from scistream.s2ds.settings import MOST_READY

MOST = 64
SHARE = MOST // STREAM_SHARE


def stream(number: int) -> StreamKey:
    return f"00000000-0000-4000-8000-{number:012}", CONS


def never() -> None:
    pytest.fail("called although no place was awaited")


def opened(budget: ReadyBudget, key: StreamKey) -> bool:
    """Open one more connection of a stream, if it may have one."""
    if not budget.begin(key, never):
        return False
    budget.opened()
    return True


def opened_until_refused(budget: ReadyBudget, key: StreamKey) -> int:
    return next(number for number in range(10 * MOST) if not opened(budget, key))


def held_until_refused(budget: ReadyBudget, key: StreamKey) -> int:
    return next(number for number in range(10 * HELD * MOST) if not budget.hold(key))


# -- the budget of an element


def test_a_stream_has_its_share_and_all_streams_together_the_most() -> None:
    budget = ReadyBudget(MOST)
    assert [opened_until_refused(budget, stream(n)) for n in range(STREAM_SHARE + 1)] == [SHARE] * STREAM_SHARE + [0]


def test_a_stream_may_have_one_even_where_its_share_is_less() -> None:
    budget = ReadyBudget(1)
    assert opened_until_refused(budget, stream(1)) == 1
    assert opened_until_refused(budget, stream(2)) == 0


def test_both_sides_of_a_stream_on_one_gateway_have_a_share_each() -> None:
    budget = ReadyBudget(MOST)
    uid, _ = stream(1)
    assert opened_until_refused(budget, (uid, CONS)) == SHARE
    assert opened_until_refused(budget, (uid, PROD)) == SHARE


def test_a_connection_that_has_ended_gives_its_place_back() -> None:
    budget = ReadyBudget(MOST)
    for n in range(STREAM_SHARE):
        opened_until_refused(budget, stream(n))
    assert not opened(budget, stream(9))
    budget.ended(stream(0))
    assert opened(budget, stream(9))
    assert not opened(budget, stream(0)), "all places are taken again"


def test_only_so_many_are_dialled_at_once_and_those_who_wait_are_called_when_one_is_open() -> None:
    budget = ReadyBudget(MOST)
    for _ in range(OPENING_AT_ONCE):
        assert budget.begin(stream(1), never)
    called: list[str] = []
    first, second = lambda: called.append("first"), lambda: called.append("second")
    assert not budget.begin(stream(1), first)
    assert not budget.begin(stream(2), second)
    assert not budget.begin(stream(1), first), "who asks twice is called once"
    assert called == []
    budget.opened()
    assert called == ["first", "second"]
    budget.opened()
    assert called == ["first", "second"], "each is called once and has to ask again"


def test_who_is_called_may_begin_at_once_or_wait_again() -> None:
    budget = ReadyBudget(MOST)
    for _ in range(OPENING_AT_ONCE):
        assert budget.begin(stream(1), never)
    begun: list[int] = []

    def begin(number: int) -> None:
        if budget.begin(stream(number), lambda: begin(number)):
            begun.append(number)

    for number in (2, 3, 4):
        begin(number)
    for expected in ([2], [2, 3], [2, 3, 4]):
        budget.opened()
        assert begun == expected


def test_who_is_forgotten_is_not_called() -> None:
    budget = ReadyBudget(MOST)
    for _ in range(OPENING_AT_ONCE):
        budget.begin(stream(1), never)
    assert not budget.begin(stream(2), never)
    budget.forget(never)
    budget.forget(never)
    budget.opened()


def test_who_is_refused_by_a_limit_is_not_called() -> None:
    budget = ReadyBudget(1)
    assert budget.begin(stream(1), never)
    assert not budget.begin(stream(2), never)
    budget.opened()


def test_other_gateways_hold_the_most_for_each_stream_and_a_multiple_in_all() -> None:
    budget = ReadyBudget(MOST)
    assert [held_until_refused(budget, stream(n)) for n in range(HELD + 1)] == [MOST] * HELD + [0]
    budget.release(stream(0))
    assert budget.hold(stream(9))
    assert not budget.hold(stream(0))


def test_those_of_other_gateways_take_no_place_of_the_own() -> None:
    budget = ReadyBudget(MOST)
    for n in range(HELD):
        held_until_refused(budget, stream(n))
    assert opened_until_refused(budget, stream(0)) == SHARE
    assert not budget.hold(stream(0))


# -- what a channel needs


def demand(
    clock: Clock, setting: ReadySetting, *, grows: bool = False, channel: int = 0, element: int = 0, elements: int = 1
) -> ReadyDemand:
    return ReadyDemand(clock, setting, grows=grows, channel=channel, element=element, elements=elements)


@pytest.mark.parametrize("elements", [1, 2, 3, 4, 7, 16])
@pytest.mark.parametrize("setting", [0, 1, 2, 3, 5, 16, MOST_READY])
def test_the_setting_over_all_elements_is_what_was_set(setting: int, elements: int) -> None:
    for channel in range(elements + 1):
        wanted = [
            demand(Clock(), setting, channel=channel, element=element, elements=elements).wanted()
            for element in range(elements)
        ]
        assert sum(wanted) == setting
        assert max(wanted) - min(wanted) <= 1


def test_the_one_of_a_channel_is_at_another_element_for_each_channel() -> None:
    elements = 4
    where = [
        [
            demand(Clock(), 1, channel=channel, element=element, elements=elements).wanted()
            for element in range(elements)
        ]
        for channel in range(elements)
    ]
    assert sorted(row.index(1) for row in where) == list(range(elements))


@pytest.mark.parametrize("elements", [1, 3])
def test_auto_begins_with_one_for_the_channel(elements: int) -> None:
    wanted = [demand(Clock(), "auto", element=element, elements=elements).wanted() for element in range(elements)]
    assert sum(wanted) == 1


def test_a_number_that_is_set_stays_whatever_is_claimed() -> None:
    clock = Clock()
    needed = demand(clock, 2)
    for _ in range(100):
        needed.note_claim(0.1)
    assert needed.wanted() == 2


@pytest.mark.parametrize(("setting", "grows"), [("auto", False), ("auto", True), (2, True)])
def test_the_number_follows_new_connections_and_falls_again(setting: ReadySetting, grows: bool) -> None:
    clock = Clock()
    needed = demand(clock, setting, grows=grows)
    least = needed.wanted()
    assert needed.checked_again is None
    for _ in range(5):
        needed.note_claim(0.1)
    assert needed.wanted() == 10
    assert needed.checked_again == timing.READY_DEMAND
    clock.advance(timing.READY_DEMAND)
    assert needed.wanted() == 10, "they count until their time is over"
    clock.advance(0.001)
    assert needed.wanted() == least
    assert needed.checked_again is None


def test_where_opening_takes_long_connections_count_for_longer() -> None:
    clock = Clock()
    needed = demand(clock, "auto")
    needed.note_claim(timing.READY_DEMAND)
    needed.note_claim(timing.READY_DEMAND)
    assert needed.checked_again == 2 * timing.READY_DEMAND
    clock.advance(2 * timing.READY_DEMAND)
    assert needed.wanted() == 4
    clock.advance(0.001)
    assert needed.wanted() == 1


def test_a_steady_rate_needs_those_of_twice_the_time_in_which_they_are_counted() -> None:
    clock = Clock()
    needed = demand(clock, "auto")
    for _ in range(200):
        clock.advance(timing.READY_DEMAND / 10)
        needed.note_claim(0.0)
    assert 20 <= needed.wanted() <= 22


@pytest.mark.parametrize("elements", [1, 2, 3, 7, MOST_READY, 2 * MOST_READY])
def test_there_are_never_more_than_the_most_of_a_channel(elements: int) -> None:
    clock = Clock()
    needed = [demand(clock, "auto", element=element, elements=elements) for element in range(elements)]
    for one in needed:
        for _ in range(10 * MOST_READY):
            one.note_claim(0.1)
    assert sum(one.wanted() for one in needed) == max(MOST_READY, elements)
    assert max(one.wanted() for one in needed) <= -(-MOST_READY // elements)
    clock.advance(10.0)
    assert sum(one.wanted() for one in needed) == 1

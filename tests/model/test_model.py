"""The whole protocol under small bounds: every run in which two messages or links, or one party, come to harm.

`make model` explores wider bounds with the same code: see run.py.
"""

from __future__ import annotations

import pytest
from model_explorer import Counts, Explorer, Seen, Task, Violation, explore, story
from model_faults import CRASH, NETWORK, Bounds
from model_mutations import MUTATIONS
from model_planted import harm_by_itself, search
from model_stand_ins import installed
from model_world import SCENARIOS, stores

OTHERS = [name for name in SCENARIOS if name != "life"]


def check(counts: Counts) -> None:
    for violation in sorted(counts.violations, key=lambda one: one.length)[:1]:
        pytest.fail(story(violation))


def test_any_two_messages_may_be_lost_or_overtaken_and_any_two_links_may_break() -> None:
    check(explore(SCENARIOS["life"], Bounds(2, 0, frozenset({"lose", "last", "break"}))))


def test_anything_may_go_wrong_once_on_the_network() -> None:
    check(explore(SCENARIOS["life"], Bounds(1, 0, NETWORK)))


def test_any_party_may_crash_or_fall_silent_at_any_moment() -> None:
    check(explore(SCENARIOS["life"], Bounds(0, 1, CRASH)))


@pytest.mark.parametrize("scenario", OTHERS)
def test_anything_may_go_wrong_once_on_the_network_whatever_people_do(scenario: str) -> None:
    check(explore(SCENARIOS[scenario], Bounds(1, 0, NETWORK)))


@pytest.mark.parametrize("scenario", OTHERS)
def test_any_party_may_crash_or_fall_silent_at_any_moment_whatever_people_do(scenario: str) -> None:
    check(explore(SCENARIOS[scenario], Bounds(0, 1, CRASH)))


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_planted_fault_does_no_harm_by_itself_and_is_found(name: str) -> None:
    assert harm_by_itself(MUTATIONS[name]) == []
    assert search(MUTATIONS[name]) is not None


def test_a_run_is_the_same_whenever_it_is_made() -> None:
    branches = []
    with installed(), stores() as files:
        for _ in range(2):
            explorer = Explorer(SCENARIOS["life"], Bounds(1, 1), files, Seen(1 << 12))
            branches.append(explorer.run(Task(()), 1))
    assert branches[0] == branches[1]
    assert len(branches[0]) > 500


def test_a_trace_tells_each_step_each_fault_and_what_is_broken() -> None:
    told = story(Violation("life", ((9, ("lose",)),), 12, "nothing at all"))
    assert "the user asks for a stream" in told
    assert "FAULT: REQ (PROD) to producer's S2CS is lost" in told
    assert told.endswith("VIOLATION: nothing at all")

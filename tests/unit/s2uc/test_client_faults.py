"""A fault in an effect of S2UC: the operation ends with a reason, it is told once, and nothing stays reserved."""

from __future__ import annotations

from typing import Any

import pytest
from planted_faults import PlantedError, break_method, logged_faults

from scistream.protocol.errors import StreamError
from scistream.protocol.messages import CONS, PROD
from scistream.s2uc.history import StreamHistory
from scistream.s2uc.machine import Effects
from scistream.s2uc.stream import ClientStream
from support.memory_facilities import World

EFFECTS = sorted(name for name in vars(Effects) if not name.startswith("_"))
HEARING = [
    "_command_answered",
    "_command_failed",
    "_status_answered",
    "_status_failed",
    "message_received",
    "link_up",
    "poll",
    "reached",
    "roles_at",
]
"""What is called when a server says something, or its link changes."""

LIFE = 400.0


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Collect what the streams of a user log with a traceback."""
    return logged_faults(monkeypatch, ClientStream)


def settled(world: World, deferred: Any) -> Any:
    """Return the result, or the refusal; fail if there is neither."""
    outcome: list[Any] = []
    deferred.addBoth(outcome.append)
    for _ in range(200):
        if outcome:
            break
        world.network.run(1)
    assert outcome, "nobody was told"
    return outcome[0]


@pytest.mark.parametrize("name", [*EFFECTS, *HEARING])
@pytest.mark.parametrize("after", range(3))
@pytest.mark.parametrize("first", [True, False], ids=["instead of its work", "after its work"])
@pytest.mark.parametrize("again", [True, False], ids=["each time", "once"])
def test_a_fault_in_any_effect_of_a_user_at_any_time_ends_the_operation_and_leaves_nothing_reserved(
    world: World, faults: list[Any], monkeypatch: pytest.MonkeyPatch, name: str, after: int, first: bool, again: bool
) -> None:
    which = range(after, 1_000_000 if again else after + 1)
    calls = break_method(monkeypatch, ClientStream, name, first=first, which=which)
    asking = world.client.request(prod="127.0.0.1:5000", cons="127.0.0.1:6000", rate=100.0, expires=LIFE)
    outcomes = [settled(world, asking.deferred)]
    if outcomes[0] is asking.stream:
        world.application(asking.stream.join[PROD], "detector")
        world.application(asking.stream.join[CONS], "analysis")
        outcomes.append(settled(world, asking.stream.provisioned().deferred))
        outcomes.append(settled(world, asking.stream.status().deferred))
        world.network.run(31)  # until the servers were looked at again
    outcomes.append(settled(world, asking.stream.release().deferred))
    outcomes.append(settled(world, asking.stream.ended().deferred))
    told = [one.value for one in outcomes if hasattr(one, "value")]
    assert all(isinstance(one, StreamError | PlantedError) for one in told)
    if not told:  # whoever is told that it is released can rely on it
        assert world.both_are_empty()
        assert StreamHistory().all() == []
    elif not any("has not confirmed the release" in str(one) for one in told):
        world.network.run(5)
        assert world.both_are_empty()
    world.network.jump(LIFE)
    world.network.run(60)
    assert world.both_are_empty()
    assert bool(faults) == any(number in which for number in range(len(calls)))
    kinds = [fault["effect"] for fault in faults]
    assert len(kinds) == len(set(kinds)), "each is logged once"
    assert all(isinstance(fault["log_failure"].value, PlantedError) for fault in faults)


def test_callers_are_told_that_the_program_itself_has_failed(
    world: World, faults: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    break_method(monkeypatch, ClientStream, "provision", first=True)
    stream = world.request()
    world.application(stream.join[PROD], "detector")
    refused = settled(world, stream.provisioned().deferred).value
    assert "s2uc itself failed (provision), so the stream is released: see its log" in refused.msg
    assert world.both_are_empty()
    assert len(faults) == 1


def test_a_fault_while_a_stream_is_looked_at_does_not_end_it(
    world: World, faults: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = world.stream()
    other = world.client.remembered(stream.uid, prod="127.0.0.1:5000", cons="127.0.0.1:6000")
    break_method(monkeypatch, ClientStream, "link_up", first=True)
    other._effects._guarded.link_up(other._effects._servers[PROD])
    assert len(faults) == 1
    world.network.run(5)
    assert world.both_are("streaming")

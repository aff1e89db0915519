"""A fault in an effect of an S2CS: the stream ends, it is told once, and nothing stays reserved or stuck."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from planted_faults import PlantedError, break_method, logged_faults
from twisted.internet.defer import Deferred

from scistream import timing
from scistream.protocol.errors import StreamError
from scistream.protocol.messages import CONS, PROD, Command, Role
from scistream.s2cs.machine_core import Effects
from scistream.s2cs.stream import ServerStream
from support.memory_facilities import World

EFFECTS = sorted(name for name in vars(Effects) if not name.startswith("_"))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path, gateways=2)
    yield world
    world.close()


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Collect what the streams of control servers log with a traceback."""
    return logged_faults(monkeypatch, ServerStream)


def break_effect(patch: pytest.MonkeyPatch, role: Role, name: str, after: int, *, first: bool) -> list[str]:
    """Let an effect of one side raise at each call from one on."""
    calls = range(after, 1_000_000)
    return break_method(patch, ServerStream, name, first=first, which=calls, of=lambda held: held.record.role == role)


def whatever(world: World, asked: Deferred[Any], within: float) -> Any:
    """Return the result or the refusal, or None if nothing arrives in time."""
    outcome: list[Any] = []
    asked.addBoth(outcome.append)
    for _ in range(int(within)):
        if outcome:
            break
        world.network.run(1)
    return outcome[0] if outcome else None


@pytest.mark.parametrize("name", EFFECTS)
@pytest.mark.parametrize("after", range(5))
@pytest.mark.parametrize("first", [True, False], ids=["instead of its work", "after its work"])
@pytest.mark.parametrize("role", [PROD, CONS])
def test_a_fault_in_any_effect_of_a_control_server_at_any_time_ends_the_stream_and_leaves_nothing_reserved(
    world: World, faults: list[Any], monkeypatch: pytest.MonkeyPatch, name: str, after: int, first: bool, role: Role
) -> None:
    calls = break_effect(monkeypatch, role, name, after, first=first)
    stream = whatever(world, world.ask(num_conn=4, expires=400.0), 40)
    if stream is not None and hasattr(stream, "join"):
        world.application(stream.join[PROD], "detector")
        world.application(stream.join[CONS], "analysis")
        whatever(world, stream.provisioned().deferred, 40)
        whatever(world, stream.release().deferred, 40)
    world.network.jump(440)  # whatever became of it, its time is over
    world.network.run(60)
    for facility in (world.prod, world.cons):
        assert {held.record.state for held in facility.control.streams.values()} <= {"Released"}
    assert world.both_are_empty()
    assert bool(faults) == (len(calls) > after)
    told_by = [id(fault["log_source"]) for fault in faults]  # a command about a stream that is gone is another one's
    assert len(told_by) == len(set(told_by)), "a stream logs it once"
    assert all(isinstance(fault["log_failure"].value, PlantedError) for fault in faults)


def test_a_stream_is_not_called_released_before_each_of_its_gateways_could_be_asked(
    world: World, faults: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = world.stream(num_conn=4)
    (held,) = world.prod.control.streams.values()
    fails, broken = ServerStream.ask, [min(held.record.plan)]

    def ask(one: ServerStream, gateway: str, command: Command) -> None:
        if one is held and gateway in broken:
            raise PlantedError(gateway)
        fails(one, gateway, command)

    monkeypatch.setattr(ServerStream, "ask", ask)
    releasing = stream.release().deferred
    world.network.run(20.0)
    assert held.record.state == "Releasing"
    assert world.prod.held() == [(2, 50.0)], "one gateway has heard of it, and the other has not"
    broken.clear()
    world.result(releasing, within=2 * timing.RELEASE_AGAIN)
    assert held.record.state == "Released"
    assert world.both_are_empty()
    assert len(faults) == 1


def test_a_release_that_cannot_be_asked_for_takes_no_memory_without_end(
    world: World, faults: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = world.stream(num_conn=4)
    (held,), ask = world.prod.control.streams.values(), ServerStream.ask
    gone, broken = sorted(held.record.plan)

    def faulty(one: ServerStream, gateway: str, command: Command) -> None:
        if one is held and gateway == broken:
            raise PlantedError(gateway)
        ask(one, gateway, command)

    monkeypatch.setattr(ServerStream, "ask", faulty)
    monkeypatch.delitem(world.prod.control.gateways, gone)
    stream.release().deferred.addErrback(lambda _: None)
    world.network.run(20 * timing.RELEASE_AGAIN)
    assert held.record.state == "Releasing"
    assert len(held._timers) <= 1, "of the gateway that is in the configuration no more"
    assert len(faults) == 1


def test_callers_of_a_failed_command_are_answered(
    world: World, faults: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    break_effect(monkeypatch, PROD, "ask", 0, first=True)
    refused = whatever(world, world.ask(), 40)
    assert isinstance(refused.value, StreamError)
    assert (refused.value.code, "see its log" in refused.value.msg) == ("gateway-failed", True)
    assert faults

"""A fault anywhere in an application controller ends it with the reason, is logged once, and leaves nothing waiting."""

from __future__ import annotations

from typing import Any

import pytest
from planted_faults import PlantedError, break_method, logged_faults

from scistream.app.controller import Controller
from scistream.app.machine import Effects
from scistream.protocol.messages import CONS, PROD, Role
from support.memory_facilities import Application, World

EFFECTS = sorted(name for name in vars(Effects) if not name.startswith("_"))
HANDLERS = ["_up", "_down", "_heard", "_hello_if_answered", "_welcomed", "_refused", "_program_ended"]
"""What the link and the program call."""


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Collect what application controllers log with a traceback."""
    return logged_faults(monkeypatch, Controller)


def live(world: World, role: Role) -> Application:
    """Take a stream from its request to its release, with one break of the link; return this side's application."""
    stream = world.request(expires=300.0)
    detector = world.application(stream.join[PROD], "detector")
    world.network.run(2)
    analysis = world.application(stream.join[CONS], "analyse")
    world.network.run(20)
    facility = world.prod if role == PROD else world.cons
    facility.control.stopService()
    world.network.run(3)
    facility.control = facility.start_control()
    world.network.run(20)
    program = {PROD: detector, CONS: analysis}[role].program
    stream.release()
    world.network.run(40)
    program.end()
    world.network.run(5)
    return detector if role == PROD else analysis


@pytest.mark.parametrize("first", [True, False], ids=["instead of its work", "after its work"])
@pytest.mark.parametrize("role", [PROD, CONS])
@pytest.mark.parametrize("name", [*EFFECTS, *HANDLERS])
def test_a_fault_anywhere_in_an_application_controller_ends_it_with_the_reason_logged_once(
    world: World, faults: list[Any], monkeypatch: pytest.MonkeyPatch, name: str, first: bool, role: Role
) -> None:
    calls = break_method(monkeypatch, Controller, name, first=first, of=lambda one: one._join.role == role)
    one = live(world, role)
    assert one.finished.called, "it waits for nothing"
    assert not one.controller._dialer.running
    assert bool(faults) == bool(calls)
    if not calls:
        assert (name, role) in {("connect", PROD), ("serve", CONS), ("_program_ended", role), ("_refused", role)}
        return
    assert [fault["effect"] for fault in faults] == [name], "it is logged once"
    assert isinstance(faults[0]["log_failure"].value, PlantedError)
    reason = one.error or one.ended_by
    if name == "_program_ended":
        assert world.network.programs, "it was over anyway"
        return
    assert reason is not None
    if reason.code != "released" or first:  # otherwise it was over when it failed
        assert f"appctrl itself failed ({name}): see its log" in str(reason)
    if one.program in world.network.programs:
        assert one.ended_by is not None
        assert any("the program continues" in note for note in one.notes) or name == "finish"
    else:
        assert one.error is not None, "the command ends with a status that is not 0"

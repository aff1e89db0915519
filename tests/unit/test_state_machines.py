"""Logging of a machine's changes of state, and the checks on tables of transitions."""

from __future__ import annotations

import ast
import gc
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, Protocol, cast

import pytest
from automat import TypeMachineBuilder
from hypothesis import given
from hypothesis import strategies as st
from twisted.logger import Logger, formatEvent

import scistream
from scistream import timing
from scistream.app.machine import Core, new_consumer
from scistream.protocol.errors import StreamError
from scistream.state_machines import MOST_SAME_CHANGES, SAME, begin_in, build, data_of, on, state_of, trace


class NoEffects:
    """Effects that do nothing."""

    def say_hello(self) -> None:
        """Do nothing."""

    def serve(self) -> None:
        """Do nothing."""

    def connect(self, listeners: list[str]) -> None:
        """Do nothing."""

    def finish(self, error: StreamError | None) -> None:
        """Do nothing."""


def traced() -> tuple[Any, list[Any]]:
    events: list[Any] = []
    machine = new_consumer(Core(NoEffects()))
    trace(machine, Logger(observer=cast(Any, events.append)), party="app", uid="u-1")
    return machine, events


def test_each_change_of_state_is_an_event_with_the_fields_that_were_given() -> None:
    machine, events = traced()
    machine.start()
    machine.welcomed()
    assert [formatEvent(event) for event in events] == [
        "party=app uid=u-1 state=greeting (was idle, after start)",
        "party=app uid=u-1 state=waiting (was greeting, after welcomed)",
    ]
    assert [(event["party"], event["uid"], event["state"]) for event in events] == [
        ("app", "u-1", "greeting"),
        ("app", "u-1", "waiting"),
    ]


def test_what_changes_no_state_is_no_event() -> None:
    machine, events = traced()
    machine.welcomed()
    machine.start_conn(["a:1"])
    assert events == []


def test_inputs_have_the_names_of_the_protocol_or_words_of_their_own() -> None:
    machine, events = traced()
    machine.start()
    machine.welcomed()
    machine.start_conn(["a:1"])
    assert formatEvent(events[-1]) == "party=app uid=u-1 state=connected (was waiting, after StartConn)"


def test_a_machine_can_say_its_state_by_name() -> None:
    machine, _ = traced()
    assert state_of(machine) == "Idle"
    machine.start()
    assert state_of(machine) == "Greeting"


class _State(NamedTuple):
    name: str


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 300), st.sampled_from([0.0, 1.0, 61.0])), max_size=20))
def test_changes_of_a_machine_are_few_lines_a_minute_and_none_is_uncounted(
    changes: list[tuple[str, int, float]],
) -> None:
    traced: list[Callable[..., None]] = []
    machine = SimpleNamespace(__automat_transitioner__=SimpleNamespace(setTrace=traced.append))
    events: list[Any] = []
    states = {name: _State(name) for name in ("a", "b", "c", "z", "end")}
    now, count, state = 0.0, 0, "a"
    trace(machine, Logger(observer=cast(Any, events.append)), lambda: now, party="x")
    (change,) = traced
    for name, times, pause in changes:
        for _ in range(times):
            for new in (name, "z"):
                count += new != state
                change(states[state], "command", states[new])
                state = new
        now += pause
    pairs = 7
    assert len(events) <= pairs * MOST_SAME_CHANGES * (int(now / timing.TALLY) + 1)
    now += timing.TALLY
    change(states[state], "command", states["end"])
    hidden = sum(int(event["more"].split()[1]) for event in events if event["more"])
    assert len(events) + hidden == count + 1


# -- a table becomes a machine


class Lamp(Protocol):
    """The inputs of a machine with three states."""

    def press(self, finger: str) -> None:
        """Switch the lamp on or off."""

    def fuse(self) -> None:
        """Break the lamp for good."""


@dataclass
class LampCore:
    """The common data of its states."""

    state: str = "Off"
    seen: list[Any] = field(default_factory=list)


@dataclass
class Light:
    """The data of On."""

    finger: str
    state_before: str


def make_light(lamp: Lamp, core: LampCore, finger: str) -> Light:
    return Light(finger, core.state)


def note(lamp: Lamp, core: LampCore, finger: str) -> None:
    core.seen.append((core.state, finger))


def note_light(lamp: Lamp, core: LampCore, light: Light, finger: str) -> None:
    core.seen.append((core.state, light.finger, light.state_before, finger))


class Parts:
    """The states of a lamp, for tests that write its table."""

    def __init__(self) -> None:
        self.builder = TypeMachineBuilder(Lamp, LampCore)
        self.off = self.builder.state("Off")
        self.on = self.builder.state("On", make_light)
        self.broken = self.builder.state("Broken")
        self.states = (self.off, self.on, self.broken)

    def build(self, *rows: Any, ignore: tuple[Any, ...] = (Lamp.fuse, Lamp.press)) -> Any:
        return build(self.builder, self.states, rows, ignore_elsewhere=ignore)


def test_the_state_is_written_before_a_handler_runs_and_after_its_data_are_made() -> None:
    parts, core = Parts(), LampCore()
    machine = parts.build(
        on(parts.off, Lamp.press, parts.on, note),
        on(parts.on, Lamp.press, parts.off, note_light),
    )(core)
    machine.press("thumb")
    assert core.seen == [("On", "thumb")]
    assert data_of(machine, Light) == Light("thumb", "Off")
    machine.press("index")
    assert core.seen[1:] == [("Off", "thumb", "Off", "index")]
    assert data_of(machine, Light) is None, "what is left behind is nobody's data"
    assert (state_of(machine), core.state) == ("Off", "Off")


def test_the_data_of_a_state_are_gone_when_it_is_left() -> None:
    parts = Parts()
    machine = parts.build(
        on(parts.off, Lamp.press, parts.on, note),
        on(parts.on, Lamp.press, parts.off, note_light),
    )(LampCore())
    machine.press("thumb")
    light = weakref.ref(cast(Light, data_of(machine, Light)))
    machine.press("thumb")
    gc.collect()
    assert light() is None, "callers and credentials would stay for as long as the machine"


def test_a_handler_for_states_with_and_without_data_need_not_take_them() -> None:
    parts, core = Parts(), LampCore()
    machine = begin_in(
        parts.build(on((parts.off, parts.on), Lamp.press, SAME, note), on(parts.on, Lamp.fuse, parts.broken)),
        core,
        parts.on,
        Light("nobody", ""),
    )
    machine.press("thumb")
    assert core.seen == [("On", "thumb")]
    assert data_of(machine, Light) == Light("nobody", "")
    machine.fuse()
    machine.press("thumb")
    assert (core.state, len(core.seen)) == ("Broken", 1)


def test_what_is_not_ignored_elsewhere_must_have_a_row_for_every_state() -> None:
    parts = Parts()
    rows = [on((parts.off, parts.on), Lamp.press, SAME, note)]
    with pytest.raises(TypeError, match="does not say what press does in Broken"):
        parts.build(*rows, ignore=(Lamp.fuse,))


def test_what_has_a_row_for_every_state_is_not_declared_as_ignored_elsewhere() -> None:
    parts = Parts()
    with pytest.raises(TypeError, match="press: to be ignored elsewhere"):
        parts.build(on(parts.states, Lamp.press, SAME, note))


def test_an_input_has_one_row_for_a_state() -> None:
    parts = Parts()
    with pytest.raises(ValueError, match="already have transition"):
        parts.build(on(parts.off, Lamp.press, parts.on, note), on(parts.off, Lamp.press, SAME, note))


def test_a_handler_must_take_what_its_input_gives_and_may_want_data_only_where_there_are_some() -> None:
    parts = Parts()
    with pytest.raises(TypeError, match="fuse gives"):
        parts.build(cast(Any, on)(parts.off, Lamp.fuse, parts.broken, note_light))
    with pytest.raises(TypeError, match="wants the data of Off, which has none"):
        parts.build(cast(Any, on)(parts.off, Lamp.press, parts.broken, note_light))


MACHINES = sorted(Path(scistream.__file__).parent.rglob("machine.py"))


@pytest.mark.parametrize("path", MACHINES, ids=lambda path: path.parent.name)
def test_no_handler_writes_the_state_that_its_machine_is_in(path: Path) -> None:
    """Only the builder of machines may write the state, and the property that keeps it in a record."""
    tree = ast.parse(path.read_text())
    setters = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "state"]
    inside = {id(node) for setter in setters for node in ast.walk(setter)}
    written = [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr == "state" and isinstance(node.ctx, ast.Store)
        if id(node) not in inside
    ]
    assert written == []

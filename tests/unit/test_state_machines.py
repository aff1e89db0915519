"""What the log says of a machine's changes of state, and what a table of transitions must have to become a machine."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

from hypothesis import given
from hypothesis import strategies as st
from twisted.logger import Logger, formatEvent

from scistream.app.machine import Core, new_consumer
from scistream.logs import TALLY_SECONDS
from scistream.state_machines import MOST_SAME_CHANGES, state_of, trace
from scistream.wire.errors import StreamError


class NoEffects:
    """Does nothing of what it is asked."""

    def say_hello(self) -> None:
        """Nothing."""

    def serve(self) -> None:
        """Nothing."""

    def connect(self, listeners: list[str]) -> None:
        """Nothing."""

    def finish(self, error: StreamError | None) -> None:
        """Nothing."""


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
def test_whatever_commands_a_machine_its_changes_are_few_lines_a_minute_and_none_is_uncounted(
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
    assert len(events) <= pairs * MOST_SAME_CHANGES * (int(now / TALLY_SECONDS) + 1)
    now += TALLY_SECONDS
    change(states[state], "command", states["end"])
    hidden = sum(int(event["more"].split()[1]) for event in events if event["more"])
    assert len(events) + hidden == count + 1

"""The machines of both application controllers: their tables of states, and their effects at each step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from state_tables import Table, inputs_of, tables_of

from scistream.app import machine as app
from scistream.app.machine import Application, Core, Effects, new_consumer, new_producer
from scistream.protocol.errors import StreamError
from support import machine_rig
from support.machine_rig import Recorder

PROD_TABLE, CONS_TABLE = tables_of(app.__doc__)
PROD_STATES = [state.name for state in app.PROD_STATES]
CONS_STATES = [state.name for state in app.CONS_STATES]
LISTENERS = ["lan.example:5100"]
EXPIRED = StreamError("expired", "its time is over")


class Rig(machine_rig.Rig):
    """The machine of an application controller, for a producer or a consumer."""

    def __init__(self, make: Callable[[Core], Application]) -> None:
        effects: Any = Recorder(Effects)
        self.core = Core(effects)
        super().__init__(make(self.core), effects)

    def to(self, state: str) -> Rig:
        if state != "Idle":
            self.machine.start()
        if state in ("Serving", "Waiting"):
            self.machine.welcomed()
        if state == "Connected":
            self.machine.start_conn(LISTENERS)
        if state == "Done":
            self.machine.done()
        assert self.state == state
        self.effects.calls.clear()
        return self


INPUTS: dict[str, tuple[str, Callable[[Rig], None]]] = {
    "start": ("start", lambda rig: rig.machine.start()),
    "welcomed": ("RESP", lambda rig: rig.machine.welcomed()),
    "start_conn": ("StartConn", lambda rig: rig.machine.start_conn(LISTENERS)),
    "failed": ("ERROR", lambda rig: rig.machine.failed(EXPIRED)),
    "done": ("done", lambda rig: rig.machine.done()),
}
CASES = [
    pytest.param(table, make, state, name, id=f"{party}-{state}-{name}")
    for party, table, make, states in (
        ("ProdApp", PROD_TABLE, new_producer, PROD_STATES),
        ("ConsApp", CONS_TABLE, new_consumer, CONS_STATES),
    )
    for state in states
    for name in INPUTS
]


def test_the_tables_name_every_state_and_these_tests_every_input() -> None:
    assert PROD_TABLE.states == set(PROD_STATES)
    assert CONS_TABLE.states == set(CONS_STATES)
    assert set(INPUTS) == inputs_of(Application)
    called = {called for called, _ in INPUTS.values()}
    assert {given for _, given in PROD_TABLE.inputs | CONS_TABLE.inputs} == called


@pytest.mark.parametrize(("table", "make", "state", "name"), CASES)
def test_every_input_leads_from_every_state_where_the_table_says(
    table: Table, make: Callable[[Core], Application], state: str, name: str
) -> None:
    called, give = INPUTS[name]
    rig = Rig(make).to(state)
    give(rig)
    assert rig.state == table.next(state, called)
    if (state, called) not in table.inputs:
        assert rig.effects.calls == [], "what is not in the table does nothing"
    rig.effects.calls.clear()
    give(rig)
    give(rig)
    assert [call for call in rig.effects.calls if call != ("serve",)] == [], "nothing is done twice"


def test_a_prod_app_says_hello_serves_and_finishes() -> None:
    rig = Rig(new_producer)
    rig.machine.start()
    rig.machine.welcomed()
    rig.machine.done()
    assert rig.effects.calls == [("say hello",), ("serve",), ("finish", None)]
    assert rig.core.error is None


def test_a_cons_app_says_hello_waits_connects_and_finishes() -> None:
    rig = Rig(new_consumer)
    rig.machine.start()
    rig.machine.welcomed()
    assert rig.effects.calls == [("say hello",)]
    rig.machine.start_conn(LISTENERS)
    rig.machine.done()
    assert rig.effects.calls == [("say hello",), ("connect", LISTENERS), ("finish", None)]
    assert rig.core.listeners == LISTENERS


def test_start_conn_may_overtake_the_answer_to_hello() -> None:
    rig = Rig(new_consumer).to("Greeting")
    rig.machine.start_conn(LISTENERS)
    rig.machine.welcomed()
    assert rig.state == "Connected"
    assert rig.effects.calls == [("connect", LISTENERS)]


def test_a_repeated_start_conn_starts_no_second_program() -> None:
    rig = Rig(new_consumer).to("Connected")
    rig.machine.start_conn(["lan.example:9"])
    assert rig.effects.calls == []
    assert rig.core.listeners == LISTENERS


@pytest.mark.parametrize(
    ("make", "state"),
    [
        (new_producer, "Greeting"),
        (new_producer, "Serving"),
        (new_consumer, "Greeting"),
        (new_consumer, "Waiting"),
        (new_consumer, "Connected"),
    ],
)
def test_a_stream_that_fails_ends_the_application_with_the_reason(
    make: Callable[[Core], Application], state: str
) -> None:
    rig = Rig(make).to(state)
    rig.machine.failed(EXPIRED)
    rig.machine.failed(StreamError("timeout", "later"))
    rig.machine.done()
    assert rig.effects.calls == [("finish", EXPIRED)]
    assert rig.core.error is EXPIRED

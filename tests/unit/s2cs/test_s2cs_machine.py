"""The machine of a stream at an S2CS agrees with its table, and repeated commands change nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from state_tables import inputs_of, tables_of
from stream_at_s2cs import BAD_KEY, LIVE, NO_PORTS, OTHER_APP, REFUSED, ROLES, SILENT, STATES, UID, Rig, answered, asked

from scistream.protocol.errors import StreamError
from scistream.protocol.messages import PROD, Resp, Role
from scistream.s2cs import machine as s2cs
from scistream.s2cs.machine_core import Stream, Update
from scistream.state_machines import data_of
from support.machine_rig import Input, always, kinds

[TABLE] = tables_of(s2cs.__doc__)
BROKEN = StreamError("gateway-failed", "oops")

# -- every input in every state


def only_in(**names: str) -> Callable[[str], str]:
    return lambda state: names.get(state, "")


FORBIDDEN = dict.fromkeys(LIVE, "policy")
FAULT = dict.fromkeys(LIVE, "fault")
GONE = dict.fromkeys(LIVE, "S2DS failed") | {"Releasing": "new boot"}


def moved_and_overdue(rig: Rig) -> None:
    """Let ProdApp say Hello with other listeners, and give the input that targets for them are overdue."""
    if rig.role == PROD and rig.state == "Streaming":
        rig.hello(OTHER_APP)
    rig.machine.targets_overdue()


INPUTS = [
    Input("req", lambda rig: rig.req(), always("REQ")),
    Input("req", lambda rig: rig.req(rate=7.0), always("REQ")),
    Input("req", lambda rig: rig.req(owner="bob"), always("REQ")),
    Input("hello", lambda rig: rig.hello(), always("Hello")),
    Input("hello", lambda rig: rig.hello(OTHER_APP), always("Hello")),
    Input("update_targets", lambda rig: rig.update(), always("UpdateTargets")),
    Input("update_targets", lambda rig: rig.update(generation=5), always("UpdateTargets")),
    Input("update_targets", lambda rig: rig.update(connection_map={"127.0.0.1:1": "127.0.0.1:2"}), always("")),
    Input("extend", lambda rig: rig.extend(), always("Extend")),
    Input("extended", lambda rig: rig.extended(), always("")),
    Input("rel", lambda rig: rig.rel(), always("REL")),
    Input("gateway_answered", lambda rig: rig.answers(), only_in(Reserving="last RESP", Updating="last RESP")),
    Input("gateway_answered", lambda rig: rig.answers(count=1), only_in(Reserving="ERROR", Updating="last RESP")),
    Input("gateway_answered", lambda rig: rig.answers(boot=""), only_in(Reserving="ERROR", Updating="last RESP")),
    Input("gateway_refused", lambda rig: rig.refuses(NO_PORTS), only_in(Reserving="ERROR", Updating="other ERROR")),
    Input("gateway_refused", lambda rig: rig.refuses(SILENT), only_in(Reserving="give-up", Updating="give-up")),
    Input(
        "gateway_refused",
        lambda rig: rig.refuses(REFUSED),
        only_in(Reserving="ERROR", Updating="target-refused by all"),
    ),
    Input(
        "gateway_refused",
        lambda rig: rig.refuses(BAD_KEY),
        only_in(Reserving="ERROR", Updating="bad-message by all"),
    ),
    Input("gateway_released", lambda rig: rig.confirm(), only_in(Releasing="last RESP")),
    Input("gateway_released", lambda rig: rig.confirm(), only_in(Releasing="unknown-uid")),
    Input("gateway_lost", lambda rig: rig.machine.gateway_lost("dtn1", "restarted"), lambda state: GONE.get(state, "")),
    Input("expired", lambda rig: rig.machine.expired(), always("expires")),
    Input("forbidden", lambda rig: rig.machine.forbidden("rule 1"), lambda state: FORBIDDEN.get(state, "")),
    Input("fault", lambda rig: rig.machine.fault(BAD_KEY), lambda state: FAULT.get(state, "")),
    Input("hello_timeout", lambda rig: rig.machine.hello_timeout(), always("Hello timer")),
    Input("targets_overdue", moved_and_overdue, lambda state: "targets overdue" if state == "Streaming" else ""),
    # from a gateway that has no part in this stream
    Input("gateway_refused", lambda rig: rig.machine.gateway_refused("dtn9", NO_PORTS), always("")),
    Input("gateway_released", lambda rig: rig.machine.gateway_released("dtn9"), always("")),
    Input("gateway_lost", lambda rig: rig.machine.gateway_lost("dtn9", "restarted"), always("")),
    Input(
        "gateway_answered",
        lambda rig: rig.machine.gateway_answered("dtn9", Resp(uid=UID, seq=1, state="", msg="")),
        always(""),
    ),
]

EVERY_STATE = pytest.mark.parametrize("state", STATES)


def test_the_table_names_every_state_and_these_tests_every_input() -> None:
    assert TABLE.states == set(STATES)
    assert {one.name for one in INPUTS} | {name for name, _, _ in PRIVATE} == inputs_of(Stream)
    tried = {(state, one.called(state)) for state in STATES for one in INPUTS}
    assert tried >= TABLE.inputs


@ROLES
@EVERY_STATE
@pytest.mark.parametrize("given", INPUTS, ids=[f"{number}-{one.name}" for number, one in enumerate(INPUTS)])
def test_every_input_leads_from_every_state_where_the_table_says(role: Role, state: str, given: Input) -> None:
    rig = Rig(role).to(state)
    expected = TABLE.next(state, given.called(state), role)
    given.give(rig)
    assert rig.state == (expected if expected in STATES else "Ready")


@ROLES
@pytest.mark.parametrize("before", ["Listening", "Ready", "Streaming"])
def test_targets_that_all_refuse_lead_back_to_where_the_update_began(role: Role, before: str) -> None:
    if (role, before) == (PROD, "Listening"):
        return
    rig = Rig(role).to("Updating", before_update=before)
    assert TABLE.next("Updating", "target-refused by all") == "as before it"
    rig.refuses(REFUSED)
    assert rig.state == before


PRIVATE: list[tuple[str, Callable[[Rig], Any], dict[str, str]]] = [
    ("_reserved", lambda rig: rig.machine._reserved(), {"Reserving": "Listening"}),
    ("_hello_counts", lambda rig: rig.machine._hello_counts(None), {"Listening": "Ready"}),
    (
        "_carry_out",
        lambda rig: rig.machine._carry_out(rig.caller(), rig.command()),
        dict.fromkeys(["Listening", "Ready", "Streaming"], "Updating"),
    ),
    ("_armed", lambda rig: rig.machine._armed(), {"Updating": "Streaming"}),
    ("_back_to_listening", lambda rig: rig.machine._back_to_listening(), {"Updating": "Listening"}),
    ("_back_to_ready", lambda rig: rig.machine._back_to_ready(), {"Updating": "Ready"}),
    ("_back_to_streaming", lambda rig: rig.machine._back_to_streaming(), {"Updating": "Streaming"}),
    ("_fail", lambda rig: rig.machine._fail(BROKEN), dict.fromkeys(LIVE, "Releasing")),
    ("_released", lambda rig: rig.machine._released(), {"Releasing": "Released"}),
]


@ROLES
@EVERY_STATE
@pytest.mark.parametrize(("name", "give", "leads"), PRIVATE, ids=[name for name, _, _ in PRIVATE])
def test_inputs_of_the_machine_to_itself_count_only_where_they_belong(
    role: Role, state: str, name: str, give: Callable[[Rig], None], leads: dict[str, str]
) -> None:
    rig = Rig(role).to(state)
    update = data_of(rig.machine, Update)
    if update is not None:
        update.refusals = {"dtn1": REFUSED}
        update.before = {"_back_to_listening": "Listening", "_back_to_streaming": "Streaming"}.get(name, "Ready")
    rig.record.greeted = name != "_back_to_listening" and rig.record.greeted
    give(rig)
    assert rig.state == leads.get(state, state)
    if state not in leads:
        assert rig.news() == []


# -- repeating changes nothing (invariant E)


COMMANDS: dict[str, Callable[[Rig], Any]] = {
    "REQ": lambda rig: rig.req(),
    "REQ with other fields": lambda rig: rig.req(label="another"),
    "REQ of another owner": lambda rig: rig.req(owner="bob"),
    "Hello": lambda rig: rig.hello(),
    "UpdateTargets": lambda rig: rig.update(generation=7),
    "UpdateTargets of a low generation": lambda rig: rig.update(generation=1, key="old"),
    "REL": lambda rig: rig.rel(),
}


@ROLES
@EVERY_STATE
@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_repeated_command_changes_neither_state_nor_record_and_asks_nothing_of_gateways(
    role: Role, state: str, command: Callable[[Rig], Any]
) -> None:
    rig = Rig(role).to(state)
    command(rig)
    once = rig.snapshot()
    rig.news()
    for _ in range(2):
        seq = command(rig)
        news = rig.news()
        assert rig.snapshot() == once
        assert asked(news) == {}
        assert "saved" not in kinds(news)
        assert answered(news, seq)

"""The steps of the machine of a stream at an S2CS: its commands to gateways and its answers, in their order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from stream_at_s2cs import (
    APP,
    BAD_KEY,
    LIVE,
    NO_PORTS,
    OTHER_APP,
    REFUSED,
    SILENT,
    STATES,
    UID,
    Rig,
    answered,
    answers,
    asked,
    told_application,
    told_owner,
)

from scistream.protocol.errors import StreamError
from scistream.protocol.messages import (
    CONS,
    PROD,
    Error,
    LastError,
    ProdLstn,
    Rel,
    ReqListeners,
    Role,
    StartConn,
    UpdateTargets,
)
from scistream.s2cs.machine import restored_stream, resume
from scistream.s2cs.machine_core import Core
from support.machine_rig import kinds

ROLES = pytest.mark.parametrize("role", [PROD, CONS])


# -- REQ


def test_req_is_recorded_before_the_gateways_are_asked_for_their_shares() -> None:
    rig = Rig(gateways=3)
    rig.req(app_from=["10.0.0.0/8"])
    news = rig.news()
    assert kinds(news) == ["saved", "start timers", "ask", "ask", "ask"]
    assert answers(news) == [], "nothing is promised yet"
    commands = asked(news, ReqListeners)
    assert {name: command.channels for name, command in commands.items()} == rig.plan
    assert sum(command.rate for command in commands.values()) == pytest.approx(100.0)
    for command in commands.values():
        assert (command.expires, command.app_from, command.wan_security) == (600.0, ["10.0.0.0/8"], "encrypt")


def test_req_is_answered_when_the_last_gateway_has_reserved_with_listeners_in_order_of_the_channels() -> None:
    rig = Rig(gateways=3)
    seq = rig.req()
    rig.answers("dtn3")
    rig.answers("dtn1")
    assert answers(rig.news()) == []
    assert rig.state == "Reserving"
    rig.answers("dtn2")
    news = rig.news()
    assert kinds(news) == ["saved", "answer"]
    resp = answered(news, seq)
    assert resp.state == "Listening"
    assert resp.listeners == [
        "dtn1.example:5100",
        "dtn1.example:5101",
        "dtn2.example:5102",
        "dtn2.example:5103",
        "dtn3.example:5104",
        "dtn3.example:5105",
    ]
    assert sorted(resp.csr.split(">")) == ["", "<dtn1", "<dtn2", "<dtn3"]
    assert rig.record.boots == dict.fromkeys(rig.gateways, "b" * 32)


def test_a_gateway_that_answers_twice_does_not_stand_for_another() -> None:
    rig = Rig(gateways=2)
    rig.req()
    rig.answers("dtn1")
    rig.answers("dtn1")
    assert rig.state == "Reserving"
    rig.refuses(NO_PORTS, "dtn1")
    assert rig.state == "Reserving", "what it says after its answer does not count"


def test_one_gateway_of_three_that_refuses_releases_all_three() -> None:
    rig = Rig(gateways=3)
    seq = rig.req()
    rig.answers("dtn1")
    rig.news()
    rig.refuses(NO_PORTS, "dtn2")
    news = rig.news()
    assert rig.state == "Releasing"
    assert set(asked(news, Rel)) == {"dtn1", "dtn2", "dtn3"}
    error = answered(news, seq)
    assert (error.code, error.msg) == ("no-ports", "gateway dtn2: 0 ports are free")
    assert news[0] == ("stop timers",)

    rig.answers("dtn3")
    for confirming in ("dtn2", "dtn3"):
        rig.confirm(confirming)
        assert rig.state == "Releasing"
    rig.confirm("dtn1")
    assert rig.state == "Released"
    assert kinds(rig.news()) == ["saved"], "nobody waits for an answer any more"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NO_PORTS, "no-ports"),
        (StreamError("no-capacity", "full"), "no-capacity"),
        (REFUSED, "target-refused"),
        (SILENT, "gateway-failed"),
        (StreamError("wrong-state", "Released"), "gateway-failed"),
        (StreamError("bad-message", "field rate"), "gateway-failed"),
    ],
)
def test_the_reason_of_a_gateway_travels_out_with_its_name(error: StreamError, code: str) -> None:
    rig = Rig()
    seq = rig.req()
    rig.refuses(error)
    told = answered(rig.news(), seq)
    assert (told.code, told.msg) == (code, f"gateway dtn1: {error.msg}")
    assert rig.record.last_error is not None
    assert rig.record.last_error.code == code


def test_an_error_that_answers_a_command_is_not_told_the_owner_a_second_time() -> None:
    rig = Rig()
    rig.req()
    rig.refuses(NO_PORTS)
    assert told_owner(rig.news()) == []


@pytest.mark.parametrize("count", [0, 1])
def test_a_gateway_that_reserves_too_little_has_failed(count: int) -> None:
    rig = Rig()
    seq = rig.req()
    rig.answers(count=count)
    error = answered(rig.news(), seq)
    assert error.code == "gateway-failed"
    assert f"dtn1 granted {count} listeners for 2 channels" in error.msg


def test_an_equal_req_is_answered_with_the_present_state_and_again_when_it_is_done() -> None:
    rig = Rig()
    first = rig.req()
    second = rig.req()
    assert answered(rig.news(), second).state == "Reserving"
    rig.answers()
    news = rig.news()
    assert answered(news, first).state == answered(news, second).state == "Listening"


@ROLES
@pytest.mark.parametrize("state", ["Listening", "Ready", "Updating", "Streaming"])
def test_an_equal_req_is_answered_with_all_that_it_asks_for_and_prod_lstn_after_it(role: Role, state: str) -> None:
    rig = Rig(role).to(state)
    seq = rig.req()
    news = rig.news()
    resp = answered(news, seq)
    assert (resp.state, len(resp.listeners), resp.csr) == (state, 2, "<dtn1>")
    if role == PROD and state != "Listening":
        assert news[1:] == [("tell owner", ProdLstn(uid=UID, role=PROD, listeners=APP))]
    else:
        assert news[1:] == []


@pytest.mark.parametrize("state", LIVE)
@pytest.mark.parametrize(
    "changes",
    [
        {"num_conn": 3},
        {"rate": 99.0},
        {"app_key_hash": "1" * 64},
        {"expires": 10.0},
        {"hello_timeout": 10.0},
        {"app_from": ["127.0.0.1"]},
        {"label": "x"},
        {"listen_ports": [5075, 5076]},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_req_with_any_other_field_is_refused_while_the_stream_lives(state: str, changes: dict[str, Any]) -> None:
    rig = Rig().to(state)
    seq = rig.req(**changes)
    error = answered(rig.news(), seq)
    assert error.code == "uid-in-use"
    assert "choose another uid" in error.msg


@pytest.mark.parametrize("state", STATES[1:])
def test_a_req_of_another_owner_is_refused_and_told_nothing_of_the_stream(state: str) -> None:
    rig = Rig().to(state)
    seq = rig.req(owner="bob")
    error = answered(rig.news(), seq)
    assert error.code == "uid-in-use"
    assert "ada" not in error.msg


@pytest.mark.parametrize("state", ["Releasing", "Released"])
def test_a_req_of_a_stream_that_is_over_is_refused(state: str) -> None:
    rig = Rig().to(state)
    assert answered_after(rig, rig.req()).code == "wrong-state"


def answered_after(rig: Rig, seq: int) -> Any:
    return answered(rig.news(), seq)


# -- Hello


def test_prod_app_s_hello_is_answered_and_told_to_the_owner() -> None:
    rig = Rig().to("Listening")
    seq = rig.hello()
    news = rig.news()
    assert answered(news, seq).state == "Ready", "the state that it has led to"
    assert told_owner(news) == [ProdLstn(uid=UID, role=PROD, listeners=APP)]
    assert rig.record.greeted
    assert rig.record.app_listeners == APP


def test_cons_app_s_hello_is_answered_and_told_to_nobody() -> None:
    rig = Rig(CONS).to("Listening")
    seq = rig.hello()
    news = rig.news()
    assert answered(news, seq)
    assert told_owner(news) == told_application(news) == []
    assert rig.state == "Ready"


@ROLES
def test_a_hello_in_reserving_counts_as_soon_as_all_is_reserved(role: Role) -> None:
    rig = Rig(role).to("Reserving")
    seq = rig.hello()
    assert answered_after(rig, seq).state == "Reserving"
    rig.answers()
    assert rig.state == "Ready"
    news = rig.news()
    assert [message.state for message in answers(news)] == ["Listening"]
    assert told_owner(news) == ([ProdLstn(uid=UID, role=PROD, listeners=APP)] if role == PROD else [])


@pytest.mark.parametrize("before", ["Listening", "Ready", "Streaming"])
def test_cons_app_s_hello_in_updating_gets_start_conn_when_all_have_armed(before: str) -> None:
    rig = Rig(CONS).to("Updating", before_update=before)
    seq = rig.hello()
    news = rig.news()
    assert answered(news, seq).state == "Updating"
    assert told_application(news) == []
    rig.answers()
    [start] = told_application(rig.news())
    assert isinstance(start, StartConn)
    assert start.listeners == ["dtn1.example:5100", "dtn1.example:5101"]


@pytest.mark.parametrize("refused", [False, True])
@pytest.mark.parametrize("before", ["Ready", "Streaming"])
def test_new_listeners_of_prod_app_in_updating_are_told_after_it(before: str, refused: bool) -> None:
    rig = Rig().to("Updating", before_update=before)
    rig.hello(OTHER_APP)
    assert told_owner(rig.news()) == []
    rig.refuses(REFUSED) if refused else rig.answers()
    assert told_owner(rig.news()) == [ProdLstn(uid=UID, role=PROD, listeners=OTHER_APP)]
    assert rig.state == (before if refused else "Streaming")


def test_a_consumer_that_came_during_a_refused_update_of_a_streaming_stream_may_connect() -> None:
    rig = Rig(CONS).to("Listening")
    rig.update()
    rig.answers()
    assert rig.state == "Streaming"
    rig.update()
    rig.hello()
    assert told_application(rig.news()) == []
    rig.refuses(REFUSED)
    assert [type(message) for message in told_application(rig.news())] == [StartConn]


def test_a_consumer_that_came_during_a_refused_first_update_makes_the_stream_ready() -> None:
    rig = Rig(CONS).to("Updating", before_update="Listening")
    rig.hello()
    rig.refuses(REFUSED)
    assert rig.state == "Ready"
    assert told_application(rig.news()) == []


@pytest.mark.parametrize("state", ["Ready", "Streaming"])
def test_an_equal_hello_of_prod_app_is_only_answered_and_another_one_told(state: str) -> None:
    rig = Rig().to(state)
    rig.hello()
    assert kinds(rig.news()) == ["answer"]
    rig.hello(OTHER_APP)
    news = rig.news()
    assert kinds(news) == ["saved", "answer", "tell owner", *(["await targets"] if state == "Streaming" else [])]
    assert told_owner(news) == [ProdLstn(uid=UID, role=PROD, listeners=OTHER_APP)]
    rig.hello(OTHER_APP)
    assert told_owner(rig.news()) == []


def moved(*listeners: str, gateways: int = 2) -> Rig:
    """Return the producer's side of a stream in Streaming whose ProdApp has said Hello with other listeners."""
    rig = Rig(gateways=gateways).to("Streaming")
    rig.hello(list(listeners or OTHER_APP))
    rig.news()
    return rig


def test_overdue_targets_are_set_under_the_credentials_in_force_and_a_higher_number() -> None:
    rig = moved("10.0.0.9:7001", "10.0.0.9:7002")
    rig.machine.targets_overdue()
    asked_for = asked(rig.news(), UpdateTargets)
    assert list(asked_for) == rig.gateways
    for number, command in enumerate(asked_for.values()):
        assert (command.generation, command.data_conn_key) == (2, "")
        here = [f"dtn{number + 1}.example:{5100 + 2 * number + at}" for at in (0, 1)]
        assert command.connection_map == dict(zip(here, ["10.0.0.9:7001", "10.0.0.9:7002"], strict=True))
    rig.answers()
    assert rig.state == "Streaming"
    assert (rig.record.generation, rig.record.revision) == (1, 2)
    assert set(rig.record.connection_map.values()) == {"10.0.0.9:7001", "10.0.0.9:7002"}
    rig.machine.targets_overdue()
    assert asked(rig.news()) == {}, "they are set"


def test_targets_of_the_owner_come_after_those_of_the_s2cs_itself_whenever_they_arrive() -> None:
    rig = moved()
    rig.machine.targets_overdue()
    first, again = rig.update(), rig.update()
    assert [answered(rig.news()[-2:], seq).state for seq in (again,)] == ["Updating"]
    other = rig.update(key="another")
    assert answered(rig.news(), other).code == "wrong-state"
    rig.answers()
    assert rig.state == "Updating"
    assert {command.generation for command in asked(rig.news(), UpdateTargets).values()} == {3}
    rig.answers()
    news = rig.news()
    assert {answered(news, seq).state for seq in (first, again)} == {"Streaming"}
    assert (rig.record.generation, rig.record.revision) == (2, 3)


@pytest.mark.parametrize("end", [lambda rig: rig.rel(), lambda rig: rig.refuses(NO_PORTS)])
def test_a_caller_whose_targets_wait_behind_those_of_the_s2cs_is_notified_of_the_end(
    end: Callable[[Rig], object],
) -> None:
    rig = moved(gateways=1)
    rig.machine.targets_overdue()
    waiting = rig.update()
    rig.news()
    end(rig)
    assert isinstance(answered(rig.news(), waiting), Error)


def test_no_end_of_a_stream_has_the_code_that_tells_an_application_that_its_stream_goes_on() -> None:
    rig = Rig().to("Reserving")
    rig.refuses(REFUSED)
    assert rig.state == "Releasing"
    (told,) = told_application(rig.news())
    assert told.code == "gateway-failed"


@pytest.mark.parametrize("why", [REFUSED, BAD_KEY])
def test_prod_app_is_told_who_can_set_targets_that_its_gateways_have_refused(why: StreamError) -> None:
    rig = moved(gateways=1)
    rig.machine.targets_overdue()
    rig.refuses(why)
    assert rig.state == "Streaming"
    (told,) = told_application(rig.news())
    assert told.code == "target-refused", "the code of what does not end a stream"
    assert f"new connections still go to {APP[0]}" in told.msg
    assert f"`s2uc attach {UID}`" in told.msg
    rig.machine.targets_overdue()
    assert rig.state == "Streaming", "nothing is tried again without another Hello"


@pytest.mark.parametrize("why", [REFUSED, BAD_KEY])
@pytest.mark.parametrize("refused_first", [True, False])
def test_targets_that_only_some_gateways_take_are_put_back_there(why: StreamError, refused_first: bool) -> None:
    rig = moved()
    rig.machine.targets_overdue()
    rig.news()
    if refused_first:
        rig.refuses(why, "dtn1")
        rig.answers("dtn2")
    else:
        rig.answers("dtn2")
        rig.refuses(why, "dtn1")
    assert rig.state == "Updating"
    ((gateway, command),) = asked(rig.news(), UpdateTargets).items()
    assert (gateway, command.generation, command.data_conn_key) == ("dtn2", 3, "")
    assert set(command.connection_map.values()) == set(APP)
    rig.answers("dtn2")
    assert rig.state == "Streaming"
    (told,) = told_application(rig.news())
    assert told.code == "target-refused", "the code of what does not end a stream"
    assert f"new connections still go to {APP[0]}" in told.msg
    rig.update()
    assert {command.generation for command in asked(rig.news(), UpdateTargets).values()} == {4}
    rig.answers()
    assert (rig.state, rig.record.generation) == ("Streaming", 2)


def test_old_targets_that_a_gateway_does_not_take_again_end_no_stream_and_are_not_forgotten() -> None:
    rig = moved()
    rig.machine.targets_overdue()
    rig.answers("dtn2")
    rig.refuses(REFUSED, "dtn1")
    rig.refuses(REFUSED, "dtn2")
    assert (rig.state, rig.record.is_own_update) == ("Streaming", True)
    rig.hello(APP)
    rig.machine.targets_overdue()
    rig.news()
    rig.answers()
    assert (rig.state, rig.record.is_own_update) == ("Streaming", False)
    assert set(rig.record.connection_map.values()) == set(APP)


def test_the_number_of_targets_is_stored_before_a_gateway_gets_them() -> None:
    rig = moved()
    rig.machine.targets_overdue()
    calls = rig.news()
    assert kinds(calls)[:2] == ["saved", "ask"]
    assert rig.record.revision == 2


@pytest.mark.parametrize("why", [REFUSED, BAD_KEY])
def test_targets_that_are_refused_shorten_no_life_and_those_in_force_do(why: StreamError) -> None:
    rig = Rig().to("Streaming")
    rig.update(expires=30.0)
    rig.refuses(why)
    assert "shorten life" not in kinds(rig.news())
    rig.update(expires=30.0)
    rig.answers()
    news = kinds(rig.news())
    assert news.index("shorten life") < len(news) - 1 - news[::-1].index("saved"), "it is stored, too"


@pytest.mark.parametrize("why", [REFUSED, BAD_KEY])
def test_a_producer_that_has_moved_is_followed_though_targets_of_the_user_were_refused(why: StreamError) -> None:
    rig = moved()
    rig.update()
    rig.refuses(why)
    assert "await targets" in kinds(rig.news())
    rig.machine.targets_overdue()
    rig.answers()
    assert set(rig.record.connection_map.values()) == set(OTHER_APP)


def test_a_hello_while_targets_of_a_running_stream_are_set_is_told_when_they_are_in_force() -> None:
    rig = moved()
    rig.machine.targets_overdue()
    for listeners in (OTHER_APP, APP):
        hello = rig.hello(listeners)
        assert "as soon as the gateways have the new targets" in answered(rig.news(), hello).msg
    consumer = Rig(CONS).to("Updating", before_update="Streaming")
    hello = consumer.hello()
    assert answered(consumer.news(), hello).msg == "welcome"
    early = Rig().to("Updating")
    hello = early.hello()
    assert answered(early.news(), hello).msg == "welcome"


@pytest.mark.parametrize(("has_owner", "is_told"), [(True, False), (False, True)])
def test_a_first_hello_without_a_client_of_the_owner_is_told_that_the_user_has_to_attach(
    has_owner: bool, is_told: bool
) -> None:
    rig = Rig().to("Listening")
    rig.effects.has_owner = has_owner
    hello = rig.hello()
    assert (f"`s2uc attach {UID}`" in answered(rig.news(), hello).msg) is is_told


def test_no_owner_leaves_the_credentials_out() -> None:
    rig = Rig().to("Streaming")
    refused = answered_update(rig, key="")
    assert (refused.code, "data_conn_key" in refused.msg) == ("bad-message", True)


def answered_update(rig: Rig, key: str) -> Error:
    seq = rig.update(key=key)
    message = answered(rig.news(), seq)
    assert isinstance(message, Error)
    return message


def test_a_late_consumer_gets_start_conn_at_once() -> None:
    rig = Rig(CONS, gateways=2).to("Listening")
    rig.update()
    rig.answers()
    assert rig.state == "Streaming"
    assert told_application(rig.news()) == [], "nobody has said Hello yet"
    rig.hello()
    news = rig.news()
    assert kinds(news) == ["saved", "answer", "tell application"]
    [start] = told_application(news)
    assert start.listeners == [f"dtn{1 + channel // 2}.example:{5100 + channel}" for channel in range(4)]


def test_a_consumer_that_says_hello_again_is_told_to_connect_again() -> None:
    rig = Rig(CONS).to("Streaming")
    rig.hello()
    assert [type(message) for message in told_application(rig.news())] == [StartConn]


@ROLES
@pytest.mark.parametrize("state", ["Idle", "Releasing", "Released"])
def test_a_hello_to_a_stream_that_is_not_alive_is_refused(role: Role, state: str) -> None:
    rig = Rig(role).to(state)
    error = answered_after(rig, rig.hello())
    assert error.code == "wrong-state"
    assert f"is {state}" in error.msg


# -- the Hello timer


@ROLES
@pytest.mark.parametrize("state", ["Listening", "Ready"])
def test_a_stream_that_nobody_uses_in_time_is_released_and_all_are_told(role: Role, state: str) -> None:
    rig = Rig(role).to(state)
    rig.machine.hello_timeout()
    news = rig.news()
    assert rig.state == "Releasing"
    [to_owner], [to_application] = told_owner(news), told_application(news)
    assert to_owner == to_application
    assert (to_owner.code, to_owner.seq, to_owner.role) == ("timeout", None, role)
    assert set(asked(news, Rel)) == {"dtn1"}


@ROLES
@pytest.mark.parametrize("greeted", [False, True])
def test_a_hello_timer_that_runs_out_in_reserving_counts_after_it(role: Role, greeted: bool) -> None:
    rig = Rig(role).to("Reserving")
    if greeted:
        rig.hello()
    rig.machine.hello_timeout()
    assert rig.state == "Reserving"
    rig.answers()
    assert rig.state == "Releasing", "ready is not used"
    assert rig.record.last_error is not None
    assert rig.record.last_error.code == "timeout"


@pytest.mark.parametrize("before", ["Listening", "Ready"])
def test_a_hello_timer_that_runs_out_in_updating_counts_if_nothing_comes_of_it(before: str) -> None:
    rig = Rig(CONS).to("Updating", before_update=before)
    rig.machine.hello_timeout()
    assert rig.state == "Updating"
    rig.refuses(REFUSED)
    assert rig.state == "Releasing"

    other = Rig(CONS).to("Updating", before_update=before)
    other.machine.hello_timeout()
    other.answers()
    assert other.state == "Streaming"


# -- UpdateTargets


def test_each_gateway_gets_its_part_of_the_map_after_the_record_is_saved() -> None:
    rig = Rig(gateways=3).to("Ready")
    seq = rig.update(generation=4, key="certificates")
    news = rig.news()
    assert kinds(news) == ["saved", "ask", "ask", "ask"]
    commands = asked(news, UpdateTargets)
    for name, command in commands.items():
        held = {rig.record.listeners[channel] for channel in rig.plan[name]}
        assert set(command.connection_map) == held
        assert (command.generation, command.data_conn_key) == (4, "certificates")
    rig.answers("dtn2", "dtn3")
    assert rig.news() == []
    assert rig.record.generation == 0
    rig.answers("dtn1")
    news = rig.news()
    assert kinds(news) == ["saved", "answer"]
    assert answered(news, seq).state == "Streaming"
    assert rig.record.generation == 4
    assert set(rig.record.connection_map) == set(rig.record.listeners.values())


def test_consumers_that_have_said_hello_are_told_to_connect_after_the_owner_is_answered() -> None:
    rig = Rig(CONS).to("Updating")
    rig.answers()
    assert kinds(rig.news()) == ["saved", "answer", "tell application"]


def test_targets_that_all_gateways_refuse_leave_the_old_map_in_force() -> None:
    rig = Rig(gateways=2).to("Streaming")
    old = dict(rig.record.connection_map)
    rig.hello(OTHER_APP)
    seq = rig.update(connection_map=dict.fromkeys(rig.record.listeners.values(), OTHER_APP[0]))
    rig.news()
    rig.refuses(REFUSED, "dtn1")
    assert rig.state == "Updating"
    rig.refuses(REFUSED, "dtn2")
    assert rig.state == "Streaming"
    news = rig.news()
    error = answered(news, seq)
    assert (error.code, error.msg) == ("target-refused", "gateway dtn1: outside app_networks")
    assert asked(news) == {}
    assert rig.record.generation == 1
    assert rig.record.connection_map == old
    assert rig.record.last_error is None

    rig.update()
    assert rig.state == "Updating", "a refused generation may be used again"


@pytest.mark.parametrize("order", [("dtn1", "dtn2"), ("dtn2", "dtn1")])
def test_targets_that_some_gateways_refuse_release_the_stream(order: tuple[str, str]) -> None:
    rig = Rig(gateways=2).to("Ready")
    seq = rig.update()
    rig.news()
    for name in order:
        rig.refuses(REFUSED, name) if name == "dtn1" else rig.answers(name)
    assert rig.state == "Releasing"
    news = rig.news()
    assert set(asked(news, Rel)) == {"dtn1", "dtn2"}
    assert answered(news, seq).code == "target-refused"


def test_another_failure_of_one_gateway_releases_the_stream_at_once() -> None:
    rig = Rig(gateways=3).to("Ready")
    seq = rig.update()
    rig.refuses(REFUSED, "dtn1")
    rig.news()
    rig.refuses(SILENT, "dtn3")
    news = rig.news()
    assert rig.state == "Releasing"
    assert answered(news, seq).code == "gateway-failed"
    assert set(asked(news, Rel)) == set(rig.gateways)
    assert [type(message) for message in told_application(news)] == [Error]


@pytest.mark.parametrize("role", [PROD, CONS])
def test_a_generation_below_the_one_in_force_is_refused_and_that_one_named(role: Role) -> None:
    rig = Rig(role).to("Ready")
    rig.update(generation=5)
    rig.answers()
    rig.news()
    for wrong in ({"generation": 4}, {"generation": 5, "key": "other"}):
        error = answered_after(rig, rig.update(**wrong))
        assert error.code == "wrong-state"
        assert "5, which is in force" in error.msg
    resp = answered_after(rig, rig.update(generation=5))
    assert (resp.state, resp.msg) == ("Streaming", "generation 5 is in force")
    assert rig.state == "Streaming"
    rig.update(generation=6)
    assert rig.state == "Updating"


def test_an_update_in_progress_may_be_repeated_and_all_callers_are_answered() -> None:
    rig = Rig().to("Ready")
    first = rig.update(generation=2)
    rig.news()
    second = rig.update(generation=2)
    assert answered_after(rig, second).state == "Updating"
    rig.answers()
    news = rig.news()
    assert answered(news, first).state == answered(news, second).state == "Streaming"


@pytest.mark.parametrize("generation", [1, 2, 3])
def test_another_update_meanwhile_is_refused_and_the_generation_under_way_named(generation: int) -> None:
    rig = Rig().to("Ready")
    rig.update(generation=2)
    rig.news()
    error = answered_after(rig, rig.update(generation=generation, key="other"))
    assert error.code == "wrong-state"
    assert f"generation {generation} while 2 is being carried out" in error.msg
    assert rig.state == "Updating"


def test_a_producer_s_targets_are_those_that_prod_app_said_hello_with() -> None:
    rig = Rig().to("Ready")
    strange = dict.fromkeys(rig.record.listeners.values(), "10.0.0.66:22")
    error = answered_after(rig, rig.update(connection_map=strange))
    assert error.code == "target-refused"
    assert "10.0.0.66:22" in error.msg
    assert rig.state == "Ready"


@ROLES
def test_a_map_names_all_listeners_of_the_stream_and_no_other(role: Role) -> None:
    rig = Rig(role).to("Ready")
    first, second = rig.record.listeners.values()
    target = APP[0]
    too_few = answered_after(rig, rig.update(connection_map={first: target}))
    assert too_few.code == "bad-message"
    assert second in too_few.msg
    too_many = answered_after(rig, rig.update(connection_map={first: target, second: target, "a:1": target}))
    assert too_many.code == "bad-message"
    assert "a:1 is not a listener" in too_many.msg
    assert rig.state == "Ready"


def test_a_producer_without_a_hello_takes_no_targets() -> None:
    rig = Rig(PROD).to("Listening")
    error = answered_after(rig, rig.update())
    assert error.code == "wrong-state"
    assert "until ProdApp says Hello" in error.msg


@ROLES
@pytest.mark.parametrize("state", ["Idle", "Reserving", "Releasing", "Released"])
def test_targets_too_early_or_too_late_are_refused_with_what_the_state_allows(role: Role, state: str) -> None:
    rig = Rig(role).to(state)
    error = answered_after(rig, rig.update())
    assert error.code == "wrong-state"
    assert f"is {state}" in error.msg
    assert "that allows" in error.msg


# -- the end


@ROLES
@pytest.mark.parametrize("state", LIVE)
def test_rel_is_answered_when_all_gateways_have_confirmed_and_the_record_says_so(role: Role, state: str) -> None:
    rig = Rig(role, gateways=2).to(state)
    seq = rig.rel()
    news = rig.news()
    assert set(asked(news, Rel)) == {"dtn1", "dtn2"}
    assert ("stop timers",) in news
    assert seq not in [message.seq for message in answers(news)]
    assert told_owner(news) == [], "it was asked for"
    assert rig.record.last_error is None
    rig.confirm("dtn1")
    assert rig.news() == []
    rig.confirm("dtn2")
    news = rig.news()
    assert kinds(news) == ["saved", "answer"]
    assert answered(news, seq).state == "Released"


def test_rel_refuses_callers_that_wait_for_another_command() -> None:
    for state in ("Reserving", "Updating"):
        rig = Rig()
        waiting = rig.req() if state == "Reserving" else rig.to("Ready").update()
        rig.news()
        rig.rel()
        assert answered(rig.news(), waiting).code == "wrong-state"


def test_applications_hear_of_a_release() -> None:
    rig = Rig(CONS).to("Streaming")
    rig.rel()
    [error] = told_application(rig.news())
    assert "released by its owner" in error.msg


def test_rel_in_releasing_is_answered_with_the_state_and_again_when_it_is_done() -> None:
    rig = Rig(gateways=2).to("Streaming")
    first = rig.rel()
    rig.confirm("dtn1")
    rig.news()
    second = rig.rel()
    resp = answered_after(rig, second)
    assert (resp.state, resp.msg) == ("Releasing", "waiting for dtn2 to confirm")
    rig.confirm("dtn2")
    news = rig.news()
    assert answered(news, first) == msgspec.structs.replace(answered(news, second), seq=first)
    assert answered(news, first).state == "Released"


def test_rel_of_a_stream_that_is_gone_gets_the_same_answer_as_the_first() -> None:
    rig = Rig().to("Streaming")
    first = rig.rel()
    rig.confirm()
    said = answered_after(rig, first)
    for _ in range(3):
        again = rig.rel()
        assert answered_after(rig, again) == msgspec.structs.replace(said, seq=again)


def test_rel_of_a_stream_that_was_never_asked_for_is_unknown() -> None:
    rig = Rig()
    assert answered_after(rig, rig.rel()).code == "unknown-uid"


@ROLES
@pytest.mark.parametrize("state", LIVE)
def test_an_expired_stream_is_released_and_all_are_told(role: Role, state: str) -> None:
    rig = Rig(role).to(state)
    rig.machine.expired()
    news = rig.news()
    assert rig.state == "Releasing"
    assert set(asked(news, Rel)) == {"dtn1"}
    waiting = state in ("Reserving", "Updating")
    [error] = answers(news) if waiting else told_owner(news)
    assert error.code == "expired"
    assert [message.code for message in told_application(news)] == ["expired"]
    rig.confirm()
    assert rig.state == "Released"
    assert answers(rig.news()) == []


@ROLES
@pytest.mark.parametrize("state", LIVE)
def test_a_stream_on_a_gateway_that_was_restarted_has_failed(role: Role, state: str) -> None:
    rig = Rig(role, gateways=2).to(state)
    rig.machine.gateway_lost("dtn2", "was restarted")
    news = rig.news()
    assert rig.state == "Releasing"
    [error] = answers(news) if state in ("Reserving", "Updating") else told_owner(news)
    assert (error.code, error.msg) == ("gateway-failed", "gateway dtn2: was restarted")
    assert [message.msg for message in told_application(news)] == [error.msg]
    assert "dtn1" in asked(news, Rel)
    rig.confirm()
    assert rig.state == "Released"


def test_a_gateway_that_was_restarted_counts_as_one_that_has_released() -> None:
    rig = Rig(gateways=2).to("Streaming")
    rig.rel()
    rig.machine.gateway_lost("dtn2", "was restarted")
    assert rig.state == "Releasing"
    rig.machine.gateway_lost("dtn1", "was restarted")
    assert rig.state == "Released"


def test_a_gateway_that_confirms_twice_does_not_stand_for_another() -> None:
    rig = Rig(gateways=2).to("Streaming")
    rig.rel()
    rig.confirm("dtn1", "dtn1", "dtn1")
    assert rig.state == "Releasing"


def test_a_refusal_after_a_failure_says_what_the_failure_was() -> None:
    rig = Rig().to("Streaming")
    rig.machine.expired()
    rig.news()
    assert "after expired: the time of this stream is over" in answered_after(rig, rig.update()).msg


def test_the_reason_that_is_kept_fits_a_message() -> None:
    rig = Rig().to("Reserving")
    rig.refuses(StreamError("no-ports", "x" * 3000))
    assert rig.record.last_error is not None
    assert len(rig.record.last_error.msg) == 2000


# -- a store that cannot be written


def test_without_a_store_no_stream_is_taken() -> None:
    rig = Rig(gateways=2, full=lambda _count: True)
    seq = rig.req()
    news = rig.news()
    assert asked(news) == {}
    assert "start timers" not in kinds(news)
    error = answered(news, seq)
    assert error.code == "no-capacity"
    assert "operator" in error.msg
    assert rig.state == "Released"
    assert [kind for kind in kinds(news) if kind in ("not saved", "saved", "forget")] == ["not saved", "forget"]


def test_a_reservation_that_cannot_be_recorded_is_given_back() -> None:
    rig = Rig(gateways=2, full=lambda count: count == 2)
    seq = rig.req()
    rig.answers()
    news = rig.news()
    assert answered(news, seq).code == "no-capacity"
    assert set(asked(news, Rel)) == {"dtn1", "dtn2"}
    assert rig.state == "Releasing"


@ROLES
@pytest.mark.parametrize("state", ["Reserving", "Listening", "Ready", "Updating", "Streaming"])
def test_a_hello_that_cannot_be_recorded_is_refused_and_forgotten(role: Role, state: str) -> None:
    rig = Rig(role).to(state)
    rig.effects.full = lambda _count: True
    before = rig.snapshot()
    seq = rig.hello(OTHER_APP)
    news = rig.news()
    assert answered(news, seq).code == "no-capacity"
    assert told_owner(news) == told_application(news) == []
    assert rig.snapshot() == before


@pytest.mark.parametrize("state", ["Listening", "Ready", "Streaming"])
@pytest.mark.parametrize("lasting", [False, True])
def test_an_update_that_cannot_be_recorded_is_refused_and_the_old_targets_stay(state: str, lasting: bool) -> None:
    rig = Rig(CONS, gateways=2).to(state)
    before = rig.snapshot()
    saved = rig.effects.saves
    rig.effects.full = lambda count: count > saved if lasting else count == saved + 1
    seq = rig.update()
    news = rig.news()
    assert answered(news, seq).code == "no-capacity"
    assert "the old targets stay" in answered(news, seq).msg
    assert asked(news) == {}
    assert rig.snapshot() == before


def test_an_update_whose_end_cannot_be_recorded_releases_the_stream() -> None:
    rig = Rig(gateways=2).to("Ready")
    saved = rig.effects.saves
    rig.effects.full = lambda count: count == saved + 2
    seq = rig.update()
    rig.answers()
    news = rig.news()
    assert answered(news, seq).code == "no-capacity"
    assert set(asked(news, Rel)) == {"dtn1", "dtn2"}
    assert set(asked(news, UpdateTargets)) == {"dtn1", "dtn2"}
    assert rig.state == "Releasing"


@ROLES
@pytest.mark.parametrize("lasting", [False, True])
@pytest.mark.parametrize("first", range(1, 12))
def test_wherever_the_store_fails_everybody_is_answered_and_all_ends_released(
    role: Role, first: int, lasting: bool
) -> None:
    rig = Rig(role, full=lambda count: count >= first if lasting else count == first)
    seqs = [rig.req()]
    rig.answers()
    seqs.append(rig.hello())
    seqs.append(rig.update())
    rig.answers()
    seqs.append(rig.update())
    rig.refuses(REFUSED)
    seqs.append(rig.rel())
    rig.confirm()
    assert rig.state == "Released"
    finals = [message.seq for message in answers(rig.news()) if getattr(message, "state", "") != "Releasing"]
    assert sorted(finals) == seqs


# -- after a restart of the S2CS


def restarted(state: str, role: Role = PROD, **fields: Any) -> Rig:
    """Return a stream that was in this state when the S2CS stopped."""
    rig = Rig(role, gateways=2).to(state)
    for name, value in fields.items():
        setattr(rig.record, name, value)
    rig.core = Core(rig.effects, rig.record)
    rig.machine = restored_stream(rig.core)
    resume(rig.machine, rig.core)
    return rig


@ROLES
@pytest.mark.parametrize("state", ["Listening", "Ready", "Streaming"])
def test_a_stream_that_rested_goes_on_after_a_restart_with_its_timers(role: Role, state: str) -> None:
    rig = restarted(state, role)
    assert rig.state == state
    assert rig.news() == [("start timers",)]
    rig.hello()
    news = [ProdLstn(uid=UID, role=role, listeners=APP)] if (role, state) == (PROD, "Listening") else []
    assert told_owner(rig.news()) == news


def test_a_hello_that_was_recorded_just_before_the_restart_counts() -> None:
    rig = restarted("Listening", greeted=True, app_listeners=APP)
    assert rig.state == "Ready"


@pytest.mark.parametrize("state", ["Reserving", "Updating", "Releasing"])
def test_a_stream_in_the_middle_of_something_is_released_after_a_restart(state: str) -> None:
    rig = restarted(state)
    assert rig.state == "Releasing"
    news = rig.news()
    assert set(asked(news, Rel)) == {"dtn1", "dtn2"}
    assert ("start timers",) not in news
    rig.confirm()
    assert rig.state == "Released"


def test_a_released_stream_stays_released_after_a_restart() -> None:
    rig = restarted("Released")
    assert rig.state == "Released"
    assert rig.news() == []
    assert answered_after(rig, rig.rel()).state == "Released"
    assert answered_after(rig, rig.req()).code == "wrong-state"


def test_a_stream_that_was_being_released_keeps_the_reason_over_a_restart() -> None:
    reason = LastError(code="no-ports", msg="gateway dtn1: 0 ports are free")
    rig = restarted("Releasing", last_error=reason)
    assert rig.record.last_error == reason
    rig.confirm()
    assert (rig.state, rig.record.last_error) == ("Released", reason)

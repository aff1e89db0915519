"""The steps of the machine of a stream at an S2CS at REQ, and while gateways reserve."""

from __future__ import annotations

from typing import Any

import pytest
from stream_at_s2cs import (
    APP,
    LIVE,
    NO_PORTS,
    REFUSED,
    ROLES,
    SILENT,
    STATES,
    UID,
    Rig,
    answered,
    answered_after,
    answers,
    asked,
    told_owner,
)

from scistream.protocol.errors import StreamError
from scistream.protocol.messages import (
    PROD,
    ProdLstn,
    Rel,
    ReqListeners,
    Role,
)
from support.machine_rig import kinds


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

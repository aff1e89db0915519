"""The steps of the machine of a stream at an S2CS at UpdateTargets."""

from __future__ import annotations

import msgspec
import pytest
from stream_at_s2cs import (
    APP,
    OTHER_APP,
    REFUSED,
    ROLES,
    SILENT,
    UID,
    Rig,
    answered,
    answered_after,
    asked,
    told_application,
)

from scistream.protocol.messages import (
    CONS,
    PROD,
    Error,
    Rel,
    Resp,
    Role,
    UpdateTargets,
)
from scistream.s2cs.record import Record
from support.machine_rig import kinds


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


# -- who dials


def armed_for_wan(rig: Rig, gateway: str, listeners: list[str] | None) -> None:
    rig.machine.gateway_answered(gateway, Resp(uid=UID, seq=1, state="", msg="", wan_listeners=listeners))


def rig_that_can(role: Role, *wan: str, gateways: int = 1) -> Rig:
    rig = Rig(role, gateways).to("Listening" if role == CONS else "Ready")
    rig.record.wan = {gateway: list(wan) for gateway in rig.plan}
    return rig


def test_wan_listeners_of_all_gateways_are_recorded_and_answered_in_the_order_of_channels() -> None:
    rig = rig_that_can(CONS, "accept", gateways=2)
    seq = rig.update(wan_dialer=PROD)
    assert {command.wan_dialer for command in asked(rig.news(), UpdateTargets).values()} == {PROD}
    armed_for_wan(rig, "dtn2", ["w:3", "w:4"])
    armed_for_wan(rig, "dtn1", ["w:1", "w:2"])
    answer = answered(rig.news(), seq)
    assert (answer.state, answer.wan_listeners, answer.wan) == ("Streaming", ["w:1", "w:2", "w:3", "w:4"], ["accept"])
    restored = msgspec.json.decode(msgspec.json.encode(rig.record), type=Record)
    assert restored.wan_listeners == {0: "w:1", 1: "w:2", 2: "w:3", 3: "w:4"}
    assert restored.wan_dialer == PROD


@pytest.mark.parametrize("listeners", [None, [], ["w:1"], ["w:1", "w:2", "w:3"]])
def test_a_gateway_that_names_too_few_or_too_many_wan_listeners_ends_the_stream(listeners: list[str] | None) -> None:
    rig = rig_that_can(CONS, "accept", "dial")
    seq = rig.update(wan_dialer=PROD)
    armed_for_wan(rig, "dtn1", listeners)
    assert rig.state == "Releasing"
    assert answered(rig.news(), seq).code == "gateway-failed"


def test_an_own_update_keeps_where_the_producers_gateways_dial() -> None:
    rig = rig_that_can(PROD, "dial")
    targets = dict.fromkeys(rig.record.listeners.values(), "192.0.2.9:5100")
    rig.update(wan_dialer=PROD, wan_targets=targets)
    rig.answers()
    rig.hello(OTHER_APP)
    rig.news()
    rig.machine.targets_overdue(None)
    [command] = asked(rig.news(), UpdateTargets).values()
    assert (command.wan_dialer, command.wan_targets) == (PROD, targets)
    assert set(command.connection_map.values()) == set(OTHER_APP)


@pytest.mark.parametrize(
    ("role", "wan", "wan_dialer"), [(CONS, "dial", PROD), (CONS, "accept", CONS), (PROD, "dial", CONS)]
)
def test_targets_that_need_what_the_gateways_cannot_do_are_refused_before_any_is_asked(
    role: Role, wan: str, wan_dialer: Role
) -> None:
    rig = rig_that_can(role, wan)
    seq = rig.update(wan_dialer=wan_dialer)
    news = rig.news()
    assert kinds(news) == ["answer"]
    assert answered(news, seq).code == "target-refused"


def test_a_gateway_of_an_older_version_is_not_asked_to_listen_for_the_producer() -> None:
    rig = Rig(CONS).to("Listening")
    seq = rig.update(wan_dialer=PROD)
    assert answered(rig.news(), seq).code == "target-refused"


def test_the_side_that_dials_cannot_change_and_a_repetition_compares_it() -> None:
    rig = rig_that_can(CONS, "accept", "dial")
    rig.update(wan_dialer=PROD)
    armed_for_wan(rig, "dtn1", ["w:1", "w:2"])
    same_number = rig.update(generation=1)
    assert answered(rig.news(), same_number).code == "wrong-state"
    other = rig.update(generation=2)
    assert answered(rig.news(), other).code == "bad-message"


def test_wan_targets_must_name_exactly_the_listeners_of_the_stream() -> None:
    rig = rig_that_can(PROD, "dial")
    seq = rig.update(wan_dialer=PROD, wan_targets={"elsewhere:1": "192.0.2.9:5100"})
    assert answered(rig.news(), seq).code == "bad-message"

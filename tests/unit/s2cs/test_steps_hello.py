"""The steps of the machine of a stream at an S2CS at a Hello, and when none comes in time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from stream_at_s2cs import (
    APP,
    BAD_KEY,
    NO_PORTS,
    OTHER_APP,
    REFUSED,
    ROLES,
    UID,
    Rig,
    answered,
    answered_after,
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
    ProdLstn,
    Rel,
    Role,
    StartConn,
    UpdateTargets,
)
from support.machine_rig import kinds


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

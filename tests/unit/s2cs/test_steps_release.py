"""The steps of the machine of a stream at an S2CS when it is released or fails."""

from __future__ import annotations

import msgspec
import pytest
from stream_at_s2cs import (
    LIVE,
    ROLES,
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
    Rel,
    Role,
)
from support.machine_rig import kinds


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

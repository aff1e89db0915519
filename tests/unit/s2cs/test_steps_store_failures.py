"""The steps of the machine of a stream at an S2CS when its store cannot be written."""

from __future__ import annotations

import pytest
from stream_at_s2cs import (
    OTHER_APP,
    REFUSED,
    ROLES,
    Rig,
    answered,
    answers,
    asked,
    told_application,
    told_owner,
)

from scistream.protocol.messages import (
    CONS,
    Rel,
    Role,
    UpdateTargets,
)
from support.machine_rig import kinds


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

"""The steps of the machine of a stream at an S2CS after a restart."""

from __future__ import annotations

from typing import Any

import pytest
from stream_at_s2cs import (
    APP,
    ROLES,
    UID,
    Rig,
    answered_after,
    asked,
    told_owner,
)

from scistream.protocol.messages import (
    PROD,
    LastError,
    ProdLstn,
    Rel,
    Role,
)
from scistream.s2cs.machine import restored_stream, resume
from scistream.s2cs.machine_core import Core


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

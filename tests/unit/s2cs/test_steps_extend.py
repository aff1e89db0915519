"""What the machine of a stream at an S2CS does when the stream is extended."""

from __future__ import annotations

import pytest
from stream_at_s2cs import Rig, answered_after

from scistream.protocol.messages import CONS, PROD, Role
from support.machine_rig import kinds


@pytest.mark.parametrize("role", [PROD, CONS])
def test_a_new_end_is_written_before_it_is_told(role: Role) -> None:
    rig = Rig(role).to("Streaming")
    rig.extend(1200.0)
    assert kinds(rig.news()) == ["extend"]
    seq = rig.extended(1200.0)
    news = rig.news()
    assert kinds(news) == ["set life", "saved", "answer"]
    assert (news[-1][1].seq, news[-1][1].expires) == (seq, 1200.0)


def test_if_the_store_cannot_be_written_the_end_stays_and_gateways_are_put_back() -> None:
    rig = Rig(full=lambda count: count > 6).to("Streaming")
    saves = rig.effects.saves
    rig.effects.full = lambda count: count > saves
    seq = rig.extended(1200.0)
    news = rig.news()
    assert [call for call in news if call[0] in ("set life", "take back")] == [
        ("set life", 1200.0),
        ("set life", 600.0),
        ("take back", 600.0),
    ]
    [refused] = [call[1] for call in news if call[0] == "answer"]
    assert (refused.seq, refused.code) == (seq, "no-capacity")
    assert rig.record.life == 600.0


@pytest.mark.parametrize("state", ["Idle", "Reserving", "Updating", "Releasing", "Released"])
def test_extend_is_refused_in_every_state_without_a_settled_stream(state: str) -> None:
    rig = Rig().to(state)
    assert answered_after(rig, rig.extend()).code == "wrong-state"
    if state in ("Idle", "Releasing", "Released"):
        assert answered_after(rig, rig.extended()).code == "wrong-state"

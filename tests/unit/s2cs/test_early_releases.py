"""Releases of streams that nobody has asked for: how many are remembered, and of whom."""

from __future__ import annotations

from uuid import uuid4

from scistream.s2cs.early_releases import MOST_OF_ONE_OWNER, EarlyReleases
from scistream.s2cs.record import Record
from scistream.wire.messages import PROD, Req


def a_release(owner: str = "ada") -> Record:
    return Record(uid=str(uuid4()), role=PROD, owner=owner, state="Released", released_at=1.0)


def test_beyond_the_limit_the_oldest_of_the_same_owner_goes() -> None:
    early = EarlyReleases()
    records = [a_release() for _ in range(MOST_OF_ONE_OWNER)]
    assert [early.add(record) for record in [a_release("bob"), *records]] == [None] * (MOST_OF_ONE_OWNER + 1)
    assert early.add(a_release()) == records[0].key
    assert early.add(a_release()) == records[1].key
    assert early.add(a_release("bob")) is None


def test_one_that_is_forgotten_makes_room() -> None:
    early = EarlyReleases()
    records = [a_release() for _ in range(MOST_OF_ONE_OWNER)]
    for record in records:
        early.add(record)
    early.forget(records[5])
    early.forget(records[5])
    early.forget(a_release("nobody"))
    assert early.add(a_release()) is None
    assert early.add(a_release()) == records[0].key


def test_streams_that_were_asked_for_do_not_count() -> None:
    early = EarlyReleases()
    for _ in range(2 * MOST_OF_ONE_OWNER):
        record = a_release()
        record.request = Req(uid=record.uid, role=PROD, seq=1, num_conn=1, rate=1.0, app_key_hash="0" * 64)
        assert early.add(record) is None
        live = a_release()
        live.state = "Reserving"
        assert early.add(live) is None

"""What the facilities keep of what has happened to a stream, and who may see it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scistream import timing
from scistream.protocol.errors import StreamError
from scistream.protocol.messages import CONS, MAX_EVENT, MAX_EVENTS, PROD, ResetReason, StreamEvent, StreamStatus
from scistream.s2cs.event_log import MOST_RESETS, EventLog
from scistream.s2cs.record import Record
from scistream.s2uc.client import StreamEvents
from scistream.s2uc.happened import merged
from scistream.s2uc.history import StreamHistory
from support.memory_facilities import CONS_S2CS, PROD_S2CS, World

UID = "12345678-1234-4234-8234-123456789abc"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    for each in StreamHistory().all():
        StreamHistory().remove(each.uid)
    world.close()


def events_of(world: World, stream: Any) -> StreamEvents:
    return world.result(stream.events().deferred)


def texts(found: StreamEvents, role: str = PROD) -> list[str]:
    return [f"{one.state}: {one.text}" if one.state else one.text for one in found.events if one.role == role]


LIFE = [
    "Reserving: requested",
    "Listening: the gateways have reserved",
    "Ready: the application has said Hello",
    "Streaming: targets are set: connections are forwarded",
]


def test_the_life_of_a_stream_is_told_in_order_and_after_its_end(world: World) -> None:
    stream = world.stream(expires=600.0)
    assert texts(events_of(world, stream)) == LIFE
    world.result(stream.extend(60.0).deferred)
    world.result(stream.release().deferred)
    found = events_of(world, stream)
    for role in (PROD, CONS):
        extended, asked, releasing, released = texts(found, role)[-4:]
        assert extended == "it ends 11 minutes after its request: set by insecure:loopback"
        assert asked == "release requested by insecure:loopback"
        assert (releasing, released) == ("Releasing: released", "Released: the gateways have released it")
    assert [one.at for one in found.events] == sorted(one.at for one in found.events)
    assert not found.dropped
    assert not found.without
    at_one = world.result(world.client.events_at(CONS_S2CS, stream.uid).deferred)
    assert {one.role for one in at_one.events} == {CONS}
    assert texts(at_one, CONS) == texts(found, CONS)


def test_the_reason_of_an_end_is_told(world: World) -> None:
    stream = world.stream(expires=30.0)
    world.network.run(40.0)
    releasing = next(one for one in events_of(world, stream).events if one.state == "Releasing")
    assert releasing.text == "expired: the time of this stream is over"


def test_events_outlive_a_restart_of_the_control_server_which_is_one_itself(world: World) -> None:
    stream = world.stream(expires=600.0)
    world.result(world.prod.control.stopService())
    world.prod.control = world.prod.start_control()
    world.network.run(timing.POLL)
    assert texts(events_of(world, stream)) == [*LIFE, "the S2CS was restarted; the stream goes on"]


def test_a_gateway_that_is_silent_is_told_once_and_so_is_its_return(world: World) -> None:
    stream = world.stream(expires=6000.0)
    gateway = world.prod.gateways[0]
    world.result(world.prod.control.gateways["dtn5001"].dialer.stopService())
    world.network.run(1.0)
    world.prod.control.gateways["dtn5001"].dialer.startService()
    world.network.run(10.0)
    assert gateway.running
    assert texts(events_of(world, stream))[len(LIFE) :] == [
        "gateway dtn5001 does not answer",
        "gateway dtn5001 answers again",
    ]


def test_only_the_owner_and_only_if_asked_gets_them(world: World) -> None:
    stream = world.stream(expires=600.0)
    assert all(not side.events for side in world.result(stream.status().deferred).values())
    unknown = world.client.remembered(UID, prod=PROD_S2CS, cons=CONS_S2CS)
    found = events_of(world, unknown)
    assert not found.events
    assert world.refusal(world.client.events_at(PROD_S2CS, UID).deferred).code == "unknown-uid"
    listed = world.result(world.client.streams_at(PROD_S2CS).deferred)
    assert all(not one.events for one in listed)


# -- one log


class Clock:
    """The time of a log."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def new_log() -> tuple[Record, EventLog]:
    record = Record(uid=UID, role=PROD, owner="ada", life=600.0)
    return record, EventLog(record, Clock())


def test_the_oldest_events_are_dropped_and_counted() -> None:
    record, log = new_log()
    for number in range(MAX_EVENTS + 5):
        log.released_by(f"user {number}")
    assert len(record.events) == MAX_EVENTS
    assert record.events_dropped == 5
    assert record.events[-1].text == f"release requested by user {MAX_EVENTS + 4}"


def test_a_gateway_that_comes_and_goes_or_a_producer_that_moves_cannot_fill_the_log() -> None:
    record, log = new_log()
    record.state, record.generation = "Streaming", 1
    log.state_changed("Updating", "Streaming")
    log.note_changes()
    for _ in range(200):
        log.note_gateway("dtn1", silent=True)
        log.note_gateway("dtn1", silent=False)
        record.own_updates += 1
        log.note_changes()
    assert sorted((one.kind, one.count) for one in record.events) == [
        ("gateway", 200),
        ("gateway", 200),
        ("state", 1),
        ("targets", 200),
    ]
    assert record.events_dropped == 0


def test_resets_are_one_event_for_each_reason_with_the_latest_number() -> None:
    record, log = new_log()
    for count in (1, 5, 5):
        reset = ResetReason(channel=0, cause="application", reason="it refused the connection", count=count)
        log.note_resets("dtn1", [reset])
    [event] = record.events
    assert (event.text, event.count) == ("gateway dtn1, channel 0: it refused the connection", 5)
    log.released_by("ada" * 200)
    assert record.events[-1].text.endswith(" ...")
    assert len(record.events[-1].text) == MAX_EVENT
    log.note_resets("dtn1", [ResetReason(channel=0, cause="stranger", reason="it has no credentials", count=9)])
    assert len(record.events) == 2
    for number in range(5 * MOST_RESETS):
        reason = ResetReason(channel=0, cause="wan", reason=f"reason {number}\x1b[2J", count=1)
        log.note_resets("dtn1", [reason])
    assert sum(one.kind == "resets" for one in record.events) == MOST_RESETS
    assert any(one.kind == "release" for one in record.events)
    assert len(log.events()) == MOST_RESETS + 1


def test_a_facility_without_events_and_one_that_does_not_answer_are_named() -> None:
    old = StreamStatus(uid=UID, role=PROD, state="Streaming")
    new = StreamStatus(
        uid=UID,
        role=CONS,
        state="Streaming",
        events=[StreamEvent(kind="later-kind", seconds_ago=5.0, text="?")],
        events_dropped=3,
    )
    error = StreamError("timeout", "no answer")
    found = merged([old, new], {}, 100.0)
    assert ([one.at for one in found.events], found.without, found.dropped) == ([95.0], [PROD], {CONS: 3})
    assert merged([new], {PROD: error}, 100.0).unreachable == {PROD: error}

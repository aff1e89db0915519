"""Server-sent events: what has changed, once a second, however many streams and however slow a reader."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scistream import timing
from scistream.protocol.messages import PROD
from scistream.s2cs.web import events
from scistream.s2cs.web.events import MOST_LISTENERS, EventHub, EventListener
from support.memory_facilities import World


class Reader:
    """The other end of a response."""

    def __init__(self) -> None:
        self.data = b""
        self.aborted = ""

    def write(self, data: bytes) -> None:
        self.data += data

    def abort(self, why: str) -> None:
        self.aborted = why

    def events(self, kind: str = "change") -> list[dict[str, Any]]:
        """Return the data of the events since the last call."""
        blocks, self.data = self.data.decode().split("\n\n"), b""
        assert blocks.pop() == "", "the last event is not complete"
        lines = [dict(line.split(": ", 1) for line in block.split("\n")) for block in blocks]
        assert {one["event"] for one in lines if "event" in one} <= {kind}
        return [json.loads(one["data"]) for one in lines if "data" in one]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path, ports=20)
    yield world
    world.close()


@pytest.fixture
def hub(world: World) -> Iterator[EventHub]:
    hub = EventHub(world.network, world.prod.control.monitor)
    yield hub
    hub.stop()


def listen(hub: EventHub, uid: str | None = None) -> tuple[EventListener, Reader]:
    reader = Reader()
    listener = EventListener(reader, uid)
    hub.add(listener)
    return listener, reader


def test_what_changes_is_told_within_a_second_and_nothing_else(world: World, hub: EventHub) -> None:
    quiet = world.stream()
    _, reader = listen(hub)
    assert reader.data == b"retry: 2000\n\n"
    world.network.run(2.0)
    reader.events()
    stream = world.request(label="new")
    world.network.run(timing.BETWEEN_EVENTS)
    told = [row for event in reader.events() for row in event.get("streams", [])]
    assert {row["uid"] for row in told} == {stream.uid}
    assert told[-1]["label"] == "new"
    assert told[-1]["state"] == "Listening"
    world.result(stream.release().deferred)
    world.network.run(timing.BETWEEN_EVENTS)
    told = reader.events()
    assert [key for event in told for key in event.get("gone", [])] == [f"{stream.uid}/PROD"]
    assert [end["uid"] for event in told for end in event.get("ends", [])] == [stream.uid]
    assert quiet.uid not in json.dumps(told)


def test_without_a_change_an_event_says_now_and_then_that_the_server_is_there(world: World, hub: EventHub) -> None:
    _, reader = listen(hub)
    world.network.run(5.0)
    reader.events()
    world.network.run(2 * timing.EVENTS_SILENT + 2)
    assert 2 <= len(reader.events()) <= 4


def test_many_changes_come_in_several_events_and_each_stream_once(
    world: World, hub: EventHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "MOST_ROWS", 5)
    uids = {world.request(rate=1.0).uid for _ in range(8)}
    _, reader = listen(hub)
    for uid in uids:
        for _ in range(3):
            world.prod.control.monitor.stream_changed((uid, PROD))
    world.network.run(0.1)
    (first,) = reader.events()
    assert len(first["streams"]) == 5
    world.network.run(timing.BETWEEN_EVENTS)
    (second,) = reader.events()
    assert len(second["streams"]) == 3
    assert {row["uid"] for row in first["streams"] + second["streams"]} == uids
    assert second["change"] > first["change"]


def test_a_reader_that_pauses_gets_the_newest_values_when_it_reads_again(world: World, hub: EventHub) -> None:
    stream = world.request()
    listener, reader = listen(hub)
    world.network.run(1.5)
    reader.events()
    listener.pauseProducing()
    for _ in range(10):
        world.prod.control.monitor.stream_changed((stream.uid, PROD))
        world.network.run(timing.BETWEEN_EVENTS)
    assert reader.data == b""
    assert len(listener.pending) == 1
    world.result(stream.release().deferred)
    listener.resumeProducing()
    world.network.run(timing.BETWEEN_EVENTS)
    (event,) = reader.events()
    assert event["gone"] == [f"{stream.uid}/PROD"]
    assert [end["uid"] for end in event["ends"]] == [stream.uid]
    assert reader.aborted == ""


def test_a_reader_that_does_not_read_for_long_is_disconnected(world: World, hub: EventHub) -> None:
    slow, its = listen(hub)
    _, other = listen(hub)
    slow.pauseProducing()
    world.network.run(timing.SLOW_READER + 3)
    assert its.aborted
    assert other.aborted == ""
    other.events()
    world.request()
    world.network.run(timing.BETWEEN_EVENTS)
    assert other.events()


def test_there_is_room_for_so_many_readers_and_none_costs_anything_afterwards(world: World, hub: EventHub) -> None:
    listeners = [listen(hub)[0] for _ in range(MOST_LISTENERS)]
    assert hub.is_full
    for listener in listeners:
        hub.remove(listener)
    assert not hub.is_full
    world.network.run(3.0)
    change = world.prod.control.monitor.change
    world.request()
    world.network.run(10.0)
    assert world.prod.control.monitor.change == change


def test_a_reader_of_one_stream_is_told_about_no_other(world: World, hub: EventHub) -> None:
    mine, other = world.request(), world.request()
    _, reader = listen(hub, mine.uid)
    world.prod.control.monitor.stream_changed((other.uid, PROD))
    world.network.run(1.5)
    assert reader.events("stream") == []
    world.prod.control.monitor.stream_changed((mine.uid, PROD))
    world.network.run(timing.BETWEEN_EVENTS)
    (event,) = reader.events("stream")
    assert [one["stream"]["uid"] for one in event["sides"]] == [mine.uid]
    assert event["sides"][0]["channels"]

"""The audit trail and the books of whole facilities in memory: what repetition, restarts and silence do to them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scistream.protocol.address import Address
from scistream.protocol.messages import CONS, PROD, Role
from scistream.s2cs.audit.events import read_line
from scistream.s2ds.elements.shared_figures import TO_CONSUMER
from scistream.s2uc.client import Stream
from support.memory_facilities import CONS_PORT, Facility, World
from support.memory_network import HOST


@pytest.fixture
def pools(tmp_path: Path) -> Iterator[World]:
    """Facilities of three gateways each."""
    world = World(tmp_path, gateways=3)
    yield world
    world.close()


def told(facility: Facility, *kinds: str) -> list[Any]:
    """Return the lines of a facility's audit trail; only those of `kinds`, if given."""
    lines = (facility._folder / "s2cs.audit.jsonl").read_text().splitlines()
    events = [read_line(line) for line in lines]
    return [event for event in events if not kinds or event.__struct_config__.tag in kinds]


def tags(events: list[Any]) -> list[str]:
    return [str(event.__struct_config__.tag) for event in events]


def carry(facility: Facility, stream: Stream, role: Role, count: int, gateway: int = 0) -> None:
    """As if a gateway had passed on so many bytes to the consumer on its first channel of a stream."""
    elements = facility.gateways[gateway].elements
    first = next(iter(elements._streams[stream.uid, role].start.slots.values()))
    elements._figures.words[elements._figures.row(first, 0) + TO_CONSUMER] += count


def booked(facility: Facility) -> dict[str, int]:
    rows = facility.control.store._db.execute("SELECT day, sum(bytes_to_consumer) FROM usage GROUP BY day").fetchall()
    return dict(rows)


def test_a_life_is_told_on_each_side_and_what_is_repeated_only_once(world: World) -> None:
    stream = world.request(rate=100.0, label="beamline 7")
    world.application(stream.join[CONS], "analysis")
    world.network.run(60.0)  # the consumer says Hello again and again
    world.network.sever(CONS_PORT)
    world.network.run(60.0)
    world.application(stream.join[PROD], "detector")
    world.result(stream.provisioned().deferred)
    world.network.run(120.0)
    world.result(stream.release().deferred)
    assert tags(told(world.prod)) == ["server-start", "request", "hello", "start", "release", "end"]
    consumer = ["server-start", "request", "hello", "start", "release", "end"]
    assert len(told(world.cons, "hello")) == 2, "the second one is on the link that was made anew"
    assert [tag for tag in tags(told(world.cons)) if tag != "hello"] == [tag for tag in consumer if tag != "hello"]
    (end,) = told(world.prod, "end")
    assert (end.label, end.complete, end.code, end.duration) == ("beamline 7", True, "released", end.duration)
    assert end.duration >= 180 > end.streaming >= 120


def test_a_producer_that_comes_again_elsewhere_is_told_with_the_targets_that_follow(world: World) -> None:
    stream = world.stream()
    world.application(stream.join[PROD], "detector", listeners=(Address(HOST, 7001),))
    world.network.until(lambda: bool(told(world.cons, "targets")), within=10.0)
    (hello, again), (targets,) = told(world.prod, "hello"), told(world.prod, "targets")
    assert (hello.listeners, again.listeners) == ([f"{HOST}:7000"], [f"{HOST}:7001"])
    assert (targets.generation, list(targets.targets.values())) == (2, [f"{HOST}:7001"])
    assert tags(told(world.prod)).count("start") == 1


def test_bytes_are_booked_while_a_stream_lives_and_the_last_ones_with_its_end(world: World) -> None:
    stream = world.stream()
    carry(world.prod, stream, PROD, 1000)
    world.network.run(16.0)
    assert booked(world.prod) == {"1970-01-01": 1000}
    carry(world.prod, stream, PROD, 77)
    world.result(stream.release().deferred)
    (end,) = told(world.prod, "end")
    assert (end.bytes_to_consumer, end.complete) == (1077, True)
    (kept,) = world.prod.gateways[0]._streams[stream.uid, PROD].status().figures
    assert kept.bytes_to_consumer == 1077
    assert booked(world.prod) == {"1970-01-01": 1077}
    assert world.prod.control.ledger.usage_today("insecure:loopback") == 1077


def test_a_stream_over_midnight_is_booked_on_both_days(world: World) -> None:
    world.network.jump(86400.0 - 200.0)
    world.network.run(60.0)
    stream = world.stream(expires=2 * 86400.0)
    world.network.run(86400.0 - 100.0 - world.network.seconds())
    carry(world.prod, stream, PROD, 5)
    world.network.run(200.0)
    carry(world.prod, stream, PROD, 7)
    world.network.run(16.0)
    assert booked(world.prod) == {"1970-01-01": 5, "1970-01-02": 7}


def test_all_gateways_of_a_pool_are_in_the_end_of_a_stream(pools: World) -> None:
    stream = pools.stream(num_conn=3, rate=300.0)
    for number in range(3):
        carry(pools.prod, stream, PROD, 10**number, number)
    pools.result(stream.release().deferred)
    (end,) = told(pools.prod, "end")
    assert (end.bytes_to_consumer, end.complete) == (111, True)


def test_a_restart_of_the_s2cs_loses_and_doubles_nothing(world: World) -> None:
    stream = world.stream()
    carry(world.prod, stream, PROD, 1000)
    world.network.run(16.0)
    world.prod.control.stopService()
    carry(world.prod, stream, PROD, 50)
    world.network.run(1.0)
    world.prod.control = world.prod.start_control()
    world.network.run(16.0)
    assert booked(world.prod) == {"1970-01-01": 1050}
    world.result(stream.release().deferred)
    (end,) = told(world.prod, "end")
    assert (end.bytes_to_consumer, end.complete) == (1050, True)
    assert tags(told(world.prod)) == [
        *("server-start", "request", "hello", "start"),
        *("server-stop", "server-start", "hello", "release", "end"),
    ]


def test_a_restart_of_a_gateway_leaves_what_was_heard_last_as_a_lower_bound(world: World) -> None:
    stream = world.stream()
    carry(world.prod, stream, PROD, 1000)
    world.network.run(16.0)
    carry(world.prod, stream, PROD, 50)
    world.prod.gateways[0].stopService()
    at = world.prod.gateway_ports[0]
    world.prod.gateways[0] = world.prod._gateway(at, at * 10)
    world.network.run(30.0)
    (end,) = told(world.prod, "end")
    assert (end.bytes_to_consumer, end.complete, end.code) == (1000, False, "gateway-failed")
    assert end.reason.startswith(f"gateway dtn{at}: it has restarted")
    assert booked(world.prod) == {"1970-01-01": 1000}


def test_a_stream_that_expires_ends_with_all_its_bytes(world: World) -> None:
    stream = world.stream(expires=60.0)
    carry(world.prod, stream, PROD, 9)
    world.network.run(90.0)
    (end,) = told(world.prod, "end")
    assert (end.bytes_to_consumer, end.complete, end.code) == (9, True, "expired")


def test_a_gateway_that_is_asked_for_its_streams_just_as_it_releases_one_by_itself_tells_its_last_figures(
    world: World,
) -> None:
    """Its answer to Status, without the stream, comes before its answer to REL."""
    stream = world.stream()
    carry(world.prod, stream, PROD, 9)
    (gateway,) = world.prod.control.gateways.values()
    gateway.dialer.on_poll()
    world.prod.gateways[0]._streams[stream.uid, PROD].machine.expired()
    world.prod.control.streams[stream.uid, PROD].machine.expired()
    world.network.run(1.0)
    (end,) = told(world.prod, "end")
    assert (end.bytes_to_consumer, end.complete, end.code) == (9, True, "expired")


def test_a_gateway_that_was_out_of_reach_when_a_stream_ended_tells_its_last_figures_later(world: World) -> None:
    stream = world.stream(expires=60.0)
    carry(world.prod, stream, PROD, 9)
    gateway_port = world.prod.gateway_ports[0]
    listener = world.network.close_listener(gateway_port)
    world.network.sever(gateway_port)
    world.network.run(120.0)
    assert told(world.prod, "end") == [], "it is not known yet that nothing is left"
    world.network.listeners[gateway_port] = listener
    world.network.run(30.0)
    (end,) = told(world.prod, "end")
    assert (end.bytes_to_consumer, end.complete, end.code) == (9, True, "expired")


def test_a_request_that_no_gateway_can_take_is_told_with_its_refusal_and_its_end(world: World) -> None:
    world.prod.gateways[0].ports.taken = set(range(100_000))
    world.refusal(world.ask())
    request, refused, end = told(world.prod, "request", "refused", "end")[:3]
    assert (request.uid, refused.uid, end.uid) == (request.uid,) * 3
    assert (refused.cmd, refused.code, end.code, end.bytes_to_consumer) == ("REQ", "no-ports", "no-ports", 0)
    assert end.complete


def test_a_request_that_the_pool_has_no_room_for_never_was_a_stream_and_has_no_end(world: World) -> None:
    world.refusal(world.ask(num_conn=9))
    request, refused = told(world.prod, "request", "refused", "end")[:2]
    assert (request.num_conn, refused.code, refused.uid) == (9, "no-ports", request.uid)
    assert told(world.prod, "end") == []

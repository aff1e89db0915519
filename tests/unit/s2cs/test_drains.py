"""Drains at an S2CS: who may ask, what gets no new streams, when streams end, and what is left after a restart."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from twisted.internet.defer import Deferred

from scistream.protocol.errors import StreamError
from scistream.protocol.messages import CONS, PROD, UNSENT, Drain, Resp, StreamStatus
from scistream.s2uc.client import Stream
from support.memory_facilities import PROD_PORT, PROD_S2CS, World

FIRST, SECOND = f"dtn{PROD_PORT + 1}", f"dtn{PROD_PORT + 2}"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path, gateways=2)
    world.network.run(2)
    yield world
    world.close()


def drain(world: World, action: str = "start", gateway: str | None = None, within: float | None = None) -> Resp:
    """Send Drain to the producer's S2CS, and return the answer."""
    return world.result(ask(world, action, gateway, within))


def ask(world: World, action: Any, gateway: str | None = None, within: float | None = None) -> Deferred[Resp]:
    command = Drain(seq=UNSENT, action=action, gateway=gateway, within=within)
    return world.client._dialer_to(PROD_S2CS).ask(command, 5.0)


def gateway_of(world: World, stream: Stream) -> list[str]:
    return prod_side(world, stream).gateways


def prod_side(world: World, stream: Stream) -> StreamStatus:
    return next(one for one in world.result(world.client.stream_at(PROD_S2CS, stream.uid).deferred))


def progress(world: World) -> list[tuple[str | None, int, float | None]]:
    return [(one.gateway, one.streams, one.seconds_left) for one in drain(world, "show").draining or []]


def test_a_drained_gateway_gets_no_new_streams_and_keeps_those_that_it_has(world: World) -> None:
    before = [world.stream() for _ in range(2)]
    assert {one for stream in before for one in gateway_of(world, stream)} == {FIRST, SECOND}
    assert drain(world, gateway=FIRST).draining is not None
    assert progress(world) == [(FIRST, 1, None)]
    after = [world.request(rate=10.0) for _ in range(3)]
    assert {one for stream in after for one in gateway_of(world, stream)} == {SECOND}
    assert [stream.state for stream in before] == ["Streaming", "Streaming"]
    world.result(before[0].release().deferred)
    world.result(before[1].release().deferred)
    assert progress(world) == [(FIRST, 0, None)]


def test_a_request_that_fits_on_drained_gateways_only_is_refused_with_the_reason(world: World) -> None:
    drain(world, gateway=FIRST)
    refused = world.refusal(world.ask(rate=1500.0, num_conn=2))
    assert refused.code == "no-capacity"
    assert f"gateways that are being drained get no new streams: {FIRST}" in refused.msg
    drain(world, gateway=SECOND)
    refused = world.refusal(world.ask())
    assert refused.code == "no-capacity"
    assert f"no new stream begins here: gateways {FIRST}, {SECOND} of this facility" in refused.msg
    drain(world, "undo", SECOND)
    assert gateway_of(world, world.request()) == [SECOND]


def test_a_drained_s2cs_refuses_all_requests_until_that_is_undone(world: World) -> None:
    drain(world)
    assert world.prod.control.is_draining
    assert "control server (S2CS) is being drained" in world.refusal(world.ask()).msg
    drain(world, "undo")
    assert not world.prod.control.is_draining
    world.request()
    drain(world, "undo")


def test_streams_are_released_at_the_deadline_with_a_reason_for_the_user_and_the_application(world: World) -> None:
    stream = world.stream()
    other = world.stream()
    (mine,) = gateway_of(world, stream)
    application = world.running[0]
    drain(world, gateway=mine, within=60.0)
    [notice] = prod_side(world, stream).notices
    assert notice.startswith(f"gateway {mine} is being drained: this stream is released in ")
    assert prod_side(world, other).notices == []
    world.network.run(50)
    assert world.state("s2cs", PROD, stream.uid) == "streaming"
    world.network.run(15)
    assert world.state("s2cs", PROD, stream.uid) == "released"
    assert world.state("s2cs", PROD, other.uid) == "streaming"
    error = prod_side(world, stream).last_error
    assert error is not None
    assert error.code == "released"
    assert f"gateway {mine} is being drained by " in error.msg
    assert "the time for its streams to end is over: request a new stream" in error.msg
    assert application.ended_by is None or application.ended_by.msg == error.msg
    world.network.run(5)
    assert world.state("s2cs", CONS, stream.uid) == "released", "the user's client has released the other side"
    assert progress(world) == [(mine, 0, 0.0)]


def test_a_drain_outlives_the_s2cs_with_its_deadline(world: World) -> None:
    stream = world.stream()
    drain(world, gateway=gateway_of(world, stream)[0], within=100.0)
    world.network.run(30)
    before = world.prod.control
    world.result(before.stopService())
    world.prod.control = world.prod.start_control()
    world.network.run(5)
    [(gateway, streams, left)] = progress(world)
    assert (gateway, streams) == (gateway_of(world, stream)[0], 1)
    assert left is not None
    assert 55 < left < 66
    assert world.prod.control.gateways[gateway or ""].is_drained
    world.network.run(70)
    assert world.state("s2cs", PROD, stream.uid) == "released"


def test_a_later_deadline_replaces_an_earlier_one_and_undo_lifts_it(world: World) -> None:
    stream = world.stream()
    drain(world, within=10.0)
    drain(world, within=40.0)
    world.network.run(20)
    assert world.state("s2cs", PROD, stream.uid) == "streaming"
    drain(world, "undo")
    world.network.run(60)
    assert world.state("s2cs", PROD, stream.uid) == "streaming"


def test_all_users_are_warned_of_a_drain(world: World) -> None:
    drain(world, within=600.0)
    world.result(world.client.streams_at(PROD_S2CS).deferred)
    [warning] = world.client.warnings[PROD_S2CS]
    assert warning.startswith("this S2CS is being drained: no new stream begins there, and streams that are left are ")


def test_a_gateway_that_is_not_there_is_named(world: World) -> None:
    refused = world.refusal(ask(world, "start", "dtn9"))
    assert refused.code == "bad-message"
    assert refused.msg == f"there is no gateway 'dtn9' here, but {FIRST}, {SECOND}"


def test_a_drained_gateway_may_be_removed_and_comes_back_undrained(world: World) -> None:
    control = world.prod.control
    stream = world.stream()
    (mine,) = gateway_of(world, stream)
    drain(world, gateway=mine, within=1.0)
    world.network.run(10)
    everything = control.config
    control.reload(replace(everything, gateways=[one for one in everything.gateways if one.name != mine]))
    assert progress(world) == []
    control.reload(everything)
    world.network.run(5)
    assert not control.gateways[mine].is_drained
    assert control.store.drains() == []


def test_an_s2cs_that_stops_waits_for_its_streams_and_leaves_the_rest_alone(world: World) -> None:
    control = world.prod.control
    stream, other = world.stream(), world.stream()
    stopped: list[None] = []
    control.drains.shut_down(60.0).addCallback(stopped.append)
    assert "control server (S2CS) is about to stop" in world.refusal(world.ask()).msg
    world.result(stream.release().deferred)
    assert not stopped
    world.network.run(30)
    assert not stopped
    world.network.run(31)
    assert stopped
    assert world.state("s2cs", PROD, other.uid) == "streaming"


def test_an_s2cs_without_streams_need_not_wait(world: World) -> None:
    stopped: list[None] = []
    world.prod.control.drains.shut_down(60.0).addCallback(stopped.append)
    assert stopped
    stream = world.stream()
    control = world.cons.control
    control.drains.shut_down(60.0).addCallback(stopped.append)
    world.result(stream.release().deferred)
    world.network.run(2)
    assert len(stopped) == 2


def test_a_drain_that_the_store_cannot_keep_is_refused(world: World) -> None:
    control = world.prod.control
    control.store._db.execute("PRAGMA query_only = 1")
    refused = world.refusal(ask(world, "start"))
    control.store._db.execute("PRAGMA query_only = 0")
    assert isinstance(refused, StreamError)
    assert refused.code == "no-capacity"
    assert "cannot be written" in refused.msg
    assert not control.is_draining


def grace(world: World, gateway: str, seconds: str) -> list[None]:
    """Ask a gateway of the producer's facility to stop as SIGTERM does; the list gets an entry when it may."""
    [server] = [one for one in world.prod.gateways if one.config.listen.endswith(gateway.removeprefix("dtn"))]
    server.config = replace(server.config, shutdown_grace=seconds)
    stopped: list[None] = []
    server.shut_down().addCallback(stopped.append)
    return stopped


def test_a_gateway_that_is_about_to_stop_gets_no_new_streams_and_waits_for_those_that_it_has(world: World) -> None:
    stream = world.stream()
    (mine,) = gateway_of(world, stream)
    stopped = grace(world, mine, "60s")
    world.network.run(0.5)
    assert world.prod.control.gateways[mine].is_drained, "it hears at once, not with the next poll"
    assert gateway_of(world, world.request(rate=1.0)) != [mine]
    [(gateway, streams, left)] = progress(world)
    assert (gateway, streams) == (mine, 1)
    assert left is not None
    assert 55 < left <= 60
    assert not stopped
    world.result(stream.release().deferred)
    world.network.run(0.1)
    assert stopped


def test_streams_that_are_left_on_a_gateway_that_stops_are_released_with_the_reason(world: World) -> None:
    stream = world.stream()
    (mine,) = gateway_of(world, stream)
    stopped = grace(world, mine, "30s")
    world.network.run(1)
    assert prod_side(world, stream).notices[0].startswith(f"gateway {mine} is about to stop: this stream is released")
    world.network.run(31.5)
    assert stopped, "it need not wait for the end of the moment that its S2CS has"
    error = prod_side(world, stream).last_error
    assert error is not None
    assert error.msg.startswith(f"gateway {mine} is about to stop, and the time for its streams to end is over")


def test_a_gateway_that_stops_refuses_what_its_s2cs_has_sent_before_it_heard(world: World) -> None:
    stream = world.stream()
    (mine,) = gateway_of(world, stream)
    (other,) = {FIRST, SECOND} - {mine}
    drain(world, gateway=other)
    grace(world, mine, "60s")
    refused = world.refusal(world.ask(rate=1.0))
    assert refused.code == "no-capacity"
    assert "it is about to stop, in " in refused.msg or "no new stream begins here" in refused.msg


def test_a_gateway_without_a_grace_or_without_streams_stops_at_once(world: World) -> None:
    assert grace(world, FIRST, "60s")
    stream = world.stream()
    assert grace(world, gateway_of(world, stream)[0], "0s")

"""The whole protocol in memory: five parties, real machines, links and store, and a clock in place of a network.

What happens is read from what the parties log, as an operator would read it: `World.story` is the
states that one party's machine of a stream has passed through.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import pytest
from twisted.logger import formatEvent, globalLogPublisher
from twisted.python.failure import Failure

from scistream import timing
from scistream.app.controller import NoProgram
from scistream.links.tls_links import dialer
from scistream.protocol.address import Address
from scistream.protocol.errors import StreamError
from scistream.protocol.join_string import Join, new_app_key
from scistream.protocol.messages import (
    CONS,
    PROD,
    UNSENT,
    Hello,
    Rel,
    Req,
    Resp,
    Role,
    Status,
    UpdateTargets,
)
from scistream.s2cs.policy.authorizer import identity_of
from scistream.s2ds.settings import WanSettings
from scistream.s2uc.client import Client
from support.memory_facilities import (
    CONS_PORT,
    CONS_S2CS,
    DETECTOR,
    PROD_PORT,
    PROD_S2CS,
    World,
)
from support.memory_network import HOST, MemoryPorts

SET_UP_AT_S2CS = ["reserving", "listening", "ready", "updating", "streaming"]
RELEASED = ["releasing", "released"]


@pytest.fixture
def pools(tmp_path: Path) -> Iterator[World]:
    """Facilities of three gateways each."""
    world = World(tmp_path, gateways=3)
    yield world
    world.close()


# -- set-up and release


def test_a_stream_is_set_up_and_released_through_the_states_of_the_protocol(world: World) -> None:
    stream = world.request(num_conn=3, rate=300.0)
    assert world.both_are("listening")
    assert [world.state("s2ds", role) for role in (PROD, CONS)] == ["reserved", "reserved"]
    assert world.prod.held() == world.cons.held() == [(3, 300.0)]
    assert world.prod.listening() == world.cons.listening() == []

    detector = world.application(stream.join[PROD], "detector")
    connected = world.result(stream.provisioned().deferred)
    analysis = world.application(stream.join[CONS], "analyse", "{host}", "{port}")
    world.network.until(lambda: len(world.network.programs) == 2)

    assert world.story("s2uc") == ["reserving", "reserved", "provisioning", "updating", "streaming"]
    assert world.story("s2cs", PROD) == SET_UP_AT_S2CS
    assert world.story("s2cs", CONS) == ["reserving", "listening", "updating", "streaming"]
    assert world.story("s2ds", PROD) == world.story("s2ds", CONS) == ["reserving", "reserved", "updating", "forwarding"]
    assert world.story("app", PROD) == ["greeting", "serving"]
    assert world.story("app", CONS) == ["greeting", "waiting", "connected"]
    on_the_wan = [f"{HOST}:{port}" for port in world.prod.listening()]
    assert sorted(connected.values()) == sorted([*on_the_wan, *3 * [str(DETECTOR)]])
    assert len(world.prod.listening()) == len(world.cons.listening()) == 3
    assert world.network.programs[1].args == ["analyse", HOST, str(world.cons.listening()[0])]

    world.result(stream.release().deferred)
    assert world.story("s2uc")[-2:] == RELEASED
    for role in (PROD, CONS):
        assert world.story("s2cs", role)[-2:] == world.story("s2ds", role)[-2:] == RELEASED
    assert world.both_are_empty()
    assert world.network.seconds() < 1.0

    for program in world.network.programs:
        program.end()
    assert world.result(detector.finished) == world.result(analysis.finished) == 0


@pytest.mark.parametrize("role", [PROD, CONS])
def test_a_first_hello_is_written_down_once_with_the_state_that_it_leads_to(world: World, role: Role) -> None:
    join = Join.parse(world.request().join[role])
    world.result(world.client.close().deferred)  # or it would set targets at once
    facility = world.prod if role == PROD else world.cons
    link = dialer(world.network, Address(HOST, facility.port), "the S2CS", None)
    link.startService()
    written: list[str] = []
    facility.control.store._db.set_trace_callback(lambda sql: written.append(sql) if "INTO stream" in sql else None)
    listeners = [str(DETECTOR)] if role == PROD else None
    hello = Hello(uid=join.uid, role=role, seq=UNSENT, app_key=join.app_key, listeners=listeners)
    for _ in range(2):  # a repetition is no news
        assert world.result(link.ask(hello, 30.0)).state == "Ready"
        assert len(written) == 1, written
    (record,) = facility.control.store.load()
    assert (record.state, record.greeted) == ("Ready", True)


def test_prod_app_may_be_there_before_cons_app(world: World) -> None:
    stream = world.request()
    world.application(stream.join[PROD], "detector")
    world.result(stream.provisioned().deferred)
    world.network.run(600)
    assert world.story("s2cs", CONS) == ["reserving", "listening", "updating", "streaming"]
    analysis = world.application(stream.join[CONS])
    assert world.result(analysis.finished, within=0.1) == 0, "it hears where to connect at once"
    assert isinstance(analysis.program, NoProgram)
    assert str(world.cons.listening()[0]) in analysis.program.listeners[0]


def test_cons_app_may_be_there_before_prod_app(world: World) -> None:
    stream = world.request()
    analysis = world.application(stream.join[CONS])
    world.network.run(600)
    assert world.story("app", CONS) == ["greeting", "waiting"]
    assert world.story("s2cs", CONS) == ["reserving", "listening", "ready"]
    world.application(stream.join[PROD], "detector")
    assert world.result(analysis.finished, within=0.1) == 0
    assert stream.state in ("Updating", "Streaming")
    world.result(stream.provisioned().deferred, within=0.1)
    assert world.both_are("streaming")


def test_a_producer_that_listens_everywhere_is_known_by_its_address_towards_the_s2cs(world: World) -> None:
    stream = world.request()
    world.application(stream.join[PROD], "detector", listeners=(Address("0.0.0.0", 7000),))
    assert f"{HOST}:7000" in world.result(stream.provisioned().deferred).values()
    assert stream.generation == 1


def test_fewer_listeners_than_channels_are_used_in_turn_and_more_are_named(world: World) -> None:
    two = (Address(HOST, 7001), Address(HOST, 7002))
    stream = world.request(num_conn=3)
    world.application(stream.join[PROD], "detector", listeners=two)
    targets = list(world.result(stream.provisioned().deferred).values())
    assert [targets.count(str(one)) for one in two] == [2, 1]
    assert stream.unused_listeners == []
    world.result(stream.release().deferred)

    other = world.request(num_conn=1)
    world.application(other.join[PROD], "detector", listeners=two)
    world.result(other.provisioned().deferred)
    assert other.unused_listeners == [str(two[1])]
    link = dialer(world.network, Address(HOST, PROD_PORT), "the S2CS", None)
    link.startService()
    key = Join.parse(other.join[PROD]).app_key
    hello = Hello(uid=other.uid, role=PROD, seq=UNSENT, app_key=key, listeners=list(map(str, two)))
    assert f"not used, since the stream has 1 channel: {two[1]}" in world.result(link.ask(hello, 30.0)).msg


def test_a_new_hello_with_other_listeners_leads_to_a_new_generation(world: World) -> None:
    stream = world.stream()
    world.application(stream.join[PROD], "detector", listeners=(Address(HOST, 7077),))
    world.network.until(lambda: stream.generation == 2 and stream.state == "Streaming")
    assert f"{HOST}:7077" in stream.connection_map.values()
    assert world.story("s2cs", PROD) == [*SET_UP_AT_S2CS, "updating", "streaming"]
    assert world.story("s2ds", CONS)[-2:] == ["updating", "forwarding"]


def targets_in_force(world: World) -> set[str]:
    """Where the producer's S2CS says that its channels lead, which is where its gateways lead them."""
    (record,) = [held.record for held in world.prod.control.streams.values() if held.record.role == PROD]
    at_gateways = [one._core.current for gateway in world.prod.gateways for one in gateway._streams.values()]
    told = {target for one in at_gateways if one is not None for target in one.connection_map.values()}
    assert told == set(record.connection_map.values())
    return told


def test_a_new_hello_moves_the_targets_though_no_client_of_the_user_is_there(pools: World) -> None:
    world, stream = pools, pools.stream(num_conn=3)
    world.result(world.client.close().deferred)
    moved = (Address(HOST, 7077), Address(HOST, 7078))
    world.application(stream.join[PROD], "detector", listeners=moved)
    world.network.run(1.0)
    assert targets_in_force(world) == set(map(str, moved))
    assert world.story("s2cs", CONS)[-1] == "streaming"

    world.client = Client(insecure=True, reactor=world.network)
    returned = world.client.remembered(stream.uid, prod=PROD_S2CS, cons=CONS_S2CS)
    world.result(returned.attach().deferred)
    assert (returned.state, returned.generation) == ("Streaming", 1), "there is nothing left to do"
    assert set(map(str, moved)) < set(returned.connection_map.values())
    world.application(stream.join[PROD], "detector")
    world.network.until(lambda: returned.generation == 2 and returned.state == "Streaming")
    assert targets_in_force(world) == {str(DETECTOR)}
    world.result(returned.release().deferred)
    assert world.both_are_empty()


def test_a_client_that_only_looks_keeps_no_targets_from_being_moved(world: World) -> None:
    stream = world.stream()
    world.result(world.client.close().deferred)
    looking = dialer(world.network, Address(HOST, PROD_PORT), "the S2CS", None)
    looking.startService()
    world.result(looking.ask(Status(uid=stream.uid, role=PROD, seq=UNSENT), 30.0))
    world.application(stream.join[PROD], "detector", listeners=(Address(HOST, 7077),))
    world.network.run(timing.OWNER_SETS_TARGETS - 1.0)
    assert targets_in_force(world) == {str(DETECTOR)}
    world.network.run(2.0)
    assert targets_in_force(world) == {f"{HOST}:7077"}


def test_targets_are_moved_after_a_restart_of_the_s2cs_that_has_heard_the_hello(world: World) -> None:
    stream = world.request()
    world.application(stream.join[PROD])  # which ends as soon as it is known
    world.result(stream.provisioned().deferred)
    world.result(world.client.close().deferred)
    world.network.sever(PROD_PORT + 1)
    world.application(stream.join[PROD], listeners=(Address(HOST, 7077),))
    world.network.run(0.1)
    world.result(world.prod.control.stopService())
    world.network.sever(PROD_PORT)
    world.prod.control = world.prod.start_control()
    world.network.run(20.0)
    assert targets_in_force(world) == {f"{HOST}:7077"}


def test_a_hello_with_a_listener_that_no_gateway_connects_to_is_refused_and_the_stream_waits_on(world: World) -> None:
    stream = world.request()
    wrong = world.application(stream.join[PROD], "detector", listeners=(Address("192.0.2.7", 7000),))
    assert world.result(wrong.finished) == 1
    assert wrong.error is not None
    assert wrong.error.code == "target-refused"
    assert "192.0.2.7:7000 is outside the networks that gateway" in wrong.error.msg
    assert "`app_networks`" in wrong.error.msg
    assert world.network.programs == [], "nothing was started"
    assert world.both_are("listening")

    world.application(stream.join[PROD], "detector")
    world.result(stream.provisioned().deferred)
    assert stream.state == "Streaming"


@pytest.mark.parametrize("key", ["", "no certificates", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"])
def test_unusable_credentials_are_a_bad_message_and_change_nothing(pools: World, key: str) -> None:
    world, stream = pools, pools.stream(num_conn=3)
    link = dialer(world.network, Address(HOST, PROD_PORT), "the S2CS", None)
    link.startService()
    asked = world.result(link.ask(Status(uid=stream.uid, role=PROD, seq=UNSENT), 30.0))
    mine = asked.streams or []
    update = UpdateTargets(
        uid=stream.uid,
        role=PROD,
        seq=UNSENT,
        generation=7,
        connection_map=dict.fromkeys(mine[0].listeners, str(DETECTOR)),
        data_conn_key=key,
    )
    refused = world.refusal(link.ask(update, 30.0))
    assert refused.code == "bad-message"
    assert "data_conn_key" in refused.msg
    assert world.both_are("streaming")
    world.network.run(60)
    assert world.both_are("streaming"), "and nothing has ended meanwhile"


def test_both_sides_may_be_at_one_facility(world: World) -> None:
    stream = world.result(world.client.request(prod=PROD_S2CS, cons=PROD_S2CS, num_conn=2, rate=100.0).deferred)
    world.application(stream.join[PROD], "detector")
    world.result(stream.provisioned().deferred)
    assert world.prod.held() == [(4, 200.0)]
    world.result(stream.release().deferred)
    assert world.both_are_empty()


# -- what is lost on the way


@pytest.mark.parametrize("where", ["reserving", "listening", "ready", "updating"])
def test_a_lost_link_of_s2uc_in_the_middle_changes_nothing(world: World, where: str) -> None:
    stream = world.client.request(prod=PROD_S2CS, cons=CONS_S2CS, rate=100.0).stream
    joined = iter([lambda: world.application(stream.join[PROD], "detector")])

    def reached() -> bool:
        if stream.state == "Reserved" and (start := next(joined, None)):
            start()
        return world.state("s2cs", PROD) == where

    world.network.until(reached)
    assert world.network.sever(PROD_PORT) >= 1
    assert world.network.sever(CONS_PORT) == 1
    world.network.until(lambda: stream.state == "Reserved" or world.both_are("streaming"))
    for start in joined:
        start()
    world.result(stream.provisioned().deferred)
    assert world.both_are("streaming")
    assert world.story("s2cs", PROD) == SET_UP_AT_S2CS, "nothing was done twice"
    assert world.network.seconds() < 2.0
    world.result(stream.release().deferred)
    assert world.both_are_empty()


def test_a_link_of_s2uc_lost_during_the_release_reconnects_and_the_release_is_confirmed(world: World) -> None:
    stream = world.stream()
    releasing = stream.release().deferred
    world.network.until(lambda: world.state("s2cs", PROD) == "released")
    world.network.sever(PROD_PORT)
    world.network.sever(CONS_PORT)
    world.result(releasing)
    assert world.both_are_empty()


def test_a_link_to_a_gateway_lost_in_the_middle_reconnects(world: World) -> None:
    asking = world.ask()
    world.network.until(lambda: world.state("s2ds", CONS) == "reserved")
    world.network.sever(CONS_PORT + 1)
    stream = world.result(asking)
    assert world.story("s2ds", CONS) == ["reserving", "reserved"]
    world.result(stream.release().deferred)
    assert world.both_are_empty()


def test_a_lost_prod_lstn_is_recovered_by_asking_for_the_status_within_15_seconds(world: World) -> None:
    world.network.lose = lambda line: b'"cmd":"ProdLstn"' in line
    stream = world.request()
    world.application(stream.join[PROD], "detector")
    world.network.until(lambda: world.state("app", PROD) == "serving")
    world.network.run(1.0)
    assert stream.state == "Reserved"
    world.result(stream.provisioned().deferred, within=15.0)
    assert world.both_are("streaming")


def test_a_lost_start_conn_is_repeated(world: World) -> None:
    lost: list[bytes] = []

    def first_start_conn(line: bytes) -> bool:
        return b'"cmd":"StartConn"' in line and not lost and not lost.append(line)  # type: ignore[func-returns-value]

    world.network.lose = first_start_conn
    stream = world.stream()
    analysis = world.application(stream.join[CONS])
    assert world.result(analysis.finished, within=3.0) == 0
    assert len(lost) == 1


def test_news_that_the_other_side_failed_reaches_s2uc_even_if_the_error_was_lost(world: World) -> None:
    stream = world.stream()
    ended = stream.ended().deferred
    world.network.lose = lambda line: b'"cmd":"ERROR"' in line
    world.cons.gateways[0].stopService()
    world.network.sever(CONS_PORT + 1)
    world.cons.gateways[0] = world.cons._gateway(CONS_PORT + 1, (CONS_PORT + 1) * 10)
    error = world.refusal(ended, within=60.0)
    assert error.code == "gateway-failed"
    assert "restarted" in error.msg
    assert "consumer side" in error.msg
    assert world.state("s2cs", PROD) == "released"
    assert world.both_are_empty()


# -- who says nothing


@pytest.mark.parametrize("from_the_start", [False, True])
def test_a_gateway_that_says_nothing_is_given_up_after_20_seconds_and_the_other_side_released(
    world: World, from_the_start: bool
) -> None:
    if not from_the_start:
        world.network.run(1.0)
    world.network.mute(CONS_PORT + 1)
    started = world.network.seconds()
    asking = world.client.request(prod=PROD_S2CS, cons=CONS_S2CS, rate=100.0)
    failed: list[Failure] = []
    asking.deferred.addErrback(failed.append)
    world.network.until(lambda: asking.stream.state == "Releasing", within=21.0)
    assert world.network.seconds() - started >= (timing.EARLY_REQUEST if from_the_start else 19.0)
    world.network.until(lambda: world.state("s2cs", PROD) in ("released", "idle"), within=0.1)
    assert world.prod.is_empty()

    world.network.unmute(CONS_PORT + 1)
    world.network.until(lambda: bool(failed), within=30.0)
    error = failed[0].value
    assert isinstance(error, StreamError)
    assert error.code == "gateway-failed"
    assert "consumer side" in error.msg
    if not from_the_start:
        assert f"gateway dtn{CONS_PORT + 1}" in error.msg
        assert "did not answer ReqListeners in 20 s" in error.msg
    assert world.both_are_empty()


def test_a_release_ends_for_its_user_after_a_minute_though_a_gateway_is_silent_and_goes_on_without_her(
    world: World,
) -> None:
    stream = world.request()
    world.network.mute(CONS_PORT + 1)
    started = world.network.seconds()
    error = world.refusal(stream.release().deferred, within=70.0)
    assert 55.0 < world.network.seconds() - started < 65.0
    for part in ("consumer side", CONS_S2CS, "still Releasing after 60 s"):
        assert part in error.msg
    assert world.state("s2cs", CONS) == "releasing"
    world.network.unmute(CONS_PORT + 1)
    world.network.until(lambda: world.state("s2cs", CONS) == "released", within=30.0)
    assert world.both_are_empty()


def test_an_s2cs_that_is_not_there_is_named_after_30_seconds_and_the_other_side_released(world: World) -> None:
    world.network.close_listener(CONS_PORT)
    error = world.refusal(world.ask(), within=31.0)
    assert error.code == "timeout"
    for part in ("consumer side", CONS_S2CS, "did not answer REQ in 30 s"):
        assert part in error.msg
    assert world.state("s2cs", PROD) == "released"
    assert world.both_are_empty()


def test_an_application_gives_up_an_s2cs_that_says_nothing_after_30_seconds(world: World) -> None:
    stream = world.request()
    world.network.mute(PROD_PORT)
    detector = world.application(stream.join[PROD], "detector")
    assert world.result(detector.finished, within=30.1) == 1
    assert world.network.seconds() >= 30.0
    assert detector.error is not None
    assert detector.error.code == "timeout"
    assert "did not answer Hello in 30 s" in detector.error.msg


def test_an_s2cs_that_restarts_goes_on_with_its_streams(world: World) -> None:
    stream = world.stream()
    world.result(world.prod.control.stopService())
    world.network.run(5.0)
    assert len(world.prod.listening()) == 1, "the gateway goes on forwarding"
    world.prod.control = world.prod.start_control()
    world.network.run(20.0)
    assert stream.state == "Streaming"
    world.result(stream.release().deferred, within=40.0)
    assert world.both_are_empty()


# -- the end


def test_release_may_be_repeated_and_gets_the_same_answer(world: World) -> None:
    stream = world.stream()
    link = dialer(world.network, Address(HOST, PROD_PORT), "the S2CS", None)
    link.startService()
    answers: list[Resp] = []
    for _ in range(3):
        answers.append(world.result(link.ask(Rel(uid=stream.uid, role=PROD, seq=UNSENT), 30.0)))
        assert world.prod.is_empty()
    assert len({(one.state, one.msg) for one in answers}) == 1
    assert answers[0].state == "Released"
    assert world.story("s2cs", PROD)[-2:] == RELEASED

    world.result(stream.release().deferred)
    world.result(stream.release().deferred)
    other = world.client.remembered(stream.uid, prod=PROD_S2CS, cons=CONS_S2CS)
    world.result(other.release().deferred)
    assert world.both_are_empty()


def test_a_release_that_overtakes_its_request_makes_the_request_come_too_late(world: World) -> None:
    link = dialer(world.network, Address(HOST, PROD_PORT), "the S2CS", None)
    link.startService()
    uid = str(uuid4())
    refused = world.refusal(link.ask(Rel(uid=uid, role=PROD, seq=UNSENT), 30.0))
    assert refused.code == "unknown-uid"
    request = Req(uid=uid, role=PROD, seq=UNSENT, num_conn=1, rate=1.0, app_key_hash="0" * 64)
    assert world.refusal(link.ask(request, 30.0)).code == "wrong-state"
    assert world.both_are_empty()


@pytest.mark.parametrize("stays", [True, False])
def test_a_request_that_came_before_the_gateways_were_known_counts_only_if_its_link_is_still_there(
    world: World, stays: bool
) -> None:
    world.network.mute(PROD_PORT + 1)
    link = dialer(world.network, Address(HOST, PROD_PORT), "the S2CS", None)
    link.startService()
    asked = link.ask(Req(uid=str(uuid4()), role=PROD, seq=UNSENT, num_conn=1, rate=1.0, app_key_hash="0" * 64), 60.0)
    asked.addErrback(lambda _: None)
    world.network.run(1.0)
    assert not world.prod.control.streams
    if not stays:
        link.stopService()
        world.network.run(1.0)
    world.network.unmute(PROD_PORT + 1)
    world.network.run(30.0)
    assert bool(world.prod.control.streams) is stays


def test_a_request_that_is_cancelled_releases_both_sides(world: World) -> None:
    asking = world.client.request(prod=PROD_S2CS, cons=CONS_S2CS, rate=100.0)
    asking.deferred.addErrback(lambda _: None)
    world.network.until(lambda: world.state("s2ds", PROD) == world.state("s2ds", CONS) == "reserved")
    asking.deferred.cancel()
    world.result(asking.stream.ended().deferred)
    assert world.both_are("released")
    assert world.both_are_empty()


@pytest.mark.parametrize("is_known", [True, False])
def test_a_release_while_a_returned_client_attaches_ends_both(world: World, is_known: bool) -> None:
    uid = world.request().uid if is_known else str(uuid4())
    client = Client(insecure=True, reactor=world.network)
    stream = client.remembered(uid, prod=PROD_S2CS, cons=CONS_S2CS)
    attaching = stream.attach().deferred
    world.result(stream.release().deferred)
    assert world.refusal(attaching).code in ("wrong-state", "unknown-uid")
    assert stream.state == "Released"
    assert world.both_are_empty()
    world.result(client.close().deferred)


def test_a_client_that_comes_back_before_prod_app_goes_on_with_the_stream(world: World) -> None:
    reserved = world.request()
    world.result(world.client.close().deferred)
    client = Client(insecure=True, reactor=world.network)
    stream = client.remembered(reserved.uid, prod=PROD_S2CS, cons=CONS_S2CS)
    world.result(stream.attach().deferred)
    world.application(reserved.join[PROD], "detector")
    world.result(stream.provisioned().deferred)
    assert world.both_are("streaming")
    world.result(stream.release().deferred)
    world.result(client.close().deferred)


def test_a_stream_expires_at_both_sides(world: World) -> None:
    stream = world.stream(expires=120.0)
    ended = stream.ended().deferred
    world.network.run(119.0 - world.network.seconds())
    assert world.both_are("streaming")
    assert world.refusal(ended, within=2.0).code == "expired"
    assert world.both_are("released")
    assert world.both_are_empty()


def test_gateways_let_an_expired_stream_go_even_if_nobody_tells_them(world: World) -> None:
    world.stream(expires=120.0)
    for facility in (world.prod, world.cons):
        world.network.close_listener(facility.port + 1)
        world.network.sever(facility.port + 1)
    world.network.run(119.0)
    assert not world.prod.is_empty()
    assert not world.cons.is_empty()
    world.network.run(1.5)
    assert world.both_are_empty()


def test_a_stream_that_no_application_uses_is_released_after_its_hello_timeout(world: World) -> None:
    stream = world.request(hello_timeout=60.0)
    world.network.run(59.0)
    assert not world.prod.is_empty()
    error = world.refusal(stream.provisioned().deferred, within=2.0)
    assert error.code == "timeout"
    world.network.until(world.both_are_empty, within=1.0)


def test_each_change_of_state_at_an_s2cs_is_logged_with_the_owner_of_the_stream(world: World) -> None:
    events: list[Any] = []
    globalLogPublisher.addObserver(events.append)
    try:
        world.stream()
    finally:
        globalLogPublisher.removeObserver(events.append)
    told = [formatEvent(event) for event in events if event.get("party") == "s2cs"]
    assert len(told) >= 2 * len(["reserving", "listening", "updating", "streaming"])
    (owner,) = {held.record.owner for held in world.prod.control.streams.values()}
    assert all(f" owner={identity_of(owner).name} state=" in line for line in told)


def test_applications_hear_of_the_release(world: World) -> None:
    stream = world.request()
    analysis = world.application(stream.join[CONS])
    world.network.until(lambda: world.state("app", CONS) == "waiting")
    world.result(stream.release().deferred)
    assert world.result(analysis.finished) == 1
    assert analysis.error is not None
    assert analysis.error.code == "released"
    assert "released by its owner" in analysis.error.msg


# -- who is refused


WRONG: dict[str, Callable[[Join], Join]] = {
    "key": lambda join: replace(join, app_key=new_app_key()),
    "role": lambda join: replace(join, role=CONS if join.role == PROD else PROD),
    "uid": lambda join: replace(join, uid=str(uuid4())),
}


@pytest.mark.parametrize("role", [PROD, CONS])
@pytest.mark.parametrize("wrong", WRONG)
def test_a_hello_with_a_wrong_part_of_the_join_string_is_refused_and_changes_nothing(
    world: World, wrong: str, role: Role
) -> None:
    stream = world.result(world.client.request(prod=PROD_S2CS, cons=PROD_S2CS, rate=100.0).deferred)
    intruder = world.application(WRONG[wrong](Join.parse(stream.join[role])), "program")
    assert world.result(intruder.finished) == 1
    assert intruder.error is not None
    assert intruder.error.code == "not-authorized"
    assert world.network.programs == []
    assert world.story("s2cs", role) == ["reserving", "listening"]

    world.application(stream.join[role], "program")
    world.network.until(lambda: world.state("s2cs", role) == "ready")


def test_a_reservation_over_a_pool_is_kept_by_all_its_gateways_or_by_none(pools: World) -> None:
    third = pools.prod.gateways[2]
    assert isinstance(third.ports, MemoryPorts)
    third.ports.taken = set(range(third.ports.first, third.ports.first + 6))
    before = third.ports.free

    error = pools.refusal(pools.ask(num_conn=9, rate=900.0))
    assert error.code == "no-ports"
    assert f"gateway dtn{PROD_PORT + 3}" in error.msg
    assert "producer side" in error.msg
    assert [one.ports.free for one in pools.prod.gateways] == [8, 8, before]
    assert pools.both_are_empty()
    assert pools.both_are("released")

    control = pools.request(num_conn=6, rate=600.0)
    assert pools.prod.held() == [(2, 200.0)] * 3
    pools.result(control.release().deferred)
    assert pools.both_are_empty()


def test_a_stream_over_a_pool_streams_when_all_gateways_have_armed(pools: World) -> None:
    stream = pools.stream(num_conn=7, rate=700.0)
    assert sorted(held[0] for held in pools.prod.held()) == [2, 2, 3]
    assert len(pools.prod.listening()) == len(pools.cons.listening()) == 7
    assert len(stream.connection_map) == 14
    pools.result(stream.release().deferred)
    assert pools.both_are_empty()


# -- everything at once


@pytest.mark.parametrize("seed", range(20))
def test_a_stream_survives_any_links_that_break_and_lines_that_are_lost(pools: World, seed: int) -> None:
    """Section 8 of the protocol, A and B: both sides stream or both are released, and hold what they should."""
    chance = random.Random(seed)
    listeners = [PROD_PORT, CONS_PORT, *pools.prod.gateway_ports, *pools.cons.gateway_ports]

    def reason_until(end: float) -> None:
        while pools.network.seconds() < end:
            pools.network.run(chance.expovariate(200.0 if chance.random() < 0.7 else 0.5))
            pools.network.sever(chance.choice(listeners))

    pools.network.lose = lambda line: chance.random() < 0.2
    asking = pools.client.request(prod=PROD_S2CS, cons=CONS_S2CS, num_conn=5, rate=500.0, expires=600.0)
    asking.deferred.addErrback(lambda failure: failure.trap(StreamError))
    reason_until(chance.uniform(0.0, 3.0))
    pools.network.until(lambda: asking.stream.state in ("Reserved", "Releasing", "Released"), within=300.0)
    if asking.stream.state == "Reserved":
        for role in (PROD, CONS):
            pools.application(asking.stream.join[role], "program")
        reason_until(pools.network.seconds() + chance.uniform(0.0, 5.0))
    pools.network.lose = lambda line: False
    pools.network.run(60.0)
    assert asking.stream.state in ("Streaming", "Released")
    if asking.stream.state == "Streaming":
        assert pools.both_are("streaming")
        assert sum(ports for ports, _ in pools.prod.held()) == sum(ports for ports, _ in pools.cons.held()) == 5
        pools.network.lose = lambda line: chance.random() < 0.2
        releasing = asking.stream.release().deferred
        releasing.addErrback(lambda failure: failure.trap(StreamError))
        reason_until(pools.network.seconds() + chance.uniform(0.0, 5.0))
        pools.network.lose = lambda line: False
        pools.network.run(60.0)
    assert pools.both_are_empty()


@pytest.mark.parametrize("seed", range(20))
def test_both_sides_stream_or_both_are_released_after_any_restarts_of_servers(pools: World, seed: int) -> None:
    """Section 8 of the protocol, A and B, where S2CS and S2DS start anew at random moments."""
    chance = random.Random(seed)

    def restart() -> None:
        facility = chance.choice([pools.prod, pools.cons])
        number = chance.randrange(4)
        if number == 3:
            facility.control.stopService()
            pools.network.run(chance.expovariate(1.0))
            facility.control = facility.start_control()
            return
        facility.gateways[number].stopService()
        pools.network.run(chance.expovariate(1.0))
        at = facility.gateway_ports[number]
        facility.gateways[number] = facility._gateway(at, at * 10)

    asking = pools.client.request(prod=PROD_S2CS, cons=CONS_S2CS, num_conn=5, rate=500.0, expires=600.0)
    asking.deferred.addErrback(lambda failure: failure.trap(StreamError))
    pools.network.run(chance.expovariate(100.0))
    if chance.random() < 0.5:
        restart()
    pools.network.until(lambda: asking.stream.state in ("Reserved", "Releasing", "Released"), within=100.0)
    if asking.stream.state == "Reserved":
        for role in (PROD, CONS):
            pools.application(asking.stream.join[role], "program")
        pools.network.run(chance.expovariate(100.0))
        restart()
    pools.network.run(60.0)
    assert asking.stream.state in ("Streaming", "Released")
    if asking.stream.state == "Streaming":
        assert pools.both_are("streaming")
        assert sum(ports for ports, _ in pools.prod.held()) == sum(ports for ports, _ in pools.cons.held()) == 5
        releasing = asking.stream.release().deferred
        pools.network.run(chance.expovariate(100.0))
        restart()
        pools.result(releasing, within=60.0)
        pools.network.run(30.0)
    assert pools.both_are_empty()


class NobodyAnswers:
    """A resolver that has no answer for the names of gateways."""

    def __init__(self, others: Any) -> None:
        self._others = others

    def resolveHostName(self, receiver: Any, hostName: str, *args: Any, **kwargs: Any) -> Any:
        """IHostnameResolver."""
        if not hostName.startswith("gateway"):
            return self._others.resolveHostName(receiver, hostName, *args, **kwargs)
        return receiver.resolutionBegan(None)


def test_a_name_that_is_not_answered_for_is_given_up_and_the_targets_refused(world: World) -> None:
    world.network.nameResolver = NobodyAnswers(world.network.nameResolver)
    for gateway in world.prod.gateways:
        gateway.config = msgspec.structs.replace(gateway.config, wan=WanSettings(advertise="gateway.example"))
    stream = world.request()
    world.application(stream.join[PROD], "detector")
    refused = world.refusal(stream.provisioned().deferred, within=15.0)
    assert refused.code == "target-refused"
    assert "finds no address for this name" in refused.msg
    assert world.network.seconds() < 12.0

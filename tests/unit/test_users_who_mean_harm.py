"""Users whom a facility has let in and who mean harm, in memory: what they can make servers hold is bounded."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn
from uuid import uuid4

import pytest
from twisted.internet.defer import Deferred

import scistream.s2cs.service
from scistream.links.dialer import Dialer
from scistream.links.tls_links import dialer
from scistream.protocol.address import Address
from scistream.protocol.errors import StreamError
from scistream.protocol.messages import CONS, PROD, UNSENT, Rel, Req, Resp, Role, Status
from scistream.s2cs.gateway import MOST_FIGURES_REQUESTS
from scistream.s2cs.live_streams import LiveStreams
from scistream.s2cs.store.database import MOST_EARLY_RELEASES as MOST_OF_ONE_OWNER
from support.memory_facilities import PROD_PORT, PROD_S2CS, Facility, World
from support.memory_network import HOST


@pytest.fixture
def link(world: World) -> Dialer:
    """To the S2CS of the producer."""
    link = dialer(world.network, Address(HOST, PROD_PORT), "the S2CS", None)
    link.startService()
    return link


def a_request(role: Role, channels: int, uid: str = "") -> Req:
    return Req(uid=uid or str(uuid4()), role=role, seq=UNSENT, num_conn=channels, rate=1.0, app_key_hash="0" * 64)


# -- loops


def test_a_port_that_a_stream_dials_as_a_wan_listener_is_not_lent_to_applications_while_it_lives(
    world: World, link: Dialer
) -> None:
    def reserve(role: Role, channels: int) -> Resp:
        return world.result(link.ask(a_request(role, channels), 30.0))

    def release(uid: str, role: Role) -> None:
        assert world.result(link.ask(Rel(uid=uid, role=role, seq=UNSENT), 30.0)).state == "Released"

    stream = world.result(world.client.request(prod=PROD_S2CS, cons=PROD_S2CS, rate=100.0).deferred)
    world.application(stream.join[PROD], "detector")
    world.result(stream.provisioned().deferred)
    (dialled,) = set(stream.connection_map) & set(stream.connection_map.values())
    world.result(world.client.close().deferred)
    release(stream.uid, PROD)
    assert world.prod.held() == [(1, 100.0)], "of eight ports seven are free, and one of these is still dialled"

    assert world.refusal(link.ask(a_request(CONS, 7), 30.0)).code == "no-ports"
    for_others = reserve(PROD, 7)
    assert dialled in (for_others.listeners or ())
    release(str(for_others.uid), PROD)
    for_applications = reserve(CONS, 6)
    assert dialled not in (for_applications.listeners or ())
    release(str(for_applications.uid), CONS)

    release(stream.uid, CONS)
    assert world.prod.is_empty()
    for_applications = reserve(CONS, 8)
    assert dialled in (for_applications.listeners or ())


# -- releases of what nobody asked for


def rows(facility: Facility) -> int:
    return int(facility.control.store._db.execute("SELECT count(*) FROM early_release").fetchone()[0])


def restart(world: World) -> None:
    world.result(world.prod.control.stopService())
    world.prod.control = world.prod.start_control()


@pytest.mark.parametrize("between", [lambda _: None, restart], ids=["at once", "with a restart between"])
def test_releases_of_streams_that_nobody_asked_for_fill_no_store(
    world: World, link: Dialer, between: Callable[[World], None]
) -> None:
    uids = [str(uuid4()) for _ in range(3 * MOST_OF_ONE_OWNER)]
    for number, uid in enumerate(uids):
        if number == 2 * MOST_OF_ONE_OWNER:
            between(world)
        assert world.refusal(link.ask(Rel(uid=uid, role=PROD, seq=UNSENT), 30.0)).code == "unknown-uid"
        assert rows(world.prod) == min(number + 1, MOST_OF_ONE_OWNER)
        assert not world.prod.control.streams
    for uid in uids[-MOST_OF_ONE_OWNER:]:
        assert world.refusal(link.ask(a_request(PROD, 1, uid), 30.0)).code == "wrong-state"
    assert world.result(link.ask(a_request(PROD, 1, uids[0]), 30.0)).state == "Listening"
    assert rows(world.prod) == MOST_OF_ONE_OWNER


# -- questions


def test_many_requests_for_statistics_do_not_keep_a_gateway_busy_and_all_are_answered(
    world: World, link: Dialer
) -> None:
    stream = world.stream()
    gateway = next(iter(world.prod.control.gateways.values()))
    for is_silent in (False, True):
        if is_silent:
            world.network.mute(PROD_PORT + 1)
        asked: list[Deferred[Resp]] = [
            link.ask(Status(uid=stream.uid, role=PROD, seq=UNSENT), 30.0) for _ in range(5 * MOST_FIGURES_REQUESTS)
        ]
        most = 0

        def are_answered(asked: list[Deferred[Resp]] = asked) -> bool:
            nonlocal most
            most = max(most, len(gateway.dialer.outbox))
            return all(one.called for one in asked)

        world.network.until(are_answered, within=5.0)
        assert MOST_FIGURES_REQUESTS <= most <= MOST_FIGURES_REQUESTS + 1, "one may be the S2CS's own"
        assert {world.result(one).state for one in asked} == {"Streaming"}
    world.network.unmute(PROD_PORT + 1)
    world.network.run(30.0)
    assert len(gateway.dialer.outbox) == 0
    assert gateway._figures_requests == 0


def test_a_question_that_fails_makes_room_for_the_next(world: World, link: Dialer) -> None:
    gateway = next(iter(world.prod.control.gateways.values()))
    stream = world.stream()
    for _ in range(2 * MOST_FIGURES_REQUESTS):
        world.network.mute(PROD_PORT + 1)
        answered = link.ask(Status(uid=stream.uid, role=PROD, seq=UNSENT), 30.0)
        world.network.run(0.01)
        world.network.sever(PROD_PORT + 1)
        world.network.unmute(PROD_PORT + 1)
        assert world.result(answered).state == "Streaming"
    with pytest.raises(StreamError):
        world.result(link.ask(Status(uid=str(uuid4()), role=PROD, seq=UNSENT), 30.0))
    assert gateway._figures_requests == 0


# -- many streams


class Unwalked(LiveStreams):
    """The live streams, for who asks for single ones; a walk over all of them is a failure."""

    def __iter__(self) -> NoReturn:
        raise AssertionError("all live streams were walked over")

    keys = values = items = __iter__  # type: ignore[assignment]


def test_no_command_walks_over_the_live_streams_of_others(world: World, link: Dialer) -> None:
    stream = world.stream()
    consumer = world.application(stream.join[CONS], "analyse")
    uid = str(uuid4())
    other = str(uuid4())
    for one in (uid, other):
        world.result(link.ask(a_request(PROD, 1, one), 30.0))
    control = world.prod.control
    control.streams.__class__ = Unwalked
    for role in (None, PROD):
        told = world.result(link.ask(Status(uid=uid, role=role, seq=UNSENT), 30.0)).streams or []
        assert [one.uid for one in told] == [uid]
        told = world.result(link.ask(Status(uid=None, role=role, seq=UNSENT), 30.0)).streams or []
        assert sorted(one.uid for one in told) == sorted([uid, other, stream.uid])
    world.application(stream.join[PROD], "detector", listeners=(Address(HOST, 7077),))
    world.network.until(lambda: stream.generation == 2 and stream.state == "Streaming")
    world.result(link.ask(Rel(uid=other, role=PROD, seq=UNSENT), 30.0))
    world.result(stream.release().deferred)
    assert consumer.error is None
    world.result(link.stopService())
    world.result(world.client.close().deferred)
    world.network.run(0.5)
    control.streams.__class__ = LiveStreams
    assert list(control.streams) == [(uid, PROD)]
    assert not any(control.streams._of_link.values())


def test_an_index_of_the_live_streams_holds_nothing_of_those_that_are_over(world: World, link: Dialer) -> None:
    for _ in range(3):
        stream = world.stream()
        world.result(link.ask(Status(uid=stream.uid, role=None, seq=UNSENT), 30.0))
        world.result(stream.release().deferred)
        world.result(link.ask(Status(uid=stream.uid, role=None, seq=UNSENT), 30.0))
    streams = world.prod.control.streams
    indexes = (streams._of_owner, streams._links, streams._pages, streams._at_gateway, streams._gateways)
    assert not any((streams, *indexes))
    assert not any(streams._of_link.values())


def test_a_gateway_remembers_the_last_of_the_streams_that_are_over(world: World, link: Dialer) -> None:
    gateway = world.prod.gateways[0]
    gateway._most_ended = 5
    uids = [str(uuid4()) for _ in range(12)]
    for uid in uids:
        world.result(link.ask(a_request(PROD, 1, uid), 30.0))
        world.result(link.ask(Rel(uid=uid, role=PROD, seq=UNSENT), 30.0))
    assert [uid for uid, _ in gateway._streams] == uids[-5:]
    assert gateway._live == {}
    direct = dialer(world.network, Address(HOST, PROD_PORT + 1), "the gateway", None)
    direct.startService()
    never = [str(uuid4()) for _ in range(8)]
    for uid in never:
        assert world.refusal(direct.ask(Rel(uid=uid, role=PROD, seq=UNSENT), 30.0)).code == "unknown-uid"
    assert [uid for uid, _ in gateway._streams] == never[-5:]
    world.result(link.ask(a_request(PROD, 1), 30.0))
    world.network.jump(25 * 3600.0)
    world.result(link.ask(a_request(PROD, 1), 30.0))
    assert len(gateway._live) + len(gateway._ended) == len(gateway._streams) <= 2


# -- streams that are over


def test_streams_that_are_over_leave_memory_and_the_store_answers_for_them(
    world: World, link: Dialer, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = 60
    monkeypatch.setattr(scistream.s2cs.service, "MOST_RELEASED", most)
    control = world.prod.control
    uids = [str(uuid4()) for _ in range(most + 50)]
    for uid in uids:
        world.result(link.ask(a_request(PROD, 1, uid), 30.0))
        assert world.result(link.ask(Rel(uid=uid, role=PROD, seq=UNSENT), 30.0)).state == "Released"
        assert not control.streams
    world.network.run(20.0)
    assert not control.ledger._heard
    assert not control.ledger._written
    assert all(not gateway.figures for gateway in control.gateways.values())
    remembered = len(control.store.load())
    assert most <= remembered <= most + 1, "the oldest ones are forgotten"
    assert world.result(link.ask(Rel(uid=uids[-1], role=PROD, seq=UNSENT), 30.0)).state == "Released"
    told = world.result(link.ask(Status(uid=uids[-1], role=None, seq=UNSENT), 30.0)).streams or []
    assert [(one.uid, one.state) for one in told] == [(uids[-1], "Released")]
    assert world.refusal(link.ask(a_request(PROD, 1, uids[-1]), 30.0)).code == "wrong-state"
    assert world.refusal(link.ask(Status(uid=uids[0], role=None, seq=UNSENT), 30.0)).code == "unknown-uid"

    world.network.jump(25 * 3600.0)
    fresh = str(uuid4())
    world.result(link.ask(a_request(PROD, 1, fresh), 30.0))
    assert [one.uid for one in control.store.load()] == [fresh], "a day later nothing of them is left"

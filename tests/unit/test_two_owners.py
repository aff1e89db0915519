"""Two S2CS, or two stores, and the same gateways: nobody releases what another one has reserved."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.logger import formatEvent, globalLogPublisher

from scistream.links.dialer import Dialer
from scistream.links.tls_links import dialer
from scistream.protocol.address import Address
from scistream.protocol.messages import PROD, UNSENT, Rel, ReqListeners, Resp, Status, UpdateTargets
from scistream.s2cs.service import ControlServer
from scistream.s2cs.settings import GatewaySettings, S2CSConfig
from support.memory_facilities import PROD_PORT, PROD_S2CS, World
from support.memory_network import HOST

SECOND_PORT = 5900
NOBODYS = "has no record"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.close()


@pytest.fixture
def warned(world: World) -> Iterator[list[str]]:
    """Yield the warnings in the logs."""
    said: list[str] = []

    def note(event: dict[str, Any]) -> None:
        if event["log_level"].name == "warn":
            said.append(formatEvent(event))

    globalLogPublisher.addObserver(note)
    yield said
    globalLogPublisher.removeObserver(note)


def second(world: World, folder: Path, **options: Any) -> ControlServer:
    """Another S2CS of the producer's facility, with a store of its own."""
    pool = [GatewaySettings(name="dtn", address=f"{HOST}:{PROD_PORT + 1}")]
    settings = S2CSConfig(listen=f"{HOST}:{SECOND_PORT}", gateways=pool, insecure=True)
    folder.mkdir(exist_ok=True)
    server = ControlServer(world.network, settings, folder / "s2cs.toml", wall=world.network.seconds, **options)
    server.startService()
    return server


def stop(world: World, server: ControlServer) -> None:
    world.result(server.stopService())


def link_to(world: World, port: int) -> Dialer:
    link = dialer(world.network, Address(HOST, port), "the peer", None)
    link.startService()
    return link


def status_of(world: World, port: int) -> Resp:
    return world.result(link_to(world, port).ask(Status(uid=None, role=None, seq=UNSENT), 30.0))


def test_a_second_s2cs_leaves_the_streams_of_the_first_one_alone_and_says_so_once(
    world: World, warned: list[str], tmp_path: Path
) -> None:
    stream = world.stream()
    other = second(world, tmp_path / "second")
    world.network.run(100.0)
    assert world.both_are("streaming")
    (line,) = [line for line in warned if NOBODYS in line]
    assert f"gateway dtn has 1 streams of which this S2CS has no record; they are left alone: {stream.uid}" in line
    (told,) = status_of(world, SECOND_PORT).warnings or []
    assert "gateway dtn has 1 streams of which this S2CS has no record" in told
    assert stream.uid not in told
    assert status_of(world, PROD_PORT).warnings is None

    world.result(stream.release().deferred)
    world.network.run(20.0)
    assert status_of(world, SECOND_PORT).warnings is None
    stop(world, other)


def test_a_gateway_obeys_only_the_s2cs_that_has_reserved(world: World) -> None:
    stream = world.stream()
    (held,) = (
        world.result(link_to(world, PROD_PORT + 1).ask(Status(uid=None, role=None, seq=UNSENT), 30.0)).streams or []
    )
    mine = world.prod.control.store.id
    assert held.store == mine
    gateway = link_to(world, PROD_PORT + 1)
    other = "f" * 32
    request = ReqListeners(
        uid=stream.uid,
        role=PROD,
        seq=UNSENT,
        channels=[0],
        rate=100.0,
        expires=60.0,
        wan_security="encrypt",
        store=other,
    )
    targets = UpdateTargets(
        uid=stream.uid,
        role=PROD,
        seq=UNSENT,
        generation=9,
        connection_map={"a:1": "b:1"},
        data_conn_key="",
        store=other,
    )
    for command, code in (
        (request, "uid-in-use"),
        (targets, "not-authorized"),
        (Rel(uid=stream.uid, role=PROD, seq=UNSENT, store=other), "not-authorized"),
    ):
        refused = world.refusal(gateway.ask(command, 30.0))
        assert refused.code == code
        assert "on this gateway belongs to another S2CS" in refused.msg
    assert world.both_are("streaming")
    assert world.result(gateway.ask(Rel(uid=stream.uid, role=PROD, seq=UNSENT, store=mine), 30.0)).state == "Released"


def test_what_two_s2cs_share_is_not_promised_twice(world: World, tmp_path: Path) -> None:
    world.stream(rate=700.0)
    other = second(world, tmp_path / "second")
    world.network.run(1.0)
    refused = world.refusal(
        world.client.request(prod=f"{HOST}:{SECOND_PORT}", cons=PROD_S2CS.replace("5000", "6000"), rate=400.0).deferred
    )
    assert refused.code == "no-capacity"
    assert "300 Mbit/s are free" in refused.msg
    stop(world, other)


def backed_up(world: World, folder: Path) -> None:
    """Stop the S2CS, and start it with the store that it had before."""
    store = folder / "prod" / "s2cs.sqlite"
    stop(world, world.prod.control)
    world.network.sever(PROD_PORT)
    shutil.copy(folder / "backup", store)
    for beside in ("-wal", "-shm"):
        store.with_name(store.name + beside).unlink(missing_ok=True)


def test_after_a_start_with_an_older_backup_nothing_is_released_but_by_the_operator_s_word(
    world: World, warned: list[str], tmp_path: Path
) -> None:
    stop(world, world.prod.control)
    shutil.copy(tmp_path / "prod" / "s2cs.sqlite", tmp_path / "backup")
    world.prod.control = world.prod.start_control()
    stream = world.stream()
    backed_up(world, tmp_path)
    world.prod.control = world.prod.start_control()
    world.network.run(60.0)
    assert world.prod.held() == [(1, 100.0)], "its gateway holds the stream that the store does not know"
    assert len([line for line in warned if NOBODYS in line and stream.uid in line]) == 1

    stop(world, world.prod.control)
    world.prod.control = world.prod.start_control(release_unknown=True)
    world.network.until(world.prod.is_empty, within=20.0)
    assert status_of(world, PROD_PORT).warnings is None


def test_an_operator_who_has_lost_the_store_can_release_what_it_knew(world: World, tmp_path: Path) -> None:
    world.stream()
    stop(world, world.prod.control)
    other = second(world, tmp_path / "new", release_unknown=True)
    world.network.until(world.prod.is_empty, within=20.0)
    stop(world, other)


def test_what_is_reserved_later_by_another_one_stays_whatever_the_operator_wanted_at_the_start(
    world: World, tmp_path: Path
) -> None:
    other = second(world, tmp_path / "new", release_unknown=True)
    world.network.run(1.0)
    world.stream()
    world.network.run(60.0)
    assert world.both_are("streaming")
    stop(world, other)


def test_a_reservation_that_a_crash_left_half_done_is_released(world: World) -> None:
    asking = world.client.request(prod=PROD_S2CS, cons=f"{HOST}:6000", rate=100.0)
    asking.deferred.addErrback(lambda _: None)
    world.network.until(lambda: world.state("s2ds", PROD) == "reserved")
    assert world.state("s2cs", PROD) == "reserving"
    crashed = world.prod.control
    world.network.sever(PROD_PORT + 1)
    stop(world, crashed)
    world.prod.control = world.prod.start_control()
    world.network.until(world.prod.is_empty, within=20.0)


def test_a_gateway_that_knows_nothing_of_stores_is_used_as_ever(world: World, tmp_path: Path) -> None:
    def is_stripped(line: bytes) -> bool:
        return False

    world.network.lose = is_stripped
    arrives = world.network.arrives

    def older(link: Any, data: bytes, to_server: bool) -> bytes:
        """No `store` passes between the producer's S2CS and its gateway."""
        data = arrives(link, data, to_server)
        if link.port != PROD_PORT + 1:
            return data
        for server in (world.prod.control, *others):
            data = data.replace(f',"store":"{server.store.id}"'.encode(), b"")
        assert b'"store"' not in data
        return data

    others: list[ControlServer] = []
    world.network.arrives = older
    stream = world.stream()
    others.append(second(world, tmp_path / "second"))
    world.network.run(60.0)
    assert world.both_are("streaming"), "what nobody is known to have reserved is left alone, too"
    stop(world, others[0])
    world.result(stream.release().deferred)
    assert world.both_are_empty()


def test_a_stream_is_not_called_released_while_a_gateway_that_cannot_be_asked_may_hold_it(world: World) -> None:
    world.stream()
    control = world.prod.control
    (held,) = control.streams.values()
    (gateway,) = control.gateways.values()
    del control.gateways[gateway.name]
    held.machine.forbidden("the end of it")
    world.network.run(60.0)
    assert held.record.state == "Releasing"
    assert world.prod.held() != [], "the gateway has heard nothing"
    world.network.until(world.prod.is_empty, within=held.record.life)
    assert held.record.state == "Releasing"
    world.network.run(70.0)
    assert held.record.state == "Released"
    control.gateways[gateway.name] = gateway

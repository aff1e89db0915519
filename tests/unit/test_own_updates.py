"""Targets that an S2CS sets by itself, since ProdApp has come back elsewhere and no client of the user is there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from policy_lab import rule
from test_whole_protocol import targets_in_force

from scistream import timing
from scistream.app.controller import Controller, NoProgram
from scistream.protocol.address import Address
from scistream.protocol.join_string import Join
from scistream.protocol.messages import PROD, Command, UpdateTargets
from scistream.s2cs.policy.file import load_policy
from scistream.s2cs.store.database import SCHEMA_VERSION, STEPS, Store, StoreError
from scistream.s2cs.stream import ServerStream
from scistream.s2uc.client import Client, Stream
from support.memory_facilities import CONS_S2CS, DETECTOR, PROD_PORT, PROD_S2CS, World
from support.memory_network import HOST

MOVED = Address(HOST, 7077)
OTHER = Address("::1", 7077)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path, gateways=2)
    yield world
    world.close()


def left_alone(world: World) -> Stream:
    """Return a stream over both gateways of a side, whose user's client has ended."""
    stream = world.stream(num_conn=4)
    world.result(world.client.close().deferred)
    return stream


def move(world: World, stream: Stream, *listeners: Address) -> None:
    world.application(stream.join[PROD], listeners=listeners or (MOVED,))
    world.network.run(0.1)


def held_by(world: World) -> ServerStream:
    (held,) = world.prod.control.streams.values()
    return held


def restart_control(world: World) -> None:
    world.result(world.prod.control.stopService())
    world.network.sever(PROD_PORT)
    world.prod.control = world.prod.start_control()


def overheard(world: World, port: int) -> list[UpdateTargets]:
    """Return the list of targets that one gateway of the producer's side is asked for from now on."""
    heard: list[UpdateTargets] = []
    dialer = world.prod.control.gateways[f"dtn{port}"].dialer
    ask = dialer.ask

    def noted(command: Command, timeout: float | None) -> Any:
        if isinstance(command, UpdateTargets):
            heard.append(command)
        return ask(command, timeout)

    dialer.ask = noted
    return heard


@pytest.mark.parametrize("seconds", [0.0, 2 * timing.GATEWAY_ANSWER, 6 * timing.GATEWAY_ANSWER])
def test_a_gateway_that_stands_still_gets_the_new_targets_when_it_answers_again(world: World, seconds: float) -> None:
    stream = left_alone(world)
    world.network.mute(PROD_PORT + 1)
    world.network.run(seconds)
    move(world, stream)
    world.network.run(3 * timing.GATEWAY_ANSWER)
    assert held_by(world).record.state in ("Streaming", "Updating")
    world.network.unmute(PROD_PORT + 1)
    world.network.run(3 * timing.GATEWAY_ANSWER)
    assert held_by(world).record.state == "Streaming"
    assert targets_in_force(world) == {str(MOVED)}


def test_an_s2cs_that_is_restarted_while_it_sets_targets_sets_them_once_more(world: World) -> None:
    stream = left_alone(world)
    world.network.mute(PROD_PORT + 1)
    move(world, stream)
    assert held_by(world).record.state == "Updating"
    move(world, stream, DETECTOR)  # back again, while one of the gateways has the other targets already
    restart_control(world)
    world.network.unmute(PROD_PORT + 1)
    world.network.run(3 * timing.GATEWAY_ANSWER)
    assert held_by(world).record.state == "Streaming"
    assert targets_in_force(world) == {str(DETECTOR)}


def test_an_older_gateway_is_not_asked_for_what_it_does_not_know(world: World) -> None:
    stream = left_alone(world)
    heard = overheard(world, PROD_PORT + 2)
    gateway = world.prod.control.gateways[f"dtn{PROD_PORT + 1}"]
    assert gateway.room is not None
    gateway.room = msgspec.structs.replace(gateway.room, chosen_ports=None)
    application = world.application(stream.join[PROD], "detector", listeners=(MOVED,))
    world.network.run(5.0)
    assert held_by(world).record.state == "Streaming"
    assert heard == []
    assert targets_in_force(world) == {str(DETECTOR)}
    (said,) = [note for note in application.notes if "still go to" in note]
    assert f"gateway {gateway.name} runs an older version of SciStream" in said
    assert f"`s2uc attach {stream.uid}`" in said
    assert "the stream continues" in said
    assert not any("not used" in note for note in application.notes), "they are not too many"
    assert not application.finished.called
    assert world.state("app", PROD) == "serving"


def release(world: World, stream: Stream) -> None:
    """End a stream by a client that has not asked for it."""
    other = Client(insecure=True, reactor=world.network)
    world.result(other.remembered(stream.uid, prod=PROD_S2CS, cons=CONS_S2CS).release().deferred)
    world.result(other.close().deferred)


def moves_while_silent(world: World, port: int) -> tuple[Stream, Any]:
    """Return a stream whose producer now listens elsewhere while a gateway does not answer, and its application."""
    stream = left_alone(world)
    world.running[0].program.end()
    world.network.mute(port)
    world.network.run(3 * timing.GATEWAY_ANSWER)
    application = world.application(stream.join[PROD], "detector", listeners=(MOVED,))
    world.network.run(0.1)
    return stream, application


@pytest.mark.parametrize("link", ["stays", "breaks"])
def test_a_producer_whose_new_listeners_are_not_used_is_notified_of_the_end(
    world: World, tmp_path: Path, link: str
) -> None:
    stream, application = moves_while_silent(world, PROD_PORT + 2)
    narrow(world, tmp_path, "192.0.2.0/24")
    world.network.unmute(PROD_PORT + 2)
    world.network.run(3 * timing.GATEWAY_ANSWER)
    assert len([note for note in application.notes if "still go to" in note]) == 1
    assert not application.finished.called
    if link == "breaks":
        restart_control(world)
        world.network.run(5.0)
    release(world, stream)
    world.network.run(5.0)
    assert world.result(application.finished) == 0
    assert application.ended_by is not None
    assert application.ended_by.code == "released"
    assert [note for note in application.notes if "has ended" in note] == [
        "the stream has ended (released: the stream was released by its owner); the program continues"
    ]


def test_a_producer_is_told_once_when_new_connections_will_lead_to_its_listeners(world: World) -> None:
    _, application = moves_while_silent(world, PROD_PORT + 1)
    restart_control(world)  # the controller says Hello once more
    world.network.run(5.0)
    said = "new connections will go to these listeners as soon as the gateways have the new targets"
    assert [note for note in application.notes if "listeners" in note or "not used" in note] == [said]


def test_a_producer_is_told_of_listeners_that_no_channel_leads_to(world: World) -> None:
    spare = Address(HOST, 7078)
    stream = world.request()
    application = world.application(stream.join[PROD], "detector", listeners=(DETECTOR, spare))
    world.result(stream.provisioned().deferred)
    world.network.run(1.0)
    assert application.notes == [f"not used, since the stream has 1 channel: {spare}"]


def test_a_producer_that_moves_without_end_has_its_targets_set_a_few_times(world: World) -> None:
    stream = left_alone(world)
    heard = overheard(world, PROD_PORT + 1)
    for number in range(100):
        move(world, stream, Address(HOST, 7100 + number % 2))
    spent = 100 * 0.1
    assert 2 <= len(heard) <= spent / timing.BETWEEN_OWN_UPDATES + 1
    world.network.run(2 * timing.BETWEEN_OWN_UPDATES)
    assert targets_in_force(world) == {f"{HOST}:7101"}


def narrow(world: World, folder: Path, *networks: str) -> None:
    authorizer, file = world.prod.control.authorizer, folder / "policy.toml"
    file.write_text(rule("insecure:loopback", "none", targets=list(networks)))
    authorizer.put_in_force(world.prod.control.config, load_policy(file))


def test_a_policy_that_was_narrowed_meanwhile_holds_for_targets_that_an_s2cs_sets_by_itself(
    world: World, tmp_path: Path
) -> None:
    stream = left_alone(world)
    heard = overheard(world, PROD_PORT + 1)
    world.network.mute(PROD_PORT + 2)
    world.network.run(3 * timing.GATEWAY_ANSWER)
    move(world, stream)
    narrow(world, tmp_path, "192.0.2.0/24")
    world.network.unmute(PROD_PORT + 2)
    world.network.run(3 * timing.GATEWAY_ANSWER)
    assert heard == []
    assert targets_in_force(world) == {str(DETECTOR)}


def hello(world: World, stream: Stream, *addresses: Address) -> None:
    """Say Hello for a program at a name of these addresses."""
    join = Join.parse(stream.join[PROD])
    listener, *others = addresses
    Controller(world.network, join, [listener], NoProgram(), print, {listener: others}).run().addErrback(lambda _: None)
    world.network.run(3.0)


def test_a_name_that_gives_its_addresses_in_another_order_moves_nothing_and_another_address_is_told(
    world: World,
) -> None:
    stream = left_alone(world)
    first, second = MOVED, OTHER
    hello(world, stream, first, second)
    heard = overheard(world, PROD_PORT + 1)
    hello(world, stream, second, first)
    assert heard == []
    assert targets_in_force(world) == {str(first)}
    hello(world, stream, first)
    assert [command.other_addresses for command in heard] == [None]
    hello(world, stream, second, first)
    assert heard[-1].other_addresses == {str(first): [str(second)]}


@pytest.mark.parametrize("by_the_user", [False, True])
def test_other_addresses_that_the_policy_allows_no_more_go_to_no_gateway(
    world: World, tmp_path: Path, by_the_user: bool
) -> None:
    stream = world.stream(num_conn=4)
    if not by_the_user:
        world.result(world.client.close().deferred)
    world.network.mute(PROD_PORT + 2)
    world.network.run(3 * timing.GATEWAY_ANSWER)
    heard = overheard(world, PROD_PORT + 1)
    join = Join.parse(stream.join[PROD])
    Controller(world.network, join, [MOVED], NoProgram(), print, {MOVED: [OTHER]}).run().addErrback(lambda _: None)
    world.network.until(lambda: bool(held_by(world).record.other_addresses))
    narrow(world, tmp_path, f"{HOST}/32")
    world.network.unmute(PROD_PORT + 2)
    world.network.run(3 * timing.GATEWAY_ANSWER)
    assert heard
    assert {str(MOVED)} == set(heard[-1].connection_map.values())
    assert heard[-1].other_addresses is None


def test_software_that_does_not_know_of_own_updates_refuses_the_store(tmp_path: Path) -> None:
    file = tmp_path / "s2cs.sqlite"
    Store(file).close()
    with pytest.raises(StoreError, match=f"schema version {SCHEMA_VERSION}, but this version of SciStream knows 3"):
        Store(file, STEPS[:3])

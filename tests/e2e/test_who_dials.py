"""Which side's gateways dial the others over the WAN: a facility that accepts nothing from outside streams too."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator

import pytest
from harness import World, exchange, refused_request

from scistream.protocol.messages import CONS, PROD
from support.applications import accept, address_of, listeners, receive_exactly
from support.facilities import HOST
from support.tcp_sockets import LISTEN
from support.waiting import PATIENCE, until

CLOSED = {"gateway": {"wan": {"bind": HOST, "accept": False}}}
SILENT = {"gateway": {"wan": {"bind": HOST, "dial": False}}}


@pytest.fixture(scope="module")
def world(linux: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Make a producer's facility that accepts nothing from outside, and an ordinary one of the consumer."""
    with World(tmp_path_factory.mktemp("world"), lab=CLOSED) as world:
        yield world


def listening(world: World) -> set[int]:
    """Return the ports of the producer's gateway that listen for streams."""
    (gateway,) = world.lab.gateways
    ports = range(gateway.first_port, gateway.last_port + 1)
    return {sock.local for sock in gateway.machine.sockets(LISTEN) if sock.local in ports}


def ready_shown(world: World, uid: str) -> list[int]:
    """Return the ready connections of each side's channels, as ``s2uc status`` shows them."""
    lines = [line.split() for line in world.s2uc("status", uid).stdout.splitlines()]
    (head,) = [line for line in lines if "READY" in line]
    rows = lines[lines.index(head) + 1 :]
    return [int(row[head.index("READY")]) for row in rows if row and row[0] in ("producer", "consumer")]


@pytest.mark.usefixtures("nothing_left")
def test_a_producer_whose_facility_accepts_nothing_streams_to_one_that_does(world: World) -> None:
    (gateway,) = world.centre.gateways
    with listeners(2) as targets, world.stream(list(map(address_of, targets)), 2, "1Gbit") as stream:
        assert not listening(world)
        assert len(gateway.ports_in_use()) == 4, "a port for the LAN and one for the WAN for each channel"
        for channel, target in enumerate(targets):
            for number in range(2):
                with stream.connect(channel) as consumer, accept(target) as producer:
                    exchange(consumer, producer, seed=4 * channel + 2 * number)
        shown = world.s2uc("status", stream.uid).stdout
        assert "over the WAN, the producer's gateways dial the consumer's" in shown
        assert len(ready_shown(world, stream.uid)) == 4, "two channels at two sides"
        until(lambda: min(ready_shown(world, stream.uid)) >= 1, lambda: "the producer's gateway keeps none ready")
        at_centre = world.s2uc("status", "--at", world.centre.s2cs, stream.uid).stdout
        assert "WAN:        the producer's gateways dial the consumer's at 127.0.0.1:" in at_centre
        stream.requested.release()
        until(lambda: not gateway.ports_in_use(), gateway.ports_in_use)
        assert not world.lab.gateways[0].ports_in_use()


@pytest.mark.usefixtures("nothing_left")
def test_the_control_server_of_the_consumer_may_restart_and_the_producer_may_move(world: World) -> None:
    with listeners(2) as (first, other), world.stream([address_of(first)]) as stream:
        world.centre.server.stop()
        world.centre.server.start()
        world.centre.server.wait_until_ready()
        world.centre.wait_for_links()
        with stream.connect() as consumer, accept(first) as producer:
            exchange(consumer, producer, seed=20)
        before = json.loads(world.s2uc("status", "--json", stream.uid).stdout)["streams"][stream.uid]
        world.prod(stream.requested.join[PROD], [address_of(other)]).end()

        def leads_to() -> list[str]:
            sides = json.loads(world.s2uc("status", "--json", stream.uid).stdout)["streams"][stream.uid]
            return list(sides[PROD]["connection_map"].values())

        until(lambda: leads_to() == [address_of(other)], leads_to)
        with stream.connect() as consumer, accept(other) as producer:
            exchange(consumer, producer, seed=22)
        world.s2uc("attach", stream.uid)
        after = json.loads(world.s2uc("status", "--json", stream.uid).stdout)["streams"][stream.uid]
        assert after[CONS]["wan_listeners"] == before[CONS]["wan_listeners"]
        assert {side["wan_dialer"] for side in after.values()} == {PROD}
        with stream.connect() as consumer, accept(other) as producer:
            exchange(consumer, producer, seed=24)


@pytest.mark.usefixtures("nothing_left")
def test_a_choice_that_the_facilities_do_not_allow_ends_the_request_with_what_is_missing(world: World) -> None:
    line = refused_request(world, "--wan-dialer", "cons")
    assert line == (
        f"error: not-authorized: the gateways of the producer's facility ({world.lab.s2cs}) and of the consumer's "
        f"({world.centre.s2cs}) cannot connect to each other: for the consumer's gateways to dial, {world.lab.s2cs} "
        "has to let all its gateways accept connections (`accept = true` in [wan])"
    )


def test_two_facilities_that_accept_nothing_are_told_so_at_once(fresh_world: Callable[..., World]) -> None:
    world = fresh_world(lab=CLOSED, centre=CLOSED)
    with world.unchanged():
        line = refused_request(world)
    assert f"for the consumer's gateways to dial, {world.lab.s2cs} has to let" in line
    assert f"or for the producer's gateways to dial, {world.centre.s2cs} has to let" in line


def test_the_user_may_choose_the_producer_although_the_consumer_could_dial(fresh_world: Callable[..., World]) -> None:
    world = fresh_world()
    (gateway,) = world.centre.gateways
    with listeners(1) as (target,), world.request(1, "1Gbit", "--wan-dialer", "prod") as requested:
        consumer_says, producer_says = (
            world.cons(requested.join[CONS]),
            world.prod(requested.join[PROD], [address_of(target)]),
        )
        last = requested.streaming()
        assert last["wan_dialer"] == PROD
        producer_says.end()
        (listener,) = json.loads(consumer_says.end().stdout)["listeners"]
        host, _, port = listener.rpartition(":")
        assert not listening(world)
        with socket.create_connection((host, int(port)), timeout=PATIENCE) as consumer, accept(target) as producer:
            producer.sendall(b"the producer speaks first")
            assert receive_exactly(consumer, 25) == b"the producer speaks first"
            exchange(consumer, producer, seed=30)
    until(lambda: not gateway.ports_in_use(), gateway.ports_in_use)


def test_a_probe_measures_a_path_that_the_producer_dials(fresh_world: Callable[..., World]) -> None:
    world = fresh_world(lab=CLOSED)
    with world.unchanged():
        between = ["--prod", world.lab.s2cs, "--cons", world.centre.s2cs]
        said = world.s2uc("probe", *between, "--rate", "50Mbit", "--seconds", "1").stdout
    assert "arrived intact" in said

"""A producer that dials and moves, several gateways, and control servers that restart, while connections carry data."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from duplex_traffic import Exchange
from harness import Streaming, World, exchange

from scistream.protocol.messages import CONS, PROD
from support.applications import accept, address_of, listeners
from support.facilities import HOST, Facility
from support.waiting import until

CLOSED = {"bind": HOST, "accept": False}


@pytest.fixture(scope="module")
def world(linux: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Make a producer's facility that accepts nothing from outside, and one of the consumer, with two gateways each.

    A stream of four channels needs both gateways at each side.
    """
    lab = {"gateways": 2, "ports": 2, "gateway": {"wan": CLOSED}}
    with World(tmp_path_factory.mktemp("world"), lab=lab, centre={"gateways": 2, "ports": 4}) as world:
        yield world


def sides(world: World, stream: Streaming) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(world.s2uc("status", "--json", stream.uid).stdout)["streams"][stream.uid]
    return found


def move(world: World, stream: Streaming, listen: list[str]) -> None:
    """Let the producer come back with other listeners, and wait until its side leads there."""
    world.prod(stream.requested.join[PROD], listen).end()

    def leads_to() -> list[str]:
        return list(sides(world, stream)[PROD]["connection_map"].values())

    until(lambda: sorted(leads_to()) == sorted(listen), leads_to)


def restart(facility: Facility) -> None:
    facility.server.stop()
    facility.server.start()
    facility.server.wait_until_ready()
    facility.wait_for_links()


@pytest.mark.usefixtures("nothing_left")
def test_a_dialling_producer_may_move_and_control_servers_restart_under_traffic_and_no_byte_is_lost(
    world: World,
) -> None:
    with Exchange(4) as traffic, world.stream(traffic.listen, 4, "400Mbit") as stream, listeners(4) as elsewhere:
        assert [len(gateway.ports_in_use()) for gateway in world.lab.gateways] == [2, 2]
        assert [len(gateway.ports_in_use()) for gateway in world.centre.gateways] == [4, 4], "LAN and WAN"
        assert traffic.connect(stream.listeners)
        traffic.wait_for_more()
        before = sides(world, stream)
        move(world, stream, list(map(address_of, elsewhere)))
        traffic.wait_for_more()
        for channel, listener in enumerate(elsewhere):
            with stream.connect(channel) as consumer, accept(listener) as producer:
                exchange(consumer, producer, seed=channel)
        for facility in world.facilities:
            restart(facility)
        traffic.wait_for_more()
        moved_again = list(map(address_of, elsewhere[::-1]))
        move(world, stream, moved_again)
        with closing(stream.connect(0)) as consumer, accept(elsewhere[-1]) as producer:
            exchange(consumer, producer, seed=9)
        world.s2uc("attach", stream.uid)
        after = sides(world, stream)
        for role in (PROD, CONS):
            assert after[role]["wan_dialer"] == PROD
            assert after[role]["listeners"] == before[role]["listeners"]
        assert after[CONS]["wan_listeners"] == before[CONS]["wan_listeners"], "nothing is reserved again"
        assert traffic.finish() == "whole"


@pytest.mark.usefixtures("nothing_left")
def test_a_release_ends_what_a_dialling_producer_carries_at_all_gateways(world: World) -> None:
    with Exchange(4) as traffic, world.stream(traffic.listen, 4, "400Mbit") as stream:
        assert traffic.connect(stream.listeners)
        traffic.wait_for_more()
        stream.requested.release()
        until(traffic.is_reset, lambda: f"not all is reset:\n{traffic}")
        for facility in world.facilities:
            for gateway in facility.gateways:
                until(lambda gateway=gateway: not gateway.ports_in_use(), gateway.ports_in_use)


def test_a_choice_of_the_producer_ends_at_once_where_its_gateways_may_not_dial(
    fresh_world: Callable[..., World],
) -> None:
    world = fresh_world(lab={"gateway": {"wan": {"bind": HOST, "dial": False}}})
    between = ["--prod", world.lab.s2cs, "--cons", world.centre.s2cs]
    with world.unchanged():
        refused = world.s2uc("request", *between, "--wan-dialer", "prod", check=False)
        assert refused.returncode == 1
        assert f"for the producer's gateways to dial, {world.lab.s2cs} has to let all its gateways" in refused.stderr
        assert "`dial = true` in [wan]" in refused.stderr
        with listeners(1) as (target,), world.stream([address_of(target)]) as stream:
            assert sides(world, stream)[CONS]["wan_dialer"] == CONS, "without a choice the consumer dials"
            with stream.connect() as consumer, accept(target) as producer:
                exchange(consumer, producer, seed=11)


def test_a_consumers_gateway_without_a_port_for_the_wan_ends_the_request_with_the_reason_and_the_remedy(
    fresh_world: Callable[..., World],
) -> None:
    world = fresh_world(centre={"ports": 3})
    port = world.centre.gateways[0].first_port
    refused = (
        "the producer's gateways dial, so each channel needs a second port here, for the WAN: 2 port(s) requested on "
        f"{HOST}, but 1 of the range {port}-{port + 2} are free: request fewer channels, wait until another stream "
        "ends, or ask the gateway's operator for more ports"
    )
    remembered = world.remembered.all()
    with world.unchanged(), listeners(2) as targets:
        with world.request(2, "1Gbit", "--wan-dialer", "prod") as requested:
            consumer = world.cons(requested.join[CONS])
            world.prod(requested.join[PROD], list(map(address_of, targets)))
            ended = requested.program.end(status=1)
            assert ended.stderr.endswith(f"error: no-ports: consumer side: gateway centre-s2ds-0: {refused}\n")
            assert refused in consumer.end(status=1).stderr
            requested.forget()
        assert world.remembered.all() == remembered
        for facility in world.facilities:
            until(lambda facility=facility: set(facility.states().values()) <= {"Released"}, facility.states)
        with world.stream([address_of(target) for target in targets], 2, "1Gbit") as stream:
            for channel, target in enumerate(targets):
                with stream.connect(channel) as consumer_end, accept(target) as producer_end:
                    exchange(consumer_end, producer_end, seed=channel)

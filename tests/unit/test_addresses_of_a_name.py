"""A ProdApp that was told by a name of several addresses: which of them its gateway is given to dial."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from memory_network import HOST
from test_whole_protocol import World

from scistream.app.controller import Controller, Nobody
from scistream.s2uc.client import Stream
from scistream.wire.address import Address
from scistream.wire.join import Join
from scistream.wire.messages import PROD

V4, V6, OUTSIDE = Address(HOST, 7000), Address("::1", 7000), Address("203.0.113.7", 7000)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.close()


def hello(world: World, stream: Stream, listener: Address, *others: Address) -> None:
    """Say Hello for a program at a name of these addresses."""
    join = Join.parse(stream.join[PROD])
    controller = Controller(world.network, join, [listener], Nobody(), print, {listener: others})
    controller.run().addErrback(lambda failure: None)


def dialled(world: World, stream: Stream) -> list[str]:
    """What the producer's gateway dials for the only channel, in order."""
    update = world.prod.gateways[0].elements._streams[stream.uid, PROD].update
    assert update is not None
    return [update.targets[0], *update.other_addresses.get(0, [])]


@pytest.mark.parametrize(
    ("listeners", "right"),
    [
        ([V4, V6], [V4, V6]),
        ([V4, OUTSIDE], [V4]),
        ([OUTSIDE, V4], [V4]),
        ([OUTSIDE, V6, OUTSIDE, V4], [V6, V4]),
        ([V4], [V4]),
    ],
    ids=str,
)
def test_a_gateway_gets_every_address_of_a_name_that_it_may_dial(
    world: World, listeners: list[Address], right: list[Address]
) -> None:
    stream = world.request()
    hello(world, stream, *listeners)
    world.result(stream.provisioned().deferred)
    assert dialled(world, stream) == list(map(str, right))
    assert stream.connection_map[stream.listeners[PROD][0]] == str(right[0])


def test_a_name_of_which_no_address_may_be_dialled_is_refused_with_the_reason(world: World) -> None:
    stream = world.request()
    application = world.application(stream.join[PROD], listeners=(OUTSIDE,))
    world.network.until(lambda: application.error is not None)
    assert application.error is not None
    alone = application.error.msg
    said: list[str] = []
    join = Join.parse(stream.join[PROD])
    controller = Controller(world.network, join, [OUTSIDE], Nobody(), print, {OUTSIDE: [OUTSIDE._replace(port=7001)]})
    controller.run().addErrback(lambda failure: said.append(failure.value.msg))
    world.network.until(lambda: bool(said))
    assert said == [alone]
    assert "203.0.113.7:7000 is outside the networks" in alone


def test_the_addresses_of_a_name_outlive_a_restart_of_the_s2cs(world: World) -> None:
    stream = world.request()
    hello(world, stream, V4, V6)
    world.result(stream.provisioned().deferred)
    world.result(world.prod.control.stopService())
    world.network.sever(world.prod.port)
    world.prod.control = world.prod.start_control()
    record = world.prod.control.streams[stream.uid, PROD].record
    assert record.other_addresses == {str(V4): [str(V6)]}

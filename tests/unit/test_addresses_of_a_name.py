"""A ProdApp that was told by a name of several addresses: which of them its gateway is given to dial."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from scistream.app.controller import Controller, NoProgram
from scistream.protocol.address import Address
from scistream.protocol.codec import MAX_LINE, decode, encode
from scistream.protocol.errors import BadMessageError
from scistream.protocol.join_string import Join
from scistream.protocol.messages import MAX_CHANNELS, MAX_OTHER_ADDRESSES, PROD, UNSENT, Hello, UpdateTargets
from scistream.s2cs.record import Record, update_for_gateway
from scistream.s2uc.client import Stream
from support.memory_facilities import World
from support.memory_network import HOST
from support.requirements import needs_ipv6

UID = "00000000-0000-4000-8000-000000000000"
V4, V6, OUTSIDE = Address(HOST, 7000), Address("::1", 7000), Address("203.0.113.7", 7000)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.close()


def named(count: int) -> list[Address]:
    """So many listeners of the longest addresses that there are."""
    return [Address("2001:db8:1111:2222:3333:4444:5555:6666", 64000 + port) for port in range(count)]


def hello(world: World, stream: Stream, listener: Address, *others: Address) -> None:
    """Say Hello for a program at a name of these addresses."""
    join = Join.parse(stream.join[PROD])
    controller = Controller(world.network, join, [listener], NoProgram(), print, {listener: others})
    controller.run().addErrback(lambda failure: None)


def dialled(world: World, stream: Stream) -> list[str]:
    """Return what the producer's gateway dials for the only channel, in order."""
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
    if V6 in listeners:
        needs_ipv6()
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
    controller = Controller(
        world.network, join, [OUTSIDE], NoProgram(), print, {OUTSIDE: [OUTSIDE._replace(port=7001)]}
    )
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


@pytest.mark.parametrize("names", [4, 5, 770])
def test_a_hello_names_few_other_addresses_however_many_its_names_have(names: int) -> None:
    listeners = list(map(str, named(names)))
    fields = {"cmd": "Hello", "uid": UID, "role": PROD, "seq": 1, "app_key": "k" * 43, "listeners": listeners}
    others = {one: [f"[::{number}]:1" for number in range(16)] for one in listeners}
    said = json.dumps({**fields, "other_addresses": others}).encode()
    if names * 16 <= 64:
        message = decode(said)
        assert isinstance(message, Hello)
        assert message.other_addresses == others
    else:
        with pytest.raises(BadMessageError, match="other_addresses"):
            decode(said)


def test_a_program_of_very_many_names_is_told_which_of_their_addresses_are_left_out(world: World) -> None:
    stream = world.request()
    listeners = [Address(HOST, 7000 + number) for number in range(100)]
    others = {one: [Address("::1", one.port)] for one in listeners}
    said: list[str] = []
    controller = Controller(world.network, Join.parse(stream.join[PROD]), listeners, NoProgram(), said.append, others)
    controller.run().addErrback(lambda failure: None)
    world.result(stream.provisioned().deferred)
    record = world.prod.control.streams[stream.uid, PROD].record
    assert record.app_listeners == list(map(str, listeners))
    assert sum(map(len, record.other_addresses.values())) == MAX_OTHER_ADDRESSES
    assert len([one for one in said if "give --listen with addresses instead of names" in one]) == 1


def test_the_longest_targets_with_all_other_addresses_fit_into_a_line_to_a_gateway() -> None:
    """Else a gateway could not be told, and the stream would end."""
    listeners = dict(enumerate(map(str, named(MAX_CHANNELS))))
    others = {one: list(map(str, named(1))) for one in list(listeners.values())[:MAX_OTHER_ADDRESSES]}
    record = Record(uid=UID, role=PROD, owner="ada", plan={"dtn": list(listeners)}, listeners=listeners)
    record.other_addresses = others
    targets = {one: one for one in listeners.values()}
    pem = ("x" * 64 + "\n") * (131072 // 65)
    update = UpdateTargets(
        uid=UID, role=PROD, seq=UNSENT, generation=1, connection_map=targets, data_conn_key=pem, store="0" * 32
    )
    assert len(encode(update_for_gateway(record, "dtn", update, 2**53))) <= MAX_LINE

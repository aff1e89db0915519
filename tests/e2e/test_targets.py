"""Which targets a gateway accepts from a user who speaks to the S2CS by hand: each bad target beside a good one.

A refusal leaves the targets as they were: the application goes on being reached.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from harness import World
from manual_stream import CONS, PROD, HandMade, context, nobody_waits
from OpenSSL import SSL
from raw_peers import RawLink
from test_refusals import ada

from scistream.protocol.address import Address
from scistream.tls.stream_channels import server_name
from support.applications import accept, address_of, connect, listen
from support.facilities import HOST
from support.waiting import until

pytestmark = pytest.mark.usefixtures("nothing_left")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, linux: None) -> Iterator[World]:
    """Run a world whose producer's gateway connects only to one network, which contains its machine and one beyond."""
    networks = {"app_networks": ["127.0.0.0/9", "::1/128"], "wan_networks": ["127.0.0.0/9"]}
    with World(tmp_path_factory.mktemp("world"), lab={"gateway": networks}, centre={"gateway": networks}) as world:
        yield world


@contextmanager
def producer(world: World, *offered: str) -> Iterator[tuple[HandMade, socket.socket]]:
    """Set up a producer's side that streams to a listener of the test, and whose Hello also names `offered`."""
    with listen() as detector, HandMade(world, PROD, [address_of(detector)], hello=offered) as stream:
        yield stream, detector


def still_leads_to(stream: HandMade, detector: socket.socket) -> bool:
    """Return True if the stream's channel leads there."""
    made = context(stream.of_other_side())
    with socket.create_connection(stream.address(), timeout=20) as sock:
        connection = SSL.Connection(made, sock)
        connection.set_tlsext_host_name(server_name(stream.uid, 0).encode())
        connection.set_connect_state()
        sock.settimeout(None)
        connection.do_handshake()
        with accept(detector) as camera:
            camera.sendall(b"x")
            return bool(connection.recv(1) == b"x")


def own_ports(world: World) -> list[str]:
    """Ports of the gateway at addresses of its machine that it tells nobody."""
    gateway = world.lab.gateways[0]
    return [
        f"{host}:{port}"
        for host in ("127.0.0.2", "[::1]", "[::ffff:127.0.0.2]")
        for port in (gateway.address.port, gateway.first_port, gateway.last_port)
    ]


OUTSIDE = ["192.0.2.1:80", "127.200.0.1:80", "[2001:db8::1]:80", "[::ffff:192.0.2.1]:80", "[::ffff:127.200.0.1]:80"]
OUTSIDE += ["0.0.0.0:80", "[::]:80", "[::ffff:0.0.0.0]:80", "[::ffff:c000:201]:80", "[::127.0.0.1]:80"]


@pytest.mark.parametrize("target", OUTSIDE)
def test_a_target_outside_the_networks_of_the_applications_is_refused_and_named(world: World, target: str) -> None:
    with producer(world) as (stream, detector):
        answer = a_hello(stream, target)
        assert (answer["cmd"], answer["code"]) == ("ERROR", "target-refused")
        assert "is outside the networks that gateway" in str(answer["msg"])
        assert still_leads_to(stream, detector)


def test_a_gateway_is_not_sent_to_itself(world: World) -> None:
    targets = own_ports(world)
    with producer(world, *targets) as (stream, detector):
        for target in targets:
            answer = stream.try_targets({stream.listeners[0]: target})
            assert (answer["cmd"], answer["code"]) == ("ERROR", "target-refused"), target
        assert still_leads_to(stream, detector)


def test_a_target_that_the_application_did_not_name_is_refused_though_its_network_is_ours(world: World) -> None:
    with producer(world) as (stream, detector), listen() as other:
        answer = stream.try_targets({stream.listeners[0]: address_of(other)})
        assert (answer["cmd"], answer["code"]) == ("ERROR", "target-refused")
        assert "Hello" in str(answer["msg"])
        assert still_leads_to(stream, detector)
        assert nobody_waits(other)


def test_an_address_of_the_application_in_other_words_is_not_the_one_it_named(world: World) -> None:
    with producer(world) as (stream, detector):
        port = Address.parse(address_of(detector)).port
        for words in (f"[::ffff:127.0.0.1]:{port}", f"localhost:{port}", f"127.0.0.2:{port}"):
            answer = stream.try_targets({stream.listeners[0]: words})
            assert (answer["cmd"], answer["code"]) == ("ERROR", "target-refused")
        assert still_leads_to(stream, detector)


@pytest.mark.parametrize(
    "target",
    [f"{HOST}:0", f"{HOST}:65536", f"{HOST}:-1", HOST, f"{HOST}:", "::1:80", "[fe80::1%a\nb]:80", "x y:80", "", "1:2"],
)
def test_what_is_no_address_is_a_bad_message_that_names_the_map(world: World, target: str) -> None:
    with producer(world) as (stream, detector):
        answer = stream.try_targets({stream.listeners[0]: target})
        assert (answer["cmd"], answer["code"]) == ("ERROR", "bad-message")
        assert "connection_map" in str(answer["msg"])
        assert still_leads_to(stream, detector)


def test_a_map_of_other_listeners_than_the_stream_s_is_a_bad_message(world: World) -> None:
    with producer(world) as (stream, detector):
        (mine,), there = stream.listeners, address_of(detector)
        elsewhere = f"{HOST}:{world.lab.gateways[0].address.port}"
        for wrong in ({elsewhere: there}, {mine: there, elsewhere: there}, {}):
            answer = stream.try_targets(wrong)
            assert (answer["cmd"], answer["code"]) == ("ERROR", "bad-message")
        assert still_leads_to(stream, detector)


def a_hello(stream: HandMade, listener: str) -> dict[str, Any]:
    with RawLink(stream.facility.server.address, stream.facility.authority) as link:
        hello = {"uid": stream.uid, "role": stream.role, "seq": 1, "app_key": stream.app_key}
        return link.ask("Hello", **hello, listeners=[listener])


def test_no_address_of_the_pool_itself_is_a_target_whichever_gateway_has_it(tmp_path: Path, linux: None) -> None:
    with World(tmp_path, lab={"gateways": 2}) as world, producer(world) as (stream, detector):
        ports = [world.lab.server.address.port]
        ports += [port for one in world.lab.gateways for port in (one.address.port, one.first_port, one.last_port)]
        for port in ports:
            for host in (HOST, "[::ffff:127.0.0.1]"):
                answer = a_hello(stream, f"{host}:{port}")
                assert (answer["cmd"], answer["code"]) == ("ERROR", "target-refused"), port
                assert f":{port} is " in answer["msg"]
        assert still_leads_to(stream, detector)


def test_a_consumer_is_sent_to_no_gateway_of_its_own_pool_but_to_the_other_side_of_its_stream(
    tmp_path: Path, linux: None
) -> None:
    with World(tmp_path, centre={"gateways": 2}) as world:
        last = world.centre.gateways[1].last_port
        with listen() as elsewhere, HandMade(world, CONS, [address_of(elsewhere)]) as stream:
            answer = stream.try_targets({stream.listeners[0]: f"{HOST}:{last}"})
            assert (answer["cmd"], answer["code"]) == ("ERROR", "target-refused")
            assert "lends to streams" in str(answer["msg"])


def test_an_application_listens_at_numeric_addresses_with_a_port(world: World) -> None:
    with producer(world) as (stream, detector):
        for listener in ("localhost:7000", "detector.example:7000", f"{HOST}:0", "7000"):
            answer = a_hello(stream, listener)
            assert (answer["cmd"], answer["code"]) == ("ERROR", "bad-message")
            assert "listeners" in answer["msg"]
        assert a_hello(stream, address_of(detector))["cmd"] == "RESP"


# -- the consumer's gateway


def test_a_consumers_gateway_is_not_sent_to_itself_or_out_of_its_networks(world: World) -> None:
    gateway = world.centre.gateways[0]
    with listen() as wan, HandMade(world, CONS, [address_of(wan)]) as stream:
        itself = [stream.listeners[0], f"{HOST}:{gateway.address.port}", f"localhost:{gateway.last_port}"]
        for target in [*itself, "127.200.0.1:80", "192.0.2.1:80", "[::ffff:192.0.2.1]:80", "0.0.0.0:80"]:
            answer = stream.try_targets({stream.listeners[0]: target})
            assert (answer["cmd"], answer["code"]) == ("ERROR", "target-refused"), target
            said = str(answer["msg"])
            words = ("this gateway itself", "lends to streams", "a control port")
            assert any(one in said for one in words) == (target in itself), said
        with connect(stream.listeners[0]), accept(wan) as control:
            assert control.recv(1) == b"\x16", "the beginning of a TLS handshake"


def test_a_port_that_is_dialled_as_a_wan_listener_is_lent_to_no_application_while_it_is(world: World) -> None:
    gateway = world.lab.gateways[0]
    count = gateway.last_port - gateway.first_port + 1

    def ask(cmd: str, uid: str, role: str, **fields: Any) -> dict[str, Any]:
        with RawLink(world.lab.server.address, world.lab.authority, ada(world)) as link:
            return link.ask(cmd, uid=uid, role=role, seq=1, **fields)

    def lent(role: str, channels: int) -> list[str]:
        """Return the listeners granted for so many channels; an empty list if the request is refused."""
        uid = str(uuid4())
        answer = ask("REQ", uid, role, num_conn=channels, rate=1.0, app_key_hash="0" * 64)
        if answer["cmd"] == "ERROR":
            assert answer["code"] == "no-ports"
            # The refusal comes before the gateway confirms that it holds nothing; until then the ports count as lent.
            until(lambda: ask("REL", uid, role).get("state") != "Releasing", world.lab.server.words)
            return []
        held = len(gateway.ports_in_use())
        ask("REL", uid, role)
        until(lambda: len(gateway.ports_in_use()) == held - channels, world.lab.server.words)
        return list(answer["listeners"])

    with listen() as detector, world.stream([address_of(detector)], cons=world.lab) as stream:
        dialled = stream.requested.streaming()["connection_map"][stream.listeners[0]]
        ask("REL", stream.uid, PROD)
        until(lambda: len(gateway.ports_in_use()) == 1, world.lab.server.words)
        assert dialled in lent(PROD, count - 1)
        assert lent(CONS, count - 1) == []
        others = lent(CONS, count - 2)
        assert len(others) == count - 2
        assert dialled not in others
    assert dialled in lent(CONS, count)


def test_a_gateway_may_be_sent_to_its_own_wan_listener_when_it_serves_both_ends(world: World) -> None:
    with (
        listen() as detector,
        world.stream([address_of(detector)], cons=world.lab) as stream,
        stream.connect() as analysis,
        accept(detector) as camera,
    ):
        camera.sendall(b"x")
        assert analysis.recv(1) == b"x"

"""Ports that a stream requests by number, through the whole protocol in memory.

The parties are those of `test_whole_protocol`; each gateway lets the eight ports of its range be chosen.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from twisted.logger import formatEvent, globalLogPublisher

from scistream.protocol.address import Address
from scistream.protocol.errors import StreamError
from scistream.protocol.messages import CONS, PROD, GatewayCapacity, ReqListeners
from scistream.s2cs.service import ControlServer
from scistream.s2ds import ports as ports_module
from scistream.s2ds.service import DataServer
from scistream.s2uc.client import Stream
from support.memory_facilities import CONS_PORT, PROD_PORT, Facility, World
from support.memory_network import HOST, MemoryPorts

WAN = (PROD_PORT + 1) * 10
LAN = (CONS_PORT + 1) * 10
"""The first port of the first gateway of each facility."""
OTHER_DETECTOR = Address(HOST, 7001)


@pytest.fixture
def chosen_ports() -> str:
    """Return the `chosen_ports` of the gateways."""
    return ""


@pytest.fixture
def world(tmp_path: Path, chosen_ports: str) -> Iterator[World]:
    world = World(tmp_path, chosen_ports=chosen_ports)
    yield world
    world.close()


@pytest.fixture
def pools(tmp_path: Path) -> Iterator[World]:
    """Facilities of three gateways each, all of which let port 5075 and the next one be chosen."""
    world = World(tmp_path, gateways=3, chosen_ports="5075-5076")
    yield world
    world.close()


def taken_by_another_program(gateway: DataServer, *ports: int) -> None:
    assert isinstance(gateway.ports, MemoryPorts)
    gateway.ports.taken = set(ports)


def ports_of(listeners: list[str]) -> list[int]:
    return [int(listener.rpartition(":")[2]) for listener in listeners]


def refused(world: World, **wishes: Any) -> str:
    """Return the error message of a refused stream; check that the gateways hold what they held before."""
    before = world.prod.held(), world.cons.held()
    error = world.refusal(world.ask(**wishes))
    assert error.code == "no-ports"
    assert (world.prod.held(), world.cons.held()) == before
    return error.msg


def test_a_stream_has_the_ports_that_it_asked_for_at_both_sides(world: World) -> None:
    asked = {PROD: [WAN + 5, WAN + 2], CONS: [LAN + 7, LAN]}
    stream = world.stream(num_conn=2, listen_ports=asked)
    assert {role: ports_of(found) for role, found in stream.listeners.items()} == asked
    assert stream.connection_map == {
        f"{HOST}:{LAN + 7}": f"{HOST}:{WAN + 5}",
        f"{HOST}:{LAN}": f"{HOST}:{WAN + 2}",
        f"{HOST}:{WAN + 5}": f"{HOST}:7000",
        f"{HOST}:{WAN + 2}": f"{HOST}:7000",
    }
    assert world.cons.listening() == sorted(asked[CONS])
    sides = world.result(stream.status().deferred)
    assert {role: side.listen_ports for role, side in sides.items()} == asked


def test_a_side_that_asks_for_none_gets_any(world: World) -> None:
    stream = world.request(listen_ports={CONS: [LAN + 3]})
    assert ports_of(stream.listeners[CONS]) == [LAN + 3]
    assert len(stream.listeners[PROD]) == 1


def test_a_port_that_another_stream_has_is_refused_until_that_one_ends(world: World) -> None:
    first = world.stream(listen_ports={CONS: [LAN + 3]})
    msg = refused(world, listen_ports={CONS: [LAN + 3]})
    assert msg == (
        f"consumer side: gateway dtn{CONS_PORT + 1}: port {LAN + 3} was requested, but another stream has it: choose "
        "another port, or wait until that stream ends"
    )
    world.result(first.release().deferred)
    assert ports_of(world.request(listen_ports={CONS: [LAN + 3]}).listeners[CONS]) == [LAN + 3]


def test_a_port_that_a_stream_got_without_asking_is_refused_to_others(world: World) -> None:
    (port,) = ports_of(world.request().listeners[CONS])
    assert f"port {port} was requested, but another stream has it" in refused(world, listen_ports={CONS: [port]})


@pytest.mark.parametrize("port", [22, CONS_PORT + 1, 50000])
def test_a_port_that_no_stream_may_choose_is_refused_with_those_that_may_be(world: World, port: int) -> None:
    msg = refused(world, listen_ports={CONS: [port]})
    assert f"port {port} was requested, but this gateway lets streams choose {LAN}-{LAN + 7} only: choose one" in msg
    assert "ask its operator to add the port to `chosen_ports`" in msg


@pytest.mark.parametrize("chosen_ports", ["none"])
def test_where_no_port_may_be_chosen_any_is_refused(world: World) -> None:
    assert "this gateway lets streams choose no port: do not ask for one" in refused(world, listen_ports={CONS: [LAN]})


def test_a_port_of_another_program_is_refused_with_its_name(world: World) -> None:
    taken_by_another_program(world.cons.gateways[0], LAN + 4)
    msg = refused(world, num_conn=2, listen_ports={CONS: [LAN + 3, LAN + 4]})
    assert f"port {LAN + 4} was requested, but another program on this gateway uses it at {HOST}" in msg
    assert world.both_are("released")
    assert ports_of(world.request(listen_ports={CONS: [LAN + 3]}).listeners[CONS]) == [LAN + 3]


@pytest.mark.parametrize("chosen", ["5075, 40000-40003", "5075"])
def test_a_gateway_warns_at_its_start_of_ports_that_its_outgoing_connections_may_have(
    chosen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ip_local_port_range").write_text("32768\t60999\n")
    (tmp_path / "ip_local_reserved_ports").write_text("\n")
    monkeypatch.setattr(ports_module, "KERNEL_SETTINGS", tmp_path)
    said: list[str] = []

    def note(event: dict[str, Any]) -> None:
        if event["log_level"].name == "warn" and "ports" in event:
            said.append(formatEvent(event))

    globalLogPublisher.addObserver(note)
    try:
        World(tmp_path, chosen_ports=chosen).close()
    finally:
        globalLogPublisher.removeObserver(note)
    assert len(said) == (2 if "40000" in chosen else 0), "one of each gateway"
    for line in said:
        assert (
            "Streams may ask for ports 40000-40003, but this system also gives these ports to outgoing connections"
            in line
        )
        assert "net.ipv4.ip_local_reserved_ports" in line


@pytest.mark.parametrize("chosen_ports", ["5075, 5076"])
def test_ports_outside_the_usual_range_are_lent_only_on_request(world: World) -> None:
    first = world.request(listen_ports={CONS: [5075]}, rate=1.0)
    others = [world.request(num_conn=count, rate=1.0) for count in (4, 3)]
    assert 5076 not in {port for one in others for port in ports_of(one.listeners[CONS])}
    assert world.cons.gateways[0].ports.free == 1
    world.result(first.release().deferred)
    assert world.cons.gateways[0].ports.free == 1, "its port is none of the range"
    assert ports_of(world.request(listen_ports={CONS: [5075]}, rate=1.0).listeners[CONS]) == [5075]


def test_the_gateway_of_a_pool_that_has_the_port_free_gets_the_stream(pools: World) -> None:
    streams = [pools.stream(rate=1.0, listen_ports={CONS: [5075]}) for _ in range(3)]
    assert len({tuple(gateways_of(pools, stream)) for stream in streams}) == 3
    msg = refused(pools, rate=1.0, listen_ports={CONS: [5075]})
    for number in range(1, 4):
        assert f"gateway dtn{CONS_PORT + number}: port 5075 was requested, but another stream has it" in msg
    freed = gateways_of(pools, streams[1])
    pools.result(streams[1].release().deferred)
    assert gateways_of(pools, pools.stream(rate=1.0, listen_ports={CONS: [5075]})) == freed


def gateways_of(world: World, stream: Stream) -> list[str]:
    return sorted(world.cons.control.streams[stream.uid, CONS].record.plan)


def test_a_gateway_of_a_pool_where_another_program_has_the_port_is_replaced_by_the_next(pools: World) -> None:
    names = sorted(f"dtn{CONS_PORT + number}" for number in range(1, 4))
    for gateway in pools.cons.gateways[:2]:
        taken_by_another_program(gateway, 5075)
    stream = pools.stream(rate=1.0, listen_ports={CONS: [5075]})
    assert gateways_of(pools, stream) == [names[2]]
    pools.result(stream.release().deferred)
    assert pools.cons.is_empty()
    taken_by_another_program(pools.cons.gateways[2], 5075)
    msg = refused(pools, rate=1.0, listen_ports={CONS: [5075]})
    for name in names:
        assert f"gateway {name}: port 5075 was requested, but another program on this gateway uses it" in msg
    assert pools.both_are_empty()


def test_other_targets_and_a_restart_of_the_s2cs_leave_the_ports_as_they_are(world: World) -> None:
    stream = world.stream(listen_ports={CONS: [LAN + 3], PROD: [WAN + 1]})
    elsewhere = world.application(stream.join[PROD], "detector", listeners=(OTHER_DETECTOR,))
    world.network.until(lambda: stream.generation == 2 and stream.state == "Streaming")
    assert elsewhere.error is None
    assert {role: ports_of(found) for role, found in stream.listeners.items()} == {CONS: [LAN + 3], PROD: [WAN + 1]}
    restart(world, world.cons)
    world.network.run(20)
    assert "another stream has it" in refused(world, listen_ports={CONS: [LAN + 3]})
    assert world.result(stream.status().deferred)[CONS].listen_ports == [LAN + 3]


def restart(world: World, facility: Facility) -> None:
    world.result(facility.control.stopService())
    world.network.sever(facility.port)
    facility.control = facility.start_control()


class OldDataServer(DataServer):
    """As one of a version that knows of no listen ports: it neither reads the field nor says which may be chosen."""

    def message_received(self, link: Any, message: Any) -> None:
        if isinstance(message, ReqListeners):
            message = msgspec.structs.replace(message, listen_ports=None)
        super().message_received(link, message)

    def _gateway_capacity(self) -> GatewayCapacity:
        return msgspec.structs.replace(super()._gateway_capacity(), chosen_ports=None)


class OldControlServer(ControlServer):
    """Likewise."""

    def _req(self, link: Any, owner: str, request: Any, *, waits: bool = True) -> None:
        super()._req(link, owner, msgspec.structs.replace(request, listen_ports=None), waits=waits)


def test_a_gateway_of_an_older_version_is_not_asked_for_a_port_by_number(world: World) -> None:
    world.cons.gateways[0].__class__ = OldDataServer
    world.network.run(20)
    msg = refused(world, listen_ports={CONS: [LAN + 3]})
    assert f"port {LAN + 3} was requested, but this gateway's version of SciStream cannot grant ports by number" in msg
    assert len(world.request().listeners[CONS]) == 1


def test_an_s2cs_that_grants_another_port_since_it_is_older_is_refused_and_released(world: World) -> None:
    world.cons.control.__class__ = OldControlServer
    msg = refused(world, listen_ports={CONS: [LAN + 3]})
    assert f"consumer side: port {LAN + 3} was requested, and its facility has granted {HOST}:" in msg
    assert (
        "its version of SciStream does not support listen ports. Ask its operator to upgrade, or request no ports"
        in msg
    )
    assert world.both_are("released")
    assert world.both_are_empty()


def test_a_gateway_that_grants_another_port_than_it_was_asked_for_fails_the_stream(world: World) -> None:
    gateway = world.cons.gateways[0]
    reserve = gateway.ports.reserve
    gateway.ports.reserve_chosen = lambda host, ports, *rest, **more: reserve(host, len(ports), *rest, **more)
    error = world.refusal(world.ask(listen_ports={CONS: [LAN + 3]}))
    assert error.code == "gateway-failed"
    assert f"listens on {HOST}:{LAN}, but port {LAN + 3} was requested" in error.msg
    assert world.both_are_empty()


@pytest.mark.parametrize(
    ("wishes", "why"),
    [
        ({"num_conn": 2, "listen_ports": {CONS: [LAN]}}, "1 ports for 2 channels: name one port for each channel"),
        ({"num_conn": 2, "listen_ports": {CONS: [LAN, LAN]}}, f"port {LAN} is listed twice"),
        ({"listen_ports": {CONS: [0]}}, "listen_ports"),
        ({"listen_ports": {CONS: [65536]}}, "listen_ports"),
        ({"listen_ports": {"cons": [LAN]}}, "'cons' is not a side of a stream: write 'PROD' or 'CONS'"),
    ],
    ids=str,
)
def test_ports_that_fit_no_stream_are_refused_before_anybody_is_asked(
    world: World, wishes: dict[str, Any], why: str
) -> None:
    with pytest.raises(StreamError) as refusal:
        world.ask(**wishes)
    assert refusal.value.code == "bad-message"
    assert why in refusal.value.msg
    assert world.story("s2cs", CONS) == []

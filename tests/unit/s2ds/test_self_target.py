"""Targets that lead back to the gateway itself."""

from __future__ import annotations

import socket
from pathlib import Path

import msgspec
import pytest

from scistream.protocol.address import Address
from scistream.s2ds.self_target import is_own_address
from support.hostile_parties import SCRIPTS, DataServerParty
from support.memory_network import HOST

CONTROL, LENT = 5001, [(5100, 5200), (5075, 5075)]


def own_address() -> str:
    """Return an address of this machine that other machines can reach, or loopback if there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(("192.0.2.1", 9))
        except OSError:
            return HOST
        return str(sock.getsockname()[0])


def back(target: str, *wan_listeners: int, to_wan: bool = False) -> bool:
    return is_own_address(Address.parse(target), [CONTROL], LENT, frozenset(wan_listeners), to_wan=to_wan)


@pytest.mark.parametrize(
    "host", [HOST, "127.8.9.10", "0.0.0.0", "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:0.0.0.0]", own_address()]
)
def test_the_control_port_and_the_ports_of_streams_lead_back_by_every_address_of_this_machine(host: str) -> None:
    for port in (CONTROL, 5100, 5200, 5075):
        assert back(f"{host}:{port}")
        assert back(f"{host}:{port}", to_wan=True)
    for port in (CONTROL + 1, 5099, 5201, 5074, 5076, 7000):
        assert not back(f"{host}:{port}")


def test_the_same_ports_of_another_machine_and_of_a_name_lead_elsewhere() -> None:
    for host in ("192.0.2.1", "[2001:db8::1]", "[::ffff:192.0.2.1]", "gateway.example"):
        for port in (CONTROL, 5100):
            assert not back(f"{host}:{port}")


def test_addresses_of_a_family_that_the_system_has_not_lead_elsewhere(no_ipv6: None) -> None:
    assert not back("[2001:db8::1]:5001")
    assert back(f"{HOST}:5001")


def test_one_gateway_may_serve_both_ends_of_a_stream_by_its_wan_listeners_alone() -> None:
    assert not back(f"{HOST}:5100", 5100, to_wan=True)
    assert back(f"{HOST}:5101", 5100, to_wan=True)
    assert back(f"{HOST}:5100", 5100, to_wan=False)


def test_a_gateway_refuses_itself_as_a_target_and_goes_on_with_another(tmp_path: Path) -> None:
    reserve, update, *_ = SCRIPTS[DataServerParty][0]
    gateway = DataServerParty(tmp_path)
    try:
        gateway.hear([reserve])
        for port in (5001, 50010, 50017):
            gateway.hear([update.replace(b"127.0.0.1:7000", b"127.0.0.1:%d" % port)])
            answer = gateway.ends()[0].messages[-1]
            assert (answer.code, "this gateway itself" in answer.msg) == ("target-refused", True)
        gateway.hear([update])
        assert gateway.ends()[0].messages[-1].state == "Forwarding"
    finally:
        gateway.close()


def test_a_stream_cannot_lead_to_the_http_listener_which_asks_users_of_the_machine_for_no_login(tmp_path: Path) -> None:
    reserve, update, *_ = SCRIPTS[DataServerParty][0]
    gateway = DataServerParty(tmp_path)
    try:
        http = msgspec.structs.replace(gateway.server.config.http, listen=f"{HOST}:7000")
        gateway.server.reload(msgspec.structs.replace(gateway.server.config, http=http))
        gateway.hear([reserve, update])
        answer = gateway.ends()[0].messages[-1]
        assert (answer.code, "its HTTP port" in answer.msg) == ("target-refused", True)
    finally:
        gateway.close()


def test_a_consumer_s_listener_cannot_lead_to_itself(tmp_path: Path) -> None:
    reserve, update, *_ = (line.replace(b'"PROD"', b'"CONS"') for line in SCRIPTS[DataServerParty][0])
    gateway = DataServerParty(tmp_path)
    try:
        gateway.hear([reserve, update.replace(b"127.0.0.1:7000", b"127.0.0.1:50010")])
        answer = gateway.ends()[0].messages[-1]
        assert answer.code == "target-refused"
    finally:
        gateway.close()

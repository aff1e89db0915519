"""A ready connection is looked at when it is claimed: a dead one is not used."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from scistream.s2ds.relay import wan
from scistream.s2ds.relay.tcp_info import over_all_paths, tcp_info
from scistream.s2ds.relay.wan import WanConnection

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="gateways run on Linux")


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        here = socket.create_connection(listener.getsockname(), timeout=10)
        there, _ = listener.accept()
    here.setblocking(False)
    with here, there:
        yield here, there


def ready_on(sock: socket.socket) -> WanConnection:
    nobody: Any = None
    connection = WanConnection(nobody, nobody, nobody)
    leg: Any = SimpleNamespace(sock=sock)
    connection._leg = leg
    return connection


@pytest.mark.parametrize(
    ("probes", "retransmits", "is_alive"),
    [
        (0, 0, True),
        (1, 0, True),  # the answer may be on its way
        (0, 1, True),
        (2, 0, False),
        (0, 2, False),  # the path died with the last bytes of the handshake, and TCP sends these and no probes
    ],
)
def test_it_is_alive_until_two_packets_in_a_row_are_not_answered(
    ends: tuple[socket.socket, socket.socket],
    monkeypatch: pytest.MonkeyPatch,
    probes: int,
    retransmits: int,
    is_alive: bool,
) -> None:
    found = tcp_info(ends[0])._replace(probes=probes, retransmits=retransmits)
    monkeypatch.setattr(wan, "tcp_info", lambda _sock: found)
    assert ready_on(ends[0]).is_alive() == is_alive


def test_it_is_dead_without_a_path(ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wan, "tcp_info", lambda _sock: over_all_paths([], None))
    assert not ready_on(ends[0]).is_alive()


@pytest.mark.parametrize("how", ["closed", "reset", "broken off"])
def test_it_is_dead_once_the_other_gateway_has_ended_it(ends: tuple[socket.socket, socket.socket], how: str) -> None:
    here, there = ends
    connection = ready_on(here)
    assert connection.is_alive()
    if how == "reset":
        there.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    if how == "broken off":
        there.shutdown(socket.SHUT_WR)
    else:
        there.close()
    assert not connection.is_alive()

"""Several paths over the WAN: the settings, the sockets of Multipath TCP, and what is said where it cannot be had."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.testing import MemoryReactorClock

from scistream.config import ConfigError
from scistream.protocol.errors import StreamError
from scistream.s2ds.paths import wan_paths
from scistream.s2ds.ports import ONE_PATH, ChannelListener, ListenPorts, Paths
from scistream.s2ds.relay import mptcp
from scistream.s2ds.relay.leg import prepare
from scistream.s2ds.service import DataServer
from scistream.s2ds.settings import S2DSConfig, WanSettings
from support.leased_ports import leased
from support.requirements import missing

BOTH = ["127.0.0.2", "127.0.0.3"]
HERE = {"bind": "127.0.0.2", "paths": BOTH}


def needs_mptcp() -> None:
    lack = mptcp.lack()
    if lack is not None:
        missing(lack)


def without(code: int) -> Any:
    """Return a class of sockets on a system that refuses those of MPTCP."""

    class Socket(socket.socket):
        def __init__(self, family: int = -1, kind: int = -1, proto: int = -1, fileno: int | None = None) -> None:
            if proto == mptcp.PROTOCOL:
                raise OSError(code, "refused")
            super().__init__(family, kind, proto, fileno)

    return Socket


def problems(**settings: Any) -> list[str]:
    return [f"{keys[0]}: {why}" for keys, why in WanSettings(**settings).problems()]


def test_one_address_needs_no_multipath_tcp() -> None:
    assert wan_paths(WanSettings()) == ONE_PATH
    assert wan_paths(WanSettings(paths=["127.0.0.1"])) == ONE_PATH


def test_two_addresses_use_it_and_listen_at_the_other_one_too() -> None:
    needs_mptcp()
    assert wan_paths(WanSettings(**HERE)) == Paths(multipath=True, others=("127.0.0.3",))
    everywhere = WanSettings(bind="0.0.0.0", advertise="127.0.0.2", paths=[*BOTH, "::1"])
    assert wan_paths(everywhere) == Paths(multipath=True, others=("::1",))


def test_an_operator_can_have_it_with_one_address_or_never() -> None:
    needs_mptcp()
    assert wan_paths(WanSettings(multipath="yes")).multipath
    assert wan_paths(WanSettings(multipath="no", **HERE)) == ONE_PATH


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (errno.ENOPROTOOPT, "switch it on with `sysctl -w net.mptcp.enabled=1`"),
        (errno.EPROTONOSUPPORT, "this kernel has no Multipath TCP: use Linux 5.6 or later"),
        (errno.EPERM, "this system refuses sockets of Multipath TCP: Operation not permitted"),
    ],
)
def test_where_it_cannot_be_had_a_default_starts_and_a_demand_is_refused_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, code: int, remedy: str
) -> None:
    monkeypatch.setattr(socket, "socket", without(code))
    assert wan_paths(WanSettings(**HERE)) == ONE_PATH
    config = S2DSConfig(insecure=True, wan=WanSettings(multipath="yes", **HERE))
    with pytest.raises(ConfigError, match=r'^wan\.multipath: "yes" cannot be had, since') as refused:
        DataServer(MemoryReactorClock(), config, Path("s2ds.toml"))
    assert remedy in str(refused.value)


def test_paths_that_no_gateway_can_have_are_refused() -> None:
    assert problems(**HERE) == []
    (wrong,) = problems(multipath="maybe")
    assert wrong == 'multipath: \'maybe\' is not a choice: write one of "auto", "yes", "no"'
    for text in ("gw.example.org", "0.0.0.0", "224.0.0.1", "fe80::1", ""):
        (wrong,) = problems(paths=[text])
        assert wrong.startswith(f"paths: {text!r} is not the numeric address of a path: write an address of this")
    assert problems(bind="127.0.0.2", paths=["127.0.0.2", "127.0.0.2"]) == [
        "paths: '127.0.0.2' is there twice: write each address once"
    ]
    assert problems(bind="127.0.0.9", paths=BOTH) == [
        "paths: bind, '127.0.0.9', is not among the paths: add it, since connections begin there"
    ]
    (wrong,) = problems(bind="0.0.0.0", advertise="127.0.0.2", paths=[f"127.0.0.{last}" for last in range(2, 11)])
    assert wrong == "paths: has 9 addresses, but the kernel uses 8 at most: leave the others out"


@pytest.fixture
def ports() -> Iterator[tuple[ListenPorts, list[socket.socket]]]:
    first = leased.take(1)
    ports = ListenPorts(first, first)
    sockets = ports.reserve(BOTH[0], 1, paths=Paths(multipath=mptcp.lack() is None, others=(BOTH[1],)))
    yield ports, sockets
    for sock in sockets:
        ports.release(sock)


def test_a_channel_accepts_at_each_path_on_the_same_port(ports: tuple[ListenPorts, list[socket.socket]]) -> None:
    lent, (sock,) = ports
    reactor, accepted = MemoryReactorClock(), list[socket.socket]()
    listener = ChannelListener(reactor, sock, lent.beside(sock))
    listener.start(lambda found, _peer: accepted.append(found))
    port = sock.getsockname()[1]
    for host in BOTH:
        with closing(mptcp.tcp_socket(socket.AF_INET, multipath=True)) as client:
            client.connect((host, port))
            for reader in list(reactor.readers):
                reader.doRead()
            found = accepted.pop()
            client.sendall(host.encode())
            found.setblocking(True)
            assert found.recv(100) == host.encode()
            found.close()
    listener.stop()
    assert not reactor.readers
    with closing(socket.socket()) as client:
        for host in BOTH:
            assert client.connect_ex((host, port)) == errno.ECONNREFUSED


def test_a_port_that_another_program_has_at_one_path_is_not_lent() -> None:
    first = leased.take(1)
    with closing(socket.socket()) as other:
        other.bind((BOTH[1], first))
        with pytest.raises(StreamError, match="0 of the range"):
            ListenPorts(first, first).reserve(BOTH[0], 1, paths=Paths(others=(BOTH[1],)))
    (sock,) = ListenPorts(first, first).reserve(BOTH[0], 1, paths=Paths(others=(BOTH[1],)))
    sock.close()


def test_a_path_whose_address_is_away_does_not_keep_streams_from_starting() -> None:
    first = leased.take(1)
    ports = ListenPorts(first, first)
    (sock,) = ports.reserve("127.0.0.1", 1, paths=Paths(others=("192.0.2.1", "2001:db8::1")))
    assert [other.getsockname()[0] for other in ports.beside(sock)] == ["192.0.2.1", "2001:db8::1"]
    ports.release(sock)
    assert ports.beside(sock) == []


def test_sockets_of_several_paths_are_prepared_as_all_are() -> None:
    needs_mptcp()
    with closing(mptcp.tcp_socket(socket.AF_INET, multipath=True)) as sock:
        prepare(sock, 60.0, "reno")
        assert mptcp.is_multipath(sock)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0") == b"reno"


def test_a_system_that_switches_it_off_later_gets_plain_tcp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "socket", without(errno.ENOPROTOOPT))
    with closing(mptcp.tcp_socket(socket.AF_INET, multipath=True)) as sock:
        assert sock.proto in (0, socket.IPPROTO_TCP)

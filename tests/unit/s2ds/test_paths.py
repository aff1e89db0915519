"""Several paths over the WAN: the settings, the sockets of Multipath TCP, and what is said where it cannot be had."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import pytest
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import capturedLogs, formatEvent

from scistream import timing
from scistream.config import ConfigError
from scistream.protocol.errors import StreamError
from scistream.s2ds import paths
from scistream.s2ds.paths import Claim, PathManager, own_numbers, wan_paths
from scistream.s2ds.ports import ONE_PATH, ChannelListener, ListenPorts, Paths
from scistream.s2ds.relay import dead_peers, mptcp
from scistream.s2ds.relay.leg import prepare, set_keepalive
from scistream.s2ds.relay.tcp_info import TcpInfo, bytes_waiting, over_all_paths, paths_of, tcp_info
from scistream.s2ds.service import DataServer
from scistream.s2ds.settings import S2DSConfig, WanSettings
from support.leased_ports import leased
from support.requirements import needs_ipv6, needs_mptcp
from support.waiting import until

BOTH = ["127.0.0.2", "127.0.0.3"]
HERE = {"bind": "127.0.0.2", "paths": BOTH}


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
    assert wan_paths(everywhere) == Paths(multipath=True, others=("::1",), mixed=True)


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


def test_with_paths_of_ipv4_and_ipv6_peers_are_accepted_and_named_as_before() -> None:
    needs_mptcp()
    needs_ipv6()
    first = leased.take(1)
    lent = ListenPorts(first, first)
    (sock,) = lent.reserve(BOTH[0], 1, paths=Paths(multipath=True, others=("::1", "192.0.2.1"), mixed=True))
    reactor, accepted = MemoryReactorClock(), list[tuple[socket.socket, Any]]()
    listener = ChannelListener(reactor, sock, lent.beside(sock))
    listener.start(lambda *found: accepted.append(found))
    try:
        for host, mixed in ((BOTH[0], False), (BOTH[0], True), ("::1", False)):
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            with closing(mptcp.tcp_socket(family, multipath=True, mixed=mixed)) as client:
                client.connect((mptcp.address_for(client, host), first))
                for reader in list(reactor.readers):
                    reader.doRead()
                found, peer = accepted.pop()
                with closing(found):
                    assert peer[0] == ("::1" if ":" in host else "127.0.0.1")
        with closing(socket.socket()) as other:  # only the address that was asked for is taken
            other.bind((BOTH[1], first))
    finally:
        listener.stop()
        lent.release(sock)


def test_a_system_without_ipv6_has_paths_of_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    needs_mptcp()

    class Socket(socket.socket):
        def __init__(self, family: int = -1, kind: int = -1, proto: int = -1, fileno: int | None = None) -> None:
            if family == socket.AF_INET6:
                raise OSError(errno.EAFNOSUPPORT, "refused")
            super().__init__(family, kind, proto, fileno)

    monkeypatch.setattr(socket, "socket", Socket)
    with closing(mptcp.tcp_socket(socket.AF_INET, multipath=True, mixed=True)) as sock:
        assert (sock.family, mptcp.is_multipath(sock)) == (socket.AF_INET, True)
        assert mptcp.address_for(sock, BOTH[0]) == BOTH[0]


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


def test_the_kernel_keeps_a_path_that_does_not_answer_while_the_gateway_watches_the_connection() -> None:
    needs_mptcp()
    with closing(mptcp.tcp_socket(socket.AF_INET, multipath=True)) as sock, closing(socket.socket()) as plain:
        for one in (sock, plain):
            prepare(one, 60.0)
            assert one.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT) < 10
            set_keepalive(one, 60.0, is_watched=True)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT) == 127
        assert plain.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT) < 10


@pytest.fixture
def joined() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Return both ends of a connection of Multipath TCP that has carried bytes in both directions."""
    needs_mptcp()
    with (
        closing(mptcp.tcp_socket(socket.AF_INET, multipath=True)) as listener,
        closing(mptcp.tcp_socket(socket.AF_INET, multipath=True)) as sender,
    ):
        listener.bind((BOTH[0], 0))
        listener.listen()
        sender.connect(listener.getsockname())
        receiver, _ = listener.accept()
        with closing(receiver):
            for end in (sender, receiver):
                end.settimeout(20.0)
            sender.sendall(b"a")
            assert receiver.recv(1) == b"a"
            receiver.sendall(b"b")
            assert sender.recv(1) == b"b"
            yield sender, receiver


def test_a_reset_of_such_a_connection_is_seen_as_one(joined: tuple[socket.socket, socket.socket]) -> None:
    sender, receiver = joined
    prepare(sender, 60.0)  # it resets when it is closed
    sender.close()
    with pytest.raises(ConnectionResetError):
        receiver.recv(1)


def test_corking_splicing_and_the_counts_of_its_buffers_work_on_such_a_connection(
    joined: tuple[socket.socket, socket.socket],
) -> None:
    sender, receiver = joined
    sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
    sender.send(b"x" * 100)
    sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)
    until(lambda: bytes_waiting(receiver).in_all == 100, lambda: f"{bytes_waiting(receiver)}")
    until(lambda: bytes_waiting(sender).in_all == 0, lambda: f"{bytes_waiting(sender)}")
    reader, writer = os.pipe()
    try:
        assert os.splice(receiver.fileno(), writer, 4096) == 100
        assert os.splice(reader, receiver.fileno(), 4096) == 100
    finally:
        os.close(reader)
        os.close(writer)
    assert sender.recv(4096) == b"x" * 100


def test_a_kernel_that_does_not_tell_all_paths_at_once_is_asked_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    needs_mptcp()
    with (
        closing(mptcp.tcp_socket(socket.AF_INET, multipath=True)) as listener,
        closing(mptcp.tcp_socket(socket.AF_INET, multipath=True)) as sender,
    ):
        listener.bind((BOTH[0], 0))
        listener.listen()
        sender.connect(listener.getsockname())
        receiver, _ = listener.accept()
        with closing(receiver):
            sender.sendall(b"through")
            assert receiver.recv(100) == b"through"
            (at_once,) = paths_of(receiver)
            monkeypatch.setattr(mptcp, "_all_at_once", lambda _sock, _size: None)
            (twice,) = paths_of(receiver)
            assert twice._replace(info=at_once.info) == at_once
            assert twice.info.received == at_once.info.received == 7


def test_a_system_that_switches_it_off_later_gets_plain_tcp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "socket", without(errno.ENOPROTOOPT))
    with closing(mptcp.tcp_socket(socket.AF_INET, multipath=True)) as sock:
        assert sock.proto in (0, socket.IPPROTO_TCP)


class FakeKernel:
    """A kernel's path manager that may refuse changes."""

    def __init__(self, known: dict[str, int] | None = None, refusal: int | None = None) -> None:
        self.known = known or {}
        self.limit = 0, 2
        self.refusal = refusal
        self.calls: list[str] = []

    def _change(self, call: str) -> None:
        if self.refusal is not None:
            raise OSError(self.refusal, os.strerror(self.refusal))
        self.calls.append(call)

    def endpoints(self) -> dict[str, int]:
        return dict(self.known)

    def add(self, address: str, number: int) -> None:
        if number in self.known.values():
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        self._change(f"add {address}")
        self.known[address] = number or 1

    def delete(self, address: str, number: int) -> None:
        assert self.known[address] == number
        self._change(f"delete {address}")
        del self.known[address]

    def limits(self) -> tuple[int, int]:
        return self.limit

    def set_limits(self, accepted: int, subflows: int) -> None:
        self._change(f"limits {accepted} {subflows}")
        self.limit = accepted, subflows


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Return the addresses that this machine has, in place of the real ones."""
    found = set(BOTH)
    monkeypatch.setattr(paths, "is_here", lambda address: address in found)
    return found


@pytest.mark.usefixtures("here")
def test_the_kernel_is_told_the_paths_and_all_is_taken_back_at_the_end() -> None:
    kernel, clock = FakeKernel({BOTH[0]: 7}), Clock()
    manager = PathManager(clock, BOTH, kernel)
    manager.start()
    assert (kernel.known, kernel.limit) == ({BOTH[0]: 7, BOTH[1]: own_numbers(BOTH[1])[0]}, (8, 8))
    manager.stop()
    assert (kernel.known, kernel.limit) == ({BOTH[0]: 7}, (0, 2))  # what the operator has set stays
    manager.stop()
    assert not clock.getDelayedCalls()


@pytest.mark.usefixtures("here")
def test_what_a_killed_gateway_left_is_taken_back_and_what_others_told_the_kernel_stays() -> None:
    gone, of_another, foreign = "127.0.0.4", "127.0.0.5", "127.0.0.6"
    left = {address: own_numbers(address)[0] for address in (BOTH[0], gone, of_another)}
    kernel = FakeKernel({**left, BOTH[1]: 1, foreign: 2})
    running = Claim(of_another)
    try:
        manager = PathManager(Clock(), BOTH, kernel)
        with capturedLogs() as logs:
            manager.start()
        assert kernel.calls == ["limits 8 8", f"delete {gone}"] or kernel.calls == [f"delete {gone}", "limits 8 8"]
        assert {formatEvent(event) for event in logs} == {
            f"Path {BOTH[0]} was left in the kernel by a gateway that was killed",
            f"{gone}, which a gateway that was killed has left in the kernel, is taken back",
        }
        manager.stop()
        assert kernel.known == {of_another: left[of_another], BOTH[1]: 1, foreign: 2}
    finally:
        running.release()
    again = PathManager(Clock(), [], kernel)
    again.start()
    again.stop()
    assert kernel.known == {BOTH[1]: 1, foreign: 2}


@pytest.mark.usefixtures("here")
def test_identifiers_that_others_have_are_left_to_them() -> None:
    first, second = own_numbers(BOTH[1])
    assert first != second
    assert all(20 <= number < 220 for last in range(256) for number in own_numbers(f"192.0.2.{last}"))
    kernel = FakeKernel({"192.0.2.1": first})
    manager = PathManager(Clock(), BOTH, kernel)
    manager.start()
    assert kernel.known == {"192.0.2.1": first, BOTH[0]: own_numbers(BOTH[0])[0], BOTH[1]: second}
    manager.stop()
    assert kernel.known == {"192.0.2.1": first}


@pytest.mark.usefixtures("here")
def test_limits_that_somebody_changed_meanwhile_stay() -> None:
    kernel = FakeKernel()
    manager = PathManager(Clock(), BOTH, kernel)
    manager.start()
    kernel.limit = 3, 3
    manager.stop()
    assert kernel.limit == (3, 3)


@pytest.mark.usefixtures("here")
def test_a_gateway_that_may_not_tell_the_kernel_says_once_what_to_run() -> None:
    clock = Clock()
    with capturedLogs() as logs:
        manager = PathManager(clock, BOTH, FakeKernel(refusal=errno.EPERM))
        manager.start()
        clock.pump([timing.PATHS_CHECK] * 5)
        manager.stop()
    (line,) = [formatEvent(event) for event in logs]
    assert "CAP_NET_ADMIN is missing" in line
    assert "`ip mptcp limits set add_addr_accepted 8 subflows 8`" in line
    for address in BOTH:
        assert f"`ip mptcp endpoint add {address} signal subflow`" in line


def test_a_path_whose_address_comes_back_is_opened_again_and_both_are_logged(here: set[str]) -> None:
    kernel, clock = FakeKernel(), Clock()
    manager = PathManager(clock, BOTH, kernel)
    manager.start()
    kernel.calls.clear()
    with capturedLogs() as logs:
        here.discard(BOTH[1])
        clock.pump([timing.PATHS_CHECK] * 3)
        assert kernel.calls == []
        here.add(BOTH[1])
        clock.pump([timing.PATHS_CHECK] * 3)
    assert kernel.calls == [f"delete {BOTH[1]}", f"add {BOTH[1]}"]
    assert [formatEvent(event) for event in logs] == [
        f"Path {BOTH[1]} of the WAN is away: this machine lost the address",
        f"Path {BOTH[1]} of the WAN is back",
    ]
    manager.stop()


def test_whether_this_machine_has_an_address_is_asked_of_the_system() -> None:
    assert paths.is_here("127.0.0.1")
    assert not paths.is_here("192.0.2.1")
    assert not paths.is_here("2001:db8::1")


def test_figures_of_several_paths_count_every_byte_once() -> None:
    needs_mptcp()
    with (
        closing(mptcp.tcp_socket(socket.AF_INET, multipath=True)) as listener,
        closing(mptcp.tcp_socket(socket.AF_INET, multipath=True)) as sender,
    ):
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        sender.connect(listener.getsockname())
        receiver, _ = listener.accept()
        with closing(receiver):
            sender.sendall(bytes(100_000))
            receiver.settimeout(20.0)
            got = 0
            while got < 100_000:
                got += len(receiver.recv(65536))
            until(lambda: tcp_info(sender).acknowledged >= 100_000, lambda: f"{tcp_info(sender)}")
            info = tcp_info(receiver)
            assert info.received == 100_000
            assert info.retransmits == 0
            assert info.silent < 20
            (path,) = paths_of(receiver)
            assert (path.local, path.remote, path.is_up) == ("127.0.0.1", "127.0.0.1", True)
            assert path.ports == (receiver.getsockname()[1], sender.getsockname()[1])
            assert path.info.received == 100_000


def test_a_connection_is_as_alive_as_the_best_of_its_paths() -> None:
    dead = TcpInfo(9, 0, 50.0, 0.3, 0.2, 12, 10, 100, 200)
    alive = TcpInfo(0, 0, 0.1, 0.02, 0.01, 1, 1000, 500, 600)
    both = over_all_paths([dead, alive], None)
    assert both == TcpInfo(0, 0, 0.1, 0.02, 0.01, 13, 1010, 600, 800)
    assert over_all_paths([dead, dead], None).retransmits == 9
    nothing_left = over_all_paths([], mptcp.Totals(100, 200, 0, 70.0))
    assert (nothing_left.retransmits, nothing_left.silent) == (1, 70.0)


def test_a_peer_without_it_is_met_with_plain_tcp() -> None:
    needs_mptcp()
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        closing(mptcp.tcp_socket(socket.AF_INET, multipath=True)) as sender,
    ):
        sender.connect(listener.getsockname())
        receiver, _ = listener.accept()
        with closing(receiver):
            receiver.sendall(b"through")
            assert sender.recv(100) == b"through"
        assert mptcp.subflows(sender, 232) is None
        assert paths_of(sender) == []
        assert tcp_info(sender).received >= 7


def test_an_idle_connection_that_nobody_needs_yet_ends_sooner_and_as_any_other_one_once_it_is_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Idle:
        sock = cast(socket.socket, None)
        ended = ""

        def break_off(self, reason: str) -> None:
            self.ended = reason

    clock = Clock()
    monkeypatch.setattr(dead_peers, "tcp_info", lambda _: TcpInfo(0, 2, clock.seconds(), 0.0, 0.0, 0, 0, 0, 0))
    detector = dead_peers.DeadPeerDetector(clock, 60.0)
    ready, used, claimed = Idle(), Idle(), Idle()
    for one in (ready, used, claimed):
        detector.add(one)
    for one in (ready, claimed):
        detector.end_sooner(one, 12.0)
    detector.end_sooner(claimed, None)
    clock.pump([10.0] * 2)
    assert (ready.ended, used.ended, claimed.ended) == ("nothing was received over the WAN for 12 s", "", "")
    clock.pump([10.0] * 5)
    assert used.ended == claimed.ended == "nothing was received over the WAN for 60 s"
    for one in (ready, used, claimed):
        detector.remove(one)
    assert not clock.getDelayedCalls()


def test_a_connection_whose_only_path_was_closed_counts_as_failing(monkeypatch: pytest.MonkeyPatch) -> None:
    needs_mptcp()
    closed = bytes([7]) + bytes(167)  # the kernel lists the first path on, without retransmits or probes
    only = mptcp.Subflow("127.0.0.1", "127.0.0.2", (1, 2), closed)
    monkeypatch.setattr(mptcp, "subflows", lambda _sock, _size: [only])
    monkeypatch.setattr(mptcp, "totals", lambda _sock: mptcp.Totals(1, 2, 0, 70.0))
    with closing(mptcp.tcp_socket(socket.AF_INET, multipath=True)) as sock:
        info = tcp_info(sock)
    assert (info.retransmits, info.silent, info.received, info.acknowledged) == (1, 70.0, 1, 2)

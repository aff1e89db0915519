"""The ports of a gateway: bound sockets on loopback, and what the kernel says to those who connect."""

import contextlib
import errno
import resource
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import globalLogPublisher

from scistream.protocol.errors import StreamError
from scistream.s2ds import ports as ports_module
from scistream.s2ds.ports import ChannelListener, ListenPorts, shared_with_connections
from support.leased_ports import leased
from support.memory_network import MemoryPorts
from support.requirements import needs_ipv6

FIRST = leased.take(8)
LAST = FIRST + 7


def taken(sockets: list[socket.socket]) -> list[int]:
    return [sock.getsockname()[1] for sock in sockets]


@pytest.fixture
def ports() -> Iterator[ListenPorts]:
    ports = ListenPorts(FIRST, LAST)
    yield ports
    for sock in list(ports._given):
        ports.release(sock)


def test_each_socket_has_a_port_of_its_own_in_the_range(ports: ListenPorts) -> None:
    sockets = ports.reserve("127.0.0.1", 3) + ports.reserve("127.0.0.1", 2)
    numbers = taken(sockets)
    assert len(set(numbers)) == 5
    assert all(FIRST <= number <= LAST for number in numbers)
    assert ports.free == 3
    assert not any(sock.getblocking() or sock.get_inheritable() for sock in sockets)


def test_too_many_connections_are_refused_with_the_reason(ports: ListenPorts) -> None:
    ports.reserve("127.0.0.1", 6)
    with pytest.raises(StreamError) as refused:
        ports.reserve("127.0.0.1", 3)
    assert refused.value.code == "no-ports"
    for part in ("3 port(s) requested", f"2 of the range {FIRST}-{LAST}", "request fewer"):
        assert part in refused.value.msg
    assert ports.free == 2
    assert len(ports.reserve("127.0.0.1", 2)) == 2


def test_a_released_port_is_the_last_to_be_given_out_again(ports: ListenPorts) -> None:
    first, *_ = ports.reserve("127.0.0.1", 2)
    number = first.getsockname()[1]
    ports.release(first)
    ports.release(first)
    assert ports.free == 7
    assert number not in taken(ports.reserve("127.0.0.1", 6))
    assert taken(ports.reserve("127.0.0.1", 1)) == [number]


def test_excluded_ports_are_left_free_and_count_as_too_few(ports: ListenPorts) -> None:
    excluded = {FIRST, LAST}
    with pytest.raises(StreamError, match=r"7 port.* 6 of the range"):
        ports.reserve("127.0.0.1", 7, excluded)
    assert ports.free == 8
    given = ports.reserve("127.0.0.1", 6, excluded)
    assert excluded.isdisjoint(taken(given))
    assert set(taken(ports.reserve("127.0.0.1", 2))) == excluded


def test_nobody_can_connect_before_a_listener_is_started(ports: ListenPorts) -> None:
    (sock,) = ports.reserve("127.0.0.1", 1)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(sock.getsockname(), timeout=20)


def test_a_port_that_another_holds_is_skipped_listening_or_not(ports: ListenPorts) -> None:
    other = ListenPorts(FIRST, LAST)
    theirs = other.reserve("127.0.0.1", 4)
    theirs[0].listen()
    ours = ports.reserve("127.0.0.1", 4)
    assert not set(taken(ours)) & set(taken(theirs))
    with pytest.raises(StreamError, match="0 of the range"):
        ports.reserve("127.0.0.1", 1)
    for sock in theirs:
        other.release(sock)
    assert len(ports.reserve("127.0.0.1", 4)) == 4


def test_a_number_counts_once_even_on_different_addresses(ports: ListenPorts) -> None:
    needs_ipv6()
    v4 = ports.reserve("127.0.0.1", 4)
    v6 = ports.reserve("::1", 4)
    assert not set(taken(v4)) & set(taken(v6))
    assert ports.free == 0


def test_ipv6_sockets_serve_ipv6_alone(ports: ListenPorts) -> None:
    needs_ipv6()
    (sock,) = ports.reserve("::1", 1)
    assert sock.family == socket.AF_INET6
    assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1


def test_an_address_of_another_machine_names_the_setting(ports: ListenPorts) -> None:
    with pytest.raises(StreamError) as refused:
        ports.reserve("192.0.2.1", 1)
    assert refused.value.code == "gateway-failed"
    assert f"192.0.2.1:{FIRST}" in refused.value.msg
    assert "`bind` in [lan] and [wan]" in refused.value.msg
    assert ports.free == 8


def test_a_port_in_time_wait_is_used_when_no_other_is_left() -> None:
    port = leased.take()  # for this test alone: it stays so for a minute
    ports = ListenPorts(port, port)
    (sock,) = ports.reserve("127.0.0.1", 1)
    accepted: list[socket.socket] = []
    listener = ChannelListener(MemoryReactorClock(), sock)
    listener.start(lambda connection, _peer: accepted.append(connection))
    client = socket.create_connection(sock.getsockname(), timeout=20)
    listener.doRead()
    accepted[0].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes(8))
    accepted[0].close()  # first to close: its end stays in TIME_WAIT
    assert client.recv(1) == b""
    client.close()
    listener.stop()
    ports.release(sock)
    with socket.socket() as strict, pytest.raises(OSError, match="in use"):
        strict.bind(("127.0.0.1", port))
    (again,) = ports.reserve("127.0.0.1", 1)
    ports.release(again)


class Armed:
    """A listener that remembers what it accepted."""

    def __init__(self, ports: ListenPorts) -> None:
        (self.sock,) = ports.reserve("127.0.0.1", 1)
        self.reactor = MemoryReactorClock()
        self.accepted: list[socket.socket] = []
        self.listener = ChannelListener(self.reactor, self.sock)
        self.listener.start(self.accept)

    def accept(self, connection: socket.socket, _peer: tuple[Any, ...]) -> None:
        self.accepted.append(connection)


@pytest.fixture
def armed(ports: ListenPorts) -> Iterator[Armed]:
    armed = Armed(ports)
    yield armed
    armed.listener.stop()
    for connection in armed.accepted:
        connection.close()


@contextlib.contextmanager
def no_descriptors_left() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket() as probe:
        lowest = probe.fileno()
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_started_listener_accepts_all_that_wait(armed: Armed) -> None:
    with contextlib.ExitStack() as clients:
        for _ in range(5):
            clients.enter_context(socket.create_connection(armed.sock.getsockname(), timeout=20))
        armed.listener.doRead()
        assert len(armed.accepted) == 5
        assert not armed.accepted[0].getblocking()


def test_a_second_start_changes_who_is_called(armed: Armed) -> None:
    later: list[socket.socket] = []
    armed.listener.start(lambda connection, _peer: later.append(connection))
    with socket.create_connection(armed.sock.getsockname(), timeout=20):
        armed.listener.doRead()
    assert (len(armed.accepted), len(later)) == (0, 1)
    later[0].close()


def test_without_descriptors_connections_wait_and_are_accepted_later(armed: Armed) -> None:
    with socket.create_connection(armed.sock.getsockname(), timeout=20):
        with no_descriptors_left():
            armed.listener.doRead()
            assert armed.listener not in armed.reactor.getReaders()
            armed.reactor.advance(0.5)
            armed.listener.doRead()
        assert armed.accepted == []
        armed.reactor.advance(0.5)
        assert armed.listener in armed.reactor.getReaders()
        armed.listener.doRead()
        assert len(armed.accepted) == 1


def test_a_stopped_listener_refuses_and_leaves_nothing_behind(armed: Armed) -> None:
    address = armed.sock.getsockname()
    armed.listener.stop()
    armed.listener.stop()
    assert armed.reactor.getReaders() == []
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, timeout=20)


def test_a_connection_that_nobody_can_take_is_reset(
    ports: ListenPorts, flush_failures: Callable[[], list[Any]]
) -> None:
    (sock,) = ports.reserve("127.0.0.1", 1)
    listener = ChannelListener(MemoryReactorClock(), sock)

    def fail(_connection: socket.socket, _peer: tuple[Any, ...]) -> None:
        raise RuntimeError("no element is there")

    listener.start(fail)
    with socket.create_connection(sock.getsockname(), timeout=20) as client:
        listener.doRead()
        with pytest.raises(OSError, match="reset") as reset:
            client.recv(1)
    assert reset.value.errno == errno.ECONNRESET
    assert len(flush_failures()) == 1
    listener.stop()


@pytest.fixture
def flush_failures() -> Iterator[Callable[[], list[Any]]]:
    failures: list[Any] = []

    def note(event: dict[str, Any]) -> None:
        if "log_failure" in event:
            failures.append(event["log_failure"])

    globalLogPublisher.addObserver(note)
    yield lambda: failures
    globalLogPublisher.removeObserver(note)


# -- ports that are asked for by number


@pytest.fixture
def choosing() -> Iterator[ListenPorts]:
    """Half of the range is what streams get, all of it may be chosen."""
    ports = ListenPorts(FIRST, FIRST + 3, [(FIRST, LAST)])
    yield ports
    for sock in list(ports._given):
        ports.release(sock)


def refusal(ports: ListenPorts, *numbers: int, **excluded: Any) -> str:
    """Return the error message; check that no port is held that was not held before."""
    before = dict(ports._given), ports.free
    with pytest.raises(StreamError) as refused:
        ports.reserve_chosen("127.0.0.1", numbers, **excluded)
    assert refused.value.code == "no-ports"
    assert (dict(ports._given), ports.free) == before
    return refused.value.msg


def test_chosen_ports_come_in_the_order_in_which_they_were_asked_for(choosing: ListenPorts) -> None:
    asked = [FIRST + 6, FIRST + 1, FIRST + 4]
    sockets = choosing.reserve_chosen("127.0.0.1", asked)
    assert taken(sockets) == asked
    assert choosing.free == 3, "two of them are none of the range"
    assert not any(sock.getblocking() or sock.get_inheritable() for sock in sockets)


def test_a_chosen_port_is_given_to_only_one_stream_at_a_time(choosing: ListenPorts) -> None:
    (sock,) = choosing.reserve_chosen("127.0.0.1", [FIRST + 6])
    assert "another stream has it" in refusal(choosing, FIRST + 1, FIRST + 6)
    choosing.release(sock)
    choosing.release(sock)
    assert taken(choosing.reserve_chosen("127.0.0.1", [FIRST + 6])) == [FIRST + 6]
    (port,) = taken(choosing.reserve("127.0.0.1", 1))
    assert f"port {port} was requested, but another stream has it" in refusal(choosing, port)
    assert f"port {FIRST + 2} was requested, but another stream" in refusal(choosing, FIRST + 2, excluded={FIRST + 2})


def test_a_chosen_port_outside_the_range_is_never_given_to_a_stream_that_does_not_ask(choosing: ListenPorts) -> None:
    for sock in choosing.reserve_chosen("127.0.0.1", [FIRST + 5, FIRST + 2]):
        choosing.release(sock)
    assert choosing.free == 4
    assert sorted(taken(choosing.reserve("127.0.0.1", 4))) == list(range(FIRST, FIRST + 4))


def test_a_port_that_may_not_be_chosen_is_refused_with_those_that_may_be() -> None:
    ports = ListenPorts(FIRST, LAST, [(FIRST + 2, FIRST + 2), (FIRST + 4, FIRST + 5)])
    assert f"choose {FIRST + 2}, {FIRST + 4}-{FIRST + 5} only" in refusal(ports, FIRST + 3)
    assert "this gateway lets streams choose no port" in refusal(ListenPorts(FIRST, LAST), FIRST + 3)


def test_a_chosen_port_on_which_another_program_listens_is_refused_and_no_socket_is_left(choosing: ListenPorts) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", FIRST + 6))
        other.listen()
        msg = refusal(choosing, FIRST + 5, FIRST + 6)
        assert f"port {FIRST + 6} was requested, but another program on this gateway uses it at 127.0.0.1" in msg
    assert taken(choosing.reserve_chosen("127.0.0.1", [FIRST + 5, FIRST + 6])) == [FIRST + 5, FIRST + 6]


def test_a_chosen_port_that_an_outgoing_connection_has_is_refused_with_that_as_a_possible_reason() -> None:
    with socket.create_server(("127.0.0.1", 0)) as far, socket.create_connection(far.getsockname(), timeout=20) as own:
        port = own.getsockname()[1]
        msg = refusal(ListenPorts(FIRST, LAST, [(port, port)]), port)
    assert "another program on this gateway uses it at 127.0.0.1, or an outgoing connection of this gateway" in msg
    assert "net.ipv4.ip_local_reserved_ports" in msg


@pytest.mark.parametrize(
    ("reserved", "shared"),
    [
        ("", [(5075, 40001), (50000, 50003)]),
        ("50000-50003", [(5075, 40001)]),
        ("50000-50002", [(5075, 40001), (50000, 50003)]),
        ("4000,40000-40001,50000-50003", []),
    ],
)
def test_ports_that_the_kernel_gives_to_outgoing_connections_are_those_of_its_range_that_are_not_reserved(
    reserved: str, shared: list[tuple[int, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ip_local_port_range").write_text("40000\t60999\n")
    (tmp_path / "ip_local_reserved_ports").write_text(f"{reserved}\n")
    monkeypatch.setattr(ports_module, "KERNEL_SETTINGS", tmp_path)
    assert shared_with_connections([(5075, 40001), (50000, 50003), (5100, 5200), (61000, 61003)]) == shared


def test_where_the_kernel_does_not_tell_which_ports_connections_get_no_port_is_taken_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ports_module, "KERNEL_SETTINGS", tmp_path)
    assert shared_with_connections([(1024, 65535)]) == []


def test_a_chosen_port_whose_connections_wait_out_their_time_can_be_had() -> None:
    port = leased.take()
    with socket.socket() as before:
        before.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        before.bind(("127.0.0.1", port))
        before.listen()
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            accepted, _ = before.accept()
            accepted.close()  # first, so that it is this end that waits
            assert client.recv(1) == b""
    with socket.socket() as plain, pytest.raises(OSError, match="in use"):
        plain.bind(("127.0.0.1", port))
    ports = ListenPorts(FIRST, LAST, [(port, port)])
    (sock,) = ports.reserve_chosen("127.0.0.1", [port])
    assert taken([sock]) == [port]
    ports.release(sock)


def test_other_ports_are_lent_from_then_on_and_those_that_are_lent_come_back_only_if_they_are_among_them() -> None:
    ports = MemoryPorts(5100, 5103)
    kept, other = ports.reserve("127.0.0.1", 2)
    assert (taken([kept]), taken([other])) == ([5100], [5101])
    ports.change(5101, 5106, [(5075, 5075)])
    assert ports.free == 5, "5101 is still lent"
    assert ports.ranges == [(5101, 5106), (5075, 5075)]
    new = ports.reserve("127.0.0.1", 5)
    assert sorted(taken(new)) == [5102, 5103, 5104, 5105, 5106]
    assert taken(ports.reserve_chosen("127.0.0.1", [5075])) == [5075]
    ports.release(kept)
    assert ports.free == 0, "5100 is lent no more"
    ports.release(other)
    assert ports.free == 1
    ports.change(5100, 5101, [])
    assert ports.free == 2
    with pytest.raises(StreamError, match="5075"):
        ports.reserve_chosen("127.0.0.1", [5075])

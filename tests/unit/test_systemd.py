"""Notifications to the service manager, and the sockets that it passes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from log_lines import logged
from twisted.internet.task import Clock

from scistream import timing
from scistream.protocol.address import Address
from scistream.systemd.notify import Heartbeat, ServiceManager
from scistream.systemd.sockets import InheritedSockets
from support.service_manager import listening


@pytest.mark.parametrize("is_abstract", [False, True], ids=["path", "abstract"])
def test_each_notification_arrives_at_the_socket_that_is_named(tmp_path: Path, is_abstract: bool) -> None:
    address = f"@scistream-test-{os.getpid()}" if is_abstract else tmp_path / "notify"
    with listening(address) as notified:
        environ = {"NOTIFY_SOCKET": str(address)}
        manager = ServiceManager(environ)
        assert environ == {}, "programs that the daemon starts are not to notify"
        manager.ready("two\nlines")
        assert notified.next() == {"READY": "1", "STATUS": "two lines"}
        before = time.monotonic_ns() // 1000
        manager.reloading()
        fields = notified.next()
        assert before <= int(fields.pop("MONOTONIC_USEC")) <= time.monotonic_ns() // 1000
        assert fields == {"RELOADING": "1"}
        manager.stopping("ends")
        assert notified.next() == {"STOPPING": "1", "STATUS": "ends"}


def test_without_a_service_manager_nothing_happens() -> None:
    manager, clock = ServiceManager({"WATCHDOG_USEC": "1000000"}), Clock()
    assert (manager.is_there, manager.watchdog) == (False, 0.0)
    with logged() as lines:
        manager.ready("")
        Heartbeat(clock, manager, lambda: "").start()
    assert (lines, clock.getDelayedCalls()) == ([], [])


def test_a_service_manager_that_is_gone_is_logged_once(tmp_path: Path) -> None:
    manager = ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "nobody")})
    with logged() as lines:
        manager.status("a")
        manager.status("b")
    (line,) = lines
    assert f"cannot be notified at {tmp_path}/nobody: No such file or directory" in line


def test_an_address_of_another_kind_is_ignored_with_a_warning() -> None:
    with logged() as lines:
        manager = ServiceManager({"NOTIFY_SOCKET": "vsock:2:1234"})
    assert not manager.is_there
    assert "vsock:2:1234" in "".join(lines)


def test_signs_of_life_come_from_the_reactor_at_half_the_interval(tmp_path: Path) -> None:
    with listening(tmp_path / "notify") as notified:
        environ = {"NOTIFY_SOCKET": notified.address, "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}
        manager, clock, shown = ServiceManager(environ), Clock(), ["idle"]
        assert (environ, manager.watchdog) == ({}, 3.0)
        heartbeat = Heartbeat(clock, manager, lambda: shown[-1])
        heartbeat.start()
        assert [notified.next(), notified.next()] == [{"STATUS": "idle"}, {"WATCHDOG": "1"}]
        clock.advance(1.49)
        assert notified.is_silent(), "a reactor whose time stands still gives no sign of life"
        clock.advance(0.02)
        assert notified.next() == {"WATCHDOG": "1"}
        shown.append("busy")
        clock.advance(timing.STATUS)
        assert notified.first(lambda fields: "STATUS" in fields) == {"STATUS": "busy"}
        clock.advance(timing.STATUS)
        assert (notified.next(), notified.is_silent()) == ({"WATCHDOG": "1"}, True), "the status is told once"
        heartbeat.ask_for_time()
        for _ in range(2):
            asked = notified.until("EXTEND_TIMEOUT_USEC")
            assert int(asked["EXTEND_TIMEOUT_USEC"]) / 1e6 == timing.MORE_TIME > 2 * timing.STATUS
            clock.advance(timing.STATUS)
        assert "WATCHDOG" in notified.until("WATCHDOG")
        assert "EXTEND_TIMEOUT_USEC" in notified.until("EXTEND_TIMEOUT_USEC")
        heartbeat.stop()
        clock.advance(timing.STATUS)
        assert notified.is_silent()


def test_a_watchdog_of_another_process_is_not_served(tmp_path: Path) -> None:
    environ = {"NOTIFY_SOCKET": str(tmp_path), "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}
    assert ServiceManager(environ).watchdog == 0.0


# -- sockets

TAKE = """
import os, socket, sys
from scistream.systemd.sockets import InheritedSockets
for number, descriptor in enumerate(sys.argv[2:], 3):
    os.dup2(int(descriptor), number)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(sys.argv) - 2))
if sys.argv[1]:
    os.environ["LISTEN_FDNAMES"] = sys.argv[1]
try:
    inherited = InheritedSockets.from_environment(os.environ)
except ValueError as problem:
    sys.exit(str(problem))
print(*inherited.others([]), [os.get_inheritable(number) for number in range(3, len(sys.argv) + 1)])
"""


def take(*sockets: socket.socket, names: str = "") -> subprocess.CompletedProcess[str]:
    descriptors = [sock.fileno() for sock in sockets]
    command = [sys.executable, "-c", TAKE, names, *map(str, descriptors)]
    return subprocess.run(command, pass_fds=descriptors, capture_output=True, text=True, timeout=60.0, check=False)


@pytest.mark.parametrize("names", ["", "s2cs.socket:http", "s2cs.socket:s2cs.socket"])
def test_sockets_are_taken_with_and_without_names_and_not_passed_on(names: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
        taken = take(first, second, names=names)
        ports = first.getsockname()[1], second.getsockname()[1]
    assert taken.stdout == "127.0.0.1:{} 127.0.0.1:{} [False, False]\n".format(*ports), taken.stderr


def test_a_socket_that_does_not_listen_for_tcp_is_refused_with_its_name() -> None:
    with socket.socket(socket.AF_UNIX) as local, socket.socket() as idle, socket.socket(type=socket.SOCK_DGRAM) as udp:
        assert "the socket 'unknown', which systemd has passed, is not a TCP socket" in take(local).stderr
        assert "'a.socket', which systemd has passed, is not a TCP socket" in take(udp, names="a.socket").stderr
        assert "'b.socket', which systemd has passed, does not listen" in take(idle, names="b.socket").stderr


def test_sockets_for_another_process_are_left_alone() -> None:
    environ = {"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "x"}
    assert InheritedSockets.from_environment(environ).others([]) == []


def test_an_address_is_found_however_it_is_written() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        inherited = InheritedSockets([sock])
        assert inherited.find(Address("localhost", port)) is inherited.find(Address("127.0.0.1", port)) is sock
        assert inherited.find(Address("127.0.0.2", port)) is inherited.find(Address("127.0.0.1", 1)) is None
        assert inherited.others([f"localhost:{port}", ""]) == []
        assert inherited.others(["nonsense", "127.0.0.1:1"]) == [Address("127.0.0.1", port)]

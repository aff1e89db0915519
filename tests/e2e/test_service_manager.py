"""Daemons under a service manager: notifications, the watchdog, and sockets that it has opened."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from support.facilities import HOST, elements_of
from support.leased_ports import leased
from support.programs import INSTALLED, Program
from support.requirements import needs, needs_root
from support.service_manager import Notifications, listening
from support.waiting import PATIENCE, until

TWISTD = str(INSTALLED / "twistd")


def settings_of(kind: str) -> dict[str, Any]:
    """Return settings with which a daemon of this kind starts without certificates."""
    listen = f"{HOST}:{leased.take(1, HOST)}"
    if kind == "s2cs":
        gateway = {"name": "dtn1", "address": f"{HOST}:{leased.take(1, HOST)}"}
        return {"listen": listen, "insecure": True, "audit": "none", "gateways": [gateway]}
    first = leased.take(2, HOST)
    return {"listen": listen, "insecure": True, "elements": 2, "ports": f"{first}-{first + 1}"}


def command_of(kind: str, file: Path) -> list[str]:
    return [TWISTD, "-n", "--pidfile=", kind, "--config", str(file)]


@pytest.fixture(params=["s2cs", "s2ds"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def notified(kind: str, tmp_path: Path) -> Iterator[Notifications]:
    with listening(tmp_path / "notify" if kind == "s2cs" else f"@scistream-{os.getpid()}") as notified:
        yield notified


def answer(sock: socket.socket) -> dict[str, Any]:
    """Return what a daemon answers to a line that is not a message."""
    sock.settimeout(PATIENCE)
    sock.sendall(b"nonsense\n")
    with sock.makefile("rb") as lines:
        found: dict[str, Any] = json.loads(lines.readline(65536))
        return found


def to(settings: dict[str, Any]) -> socket.socket:
    host, _, port = settings["listen"].rpartition(":")
    return socket.create_connection((host, int(port)), PATIENCE)


def test_a_daemon_notifies_what_it_does_and_signs_of_life(kind: str, notified: Notifications, tmp_path: Path) -> None:
    file, settings = tmp_path / "daemon.toml", settings_of(kind)
    file.write_text(tomli_w.dumps(settings))
    env = {**os.environ, "NOTIFY_SOCKET": notified.address, "WATCHDOG_USEC": "1000000"}
    program = Program(command_of(kind, file), tmp_path / "daemon.err", env)
    try:
        ready = notified.until("READY")
        with to(settings) as sock:
            assert answer(sock)["code"] == "bad-message"
        shown = r"0 streams; gateways connected: 0 of 1"
        if kind == "s2ds":
            assert len(elements_of(program.pid)) == 2
            shown = r"0 streams; elements ready: 2 of 2; reserved: 0 of 10 Gbit/s"
        assert re.fullmatch(shown, ready["STATUS"]), ready

        notified.until("WATCHDOG")
        before = time.monotonic()
        notified.until("WATCHDOG")
        assert time.monotonic() - before < 1.0

        for text, is_refused in ((tomli_w.dumps(settings), False), ("nonsense", True)):  # each has an end
            file.write_text(text)
            os.kill(program.pid, signal.SIGHUP)
            reloading = notified.until("RELOADING")
            assert abs(time.monotonic() - int(reloading["MONOTONIC_USEC"]) / 1e6) < PATIENCE
            ended = notified.first(lambda fields: "WATCHDOG" not in fields)
            assert "READY" in ended
            assert ended["STATUS"].startswith("the last reload was refused, see the log; ") is is_refused

        program.ask_to_end()
        assert "stopping" in notified.until("STOPPING")["STATUS"]
        program.end()
    finally:
        program.stop()


def test_a_daemon_that_the_watchdog_kills_says_where_it_was(tmp_path: Path) -> None:
    file, log = tmp_path / "daemon.toml", tmp_path / "daemon.err"
    file.write_text(tomli_w.dumps(settings_of("s2ds")))
    with listening(tmp_path / "notify") as notified:
        env = {**os.environ, "NOTIFY_SOCKET": notified.address, "WATCHDOG_USEC": "60000000"}
        program = Program(command_of("s2ds", file), log, env)
        try:
            notified.until("READY")
            elements = elements_of(program.pid)
            os.kill(program.pid, signal.SIGABRT)  # WatchdogSignal= of systemd, unless it is set
            program.end(status=-signal.SIGABRT)
        finally:
            program.stop()
    assert re.search(
        r'File ".*epollreactor.py", line \d+ in doPoll|File ".*", line \d+ in (doIteration|mainLoop)', log.read_text()
    )
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in elements), lambda: f"elements {elements} are left")


def test_systemd_starts_a_daemon_with_the_first_connection(tmp_path: Path) -> None:
    needs("systemd-socket-activate")
    kind = "s2ds"
    file, settings = tmp_path / "daemon.toml", settings_of(kind)
    file.write_text(tomli_w.dumps(settings))
    command = ["systemd-socket-activate", f"--listen={settings['listen']}", *command_of(kind, file)]
    program = Program(command, tmp_path / "daemon.err")
    try:
        until(lambda: "Listening on" in (tmp_path / "daemon.err").read_text(), lambda: str(program))
        with to(settings) as sock:
            assert answer(sock)["code"] == "bad-message"
    finally:
        program.stop()


ACTIVATED = 'exec 3<&"$1"; shift; LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=control exec "$@"'
"""What systemd does: the socket becomes descriptor 3, and the environment names this process."""


def test_connections_wait_while_a_daemon_restarts_if_systemd_holds_its_socket(tmp_path: Path) -> None:
    kind = "s2cs"
    file, settings = tmp_path / "daemon.toml", settings_of(kind)
    file.write_text(tomli_w.dumps(settings))
    host, _, port = settings["listen"].rpartition(":")
    with socket.create_server((host, int(port))) as held, (tmp_path / "daemon.err").open("w") as errors:
        command = ["bash", "-c", ACTIVATED, "bash", str(held.fileno()), *command_of(kind, file)]
        for _ in range(2):
            with to(settings) as early:  # while no daemon runs
                daemon = subprocess.Popen(command, pass_fds=[held.fileno()], cwd=tmp_path, stdout=errors, stderr=errors)
                try:
                    assert answer(early)["code"] == "bad-message"
                finally:
                    daemon.terminate()
                    assert daemon.wait(PATIENCE) == 0


def test_a_socket_at_another_address_than_listen_is_refused(tmp_path: Path) -> None:
    kind = "s2cs"
    file, settings = tmp_path / "daemon.toml", settings_of(kind)
    file.write_text(tomli_w.dumps(settings))
    with socket.create_server((HOST, 0)) as other:
        command = ["bash", "-c", ACTIVATED, "bash", str(other.fileno()), *command_of(kind, file)]
        done = subprocess.run(
            command, pass_fds=[other.fileno()], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 2
        where = f"{HOST}:{other.getsockname()[1]}"
    assert f"listen: '{settings['listen']}', but systemd has opened a socket at {where}: make `listen`" in done.stderr


# -- logs


def wait_for(program: Program, words: str, seen: list[dict[str, Any]]) -> None:
    """Wait for a line of JSON with these words in its message, and add it and those before it to `seen`."""
    while True:
        line = json.loads(program.line())
        seen.append(line)
        if words in line["message"]:
            return


def test_every_line_of_a_daemon_is_json_and_its_level_changes_while_it_runs(kind: str, tmp_path: Path) -> None:
    file, settings = tmp_path / "daemon.toml", settings_of(kind)
    file.write_text(tomli_w.dumps({"log_format": "json", **settings}))
    program = Program(command_of(kind, file), tmp_path / "daemon.err")
    seen: list[dict[str, Any]] = []
    try:
        wait_for(program, f"party={kind} listens on", seen)
        if kind == "s2ds":
            wait_for(program, "element", seen)
            wait_for(program, "element", seen)
        assert not any("starting on" in line["message"] for line in seen), "what Twisted says about itself"
        assert {line["party"] for line in seen} == {kind}

        for pid in (*elements_of(program.pid), program.pid):  # as `systemctl kill` sends it to all of them
            os.kill(pid, signal.SIGUSR1)
        wait_for(program, "the log level is now debug", seen)
        seen.clear()
        with to(settings) as sock:
            assert answer(sock)["code"] == "bad-message"
            wait_for(program, "sends ERROR", seen)
            assert seen[-1]["peer"] == "{}:{}".format(*sock.getsockname()[:2])
            assert seen[-1]["level"] == "debug"
        for level in ("info", "warning"):
            os.kill(program.pid, signal.SIGUSR2)
            wait_for(program, f"the log level is now {level}", seen)

        file.write_text(tomli_w.dumps({"log_format": "text", **settings}))
        os.kill(program.pid, signal.SIGHUP)
        changed = program.line()
        assert "reloaded" in changed
        assert changed.endswith("settings that changed: log_format")
        file.write_text(tomli_w.dumps({"log_level": "loud", **settings}))
        os.kill(program.pid, signal.SIGHUP)
        assert "NOT reloaded" in (refused := program.line())
        assert "log_level: 'loud' is not a choice" in refused
        if kind == "s2ds":
            assert len(elements_of(program.pid)) == 2, "the signal has ended no element"
    finally:
        program.stop()


WITH_A_JOURNAL = 'mount -t tmpfs tmpfs /run; mkdir /run/systemd; ln -s "$0" /run/systemd/journal; exec "$@"'
"""Run a command in a mount namespace where the journal's folder is another."""


def test_the_journal_has_each_line_once_with_its_fields(tmp_path: Path) -> None:
    needs_root("only root can put a socket in the place of the journal's")
    kind = "s2cs"
    file, settings = tmp_path / "daemon.toml", settings_of(kind)
    file.write_text(tomli_w.dumps(settings))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal, (tmp_path / "stream").open("w") as stream:
        journal.bind(str(tmp_path / "socket"))
        journal.settimeout(PATIENCE)
        found = os.fstat(
            stream.fileno()
        )  # what systemd makes of standard output and error, and names in JOURNAL_STREAM
        env = {**os.environ, "JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}
        command = ["unshare", "--mount", "sh", "-euc", WITH_A_JOURNAL, str(tmp_path), *command_of(kind, file)]
        daemon = subprocess.Popen(command, env=env, cwd=tmp_path, stdout=stream, stderr=stream)
        try:
            while f"party={kind} listens on".encode() not in (entry := journal.recv(65536)):
                pass
        finally:
            daemon.terminate()
            assert daemon.wait(PATIENCE) == 0
    fields = dict(line.split("=", 1) for line in entry.decode().splitlines())
    assert (fields["PRIORITY"], fields["SYSLOG_IDENTIFIER"], fields["SCISTREAM_PARTY"]) == ("6", kind, kind)
    assert fields["SCISTREAM_LISTEN"] == settings["listen"]
    assert (tmp_path / "stream").read_text() == ""

"""Facilities that cannot be reached: the messages, how soon they come, and what is remembered."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

import pytest
from harness import World, free_ports

from scistream.s2uc.history import RememberedStream
from support.applications import address_of, listen
from support.facilities import HOST
from support.waiting import PATIENCE, until

pytestmark = pytest.mark.usefixtures("nothing_left")


@contextmanager
def silent() -> Iterator[str]:
    """Run a server that accepts connections and never sends anything."""
    with socket.create_server((HOST, 0)) as listener:
        yield f"{HOST}:{listener.getsockname()[1]}"


def nobody() -> str:
    return f"{HOST}:{free_ports()}"


def test_a_request_says_at_once_what_it_waits_for_and_why(world: World) -> None:
    where = nobody()
    program = world.start_s2uc("request", "--prod", world.lab.s2cs, "--cons", where)
    log = program.log
    until(
        lambda: f"waiting for the consumer side at {where}: The connection was refused" in log.read_text(),
        log.read_text,
        10,
    )
    program.process.send_signal(signal.SIGINT)
    ended = program.end(status=1)
    assert ended.stderr.splitlines()[-2:] == ["both sides are released", "interrupted"]
    assert world.remembered.all() == []


@pytest.mark.parametrize("how", ["refused", "silent", "tls without certificates"])
def test_the_time_of_a_request_bounds_everything(world: World, how: str) -> None:
    with silent() as mute:
        where = {"refused": nobody(), "silent": mute, "tls without certificates": world.centre.s2cs}[how]
        options = ["--insecure"] if how.startswith("tls") else []
        both = ["--prod", where, "--cons", where, "--timeout", "2s", *options]
        started = time.monotonic()
        ended = world.start_s2uc("request", *both).end(status=1)
        assert time.monotonic() - started < 20, "it took 30 s and more before"
    assert f"not streaming after 2 s of waiting for the producer side at {where}" in ended.stderr
    if how != "tls without certificates":
        assert world.remembered.all() == []
    else:
        for known in world.remembered.all():
            world.s2uc("forget", known.uid)


@pytest.mark.parametrize("how", ["refused", "silent"])
def test_the_time_of_a_wait_bounds_it_though_a_side_is_not_reached(world: World, how: str) -> None:
    with silent() as mute:
        where = nobody() if how == "refused" else mute
        uid = remember(world, world.lab.s2cs, where)
        started = time.monotonic()
        ended = world.start_s2uc("wait", uid, "--timeout", "2s", "--json").end(status=1)
        assert time.monotonic() - started < 20, "it took 30 s before"
        world.s2uc("forget", uid)
    assert f"waiting for the consumer side at {where}" in ended.stderr
    last = json.loads(ended.stdout.splitlines()[-1])
    assert (last["uid"], last["state"], last["error"]["code"]) == (uid, "Failed", "timeout")
    assert f"not streaming after 2 s of waiting for the consumer side at {where}" in last["error"]["msg"]


def test_a_wait_says_in_which_states_the_stream_is_left(world: World) -> None:
    with world.request(1, "100Mbit") as requested:
        ended = world.start_s2uc("wait", requested.uid, "--timeout", "3s").end(status=1)
    states = "producer Listening, consumer Listening"
    assert f"error: timeout: not streaming after 3 s of waiting for the applications or the user: {states}" in (
        ended.stderr.splitlines()
    )


@pytest.mark.parametrize("command", ["list", "status", "release"])
@pytest.mark.parametrize("how", ["refused", "silent"])
def test_a_command_that_asks_one_facility_says_at_once_that_it_does_not_answer(
    world: World, command: str, how: str
) -> None:
    with silent() as mute:
        where = nobody() if how == "refused" else mute
        uid = None if command == "list" else str(uuid4())
        program = world.start_s2uc(command, *([uid] if uid else []), "--at", where, "--json")
        words = f"waiting for the S2CS at {where}" + (": The connection was refused" if how == "refused" else "")
        until(lambda: words in program.log.read_text(), program.log.read_text, 10)
        program.process.send_signal(signal.SIGINT)
        ended = program.end(status=1)
    assert ended.stderr.splitlines()[-1] == "interrupted"
    last = json.loads(ended.stdout.splitlines()[-1])
    assert (last["uid"], last["state"], last["error"]["msg"]) == (uid, "Failed", "interrupted")


HANGING = """
import socket, sys, time
known = socket.getaddrinfo
def hanging(host, port, family=0, kind=0, protocol=0, flags=0):
    if flags & socket.AI_NUMERICHOST:
        return known(host, port, family, kind, protocol, flags)
    time.sleep(60)
socket.getaddrinfo = hanging
from scistream.entry import s2uc
s2uc()
"""


@pytest.mark.parametrize("how", ["interrupt", "timeout"])
def test_a_name_server_that_does_not_answer_is_not_waited_for(world: World, how: str) -> None:
    between = ["--prod", "lab.example:5000", "--cons", "centre.example:5000"]
    options = ["--timeout", "1s"] if how == "timeout" else []
    program = world.start(sys.executable, "-c", HANGING, "request", *between, *options)
    until(lambda: "waiting for the producer side at lab.example:5000" in program.log.read_text(), program.log.read_text)
    began = time.monotonic()  # "waiting" is said 0.4 s after the request was begun
    if how == "interrupt":
        program.process.send_signal(signal.SIGINT)
    ended = program.end(10, status=1)
    assert time.monotonic() - began < (1.5 if how == "interrupt" else 0.6 + 1.5), "it waited for the name server"
    assert ended.stderr.splitlines()[-1] == "interrupted" or "error: timeout" in ended.stderr
    assert world.remembered.all() == []


def test_an_interrupt_releases_the_side_that_was_reached_while_the_other_s_name_is_looked_up(world: World) -> None:
    between = ["--prod", world.lab.s2cs, "--cons", "centre.example:5000"]
    program = world.start(sys.executable, "-c", HANGING, "request", *between)
    until(lambda: "waiting for the consumer side at centre.example" in program.log.read_text(), program.log.read_text)
    began = time.monotonic()
    program.process.send_signal(signal.SIGINT)
    ended = program.end(10, status=1)
    assert time.monotonic() - began < 1.5
    assert "both sides are released" in ended.stderr
    assert set(world.lab.states().values()) <= {"Released"}
    assert world.remembered.all() == []


def remember(world: World, prod: str, cons: str) -> str:
    uid = str(uuid4())
    now = time.time()
    world.remembered.add(
        RememberedStream(uid=uid, prod=prod, cons=cons, num_conn=1, rate=1.0, asked_at=now, expires_at=now + 3600)
    )
    return uid


def test_the_status_of_a_stream_with_an_unreachable_side_tells_of_the_other_one_within_seconds(world: World) -> None:
    with listen() as detector, world.stream([address_of(detector)]) as stream:
        where = nobody()
        lost = remember(world, world.lab.s2cs, where)
        known = world.remembered.find(stream.uid)
        world.remembered.remove(stream.uid)
        moved = RememberedStream(
            **{name: getattr(known, name) for name in known.__struct_fields__ if name != "cons"}, cons=where
        )
        world.remembered.add(moved)
        started = time.monotonic()
        ended = world.s2uc("status", check=False)
        assert time.monotonic() - started < 15, "both sides of all streams at once, and each for five seconds"
        assert ended.returncode == 1
        rows = [line.split() for line in ended.stdout.splitlines()]
        assert [stream.uid, "producer", "Streaming"] in [row[:3] for row in rows]
        assert [stream.uid, "consumer", "no", "answer"] in [row[:4] for row in rows]
        assert f"{lost}: timeout: consumer side: {where} cannot be reached: The connection was refused" in ended.stderr
        world.remembered.remove(stream.uid)
        world.remembered.add(known)
        world.s2uc("forget", lost)


def test_a_stream_that_cannot_be_released_is_named_within_seconds_and_can_be_forgotten(world: World) -> None:
    where = nobody()
    uid = remember(world, where, where)
    started = time.monotonic()
    ended = world.s2uc("release", uid, check=False)
    assert time.monotonic() - started < 15
    assert ended.returncode == 1
    assert "cannot be reached: The connection was refused" in ended.stderr
    assert [known.uid for known in world.remembered.all()] == [uid]
    assert world.s2uc("forget", uid[:3], check=False).returncode == 2
    assert world.s2uc("forget", uid[:8]).stdout == f"forgotten {uid}\n"
    assert world.remembered.all() == []


def test_a_stream_that_has_expired_leaves_the_list(world: World) -> None:
    uid = str(uuid4())
    now = time.time()
    past = RememberedStream(uid=uid, prod=HOST, cons=HOST, num_conn=1, rate=1.0, asked_at=now - 10, expires_at=now - 1)
    world.remembered.add(past)
    assert world.s2uc("list").stdout == "no streams\n"
    assert world.s2uc("list", "--json").stdout == "[]\n"


# -- in a terminal


def in_terminal(world: World, *arguments: str, columns: int = 80, env: dict[str, str] | None = None) -> list[str]:
    """Return the lines that a command shows in a terminal with so many columns, without their ends."""
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen(
        [str(world.programs / "s2uc"), *arguments],
        env={**world.env, "TERM": "xterm", **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=terminal,
        stderr=subprocess.DEVNULL,
    )
    os.close(terminal)
    parts = []
    try:
        while part := os.read(controller, 65536):
            parts.append(part)
    except OSError:
        pass  # the end of a terminal
    os.close(controller)
    assert process.wait(PATIENCE) == 0
    return b"".join(parts).decode().splitlines()


def test_tables_fit_a_terminal_of_80_columns_and_are_plain_columns_in_a_pipe(world: World) -> None:
    with listen() as detector, world.stream([address_of(detector)], num_conn=2) as stream:
        for arguments in (["status"], ["status", stream.uid], ["list"], ["list", "--at", world.lab.s2cs]):
            shown = in_terminal(world, *arguments)
            assert max(map(len, shown)) <= 80, shown
            assert not any("\x1b" in line for line in shown), "no colours, whether or not NO_COLOR is set"
            assert any(line.startswith(stream.uid[:8]) for line in shown)
            piped = world.s2uc(*arguments).stdout
            assert stream.uid in piped
            assert piped.isascii(), "no boxes"
            head, first, *_ = piped.splitlines()
            assert head.startswith("UID")
            assert first.split()[0] == stream.uid
        told = world.s2uc("status", "--at", world.lab.s2cs, stream.uid[:8]).stdout
        for part in (f"uid:        {stream.uid}", "owner:", "ada", "lab-s2ds-0", address_of(detector), "GB>CONS"):
            assert part in told
        (side,) = json.loads(world.s2uc("status", "--at", world.lab.s2cs, stream.uid, "--json").stdout)
        assert (side["role"], side["state"]) == ("PROD", "Streaming")


def test_a_request_in_the_background_of_a_terminal_writes_nothing_over_what_is_typed(world: World) -> None:
    between = f"--prod {world.lab.s2cs} --cons {world.centre.s2cs} --rate 100Mbit --json"
    script = f"{world.programs / 's2uc'} request {between} --timeout 3s > out.txt & sleep 2; echo typed; wait"
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        ["bash", "-i", "-c", f"cd {world.folder}; set -m; {script}"],
        env={**world.env, "TERM": "xterm", "PS1": ""},
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        preexec_fn=_take_terminal,
    )
    os.close(terminal)
    parts = []
    try:
        while part := os.read(controller, 65536):
            parts.append(part)
    except OSError:
        pass
    os.close(controller)
    process.wait(PATIENCE)
    before, typed, after = b"".join(parts).decode().partition("typed")
    assert typed
    assert "waiting for" not in before
    assert "\x1b[K" not in before + after
    assert json.loads((world.folder / "out.txt").read_text().splitlines()[-1])["state"] == "Failed"


def _take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)

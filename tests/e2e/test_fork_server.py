"""Forked commands behave like executed ones, and each thread that waits for a child learns of its end."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import World, open_descriptors

from support.facilities import elements_of
from support.fork_server import Child
from support.programs import INSTALLED, Program, executed_programs
from support.waiting import PATIENCE

THREADS = 4
ROUNDS = 300


@pytest.fixture
def quickly_switching() -> Iterator[None]:
    """Threads take turns as often as they can."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


@pytest.mark.usefixtures("quickly_switching")
def test_all_threads_that_wait_for_one_child_learn_of_its_end() -> None:
    for _ in range(ROUNDS):
        with subprocess.Popen(["sleep", "0.002"]) as process, contextlib.ExitStack() as opened:
            child = Child(process.pid, opened.enter_context(open(os.devnull)), process.wait)
            ends: list[int] = []
            threads = [
                threading.Thread(target=lambda child=child, ends=ends: ends.append(child.wait(PATIENCE)))
                for _ in range(THREADS)
            ]
            for thread in threads:
                thread.start()
            for end in [end for _ in range(3) for end in os.pipe()]:  # which may get the numbers of closed descriptors
                opened.callback(os.close, end)
            for thread in threads:
                thread.join(2 * PATIENCE)
            assert ends == [0] * THREADS


SCRIPT = """
import atexit, os, sys, threading, time
print("out", sys.argv[1:], __name__, os.getcwd(), os.environ["MARK"])
print("err", file=sys.stderr)
print([type(each).__name__ for each in (sys.stdin, sys.stdout, sys.stderr)], sys.stdout and sys.stdout.isatty())
os.fork() or os._exit(0)
atexit.register(print, "at exit")
threading.Thread(target=lambda: (time.sleep(0.1), print("in a thread"))).start()
sys.exit(int(sys.argv[1]))
"""


COMMANDS = [
    [str(INSTALLED / "s2uc"), "release", "no-uid"],
    [str(INSTALLED / "appctrl"), "prod", "--listen", "nowhere"],
    [str(INSTALLED / "scistream"), "--version"],
    [str(INSTALLED / "twistd"), "-n", "--pidfile=", "s2ds", "--config", "none.toml"],
    [sys.executable, "-c", SCRIPT, "7"],
]


@pytest.mark.parametrize(
    ("command", "closed"),
    [*((command, ()) for command in COMMANDS), *((COMMANDS[-1], (number,)) for number in range(3))],
    ids=lambda value: Path(value[0]).name if isinstance(value, list) else f"closed: {value}",
)
def test_a_forked_command_does_what_an_executed_one_does(
    tmp_path: Path, command: list[str], closed: tuple[int, ...]
) -> None:
    def run(name: str) -> tuple[str, str, int]:
        program = Program(
            command, tmp_path / name, {**os.environ, "MARK": "mine"}, descriptors=dict.fromkeys(closed, None)
        )
        ended = program.end(status=None)
        return ended.stdout, ended.stderr, ended.returncode

    forked = run("forked")
    with executed_programs():
        assert run("executed") == forked


def test_elements_are_started_as_their_gateway_is_and_have_the_same_descriptors(
    fresh_world: Callable[..., World],
) -> None:
    lines, descriptors = [], []
    for how in (contextlib.nullcontext, executed_programs):
        with how():
            (gateway,) = fresh_world().lab.gateways
        (element,) = elements_of(gateway.pid)
        lines.append(Path(f"/proc/{element}/cmdline").read_text())
        descriptors.append(open_descriptors(element))
    assert "fork_server" in lines[0]
    assert "scistream.s2ds.elements.worker" in lines[1]
    assert descriptors[0] == descriptors[1]


def test_what_another_interpreter_would_be_told_is_not_forked(tmp_path: Path) -> None:
    show = [sys.executable, "-c", "import sys; print(sys.flags.no_user_site, open('/proc/self/cmdline').read())"]
    for env, is_forked in ({}, True), ({"PYTHONNOUSERSITE": "1"}, False):
        said = Program(show, tmp_path / "err", {**os.environ, **env}).end().stdout
        assert ("fork_server" in said) == is_forked
        assert said.startswith("1") != is_forked

"""Standard input, output and error that are closed, full or broken: each command ends in order, with one line at most.

Each command runs in a forked child, as its console script would run it: it writes to real descriptors.
"""

from __future__ import annotations

import ast
import configparser
import os
import signal
import subprocess
import sys
import warnings
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.logger import LogBeginner, globalLogPublisher

import scistream.app.cli
import scistream.cli
import scistream.s2uc.cli
from scistream import entry
from support.command_tree import COMMANDS, every_command
from twisted import logger

ROOT = Path(scistream.__file__).parent.parent
PIPE_GONE = 128 + signal.SIGPIPE


def spoil(descriptor: int, how: str) -> None:
    """Close a descriptor, or put something in its place that takes no byte."""
    if how == "closed":
        os.close(descriptor)
    elif how == "full":
        os.dup2(os.open("/dev/full", os.O_RDWR), descriptor)
    elif how == "broken":
        reader, writer = os.pipe()
        os.close(reader)
        os.dup2(writer, descriptor)


def run(command_line: str, spoilt: dict[int, str]) -> tuple[int, str, str]:
    """Return the exit status of a command, its standard output and its standard error."""
    out, err = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        status: object = 99
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.dup2(out[1], 1)
            os.dup2(err[1], 2)
            for descriptor, how in spoilt.items():
                spoil(descriptor, how)
            name, *arguments = command_line.split()
            sys.argv = [name, *arguments]
            # As in a process of its own, nothing was logged before: not even by the tests that ran before this one.
            logger.globalLogBeginner = LogBeginner(globalLogPublisher, sys.stderr, sys, warnings)
            try:
                COMMANDS[name]()
            except SystemExit as end:
                status = end.code
            with suppress(Exception):
                sys.stdout.flush()
        finally:
            os._exit(status if isinstance(status, int) else 98)
    for end in (out[1], err[1]):
        os.close(end)
    texts = []
    for end in (out[0], err[0]):
        with os.fdopen(end, errors="replace") as reading:
            texts.append(reading.read())
    _, ended = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(ended), texts[0], texts[1]


HOW = ("closed", "full", "broken")


@pytest.mark.parametrize("path", [path for path, _ in every_command()])
def test_help_that_cannot_be_written_is_no_traceback(path: str) -> None:
    for how in HOW:
        status, _, said = run(f"{path} --help", {1: how})
        if how == "broken":
            assert (status, said) == (PIPE_GONE, "")
        else:
            assert status == 1
            assert len(said.splitlines()) == 1
            assert said.startswith("error: standard output cannot be written: ")


@pytest.mark.parametrize("path", [path for path, _ in every_command()])
def test_a_wrong_option_is_refused_with_status_2_whether_or_not_anybody_can_be_told(path: str) -> None:
    for spoilt in ({}, {2: "closed"}, {2: "full"}, {2: "broken"}, {0: "closed", 1: "closed", 2: "closed"}):
        status, shown, said = run(f"{path} --no-such-option", spoilt)
        assert status == 2, (spoilt, said)
        assert shown == ""
        assert "Traceback" not in said


@settings(max_examples=40)
@given(st.fixed_dictionaries({}, optional={number: st.sampled_from(HOW) for number in (0, 1, 2)}))
def test_a_command_ends_in_order_with_any_descriptors(spoilt: dict[int, str]) -> None:
    status, shown, said = run("s2uc list", spoilt)
    if 1 in spoilt:
        allowed = {PIPE_GONE if spoilt[1] == "broken" else 1}
        if spoilt.get(2) == "broken":  # the reason may have gone there
            allowed.add(PIPE_GONE)
        assert status in allowed
        assert len(said.splitlines()) <= 1
    else:
        assert (status, shown) == (0, "no streams\n")
        assert said == ""


def test_a_closed_descriptor_is_filled_so_that_nothing_else_takes_its_number(tmp_path: Path) -> None:
    script = (
        "import os, sys; from scistream.standard_streams import claim; claim(); opened = os.open('/etc/passwd', 0);"
        f"names = [os.readlink('/proc/self/fd/%d' % n) for n in (0, 1, 2)];"
        f"open({str(tmp_path / 'said')!r}, 'w').write(repr((opened > 2, names, sys.stdin.read(),"
        " [os.get_inheritable(n) for n in (0, 1, 2)])))"
    )
    closing = (
        "import os, sys; [os.close(n) for n in (0, 1, 2)]; os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    )
    subprocess.run([sys.executable, "-c", closing, "-c", script], timeout=60, check=True)
    told = ast.literal_eval((tmp_path / "said").read_text())
    assert told == (True, ["/dev/null"] * 3, "", [True] * 3)


@pytest.mark.parametrize("text", ["größe", "a\udcffb", "\x80"])
@pytest.mark.parametrize("encoding", ["ascii", "utf-8", "latin-1"])
def test_what_a_terminal_cannot_show_becomes_a_question_mark(text: str, encoding: str) -> None:
    script = f"from scistream.standard_streams import claim; import click; claim(); click.echo({text!r})"
    ended = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert ended.stdout == text.encode(encoding, "replace") + b"\n"


# -- where the commands start


def scripts() -> dict[str, str]:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = setup["options.entry_points"]["console_scripts"].split("\n")
    return dict(line.split(" = ") for line in lines if line)


def test_every_console_script_starts_where_an_interrupt_is_taken_care_of() -> None:
    assert {name: getattr(entry, target.removeprefix("scistream.entry:")) for name, target in scripts().items()} == {
        "s2uc": entry.s2uc,
        "appctrl": entry.appctrl,
        "scistream": entry.scistream,
    }


@pytest.mark.parametrize("name", COMMANDS)
def test_an_interrupt_while_modules_are_imported_ends_a_command_silently(name: str) -> None:
    script = f"""
import importlib.abc, os, signal, sys
class Interrupting(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "click":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupting())
from scistream.entry import {name}
sys.argv = [{name!r}, "--help"]
{name}()
"""
    ended = subprocess.run(
        [sys.executable, "-c", script],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (-signal.SIGINT, b"", b""), "a shell calls it status 130"


def test_an_interrupt_that_the_caller_ignores_stays_ignored() -> None:
    script = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); from scistream.entry import s2uc;"
        "import scistream.s2uc.cli as cli; cli.main = lambda: sys.exit(signal.getsignal(signal.SIGINT)); s2uc()"
    )
    ended = subprocess.run([sys.executable, "-c", script], timeout=60, check=False)
    assert ended.returncode == signal.SIG_IGN


def test_a_signal_in_the_first_step_of_a_command_interrupts_it() -> None:
    script = (
        "import os, signal\n"
        "from twisted.internet.task import deferLater\n"
        "from scistream.cli_support import run\n"
        "async def main(reactor):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    await deferLater(reactor, 30)\n"
        "raise SystemExit(run(main))\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (1, "interrupted\n")

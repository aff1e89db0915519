"""What the commands print fits a terminal of 80 columns, and is plain text in pipes and on terminals that cannot draw.

Each is tried on a real pseudo-terminal.
"""

from __future__ import annotations

import io
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from scistream.s2uc.history import RememberedStream, StreamHistory
from scistream.wrapping import wrapped
from support.command_tree import COMMANDS, every_command
from support.fork_server import TIMING
from support.programs import INSTALLED, Program
from support.terminals import Terminal

UID = "1234abcd-1234-4234-8234-123456789abc"
NOWHERE = "/nowhere/" + "a-long-name/" * 3 + "s2uc.toml"
BOX = set("┏━┓┃┡╇┩│└┴┘─╭╮╰╯═║")


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fork_server: None) -> None:
    for name in ("COLUMNS", "NO_COLOR", "SCISTREAM_JOIN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "s"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "c"))


def on_terminal(command_line: str, columns: int = 80, **variables: str) -> str:
    """Run a command on a terminal; return what was written on it."""
    name, *arguments = command_line.split()
    with Terminal(columns) as terminal, tempfile.TemporaryDirectory() as folder:
        env = {**os.environ, "TERM": "xterm-256color", **variables}
        command = [str(INSTALLED / name), *arguments]
        Program(command, Path(folder) / "log", env, descriptors=terminal.descriptors).end(60.0, status=None)
        return terminal.raw().decode().replace("\r\n", "\n")


def piped(command_line: str) -> str:
    name, *arguments = command_line.split()
    with tempfile.TemporaryDirectory() as folder:
        ended = Program([str(INSTALLED / name), *arguments], Path(folder) / "log").end(60.0, status=None)
        return ended.stdout + ended.stderr


def remember() -> None:
    StreamHistory().add(
        RememberedStream(
            uid=UID,
            prod="s2cs-of-a-long-name.lab.example:5000",
            cons="s2cs.centre.example:5000",
            num_conn=2,
            rate=100.0,
            asked_at=time.time(),
            expires_at=None,
            label="a run with a label of some length",
        )
    )


def fits(text: str, columns: int = 80) -> None:
    for line in text.splitlines():
        assert len(line) <= columns or " " not in line.strip(), line


@pytest.mark.parametrize("path", [path for path, _ in every_command()])
def test_help_fits_80_columns(path: str) -> None:
    name, *arguments = path.split()
    shown = CliRunner().invoke(COMMANDS[name], [*arguments, "--help"], prog_name=name, env={"COLUMNS": "80"})
    assert shown.exit_code == 0
    assert shown.output
    fits(shown.output)
    assert not BOX & set(shown.output)


ERRORS = [
    "s2uc request --prod a.example:1 --cons b.example:1",
    f"s2uc list --at a.example:1 --config {NOWHERE}",
    "s2uc request --prod anl.example --cons b.example:1 --num-conn 4",
    "s2uc request --prod a.example:1 --cons b.example:1 --rate fast",
    "s2uc release 1234 --insecure",
    "s2uc forget 1",
    "s2uc status 12345678 --insecure",
    "s2uc explain no-such-code-at-all",
    "s2uc stop",
    f"s2uc --req-file {NOWHERE}",
    "appctrl cons",
    "appctrl prod --listen 7000",
    f"appctrl cons --join-file {NOWHERE}",
    f"scistream pki show {NOWHERE}",
    f"scistream pki list {NOWHERE}",
    f"scistream policy check {NOWHERE}",
    f"scistream store check {NOWHERE}",
    "scistream usage x --since yesterday",
    "scistream demo --bytes many",
]


@pytest.mark.parametrize("command_line", ERRORS)
def test_an_error_fits_80_columns_of_a_terminal_and_is_whole_in_a_pipe(command_line: str) -> None:
    shown, in_pipe = on_terminal(command_line), piped(command_line)
    assert "rror: " in shown
    fits(shown)
    assert shown.split() == in_pipe.split()
    assert not BOX & set(shown)
    for text in (shown, in_pipe):
        assert "\x1b" not in text
    for line in in_pipe.splitlines():
        assert len(line) <= 80 or line.startswith(("error: ", "Error: "))


@pytest.mark.parametrize("command_line", ["s2uc list", "s2uc stop", f"scistream pki show {NOWHERE}"])
def test_a_terminal_that_cannot_draw_and_one_without_colours_get_plain_text(command_line: str) -> None:
    remember()
    for variables in ({"TERM": "dumb"}, {"NO_COLOR": "1"}):
        shown = on_terminal(command_line, **variables)
        assert "\x1b" not in shown
        assert shown
        fits(shown)


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_a_list_fits_the_terminal_and_has_a_line_for_each_stream_in_a_pipe(columns: int) -> None:
    remember()
    shown = on_terminal("s2uc list", columns)
    assert max(map(len, shown.splitlines())) <= columns
    assert not BOX & set(shown)
    in_pipe = piped("s2uc list").splitlines()
    assert len(in_pipe) == 2
    assert UID in in_pipe[1]
    assert "\x1b" not in "".join(in_pipe)


@pytest.mark.parametrize("term", ["xterm-256color", "dumb"])
def test_a_facility_that_cannot_be_reached_is_told_within_80_columns(term: str) -> None:
    soon = {TIMING: json.dumps({"PAGE_OF_LIST": 1.5})}
    shown = on_terminal("s2uc list --insecure --at 127.0.0.1:1", TERM=term, NO_COLOR="1", **soon)
    assert "error: timeout" in shown
    fits(shown.rpartition("\r")[2].replace("\x1b[K", ""))


@given(st.text(alphabet="ab c-/\n", max_size=300), st.integers(20, 100))
def test_wrapping_changes_white_space_only(text: str, columns: int) -> None:
    class Narrow(io.StringIO):
        def isatty(self) -> bool:
            return True

    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(columns)
    try:
        shown = wrapped(text, Narrow())
    finally:
        os.environ.pop("COLUMNS")
        os.environ.update({} if before is None else {"COLUMNS": before})
    assert shown.split() == text.split()
    for line in shown.split("\n"):
        assert len(line) <= columns or " " not in line.strip()
    assert wrapped(text, io.StringIO()) == text


def test_the_width_of_standard_error_counts_where_the_output_is_a_pipe(capfd: pytest.CaptureFixture[str]) -> None:
    with Terminal(60) as terminal, open(terminal.side, "w", closefd=False) as errors:
        assert not sys.stdout.isatty()
        assert max(map(len, wrapped("word " * 40, errors).split("\n"))) <= 60

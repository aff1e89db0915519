"""Words of a far end on a terminal: they neither forge a line, nor move the cursor, nor are they markup."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from click.testing import CliRunner
from twisted.python.failure import Failure

from scistream.cli_support import report
from scistream.protocol.errors import StreamError
from scistream.protocol.messages import CONS, PROD, LastError, PathFigures, StreamStatus
from scistream.s2uc import cli, show
from scistream.s2uc.history import RememberedStream, StreamHistory
from scistream.s2uc.probe_side import Check

UID = "12345678-1234-4234-8234-123456789abc"
HOSTILE = "oh\nerror: your disk is full\x1b[2J\x9b31m\u202egnp.exe [red]not[/red]"
SHOWN = "oh?error: your disk is full?[2J?31m?gnp.exe [red]not[/red]"


def test_an_error_of_a_far_end_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    report(Failure(StreamError("no-ports", HOSTILE)))
    assert capsys.readouterr().err == f"error: no-ports: {SHOWN}\n"


def test_what_a_probe_has_found_is_one_line() -> None:
    assert str(Check(name="wan", ok=False, text=HOSTILE)) == f"FAILED  {SHOWN}"


@pytest.mark.parametrize("terminal", [False, True])
def test_what_a_server_says_of_a_stream_stays_in_its_cell(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(shown, "isatty", lambda: terminal)
    monkeypatch.setattr("sys.stdout", shown)
    side = StreamStatus(uid=UID, role=PROD, state="Released", last_error=LastError(code="timeout", msg=HOSTILE))
    known = RememberedStream(uid=UID, prod="a:1", cons="b:1", num_conn=1, rate=1.0, asked_at=0.0, expires_at=4e9)
    show._print_status([known], {UID: {PROD: side, CONS: side}}, {UID: {}})
    assert " ".join(shown.getvalue().split()).count(f"timeout: {SHOWN}") == 2, "in words, however wide the terminal is"
    assert "\x1b[2J" not in shown.getvalue()
    assert "\u202e" not in shown.getvalue()


def test_paths_are_rows_of_a_table_and_their_addresses_stay_in_their_cells(capsys: pytest.CaptureFixture[str]) -> None:
    paths = [
        PathFigures(
            local="192.0.2.20",
            remote=HOSTILE,
            up=True,
            connections=4,
            rtt_ms=50.25,
            bytes_to_consumer=2_000_000_000,
            retransmits=3,
            failures=1,
        ),
        PathFigures(local="", remote=""),
    ]
    show._print_paths({CONS: StreamStatus(uid=UID, role=CONS, state="Streaming", paths=paths)})
    head, first, others = capsys.readouterr().out.splitlines()[1:]
    assert head.split() == ["SIDE", "PATH", "IS", "OPEN", "GB>CONS", "GB>PROD", "RTT", "MS", "RESENT", "FAILED"]
    assert first.split()[0] == "consumer"
    assert f"192.0.2.20 - {SHOWN}  up    4     2.000    0.000    50.25   3       1" in first
    assert others.split() == ["consumer", "others", "down", "0", "0.000", "0.000", "0", "0"]
    show._print_paths({PROD: StreamStatus(uid=UID, role=PROD, state="Streaming")})
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "label", [HOSTILE, "[/] of no markup", "[red]scan[/red]", ":smile:", "[link=http://x]y[/link]"]
)
def test_a_user_s_own_label_is_listed_as_it_is(label: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "400")
    StreamHistory().add(
        RememberedStream(
            uid=UID, prod="a:1", cons="b:1", num_conn=1, rate=1.0, asked_at=0.0, expires_at=4e9, label=label
        )
    )
    ran = CliRunner().invoke(cli.main, ["list"])
    assert ran.exit_code == 0
    assert (SHOWN if label is HOSTILE else label) in ran.stdout

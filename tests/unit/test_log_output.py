"""The log of a daemon in each format, and its levels."""

from __future__ import annotations

import io
import json
import os
import re
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from twisted.logger import Logger, LogPublisher
from twisted.python.logfile import LogFile

from scistream import logs
from scistream.config import ConfigError
from scistream.log_output import LEVELS, LogOutput, log_problems
from scistream.systemd.journal import encoded, field_name


@dataclass
class Settings:
    log_format: str = "text"
    log_level: str = "info"


@pytest.fixture(autouse=True)
def _debug_lines_stay_off() -> Iterator[None]:
    yield
    logs.shows_debug = logs.covers_errors = False


class Rig:
    """A logger whose events go to one output."""

    def __init__(self, file: Any, *, settings: Settings, **given: Any) -> None:
        self.output = LogOutput("s2cs", settings, None if file is None else lambda: file, **given).begin()
        publisher = LogPublisher(self.output)
        self.log = Logger("scistream.here", observer=publisher)
        self.twisted = Logger("twisted.internet.tcp", observer=publisher)
        self.output.log = self.log


def event_of_a_stream(log: Logger) -> None:
    log.info(
        "uid={uid} state={state}", uid="u-1", role="PROD", peer="192.0.2.1:5", state="ready", count=3, odd=object()
    )


def test_text_is_one_line_with_time_logger_and_level() -> None:
    file = io.StringIO()
    event_of_a_stream(Rig(file, settings=Settings()).log)
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT[\d:]{8}[+-]\d{4} \[scistream.here#info\] uid=u-1 state=ready\n", file.getvalue()
    )


def test_json_has_time_level_message_and_the_fields_of_the_event() -> None:
    file = io.StringIO()
    rig = Rig(file, settings=Settings("json"))
    event_of_a_stream(rig.log)
    line = json.loads(file.getvalue())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", line.pop("time"))
    assert line == {
        "level": "info",
        "message": "uid=u-1 state=ready",
        "logger": "scistream.here",
        "party": "s2cs",
        "uid": "u-1",
        "role": "PROD",
        "peer": "192.0.2.1:5",
        "state": "ready",
        "count": 3,
    }


def test_json_stays_one_line_whatever_is_logged() -> None:
    file = io.StringIO()
    rig = Rig(file, settings=Settings("json"))
    rig.log.warn("{a} {b} {c}", a="two\nlines\u2028\ud800", b=float("nan"), c=Path("/x"))
    try:
        raise ValueError("broken")
    except ValueError:
        rig.log.failure("it failed")
    first, second = map(json.loads, file.getvalue().splitlines())
    assert (first["a"], first["b"], first["c"], first["level"]) == ("two\nlines\u2028\ud800", "nan", "/x", "warning")
    assert second["message"] == "it failed"
    assert "ValueError: broken" in second["traceback"]
    assert second["level"] == "critical"


class FalseJournal:
    """A socket in the place of the journal's."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind(str(path))
        self._sock.settimeout(10.0)

    def entry(self) -> dict[str, str]:
        """Return the next entry."""
        data, files, _, _ = socket.recv_fds(self._sock, 1 << 20, 1)
        if files:
            with os.fdopen(files[0], "rb") as file:
                file.seek(0)
                data = file.read()
        found = {}
        while data:
            name, sign, rest = re.match(rb"([A-Z0-9_]+)([=\n])(.*)", data, re.DOTALL).groups()  # type: ignore[union-attr]
            if sign == b"=":
                value, _, data = rest.partition(b"\n")
            else:
                (length,) = struct.unpack("<Q", rest[:8])
                value, data = rest[8 : 8 + length], rest[9 + length :]
            found[name.decode()] = value.decode()
        return found

    def close(self) -> None:
        self._sock.close()
        self.path.unlink()


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[FalseJournal]:
    journal = FalseJournal(tmp_path / "journal")
    yield journal
    journal._sock.close()


def test_an_entry_of_the_journal_has_the_fields_of_the_event(journal: FalseJournal) -> None:
    rig = Rig(io.StringIO(), settings=Settings("journal"), journal=journal.path)
    event_of_a_stream(rig.log)
    assert journal.entry() == {
        "MESSAGE": "uid=u-1 state=ready",
        "PRIORITY": "6",
        "SYSLOG_IDENTIFIER": "s2cs",
        "SCISTREAM_PARTY": "s2cs",
        "SCISTREAM_LOGGER": "scistream.here",
        "SCISTREAM_UID": "u-1",
        "SCISTREAM_ROLE": "PROD",
        "SCISTREAM_PEER": "192.0.2.1:5",
        "SCISTREAM_STATE": "ready",
        "SCISTREAM_COUNT": "3",
    }
    rig.log.error("{text}", text="forged\nPRIORITY=0\nand " + "long" * 200_000)
    entry = journal.entry()
    assert entry["PRIORITY"] == "3"
    assert entry["MESSAGE"].startswith("forged\nPRIORITY=0\nand long")
    assert len(entry["MESSAGE"]) > 800_000


def test_a_journal_that_has_gone_loses_no_line(journal: FalseJournal) -> None:
    file = io.StringIO()
    rig = Rig(file, settings=Settings("journal"), journal=journal.path)
    journal.close()
    event_of_a_stream(rig.log)
    assert "uid=u-1 state=ready" in file.getvalue()


def test_a_journal_whose_queue_is_full_loses_no_line_and_gets_the_next_ones(journal: FalseJournal) -> None:
    file = io.StringIO()
    rig = Rig(file, settings=Settings("journal"), journal=journal.path)
    sent = 0
    while not file.getvalue():
        sent += 1
        rig.log.info("line {number}", number=sent)
    assert file.getvalue().endswith(f"line {sent}\n")
    assert [journal.entry()["MESSAGE"] for _ in range(1, sent)] == [f"line {number}" for number in range(1, sent)]
    rig.log.info("later")
    assert journal.entry()["MESSAGE"] == "later"


def test_auto_is_the_journal_where_standard_error_leads_to_it(
    journal: FalseJournal, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (tmp_path / "errors").open("w") as errors:
        found = os.fstat(errors.fileno())
        environ = {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}
        given: dict[str, Any] = {"journal": journal.path, "errors": errors.fileno()}
        event_of_a_stream(Rig(None, settings=Settings("auto"), environ=environ, **given).log)
        assert journal.entry()["SCISTREAM_UID"] == "u-1"
        assert capsys.readouterr().out == "", "no line is there twice"
        for other in ({}, {"JOURNAL_STREAM": "1:2"}):
            event_of_a_stream(Rig(None, settings=Settings("auto"), environ=other, **given).log)
            assert "uid=u-1" in capsys.readouterr().out
        file = io.StringIO()  # a file that was named explicitly
        event_of_a_stream(Rig(file, settings=Settings("auto"), environ=environ, **given).log)
        assert "uid=u-1" in file.getvalue()


def test_a_journal_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"log_format: there is no journal at .*: write 'text' or 'json'"):
        LogOutput("s2cs", Settings("journal"), journal=tmp_path / "none")
    output = LogOutput("s2cs", Settings(), journal=tmp_path / "none")
    with pytest.raises(ConfigError, match="there is no journal"):
        output.prepare(Settings("journal", "error"))
    assert output.level == "info"


def test_syslog_takes_text_only() -> None:
    taken: list[Any] = []
    rig = Rig(None, settings=Settings("auto"), syslog=taken.append)
    event_of_a_stream(rig.log)
    rig.log.debug("nothing")
    assert len(taken) == 1
    with pytest.raises(ConfigError, match="log_format: 'json' is not possible with `twistd --syslog`"):
        rig.output.prepare(Settings("json"))


@pytest.mark.parametrize("level", LEVELS)
def test_events_are_shown_from_the_level_on(level: str) -> None:
    file = io.StringIO()
    rig = Rig(file, settings=Settings("json", level))
    for name, each in LEVELS.items():
        rig.log.emit(each, "{name}", name=name)
    names = list(LEVELS)
    assert [json.loads(line)["message"] for line in file.getvalue().splitlines()] == names[names.index(level) :]
    assert logs.shows_debug is (level == "debug")


def test_what_twisted_says_about_itself_is_shown_at_debug_only() -> None:
    file = io.StringIO()
    rig = Rig(file, settings=Settings("json"))
    rig.twisted.info("Port starting on 5000")
    assert file.getvalue() == ""
    rig.twisted.warn("a warning")
    rig.output.prepare(Settings("json", "debug"))()
    rig.twisted.info("Port starting on 5000")
    lines = [json.loads(line) for line in file.getvalue().splitlines()]
    assert [(line["level"], line["message"]) for line in lines] == [
        ("warning", "a warning"),
        ("debug", "Port starting on 5000"),
    ]


def test_more_and_less_are_said_in_the_log_at_any_level() -> None:
    file = io.StringIO()
    output = Rig(file, settings=Settings("json", "error")).output
    for _ in range(6):
        output.more()
    assert output.level == "debug"
    for _ in range(6):
        output.less()
    said = [json.loads(line)["shown_from"] for line in file.getvalue().splitlines()]
    assert said == ["warning", "info", *["debug"] * 4, "info", "warning", "error", *["critical"] * 3]
    output.prepare(Settings("text", "info"))()
    assert output.level == "info"


def test_a_file_that_was_moved_away_is_opened_again(tmp_path: Path) -> None:
    file = LogFile.fromFullPath(str(tmp_path / "log"))
    rig = Rig(file, settings=Settings())
    (tmp_path / "log").rename(tmp_path / "log.1")
    rig.output.reopen()
    rig.log.info("later")
    assert "later" in (tmp_path / "log").read_text()
    file.close()


def test_values_that_are_no_choice_are_refused_with_the_choices() -> None:
    problems = {problem.keys[0]: problem.why for problem in log_problems(Settings("xml", "loud"))}
    assert problems["log_format"] == '\'xml\' is not a choice: write one of "auto", "text", "json", "journal"'
    assert '"warning"' in problems["log_level"]
    assert list(log_problems(Settings("auto", "debug"))) == []


def test_names_of_fields_are_those_that_the_journal_allows() -> None:
    assert field_name("_x-9é") == "X_9_"
    assert field_name("_") == "FIELD"
    assert len(field_name("a" * 100)) == 64
    assert encoded({"A": "1", "B": "2\n3"}) == b"A=1\nB\n\x03\0\0\0\0\0\0\x002\n3\n"

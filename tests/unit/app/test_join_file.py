"""The join file of `appctrl`: it may come later than the command starts."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner

import scistream.app.cli
from scistream import timing
from scistream.app.join_file import read_join_file
from scistream.app.own_address import address_toward, in_place_of_wildcard
from scistream.protocol.address import Address

JOIN = "scistream://0123abcd-4567-89ef-0123-456789abcdef:qP3_x8ZkT0wLmN-yRf7uVb2sHdJ5gCe9aXo1iQtKzE4@127.0.0.1:9/cons"


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "JOIN_FILE_POLL", 0.01)


def test_a_join_file_that_comes_later_is_read_when_it_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "join"
    told: list[str] = []

    def note(sentence: str) -> None:
        told.append(sentence)
        if len(told) > 1:  # it warns of the file's mode
            return
        half(JOIN[:80])
        threading.Timer(0.1, half, [JOIN[80:]]).start()
        threading.Timer(0.2, half, ["?ca=ab\n"]).start()

    def half(text: str) -> None:
        with open(file, "a") as opened:
            opened.write(text)

    assert read_join_file(file, 30.0, note) == f"{JOIN}?ca=ab\n", "without its end it would be another join string"
    assert told[0] == f"waiting for {file}, for at most 30 seconds"


def test_a_join_file_that_does_not_come_in_time_is_named_with_the_remedy(tmp_path: Path) -> None:
    file = str(tmp_path / "none")
    refused = CliRunner().invoke(scistream.app.cli.main, ["cons", "--join-file", file, "--join-wait", "0.05s"])
    assert refused.exit_code == 2
    assert f"appctrl: waiting for {file}" in refused.output
    assert f"error: {file}: cannot be read: there is no such file: check the path\n" in refused.output
    at_once = CliRunner().invoke(scistream.app.cli.main, ["cons", "--join-file", file])
    assert at_once.exit_code == 2
    assert "waiting" not in at_once.output
    assert "--join-wait" in at_once.output


def test_a_file_without_a_line_feed_is_read_at_the_end_of_the_wait(tmp_path: Path) -> None:
    file = tmp_path / "join"
    file.write_text(JOIN)
    file.chmod(0o600)
    assert read_join_file(file, 0.05, lambda _: None) == JOIN


def test_the_address_toward_a_host_is_the_one_from_which_a_connection_would_come() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname(), timeout=10) as client,
    ):
        assert address_toward("127.0.0.1") == client.getsockname()[0]
    assert in_place_of_wildcard(Address("0.0.0.0", 7000), "127.0.0.9") == Address("127.0.0.9", 7000)
    assert in_place_of_wildcard(Address("192.0.2.7", 7000), "127.0.0.9") == Address("192.0.2.7", 7000)


def test_an_unknown_host_of_toward_is_wrong_usage() -> None:
    refused = CliRunner().invoke(
        scistream.app.cli.main, ["prod", "--listen", "0.0.0.0:7000", "--toward", "no such host", "--join-file", "-"]
    )
    assert refused.exit_code == 2
    assert "--toward" in refused.output
    assert "no such host: " in refused.output

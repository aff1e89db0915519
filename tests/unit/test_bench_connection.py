"""The table of what a new connection costs, by stage: what it prints, and that the page shows the same stages."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from OpenSSL import SSL

from bench import connection
from scistream.s2ds.relay import openssl

PAGE = Path(__file__).parents[2] / "docs" / "performance.rst"


def test_every_stage_of_a_connection_is_measured_and_is_on_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "BATCH", 3)
    monkeypatch.setattr(connection, "BATCHES", 2)
    ends = connection.Handshakes.ends
    dialling: list[SSL.Connection] = []

    def recorded(shakes: connection.Handshakes) -> tuple[SSL.Connection, SSL.Connection]:
        made = ends(shakes)
        dialling.append(made[0])
        return made

    monkeypatch.setattr(connection.Handshakes, "ends", recorded)
    result = CliRunner().invoke(connection.main)
    assert result.exit_code == 0, result.output
    head, *lines, total = result.output.splitlines()
    assert head.split("  ")[0] == "stage"
    page = PAGE.read_text()
    costs = []
    for line in lines:
        name, each, times, cost = line.rsplit(maxsplit=3)
        assert f"   * - {name}\n" in page
        assert float(cost) == pytest.approx(float(each) * int(times), abs=0.05 * int(times) + 0.05)
        assert float(each) > 0
        costs.append(float(cost))
    assert float(total.split()[-1]) == pytest.approx(sum(costs), abs=0.1 * len(costs))
    # The handshakes of the stages without a ticket, and one whose ends give it: what is timed after them has one.
    resumed = [
        openssl.is_resumed(end)
        for end in dialling
        if end.get_state_string() == b"SSL negotiation finished successfully"
    ]
    without = 1 + 2 * 3 * 2
    assert resumed == [False] * without + [True] * (without - 1)


def test_a_handshake_is_measured_with_a_ticket_once_there_is_one() -> None:
    shakes = connection.Handshakes()
    ends = shakes.finish()
    assert not connection.openssl.is_resumed(ends[0])
    shakes.verify(*ends)
    assert connection.openssl.is_resumed(shakes.finish()[1])

"""The table of what a message costs, by stage: what it prints, and that the page shows the same stages."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from bench import stages

PAGE = Path(__file__).parents[2] / "docs" / "performance.rst"


def test_every_stage_is_measured_with_real_messages_and_is_on_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "BATCH", 3)
    monkeypatch.setattr(stages, "BATCHES", 2)
    result = CliRunner().invoke(stages.main)
    assert result.exit_code == 0, result.output
    head, *lines, total = result.output.splitlines()
    assert head.split("  ")[0] == "stage"
    page = PAGE.read_text()
    costs = []
    for line in lines:
        name, each, times, cost = line.rsplit(maxsplit=3)
        assert f"   * - {name}\n" in page
        assert float(cost) == pytest.approx(float(each) * int(times), abs=0.05 * int(times) + 0.05)
        costs.append(float(cost))
    assert costs[0] > 0
    assert float(total.split()[-1]) == pytest.approx(sum(costs), abs=0.1 * len(costs))

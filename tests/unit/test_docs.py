"""The page of what survives what: each line names a test that is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_line_of_the_page_names_tests_that_exist() -> None:
    page = (ROOT / "docs" / "survival.rst").read_text()
    written = {
        name
        for file in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)", file.read_text(), re.MULTILINE)
    }
    lines = re.findall(r"^   \* - (.+?)(?=^   \* - |^\S|\Z)", page, re.MULTILINE | re.DOTALL)
    assert len(lines) > 20
    for line in lines:
        named = set(re.findall(r"``(test_\w+)``", line))
        assert line.startswith("What happens") or named, line
        assert named <= written, named - written

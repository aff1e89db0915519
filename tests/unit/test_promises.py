"""The pages of what is promised, in docs/: each promise names a test that is there."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from scistream.s2cs.settings import ServerLimits
from scistream.s2ds.settings import GatewayLimits

ROOT = Path(__file__).parents[2]
HEADINGS = ("What happens", "Attacker\n")


def tests_that_exist() -> set[str]:
    return {
        name
        for file in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)", file.read_text(), re.MULTILINE)
    }


def named_in(text: str) -> set[str]:
    return set(re.findall(r"``(test_\w+)``", text))


def section(page: str, title: str | None) -> str:
    """Return the text under a title, up to the next title, or the whole page without one."""
    if title is None:
        return page
    _, _, rest = page.partition(f"\n{title}\n")
    assert rest, title
    return re.split(r"\n[^\n]+\n-{4,}\n", rest.partition("\n")[2])[0]


@pytest.mark.parametrize(("name", "title"), [("survival.rst", None), ("security.rst", "Threats and defences")])
def test_every_line_of_a_table_of_promises_names_its_test(name: str, title: str | None) -> None:
    page = section((ROOT / "docs" / name).read_text(), title)
    lines = re.findall(r"^   \* -(.*?)(?=^   \* -|^\S|\Z)", page, re.MULTILINE | re.DOTALL)
    assert len(lines) > 15
    for line in lines:
        assert line.lstrip(" ").startswith(HEADINGS) or named_in(line), line


def test_every_test_that_a_page_names_is_there() -> None:
    there = tests_that_exist()
    for page in (*ROOT.glob("docs/*.rst"), ROOT / "README.rst"):
        missing = named_in(page.read_text()) - there
        assert not missing, f"{page.name}: {missing}"


def test_every_limit_that_can_be_set_is_among_the_budgets_with_its_default() -> None:
    budgets = section((ROOT / "docs" / "security.rst").read_text(), "Budgets")
    rows = re.findall(r"^   \* - (.*?)(?=^   \* - |\Z)", budgets, re.MULTILINE | re.DOTALL)[1:]
    cells = [re.split(r"\n     - ", row) for row in rows]
    for row in cells:
        assert len(row) == 4, row
        assert named_in(row[3]), f"no test holds this: {row[0]}"
    for kind in (ServerLimits, GatewayLimits):
        for field in msgspec.structs.fields(kind):
            if field.name in ("controller_networks",):  # no bound, but whom one does not hold for
                continue
            mine = [row for row in cells if f"``{field.name}``" in row[2]]
            assert mine, f"no row of the budgets names the setting {field.name}"
            default = str(field.default).removesuffix("s")
            # Those stand for what the machine has, or are told as a fraction.
            if field.default not in (0, "auto") and field.name != "owner_share":
                assert any(default in row[1].replace(",", "") for row in mine), f"{field.name}: {default} is not told"

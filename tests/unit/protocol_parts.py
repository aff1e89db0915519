"""The generated parts of docs/protocol.rst: `python tests/unit/protocol_parts.py` updates them."""

from __future__ import annotations

import re
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from state_tables import tables_of

import scistream.app.machine
import scistream.s2cs.machine
import scistream.s2ds.machine
import scistream.s2uc.machine
from support.protocol_page import PAGE, replaced

MACHINES: dict[str, tuple[str | None, int]] = {
    "S2CS": (scistream.s2cs.machine.__doc__, 0),
    "S2DS": (scistream.s2ds.machine.__doc__, 0),
    "S2UC": (scistream.s2uc.machine.__doc__, 0),
    "ProdApp": (scistream.app.machine.__doc__, 0),
    "ConsApp": (scistream.app.machine.__doc__, 1),
}
"""Whose state table the page has, and where it is in the code: the docstring, and the place of the table in it."""


def state_table(party: str) -> str:
    """Return the state table of a machine, as the page shows it."""
    docstring, number = MACHINES[party]
    lines = [".. list-table::", "   :header-rows: 1", "   :widths: 45 40 15", ""]
    rows = [("State", "Input", "Next")]
    rows += [(", ".join(row.states), ", ".join(row.inputs), row.next) for row in tables_of(docstring)[number].rows]
    for states, inputs, then in rows:
        lines += [f"   * - {states}", f"     - {inputs}", f"     - {then}"]
    return "\n".join(lines) + "\n"


def link_targets(page: str) -> str:
    """Return the lines that turn references to sections into links."""
    referred = {one.lower() for one in re.findall(r"`section\s+[\d.]+`_", page, re.IGNORECASE)}
    numbers = sorted({re.sub(r"[^\d.]", "", one) for one in referred}, key=lambda one: [*map(int, one.split("."))])
    return "".join(f".. _section {number}: protocol-{number}_\n" for number in numbers)


def up_to_date(page: str) -> str:
    """Return the page with all generated parts up to date."""
    for party in MACHINES:
        page = replaced(page, f"state table of {party}", state_table(party))
    return replaced(page, "link targets", link_targets(page))


if __name__ == "__main__":
    PAGE.write_text(up_to_date(PAGE.read_text()))

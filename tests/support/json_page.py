"""The page about JSON output, docs/reference/json.rst, as tests read it."""

from __future__ import annotations

import re
from pathlib import Path

_PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "json.rst").read_text()
_SECTION = re.compile(r"^(\w+)\n-+\n(.*?)(?=^\w+\n-+\n|\Z)", re.MULTILINE | re.DOTALL)
_ITEM = re.compile(r"^(``.+|Failure)\n((?:    .*\n|\n(?=    ))+)", re.MULTILINE)


def all_items() -> dict[tuple[str, str], str]:
    """Return the description of each object, by the section and the term."""
    return {
        (section[1].replace("Failures", ""), item[1]): item[2]
        for section in _SECTION.finditer(_PAGE)
        for item in _ITEM.finditer(section[2])
    }


def keys_of(section: str, term: str) -> list[str]:
    """Return the keys of an object, in order: those of the first sentence about it."""
    first = all_items()[section, term].partition(".\n")[0]
    return re.findall(r"``(\w+)``", first)


def commands_described(section: str) -> set[str]:
    """Return the commands of a program that have a description."""
    terms = [term.partition(",")[0] for found, term in all_items() if found == section]
    return {name for term in terms for name in re.findall(r"``([\w ]+?)(?: --[\w-]+)?``", term)}

"""docs/audit.rst, held to the code.

The page has the same kinds of lines, fields and types as the code, and its examples are valid lines.
tests/e2e/test_audit.py checks what the daemons really write against the same schema.
"""

from __future__ import annotations

import re
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import msgspec
import pytest

from scistream.s2cs.audit.events import KINDS, SCHEMA, line_of, read_line

PAGE = (Path(__file__).parents[2] / "docs" / "audit.rst").read_text()
COMMON = ["event", "time", "schema", "server"]
_NAMES = {str: "text", int: "whole number", float: "number", bool: "true or false"}


def sections() -> dict[str, str]:
    """Return the text under each heading."""
    parts = re.split(r"^(\S.*)\n(?:-{3,}|={3,})\n", PAGE, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def documented(section: str) -> dict[str, str]:
    """Return the type of each field in the table of a section."""
    rows = re.findall(r"^   \* - ``(\w+)``\n     - (.+)\n     - \S", section, re.MULTILINE)
    return dict(rows)


def in_words(kind: Any) -> str:
    """Describe a type as the page does."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        (one,) = [each for each in arguments if each is not type(None)]
        return f"{in_words(one)} or null"
    if origin is Literal:
        return in_words(type(arguments[0]))
    if origin in (list, dict):
        if (origin, arguments) == (list, (int,)):
            return "list of whole numbers"
        assert set(arguments) == {str}
        return "list of text" if origin is list else "object of text"
    return _NAMES[kind]


def tag_of(kind: Any) -> str:
    return str(kind.__struct_config__.tag)


def test_the_page_has_each_kind_of_line_and_no_other() -> None:
    assert [name.strip("`") for name in sections() if name.startswith("``")] == [tag_of(kind) for kind in KINDS]


@pytest.mark.parametrize("kind", KINDS, ids=tag_of)
def test_the_page_names_each_field_of_a_line_with_its_type(kind: Any) -> None:
    found = {field.name: in_words(field.type) for field in msgspec.structs.fields(kind)}
    common = documented(sections()["In every line"])
    assert list(common) == COMMON
    assert {**common, **documented(sections()[f"``{tag_of(kind)}``"])} == {"event": "text", **found}


@pytest.mark.parametrize("kind", KINDS, ids=tag_of)
def test_the_page_has_an_example_that_is_such_a_line(kind: Any) -> None:
    (example,) = re.findall(r"^   (\{.*\})$", sections()[f"``{tag_of(kind)}``"], re.MULTILINE)
    event = read_line(example)
    assert type(event) is kind
    assert line_of(event) == example
    assert event.schema == SCHEMA

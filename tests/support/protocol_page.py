"""The protocol reference, docs/protocol.rst, parsed so that tests can compare it with the code."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, get_args

import msgspec
from docutils import nodes
from docutils.core import publish_doctree
from msgspec import inspect

from scistream.protocol import messages

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "protocol.rst"

NUMBERED = re.compile(r"(\d+(?:\.\d+)?)\.? ")

NAMED: dict[str, Any] = {
    "uid": messages.Uid,
    "role": messages.Role,
    "channel": messages.Channel,
    "address": messages.AddressText,
    "port": messages.Port,
    "count": messages.Count,
    "PEM": messages.Pem,
    "SHA-256": messages.Sha256,
    "key": messages.AppKey,
    "token": messages.Boot,
    "code": messages.CodeName,
}
"""The types that the page has a name for."""

IN_LISTS: dict[str, Any] = {"network": get_args(get_args(messages.NetworkTexts)[0])[0]}
"""Those that have it as the items of a list alone: elsewhere the type is that of any short text."""


@cache
def doctree() -> nodes.document:
    """Return the page as docutils parses it; fail at any warning of docutils."""
    settings = {"halt_level": 2, "report_level": 2, "file_insertion_enabled": False}
    return publish_doctree(PAGE.read_text(), settings_overrides=settings)


@cache
def sections() -> dict[str, nodes.section]:
    """Return the numbered sections, by number."""
    found: dict[str, nodes.section] = {}
    for section in doctree().findall(nodes.section):
        match = NUMBERED.match(section[0].astext() + " ")
        if match is not None:
            assert match[1] not in found, f"two sections have the number {match[1]}"
            found[match[1]] = section
    return found


def section_named(title: str) -> nodes.section:
    """Return the section with this title, given without its number."""
    [found] = [one for one in sections().values() if NUMBERED.sub("", one[0].astext(), count=1) == title]
    return found


def tables_in(section: nodes.section) -> Iterator[list[list[str]]]:
    """Yield the tables of a section, without those of its subsections: rows of cells, the header first."""
    for child in section.children:
        for table in child.findall(nodes.table) if not isinstance(child, nodes.section) else ():
            yield [[cell.astext() for cell in row.children] for row in table.findall(nodes.row)]


def table_of(title: str, *header: str) -> list[list[str]]:
    """Return the rows of the only table of a section with this header."""
    [found] = [rows for rows in tables_in(section_named(title)) if rows[0] == list(header)]
    return found[1:]


# -- types, in the page's words


def in_words(kind: inspect.Type, names: Mapping[str, Any] = NAMED) -> str:
    """Describe a type of the code as the page does, with the names that the page defines."""
    name = next((name for name, alias in names.items() if inspect.type_info(alias) == kind), None)
    return name or spelled_out(kind)


def spelled_out(kind: inspect.Type) -> str:
    """Describe a type as the page does, even if the page has a name for it."""
    match kind:
        case inspect.UnionType():
            return " or ".join(in_words(one) for one in kind.types if not isinstance(one, inspect.NoneType))
        case inspect.BoolType():
            return "true or false"
        case inspect.IntType() | inspect.FloatType():
            return _number(kind)
        case inspect.StrType(pattern=str(pattern)):
            return f"text that matches {pattern.removesuffix('Z')[:-1]}$"
        case inspect.StrType():
            return f"text{_many(kind.min_length, kind.max_length, 'characters')}"
        case inspect.LiteralType():
            return " or ".join(map(str, sorted(kind.values)))
        case inspect.ListType():
            return f"list of {_inner(kind.item_type)}{_many(kind.min_length, kind.max_length)}"
        case inspect.TupleType():
            return f"list of {len(kind.item_types)} {in_words(kind.item_types[0])}"
        case inspect.DictType():
            inner = f"map of {_inner(kind.key_type)} to {_inner(kind.value_type)}"
            return inner + _many(kind.min_length, kind.max_length)
        case inspect.StructType():
            return kind.cls.__name__
    raise AssertionError(f"the page has no words for {kind}")


def _inner(kind: inspect.Type) -> str:
    words = in_words(kind, NAMED | IN_LISTS)
    return f"({words})" if " " in words else words


def _many(least: int | None, most: int | None, what: str = "") -> str:
    if most is None:
        return ""
    bounds = f"{least} to {most}" if least else f"at most {most}"
    return f", {bounds} {what}".rstrip()


def _number(kind: inspect.IntType | inspect.FloatType) -> str:
    word = "integer" if isinstance(kind, inspect.IntType) else "number"
    low = kind.ge if kind.ge is not None else kind.gt
    high = kind.le if kind.le is not None else None if kind.lt is None else kind.lt - 1
    if low is None:
        return word
    if high is None:
        return f"{word}, at least {low:g}"
    return (
        f"{word}, above {low:g}, at most {_plain(high)}"
        if kind.gt is not None
        else f"{word}, {_plain(low)} to {_plain(high)}"
    )


def _plain(value: float) -> str:
    powers = {2**53: "2^53", 2**63 - 1: "2^63 - 1"}
    return (
        powers.get(int(value)) or f"{value:.15g}".replace("e-06", "e-6")
        if value != int(value) or value > 2**31
        else f"{int(value)}"
    )


def left_out(field: inspect.Field) -> str:
    """Return what the page says of a field that is left out of a message."""
    may_be_null = isinstance(field.type, inspect.UnionType) and field.type.includes_none
    if field.required:
        return "required; may be null" if may_be_null else "required"
    default = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
    return msgspec.json.encode(default).decode()


# -- parts that are written by scripts


def replaced(page: str, what: str, lines: str) -> str:
    """Return the page with new lines between its comments that begin and end `what`."""
    begin, end = f".. begin {what}\n", f".. end {what}\n"
    assert page.count(begin) == page.count(end) == 1, f"the page has no one place for {what}"
    before, _, rest = page.partition(begin)
    return f"{before}{begin}\n{lines}\n{end}{rest.partition(end)[2]}"

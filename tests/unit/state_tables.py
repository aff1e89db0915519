"""The state tables in the docstrings of the machines, read so that tests can hold the machines against them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from types import FunctionType
from typing import Any

SAME = "same"


@dataclass(frozen=True)
class Row:
    """In any of these states, any of these inputs leads there."""

    states: tuple[str, ...]
    inputs: tuple[str, ...]
    next: str


@dataclass(frozen=True)
class Table:
    """One RST simple table of three columns."""

    rows: tuple[Row, ...]

    def next(self, state: str, given: str, case: str = "") -> str:
        """Where an input leads. `case` is what a state may have in brackets, such as a role.

        :returns: the state's own name where the table says "same", or has no row but that for anything else.
        """
        found = {
            row.next
            for row in self.rows
            if given in row.inputs and (state in row.states or f"{state} ({case})" in row.states)
        }
        assert len(found) <= 1, f"the table says {found} for {given} in {state}"
        [there] = found or {SAME}
        return state if there == SAME else there

    @property
    def states(self) -> set[str]:
        """The states that it names."""
        named = {state.partition(" (")[0] for row in self.rows for state in row.states}
        named |= {row.next for row in self.rows if row.next[:1].isupper()}
        return named - {"any"}

    @property
    def inputs(self) -> set[tuple[str, str]]:
        """All pairs of a state and an input that have a row, but for those of any state."""
        return {
            (state.partition(" (")[0], given)
            for row in self.rows
            for state in row.states
            for given in row.inputs
            if state != "any"
        }


def tables_of(docstring: str | None) -> list[Table]:
    """Return all simple tables of a docstring, in their order."""
    assert docstring is not None
    tables: list[Table] = []
    lines = iter(docstring.splitlines())
    for line in lines:
        if re.fullmatch(r"=+ +=+ +=+", line):
            edges = [match.start() for match in re.finditer("=+", line)]
            assert _cells(next(lines), edges) == ["state", "input", "next"]
            assert next(lines) == line
            tables.append(Table(tuple(_rows(lines, edges, line))))
    return tables


def _rows(lines: Iterable[str], edges: list[int], border: str) -> list[Row]:
    cells: list[list[str]] = []
    for line in lines:
        if line == border:
            break
        states, given, there = _cells(line, edges)
        if given or there:
            cells.append([states, given, there])
        else:
            cells[-1][0] += " " + states  # the states go on
    return [Row(_names(states), _names(given), there) for states, given, there in cells]


def _cells(line: str, edges: list[int]) -> list[str]:
    ends = [*edges[1:], None]
    return [line[start:end].strip() for start, end in zip(edges, ends, strict=True)]


def _names(cell: str) -> tuple[str, ...]:
    return tuple(name for name in re.split(r", | or ", cell.strip(" ,")) if name)


def inputs_of(protocol: type[Any]) -> set[str]:
    """Return the names of a machine's inputs, those that start with an underscore too."""
    return {
        name
        for name, value in vars(protocol).items()
        if isinstance(value, FunctionType) and value.__module__ == protocol.__module__
    }

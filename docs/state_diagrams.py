"""Draw a machine from the state table in its module's docstring, as SVG in the colours of the page.

Tests compare the machines with these tables, so a diagram shows what the code does. Rows for any state are left out,
because they have no effect. The states are in one column. An arrow between neighbours is a short line. Every other row
of the table is a rail beside the column: a line from each of its states that ends in an arrow.
"""

from __future__ import annotations

import html
import sys
import textwrap
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

[_PARSER] = (Path(__file__).parents[1] / "tests").rglob("state_tables.py")
sys.path.insert(0, str(_PARSER.parent))

from state_tables import SAME, Table  # noqa: E402

BACK = "as before it"
"""In a table: the state from which the machine entered the current one."""
ENDS = ("Releasing", "Released", "Done")
"""The final states of a machine, at the end of the column."""

WIDTH, HEIGHT, GAP = 116, 46, 62
LETTER, LINE, LONGEST = 6.4, 15, 22
LOOP = 13
"""The distance of an arrow to the same state from the upper edge of the state; other arrows are below it."""
SPACE = 18


@dataclass
class Rail:
    """The transitions under one label: from each of the sources to each of the targets."""

    sources: list[str]
    targets: list[str]
    label: list[str]
    x: float = 0

    @property
    def ends(self) -> list[str]:
        """The states that the rail touches."""
        return [*self.sources, *self.targets]

    @property
    def label_width(self) -> float:
        """The width of the label, including a margin."""
        return max(map(len, self.label)) * LETTER + 8


@dataclass
class Diagram:
    """Where the states and rails of one table are drawn. The left edge of the column of states is at 0."""

    order: list[str]
    loops: list[Rail] = field(default_factory=list)
    straight: list[Rail] = field(default_factory=list)
    beside: dict[int, list[Rail]] = field(default_factory=lambda: {-1: [], 1: []})
    """Rails at the left (-1) lead upwards, those at the right (1) downwards."""

    def row(self, state: str) -> int:
        """Return the place of a state in the column."""
        return self.order.index(state)

    def top(self, state: str) -> float:
        """Return the y coordinate of the upper edge of a state."""
        return self.row(state) * (HEIGHT + GAP)

    def rows(self, rail: Rail) -> range:
        """Return the rows that a rail passes."""
        touched = [self.row(state) for state in rail.ends]
        return range(min(touched), max(touched) + 1)

    def place(self, rail: Rail) -> None:
        """Decide how a rail is drawn."""
        rows = [self.row(state) for state in rail.sources]
        if rail.sources == rail.targets:
            self.loops.append(rail)
        elif rail.ends == self.order[rows[0] : rows[0] + 2]:
            self.straight.append(rail)
        else:
            leads_down = len(rail.targets) == 1 and min(rows) < self.row(rail.targets[0])
            self.beside[1 if leads_down else -1].append(rail)

    def gap(self, rail: Rail) -> int:
        """Return the gap between two rows for a rail's label: the gap that the fewest other rails pass."""
        rows, side = self.rows(rail), self.beside[1] if rail in self.beside[1] else self.beside[-1]
        near = min(max(self.row(rail.targets[-1]) - 1, rows[0]), rows[-1] - 1)
        crowd = {gap: sum({gap, gap + 1} <= set(self.rows(one)) for one in side) for gap in rows[:-1]}
        return min(rows[:-1], key=lambda gap: (crowd[gap], abs(gap - near)))

    def spread(self) -> None:
        """Give each rail beside the column an x coordinate at which it overlaps no other rail and no label."""
        for side, rails in self.beside.items():
            placed: list[Rail] = []
            for rail in sorted(rails, key=lambda rail: len(self.rows(rail))):
                rows = self.rows(rail)
                edges = [WIDTH if side > 0 else 0.0]
                if side > 0:
                    edges += [
                        WIDTH / 2 + one.label_width for one in self.straight if self.row(one.sources[0]) in rows[:-1]
                    ]
                else:
                    edges += [SPACE + one.label_width for one in self.loops]
                for one in placed:
                    if self.gap(one) in rows[:-1]:
                        edges.append(abs(one.x) + one.label_width)
                    elif set(self.rows(one)) & set(rows):
                        edges.append(abs(one.x))
                rail.x = side * (max(edges) + SPACE)
                placed.append(rail)

    def port(self, rail: Rail, state: str) -> float:
        """Return the y coordinate at which a rail touches a state, in an order in which no rails cross."""
        side = 1 if rail.x > 0 else -1

        def place(one: Rail) -> tuple[int, float]:
            rows = self.rows(one)
            if rows[-1] == self.row(state):
                return (0, abs(one.x))
            return (2, -abs(one.x)) if rows[0] == self.row(state) else (1, 0)

        touching = sorted((one for one in self.beside[side] if state in one.ends), key=place)
        above = LOOP + 8 if side < 0 and any(state in one.sources for one in self.loops) else 0
        return self.top(state) + above + (HEIGHT - above) * (touching.index(rail) + 1) / (len(touching) + 1)

    # -- drawing

    def svg(self, name: str, title: str) -> str:
        """Return the diagram as SVG."""
        shapes = [*map(self._loop, self.loops), *map(self._short_line, self.straight)]
        shapes += [self._rail(side, rail) for side, rails in self.beside.items() for rail in rails]
        shapes += map(self._state, self.order)
        left = max([SPACE + rail.label_width for rail in self.loops] + self._edges(-1)) + 8
        right = max([WIDTH, *(WIDTH / 2 + rail.label_width for rail in self.straight), *self._edges(1)]) + 8
        height = self.top(self.order[-1]) + HEIGHT + 4
        parts = "\n".join(shapes).replace("#tip", f"#{name}-tip")
        return f"""<div class="picture-frame">
<svg class="picture state-machine" role="img" aria-label="{html.escape(title)}" width="{left + right:.0f}"
 viewBox="{-left:.0f} -2 {left + right:.0f} {height:.0f}" xmlns="http://www.w3.org/2000/svg">
<defs><marker id="{name}-tip" viewBox="0 0 8 8" refX="7.5" refY="4" markerWidth="8" markerHeight="8" orient="auto"
 markerUnits="userSpaceOnUse"><path class="tip" d="M0,0.5 L8,4 L0,7.5 z"/></marker></defs>
{parts}
</svg>
</div>
"""

    def _edges(self, side: int) -> list[float]:
        return [abs(rail.x) + rail.label_width for rail in self.beside[side]] or [0]

    def _state(self, state: str) -> str:
        y = self.top(state)
        return (
            f'<rect class="state" x="0" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="9"/>'
            f'<text class="name" x="{WIDTH / 2}" y="{y + HEIGHT / 2 + 5}" text-anchor="middle">{state}</text>'
        )

    def _short_line(self, rail: Rail) -> str:
        start = self.top(rail.sources[0]) + HEIGHT
        line = _path([(WIDTH / 2, start), (WIDTH / 2, start + GAP)], arrow=True)
        return line + _words(rail.label, WIDTH / 2 + 8, start + GAP / 2, "start")

    def _loop(self, rail: Rail) -> str:
        drawn = ""
        for state in rail.sources:
            y = self.top(state) + LOOP
            drawn += _path([(0, y - 6), (-SPACE, y - 6), (-SPACE, y + 6), (0, y + 6)], arrow=True)
            drawn += _words(rail.label, -SPACE - 6, y, "end")
        return drawn

    def _rail(self, side: int, rail: Rail) -> str:
        edge = WIDTH if side > 0 else 0
        ports = [self.port(rail, state) for state in rail.ends]
        drawn = _path([(rail.x, min(ports)), (rail.x, max(ports))])
        for state in rail.sources:
            drawn += _path([(edge, self.port(rail, state)), (rail.x, self.port(rail, state))])
        for state in rail.targets:
            drawn += _path([(rail.x, self.port(rail, state)), (edge, self.port(rail, state))], arrow=True)
        # The label stands between two rows of states, where no line crosses it.
        middle = self.gap(rail) * (HEIGHT + GAP) + HEIGHT + GAP / 2
        return drawn + _words(rail.label, rail.x + side * 7, middle, "start" if side > 0 else "end")


def _path(points: list[tuple[float, float]], *, arrow: bool = False) -> str:
    way = " L".join(f"{x:.1f},{y:.1f}" for x, y in points)
    tip = ' marker-end="url(#tip)"' if arrow else ""
    return f'<path class="edge" d="M{way}"{tip}/>'


def _words(lines: list[str], x: float, middle: float, anchor: str) -> str:
    first = middle - (len(lines) - 1) * LINE / 2 + 4
    return "".join(
        f'<text class="label" x="{x:.1f}" y="{first + number * LINE:.1f}" text-anchor="{anchor}">{html.escape(line)}'
        "</text>"
        for number, line in enumerate(lines)
    )


def diagram_of(table: Table) -> Diagram:
    """Lay out a table. Rows with the same states and the same next state become one arrow."""
    inputs: dict[tuple[tuple[str, ...], str], list[str]] = defaultdict(list)
    for row in table.rows:
        if "any" not in row.states:
            inputs[row.states, row.next] += row.inputs
    steps = [(states[0], there) for states, there in inputs if there not in (SAME, BACK)]
    named = list(dict.fromkeys(_bare(name) for step in steps for name in step))
    ends = [name for name in ENDS if name in named]
    diagram = Diagram([name for name in named if name not in ends] + ends)
    into: dict[str, set[str]] = defaultdict(set)
    for states, there in inputs:
        into[there] |= set(map(_bare, states))
    for (states, there), given in inputs.items():
        sources = [_bare(name) for name in states]
        before = sorted(into[sources[0]], key=diagram.row)
        targets = {SAME: sources, BACK: before}.get(there, [there])
        cases = [f"({name.partition(' (')[2][:-1]} in {_bare(name)})" for name in states if name != _bare(name)]
        diagram.place(Rail(sources, targets, _lines(given) + (cases if len(states) > 1 else [])))
    diagram.spread()
    return diagram


def _bare(state: str) -> str:
    """Return the name of a state without the condition in parentheses."""
    return state.partition(" (")[0]


def _lines(inputs: list[str]) -> list[str]:
    """Break a list of inputs into short lines: between two inputs, or within one that is too long."""
    lines = [""]
    for given in [*(f"{one}," for one in inputs[:-1]), inputs[-1]]:
        for part in textwrap.wrap(given, LONGEST):
            if len(lines[-1]) + len(part) < LONGEST:
                lines[-1] = f"{lines[-1]} {part}".strip()
            else:
                lines.append(part)
    return lines

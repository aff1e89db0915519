"""Present the result: as a table, as a plot, and in the documentation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from bench.paths import OURS
from bench.rows import CONNECTS, CPU, P50, THROUGHPUT, Figure, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BEGIN, END = ".. the last full run{} begins here", ".. the last full run{} ends here"
_COLUMNS = ("workload", "peer", "ours", "theirs", "ratio", "target", "met", "runs")


def table(rows: Sequence[Row]) -> Table:
    """Make a table of all rows, for a terminal."""
    drawn = Table(
        title="SciStream compared with its peers", title_justify="left", caption=_caption(rows), caption_justify="left"
    )
    for column in _COLUMNS:
        drawn.add_column(column, justify="left" if column in ("workload", "peer", "met") else "right")
    for row in rows:
        style = {True: "green", False: "bold red", None: "dim"}[row.met]
        *cells, met, runs = words(row)
        drawn.add_row(*cells, f"[{style}]{met}[/]", runs)
    return drawn


def words(row: Row) -> list[str]:
    """Return the cells of a row, with a dash for a missing value."""
    sign = ">=" if row.better == "higher" else "<="
    reach = "-" if row.reach is None else f"{sign} {row.reach:g}" + (" x" if row.peer else f" {row.unit}")
    met = {True: "met", False: "MISSED", None: "-"}[row.met]
    ratio = "-" if row.ratio is None else f"{row.ratio:.2f}"
    return [
        row.work,
        row.peer or "-",
        _figure(row.ours, row.unit),
        _figure(row.theirs, row.unit),
        ratio,
        reach,
        met,
        str(row.runs),
    ]


def _figure(value: float | None, unit: str) -> str:
    return "-" if value is None else f"{value:.4g} {unit}"


def _caption(rows: Sequence[Row]) -> str:
    wanted = [row for row in rows if row.met is not None]
    met = sum(row.met is True for row in wanted)
    return (
        f"{met} of {len(wanted)} targets met (within 5%, the first byte exactly); "
        "ratio = ours / theirs, the median over pairs of runs"
    )


def save(rows: Sequence[Row], machine: Mapping[str, str], folder: Path) -> list[Path]:
    """Write latest.json, machine.json and the plot as PNG and SVG; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / "latest.json", folder / "machine.json"]
    written[0].write_text("[\n" + ",\n".join(json.dumps(row.as_json()) for row in rows) + "\n]\n")
    written[1].write_text(json.dumps(machine, indent=1) + "\n")
    return written + _plot(rows, machine, folder)


def load(folder: Path) -> tuple[list[Row], dict[str, str]]:
    """Read the rows and the machine that `save` has written."""
    rows = [Row(**row) for row in json.loads((folder / "latest.json").read_text())]
    return rows, json.loads((folder / "machine.json").read_text())


_PANELS: tuple[tuple[Figure, str], ...] = (
    (THROUGHPUT, "more is better"),
    (CPU, "less is better"),
    (P50, "less is better"),
    (CONNECTS, "more is better"),
)


def bars(rows: Sequence[Row], figure: Figure) -> dict[str, dict[str, float]]:
    """Return the data of one panel of the plot: for each path, the figure of each program."""
    panel: dict[str, dict[str, float]] = {}
    for row in rows:
        path, _, name = row.work.rpartition(": ")
        if name == figure.name and row.ours is not None and row.peer is not None and row.theirs is not None:
            panel.setdefault(path, {OURS: row.ours})[row.peer] = row.theirs
    return panel


def _plot(rows: Sequence[Row], machine: Mapping[str, str], folder: Path) -> list[Path]:
    panels = [(figure, better, bars(rows, figure)) for figure, better in _PANELS]
    panels = [panel for panel in panels if panel[2]]
    if not panels:
        return []
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "scistream"
    from matplotlib import pyplot

    heights = [sum(len(group) + 1 for group in panel.values()) for _, _, panel in panels]
    drawing, axes = pyplot.subplots(
        len(panels),
        1,
        figsize=(9, 1.2 + 0.26 * sum(heights)),
        height_ratios=heights,
        squeeze=False,
        layout="constrained",
    )
    for (figure, better, panel), axis in zip(panels, axes[:, 0], strict=True):
        _draw(axis, panel)
        axis.set_title(f"{figure.name} ({figure.unit}, {better})", loc="left", fontsize=10)
    drawing.suptitle(f"{machine.get('processor', '')}, {machine.get('kernel', '')}", fontsize=8)
    written = [folder / "latest.png", folder / "latest.svg"]
    for path in written:
        drawing.savefig(path, dpi=120)
    pyplot.close(drawing)
    return written


_COLOURS = {OURS: "#0b6e4f", "HAProxy": "#5b8db8", "nginx": "#8fb3d1", "stunnel": "#b0a990", "socat": "#cfc8b4"}


def _draw(axis: Axes, panel: Mapping[str, Mapping[str, float]]) -> None:
    """Draw horizontal bars, one group for each path, the first one on top."""
    at = 0
    ticks: list[int] = []
    names: list[str] = []
    for path, group in panel.items():
        axis.text(0, at, path, va="center", fontsize=8, style="italic")
        for who, value in group.items():
            at += 1
            bar = axis.barh(at, value, color=_COLOURS.get(who, "#dddddd"))
            axis.bar_label(bar, fmt="%.4g", fontsize=7, padding=2)
            ticks.append(at)
            names.append(who)
        at += 1
    axis.set_yticks(ticks, names, fontsize=8)
    axis.set_ylim(at - 0.2, -0.8)
    axis.margins(x=0.1)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(axis="x", labelsize=7)


def into_page(page: str, rows: Sequence[Row], machine: Mapping[str, str], kind: str = "") -> str:
    """Replace the result in the documentation page with this one, and return the page.

    :param kind: " with cubic" for a run with this congestion control for all programs.
    :raises ValueError: if the page lacks the lines around the result.
    """
    facts = "\n".join(f":{name}: {value}" for name, value in machine.items())
    lines = [".. list-table::", "   :header-rows: 1", ""]
    for cells in (_COLUMNS, *(words(row) for row in rows)):
        lines += [f"   {'* -' if number == 0 else '  -'} {cell}" for number, cell in enumerate(_in_rst(cells))]
    table = "\n".join(lines)
    return between(page, BEGIN.format(kind), END.format(kind), f"{facts}\n\n{table}\n\n{_caption(rows)}.")


def between(page: str, begin: str, end: str, text: str) -> str:
    """Replace what is between two lines of a page, and return the page.

    :raises ValueError: if the page lacks one of them.
    """
    before, found, rest = page.partition(begin)
    _, found_end, after = rest.partition(end)
    if not found or not found_end:
        raise ValueError(f"the page lacks the lines {begin!r} and {end!r}")
    return f"{before}{begin}\n\n{text}\n\n{end}{after}"


def _in_rst(cells: Sequence[str]) -> list[str]:
    """Escape cells that are only a dash, which would begin a list."""
    return ["\\-" if cell == "-" else cell for cell in cells]

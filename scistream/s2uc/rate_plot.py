"""A plot of rates over time for a terminal, as lines of text, with axes and units."""

from __future__ import annotations

from collections.abc import Sequence

_EIGHTHS = " ▁▂▃▄▅▆▇█"
_STEPS = (1.0, 2.0, 5.0, 10.0)
_LABEL = 8
"""The columns of the labels of the vertical axis, and of the axis itself."""


def plot_columns(width: int) -> int:
    """Return how many values a plot of this width shows."""
    return max(8, width - _LABEL)


def plot(values: Sequence[float | None], span: float, height: int, *, plain: bool = False) -> tuple[str, list[str]]:
    """Return the unit of the vertical axis, and the lines of the plot.

    :param values: rates in Mbit/s, the oldest first; None where the rate is not known.
    :param span: the time that they cover, in seconds; it ends now.
    :param height: the lines of the plot itself; two more are for the horizontal axis.
    :param plain: use ASCII only.
    """
    unit, size = _unit(max((value for value in values if value is not None), default=0.0))
    top = _nice(max((value / size for value in values if value is not None), default=0.0))
    lines = []
    for row in range(height, 0, -1):
        label = top if row == height else top / 2 if row == (height + 1) // 2 and height > 3 else None
        edge = "|" if plain else "┤" if label is not None else "│"
        body = "".join(_cell(value, size, top, row - 1, height, plain) for value in values)
        lines.append(f"{'' if label is None else _short(label):>{_LABEL - 2}} {edge}{body}")
    corner, line = ("+", "-") if plain else ("└", "─")
    lines.append(f"{'0':>{_LABEL - 2}} {corner}{line * len(values)}")
    lines.append(_time_axis(len(values), span))
    return unit, lines


def _cell(value: float | None, size: float, top: float, row: int, height: int, plain: bool) -> str:
    """Return the character of one value in one row, counted from 0 at the bottom."""
    if value is None:
        return " "
    eighths = round(value / size / top * height * 8) - row * 8
    if value > 0 and row == 0:
        eighths = max(1, eighths)
    if plain:
        return "#" if eighths >= 4 or (row == 0 and value > 0) else " "
    return _EIGHTHS[min(8, max(0, eighths))]


def _time_axis(columns: int, span: float) -> str:
    left, right = f"-{_spoken(span)}", "now"
    middle = f"-{_spoken(span / 2)}"
    axis = left + " " * (columns - len(left) - len(right)) + right
    start = columns // 2 - len(middle) // 2
    if start > len(left) and start + len(middle) < columns - len(right):
        axis = axis[:start] + middle + axis[start + len(middle) :]
    return " " * _LABEL + axis


def _spoken(seconds: float) -> str:
    return f"{seconds:g} s" if seconds < 120 else f"{seconds / 60:g} min"


def _unit(most: float) -> tuple[str, float]:
    for unit, size in (("Tbit/s", 1e6), ("Gbit/s", 1e3), ("Mbit/s", 1.0)):
        if most >= size:
            return unit, size
    return "kbit/s", 1e-3


def _nice(value: float) -> float:
    """Return the smallest of 1, 2, 5, 10, 20, 50, ... that is not below a value."""
    if value <= 0:
        return 1.0
    size = 1.0
    while size * 10 < value:
        size *= 10
    while size > value:
        size /= 10
    return next(step * size for step in _STEPS if step * size >= value * (1 - 1e-9))


def _short(value: float) -> str:
    return f"{value:g}"

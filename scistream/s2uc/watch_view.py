"""How `s2uc watch` shows a stream: a picture for terminals, a line of text for pipes, and a JSON object for programs.

Each is a pure function of the `WatchHistory`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from scistream.protocol.errors import printable
from scistream.protocol.messages import CONS, PROD, ChannelFigures, Role, StreamStatus
from scistream.s2uc.rate_plot import plot, plot_columns
from scistream.s2uc.show import reset_sentence
from scistream.s2uc.stream import SIDE
from scistream.s2uc.watch_history import SPAN, Direction, WatchHistory, WatchMoment
from scistream.units import short_seconds, spoken_size

_COLOURS = {"Streaming": "green", "Releasing": "yellow", "Released": "red", "no answer": "red", "unknown": "red"}
_TO: dict[Direction, str] = {"to_consumer": "to the consumer", "to_producer": "to the producer"}
_HIGHEST_PLOT, _LOWEST_PLOT = 10, 4
_FIRST_SPAN = 60.0
"""Seconds: the plot covers the last minute at first, and then all that is kept."""


# -- for terminals


def picture(
    history: WatchHistory, width: int, height: int, *, plain: bool = False, keys: bool = True
) -> RenderableType:
    """Return the picture of a stream, in at most `height` lines of `width` columns.

    :param plain: use ASCII only.
    :param keys: say which key ends the view.
    """
    last = history.last
    head: list[RenderableType] = [_title(history, width), _sides(last, width)]
    foot = _footer(keys)
    notes = [Text(line, overflow="fold") for line in _notes(last)]
    room = height - _lines(head, width) - len(foot)
    plots = [direction for direction in _TO if direction == "to_consumer" or last.total(direction)]
    channels, paths = _channels(last), _paths(last)
    wanted = sum(_lines([note], width) for note in notes)
    # The plot gives way first, then channels and paths, then notes: a shorter list says that it is one.
    tall = max(_LOWEST_PLOT, min(_HIGHEST_PLOT, (room - wanted - len(channels) - len(paths) - 4) // len(plots) - 4))
    pictures = [part for direction in plots for part in _plot(history, direction, width, tall, plain)]
    room -= len(pictures)
    if room < 4 and len(plots) > 1:
        pictures = _plot(history, "to_consumer", width, tall, plain)
        room = height - _lines(head, width) - len(foot) - len(pictures)
    shown_notes, room = _that_fit(notes, room, min(len(channels) + 4, 12) + min(len(paths), 4), width)
    tables: list[RenderableType] = []
    if channels:
        tables += _channel_table(channels, room - min(len(paths), 4))
        room -= _lines(tables, width)
    if paths:
        tables += _path_table(paths, room)
    return Group(*head, *pictures, *tables, *shown_notes, *foot)


def _title(history: WatchHistory, width: int) -> Text:
    label = printable(history.label or "")
    return Text(f"{history.uid}  {label}".rstrip(), style="bold", no_wrap=True, overflow="ellipsis")


def _sides(last: WatchMoment, width: int) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim", width=width)
    for heading in ("side", "state", "open", "to consumer", "to producer", "left", "waits for"):
        table.add_column(heading, no_wrap=heading != "waits for", overflow="fold")
    for role in (PROD, CONS):
        side, state = last.sides.get(role), last.state(role)
        figures = side.figures if side is not None else []
        cells = ["", "", "", ""]
        if side is not None:
            cells = [
                str(sum(one.connections for one in figures)),
                *(spoken_size(last.count(role, direction) or 0) for direction in _TO),
                short_seconds(max(0.0, side.seconds_left)),
            ]
        waits = Text(printable(last.waits_for(role)))
        table.add_row(SIDE[role], Text(state, style=_COLOURS.get(state, "cyan")), *cells, waits)
    return table


def _plot(history: WatchHistory, direction: Direction, width: int, height: int, plain: bool) -> list[Text]:
    lived = history.last.at - history.moments[0].at
    span = _FIRST_SPAN if lived <= _FIRST_SPAN else SPAN
    unit, lines = plot(history.rates(direction, plot_columns(width - 1), span), span, height, plain=plain)
    now = history.rate(direction)
    reserved = max((side.rate for side in history.last.sides.values()), default=0.0)
    title = f"{unit} {_TO[direction]}"
    if now is not None:
        title += f", now {_rate(now)}" + (f" of {_rate(reserved)} reserved" if reserved else "")
    return [Text(""), Text(title, no_wrap=True), *(Text(line, no_wrap=True) for line in lines)]


def _channels(last: WatchMoment) -> list[tuple[str, ...]]:
    """Return a row for each channel, made of what both sides say of it."""
    by_role: dict[Role, dict[int, ChannelFigures]] = {
        role: {one.channel: one for one in side.figures} for role, side in last.sides.items()
    }
    rows: list[tuple[str, ...]] = []
    for channel in sorted({channel for figures in by_role.values() for channel in figures}):
        prod, cons = by_role.get(PROD, {}).get(channel), by_role.get(CONS, {}).get(channel)
        both = [one for one in (cons, prod) if one is not None]
        arrived, returned = (cons or both[0]).bytes_to_consumer, (prod or both[0]).bytes_to_producer
        rtt = next((one.rtt_ms for one in both if one.rtt_ms), None)
        rows.append(
            (
                str(channel),
                str(both[0].connections),
                "+".join(str(one.reset) for one in (prod, cons) if one is not None),
                spoken_size(arrived),
                spoken_size(returned),
                f"{rtt:.4g} ms" if rtt else "",
                str(sum(one.retransmits for one in both)),
                spoken_size(sum(one.waiting for one in both)),
            )
        )
    return rows


_CHANNEL_HEADINGS = ("channel", "open", "reset", "to consumer", "to producer", "round trip", "resent", "waiting")


def _channel_table(rows: list[tuple[str, ...]], room: int) -> list[RenderableType]:
    return _table(_CHANNEL_HEADINGS, rows, room, "channels")


def _paths(last: WatchMoment) -> list[tuple[str, ...]]:
    return [
        (
            SIDE[role],
            printable(f"{path.local} - {path.remote}") if path.local else "others",
            "up" if path.up else "down",
            str(path.connections),
            spoken_size(path.bytes_to_consumer),
            spoken_size(path.bytes_to_producer),
            f"{path.rtt_ms:.4g} ms" if path.rtt_ms else "",
            str(path.failures),
        )
        for role, side in last.sides.items()
        for path in side.paths
    ]


def _path_table(rows: list[tuple[str, ...]], room: int) -> list[RenderableType]:
    headings = ("side", "path", "is", "open", "to consumer", "to producer", "round trip", "failed")
    return _table(headings, rows, room, "paths")


def _table(headings: tuple[str, ...], rows: list[tuple[str, ...]], room: int, what: str) -> list[RenderableType]:
    """Return a table with as many rows as there is room for, and a line that says how many more there are."""
    most = max(1, room - 3)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for heading in headings:
        table.add_column(heading, no_wrap=heading != "path", overflow="fold", justify="left")
    for row in rows[:most]:
        table.add_row(*map(Text, row))
    more = len(rows) - most
    rest = [Text(f"and {more} more {what}: `s2uc status UID` shows all", style="dim")] if more > 0 else []
    return [Text(""), table, *rest]


def _notes(last: WatchMoment) -> Iterator[str]:
    """Yield the sentences about what is wrong, the most important first."""
    for role, side in _by_side(last):
        if side.last_error is not None:
            yield printable(f"{SIDE[role]}: {side.last_error.code}: {side.last_error.msg}")
    for role, side in _by_side(last):
        for name, seconds in side.silent.items():
            yield printable(f"{SIDE[role]}: gateway {name} has not answered its S2CS for {short_seconds(seconds)}")
        for broken in side.broken:
            ago = short_seconds(broken.seconds)
            yield printable(f"{SIDE[role]}, channel {broken.channel}: broken for {ago}: {broken.reason}")
        for reset in side.resets:
            yield printable(f"{SIDE[role]}, {reset_sentence(reset)}")
        for notice in side.notices:
            yield printable(f"{SIDE[role]}: {notice}")


def _by_side(last: WatchMoment) -> Iterator[tuple[Role, StreamStatus]]:
    roles: tuple[Role, ...] = (PROD, CONS)
    return ((role, last.sides[role]) for role in roles if role in last.sides)


def _that_fit(notes: list[Text], room: int, others: int, width: int) -> tuple[list[Text], int]:
    """Return the notes for which there is room beside some lines of tables, and the room that is left.

    :param others: the lines that tables can use.
    """
    shown: list[Text] = []
    left = max(2, room - others)
    for number, note in enumerate(notes):
        needed = _lines([note], width)
        if needed > left - (1 if number < len(notes) - 1 else 0):
            shown.append(Text(f"and {len(notes) - number} more reasons: `s2uc status UID` shows all", style="dim"))
            break
        shown.append(note)
        left -= needed
    used = sum(_lines([note], width) for note in shown)
    return ([Text(""), *shown] if shown else []), room - used - bool(shown)


def _footer(keys: bool) -> list[Text]:
    return [Text(""), Text("q ends the view; the stream goes on", style="dim")] if keys else []


def _lines(parts: list[Any], width: int) -> int:
    """Return how many lines these parts take."""
    from rich.console import Console

    console = Console(width=width, file=_NOWHERE, color_system=None)
    return len(console.render_lines(Group(*parts), console.options.update(width=width)))


class _Nowhere:
    """A file for a console that only measures."""

    encoding = "utf-8"

    def write(self, _text: str) -> int:
        return 0

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return False


_NOWHERE: Any = _Nowhere()


# -- for pipes


def line(history: WatchHistory, clock: str) -> str:
    """Return one line about the last moment.

    :param clock: the time of day.
    """
    last = history.last
    parts = [f"{SIDE[role]} {last.state(role)}" for role in (PROD, CONS)]
    open_now = max((sum(one.connections for one in side.figures) for side in last.sides.values()), default=0)
    parts.append(f"{open_now} open")
    for direction, to in _TO.items():
        now = history.rate(direction)
        parts.append(f"{spoken_size(last.total(direction))} {to}" + (f" ({_rate(now)})" if now is not None else ""))
    resets = sum(one.reset for side in last.sides.values() for one in side.figures)
    if resets:
        parts.append(f"{resets} reset")
    for role in (PROD, CONS):
        if last.waits_for(role):
            parts.append(f"{SIDE[role]} waits for {last.waits_for(role)}")
    return printable(f"{clock}  {', '.join(parts)}")


def news(before: WatchMoment | None, last: WatchMoment) -> list[str]:
    """Return the reasons and errors that the moment before did not have, as lines for a pipe."""

    def counted(moment: WatchMoment | None) -> dict[tuple[Role, int, str], int]:
        sides = moment.sides.items() if moment is not None else ()
        return {(role, one.channel, one.reason): one.count for role, side in sides for one in side.resets}

    known = counted(before)
    return [
        printable(f"{SIDE[role]}, {reset_sentence(one)}")
        for role, side in last.sides.items()
        for one in side.resets
        if one.count > known.get((role, one.channel, one.reason), 0)
    ]


# -- for programs


def fields(history: WatchHistory, seconds: float) -> dict[str, Any]:
    """Return the last moment as a JSON object.

    :param seconds: the time since the epoch.
    """
    last = history.last
    sides = {role: msgspec.to_builtins(msgspec.structs.replace(side, csr="")) for role, side in last.sides.items()}
    return {
        "uid": history.uid,
        "time": round(seconds, 3),
        "states": {role: last.state(role) for role in (PROD, CONS)},
        "waits_for": {role: last.waits_for(role) for role in (PROD, CONS)},
        "bytes": {direction: last.total(direction) for direction in _TO},
        "mbit": {direction: history.rate(direction) for direction in _TO},
        "sides": sides,
        "errors": dict(last.failures),
    }


def _rate(mbit: float) -> str:
    for unit, size in (("Gbit/s", 1e3), ("Mbit/s", 1.0)):
        if mbit >= size:
            return f"{mbit / size:.3g} {unit}"
    return f"{mbit * 1e3:.3g} kbit/s"

"""Print tables: folded to the width of a terminal, and as plain columns for pipes and files."""

from __future__ import annotations

import sys

import click

from scistream.protocol.errors import printable
from scistream.wrapping import wrapped

SHORT_UID = 8


class Columns:
    """A table with headings.

    On a terminal, cells are folded to its width and the notes of rows follow below the table. Otherwise each row is one
    line, with at least two spaces between columns and the note in the last column.

    :param headings: of the columns.
    :param note: the heading of the notes; None if rows have none.
    :param whole: the headings of columns that are left out on a terminal.
    """

    def __init__(self, *headings: str, note: str | None = None, whole: tuple[str, ...] = ()) -> None:
        self._headings = headings
        self._note = note
        self._whole = whole
        self._rows: list[tuple[tuple[str, ...], str, str]] = []

    def add(self, *cells: str, note: str = "", noted: str = "") -> None:
        """Add a row. Its text may come from a peer, so unprintable characters are replaced by question marks.

        :param noted: what the note is about, shown before it on a terminal.
        """
        self._rows.append((tuple(map(printable, cells)), printable(note), printable(noted)))

    def __len__(self) -> int:
        return len(self._rows)

    def show(self) -> None:
        """Print the table."""
        if sys.stdout.isatty():
            self._show_on_terminal()
        else:
            self._show_plainly()

    def _show_plainly(self) -> None:
        from rich.cells import cell_len  # only this part of rich is quick to import

        head = (*self._headings, *([self._note] if self._note else []))
        rows = [tuple(one.upper() for one in head)]
        rows += [(*cells, *([note] if self._note else [])) for cells, note, _ in self._rows]
        widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            padded = [cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)]
            click.echo("  ".join(padded).rstrip())

    def _show_on_terminal(self) -> None:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        shown = [number for number, heading in enumerate(self._headings) if heading not in self._whole]
        table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="none")
        for number in shown:
            table.add_column(self._headings[number].upper(), overflow="fold", no_wrap=self._headings[number] == "uid")
        for cells, _, _ in self._rows:
            table.add_row(*(Text(cells[number]) for number in shown))
        Console(highlight=False).print(table)
        for _, note, noted in self._rows:
            if note:
                click.echo(wrapped(f"{noted}: {note}" if noted else note, sys.stdout))


def short_uids(uids: list[str]) -> dict[str, str]:
    """Return shortened uids for a terminal, long enough to be distinct; otherwise the full uids."""
    if not sys.stdout.isatty():
        return {uid: uid for uid in uids}
    length = SHORT_UID
    while len({uid[:length] for uid in uids}) < len(set(uids)):
        length += 1
    return {uid: uid[:length] for uid in uids}

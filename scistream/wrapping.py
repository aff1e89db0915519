"""Break lines between words where they are shown on a terminal; pipes and files get them whole."""

from __future__ import annotations

import os
import textwrap
from typing import TextIO

_NARROWEST = 20


def columns_of(stream: TextIO) -> int | None:
    """Return the width of the terminal that a stream leads to; None if it leads to none, or the width is unknown."""
    try:
        if not stream.isatty():
            return None
        columns = int(os.environ.get("COLUMNS") or 0) or os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):
        return None
    return max(_NARROWEST, columns) if columns > 0 else None


def wrapped(text: str, stream: TextIO) -> str:
    """Return text whose lines fit the terminal that a stream leads to. Words that are wider stay whole."""
    columns = columns_of(stream)
    if columns is None:
        return text
    return "\n".join(
        textwrap.fill(
            line, columns, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False, drop_whitespace=True
        )
        if len(line) > columns
        else line
        for line in text.split("\n")
    )

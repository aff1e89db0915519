"""Read a join string from the file that ``--join-file`` names, which may appear later than `appctrl` starts."""

from __future__ import annotations

import os
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path

from scistream import timing
from scistream.protocol.join_string import LONGEST
from scistream.units import spoken_seconds

Note = Callable[[str], None]


def read_join_file(file: Path, patience: float, note: Note) -> str:
    """Return what a file says, or the first line of standard input if the file is ``-``.

    :param patience: seconds to wait for a file that is not there yet, or does not end with a line feed yet: it may be
        on its way from another machine.
    :param note: called with sentences for the user.
    :raises OSError: if the file cannot be read; `FileNotFoundError`, if it has not appeared in time.
    """
    if str(file) == "-":
        return _first_line()
    deadline = time.monotonic() + patience
    told = False
    while True:
        left = deadline - time.monotonic()
        try:
            text = _read(file)
        except FileNotFoundError:
            if left <= 0:
                raise
        else:
            if left <= 0 or text.endswith("\n"):
                break
        if not told:
            note(f"waiting for {file}, for at most {spoken_seconds(patience)}")
            told = True
        time.sleep(min(timing.JOIN_FILE_POLL, left))
    _warn_if_open(file, note)
    return text


def _read(file: Path) -> str:
    with open(file, "rb") as opened:
        return opened.read(LONGEST).decode(errors="replace")


def _warn_if_open(file: Path, note: Note) -> None:
    status = os.stat(file)
    if stat.S_ISREG(status.st_mode) and status.st_mode & (stat.S_IRGRP | stat.S_IROTH):
        note(f"warning: {file} holds a secret, and other users can read it: run `chmod 600 {file}`")


def _first_line() -> str:
    """Read the first line of standard input, and no byte more, since the rest is for the program."""
    source = getattr(sys.stdin.buffer, "raw", sys.stdin.buffer)
    line = b""
    while len(line) < LONGEST and (byte := source.read(1)) not in (b"", b"\n"):
        line += byte
    return line.decode(errors="replace")

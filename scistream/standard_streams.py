"""Standard input, output and error of a command, which may be closed, full or broken.

A closed descriptor is replaced by /dev/null, so that no socket gets its number. If standard output cannot be written,
`OutputLostError` is raised once, and the command cleans up. If standard error cannot be written, that is ignored.
"""

from __future__ import annotations

import codecs
import errno
import fcntl
import io
import locale
import os
import select
import sys
from typing import Any

_FILLED_WITH = {0: os.O_RDONLY, 1: os.O_RDONLY, 2: os.O_WRONLY}
"""How /dev/null is opened for each. For standard output it is opened for reading, so that writing still fails."""


class OutputLostError(Exception):
    """Standard output cannot be written. It is not an OSError, since those are caught in many places.

    :param code: the `errno` of the system's error.
    """

    def __init__(self, code: int) -> None:
        super().__init__(f"standard output cannot be written: {os.strerror(code)}")
        self.code = code

    @property
    def is_pipe(self) -> bool:
        """True if the reader of a pipe has closed it, which needs no message."""
        return self.code == errno.EPIPE


def fill_descriptors() -> None:
    """Open /dev/null for each of the descriptors 0 to 2 that is closed. Call it before any file is opened.

    Programs that are started later inherit these descriptors.
    """
    for descriptor, flags in _FILLED_WITH.items():
        try:
            os.fstat(descriptor)
        except OSError:
            filled = os.open(os.devnull, flags)  # gets the lowest free number, which is this one
            os.set_inheritable(filled, True)


def claim() -> None:
    """Replace `sys.stdout` and `sys.stderr` by streams that act as this module says, after `fill_descriptors`."""
    fill_descriptors()
    if sys.stdin is None:
        sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)))
    sys.stdout = _stream(_Output(1, "w", closefd=False), sys.stdout)
    sys.stderr = _stream(_Errors(2, "w", closefd=False), sys.stderr)


def check_output() -> None:
    """Check early that standard output can be written.

    :raises OutputLostError: if it is closed, or is a pipe without a reader.
    """
    try:
        descriptor = sys.stdout.fileno()
    except (AttributeError, OSError, ValueError):
        return  # a test or a program has replaced sys.stdout
    if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise OutputLostError(errno.EBADF)
    looking = select.poll()
    looking.register(descriptor, 0)
    if any(events & select.POLLERR for _, events in looking.poll(0)):
        raise OutputLostError(errno.EPIPE)


def _stream(raw: io.FileIO, before: Any) -> io.TextIOWrapper:
    """Return a text stream that writes question marks for characters that its encoding does not have."""
    encoding = codecs.lookup(getattr(before, "encoding", None) or locale.getpreferredencoding(False)).name
    kind: type[io.TextIOWrapper] = io.TextIOWrapper
    if encoding == "ascii":  # click takes ASCII for a mistake, and would write UTF-8
        kind, encoding = _Ascii, "utf-8"
    return kind(io.BufferedWriter(raw), encoding=encoding, errors="replace", line_buffering=True)


class _Ascii(io.TextIOWrapper):
    """A text stream that writes ASCII only."""

    def write(self, text: str, /) -> int:
        """Write the text, with question marks for other characters."""
        return super().write(text.encode("ascii", "replace").decode())


class _Output(io.FileIO):
    """Standard output. The first failure is raised, and everything after it is dropped."""

    _lost = False

    def write(self, data: Any, /) -> int:
        """Write, and wait if another process has made the shared descriptor non-blocking."""
        if self._lost:
            return len(data)
        try:
            while (written := super().write(data)) is None:
                room = select.poll()
                room.register(self, select.POLLOUT)
                room.poll()
        except OSError as problem:
            self._lost = True
            raise OutputLostError(problem.errno or errno.EIO) from None
        return written


class _Errors(io.FileIO):
    """Standard error. Output that cannot be written is dropped, since there is no other place to report it."""

    def write(self, data: Any, /) -> int:
        """Write the data, or drop it."""
        try:
            return super().write(data) or len(data)
        except OSError:
            return len(data)

"""Standard input, output and error of a command: what is closed, full or broken must not decide what it leaves behind.

A closed descriptor is filled, so that no socket takes its number. Standard output that cannot be written raises
`OutputLostError`, once; standard error that cannot be written is no reason to do anything else.
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
"""How /dev/null is opened in place of each. Standard output is opened for reading: writing to it fails as before."""


class OutputLostError(Exception):
    """Standard output cannot be written. Not an OSError: that is caught in many places for other reasons.

    :param code: the number of the system's error.
    """

    def __init__(self, code: int) -> None:
        super().__init__(f"standard output cannot be written: {os.strerror(code)}")
        self.code = code

    @property
    def is_pipe(self) -> bool:
        """Whether its reader has gone away, which is no fault of anybody."""
        return self.code == errno.EPIPE


def fill_descriptors() -> None:
    """Open /dev/null in place of those of the descriptors 0 to 2 that are closed, before others open files.

    A program that is started later inherits them.
    """
    for descriptor, flags in _FILLED_WITH.items():
        try:
            os.fstat(descriptor)
        except OSError:
            filled = os.open(os.devnull, flags)  # the lowest number that is free, which is this one
            os.set_inheritable(filled, True)


def claim() -> None:
    """Fill the descriptors 0 to 2 where they are closed, and put streams over 1 and 2 that act as this module says."""
    fill_descriptors()
    if sys.stdin is None:
        sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)))
    sys.stdout = _stream(_Output(1, "w", closefd=False), sys.stdout)
    sys.stderr = _stream(_Errors(2, "w", closefd=False), sys.stderr)


def check_output() -> None:
    """Find out early whether standard output can be written at all.

    :raises OutputLostError: if it is closed, or a pipe without a reader.
    """
    try:
        descriptor = sys.stdout.fileno()
    except (AttributeError, OSError, ValueError):
        return  # a test, or a program, has put something else in its place
    if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise OutputLostError(errno.EBADF)
    looking = select.poll()
    looking.register(descriptor, 0)
    if any(events & select.POLLERR for _, events in looking.poll(0)):
        raise OutputLostError(errno.EPIPE)


def _stream(raw: io.FileIO, before: Any) -> io.TextIOWrapper:
    """Text over a descriptor; what its encoding does not have becomes a question mark."""
    encoding = codecs.lookup(getattr(before, "encoding", None) or locale.getpreferredencoding(False)).name
    kind: type[io.TextIOWrapper] = io.TextIOWrapper
    if encoding == "ascii":  # of which click thinks that it must be a mistake, and writes UTF-8
        kind, encoding = _Ascii, "utf-8"
    return kind(io.BufferedWriter(raw), encoding=encoding, errors="replace", line_buffering=True)


class _Ascii(io.TextIOWrapper):
    """Text that has only ASCII when it is written."""

    def write(self, text: str, /) -> int:
        """Write, with question marks for all else."""
        return super().write(text.encode("ascii", "replace").decode())


class _Output(io.FileIO):
    """Standard output: the first failure is raised, and what comes after it is dropped."""

    _lost = False

    def write(self, data: Any, /) -> int:
        """Write, waiting where the descriptor was made non-blocking by somebody who shares it."""
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
    """Standard error: what cannot be said there cannot be said at all."""

    def write(self, data: Any, /) -> int:
        """Write, or drop it."""
        try:
            return super().write(data) or len(data)
        except OSError:
            return len(data)

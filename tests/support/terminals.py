"""A pseudo-terminal for programs under test, and what they have written on it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import termios
import time
from types import TracebackType

from support.waiting import PATIENCE

_ESCAPE = re.compile(rb"\x1b(\[[0-9;?]*[A-Za-z]|\][^\x07]*\x07|[=>78])")


class Terminal:
    """A pseudo-terminal. Use it as a context manager, and `side` as the descriptors of a program."""

    def __init__(self, columns: int = 80, rows: int = 30) -> None:
        self._master, self.side = pty.openpty()
        fcntl.ioctl(self.side, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self._written = b""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        os.close(self._master)
        os.close(self.side)

    @property
    def descriptors(self) -> dict[int, int | None]:
        """The terminal as standard input, output and error."""
        return {0: self.side, 1: self.side, 2: self.side}

    def press(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def wait_for(self, text: str) -> str:
        """Wait until a text has been written since the last call, and return all that was, without escape codes."""
        deadline = time.monotonic() + PATIENCE
        while text not in self.text():
            left = deadline - time.monotonic()
            assert left > 0, f"{text!r} was not written within {PATIENCE:g} s, but:\n{self.text()}"
            self._read(left)
        found, self._written = self.text(), b""
        return found

    def rest(self) -> str:
        """Return all that was written since the last call, without escape codes."""
        self._read(0.0)
        found, self._written = self.text(), b""
        return found

    def text(self) -> str:
        return _ESCAPE.sub(b"", self._written).decode(errors="replace")

    def raw(self) -> bytes:
        self._read(0.0)
        return self._written

    def _read(self, timeout: float) -> None:
        readable = select.poll()
        readable.register(self._master, select.POLLIN)
        while readable.poll(timeout * 1000):
            self._written += os.read(self._master, 65536)
            timeout = 0.0

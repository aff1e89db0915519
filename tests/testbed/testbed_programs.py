"""Programs that a testbed runs: what they say, how they end, and that they end with whoever started them."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from support.waiting import PATIENCE

_GRACE = 10.0
_PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None)


class Program:
    """A process in a namespace: its standard output comes as lines, its standard error goes to a file."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.log = log
        self._said = b""
        self._told = 0

    @property
    def pid(self) -> int:
        """Its number."""
        return self.process.pid

    def line(self, timeout: float = PATIENCE) -> str:
        """The next line of its output that nobody has asked for yet."""
        deadline = time.monotonic() + timeout
        while (end := self._said.find(b"\n", self._told)) < 0:
            assert self._read(deadline), f"no line from {self}"
        line, self._told = self._said[self._told : end], end + 1
        return line.decode()

    def end(self, timeout: float = PATIENCE, *, status: int | None = 0) -> subprocess.CompletedProcess[str]:
        """Wait until it has ended, with this status if one is given."""
        deadline = time.monotonic() + timeout
        while self._read(deadline):
            pass
        try:
            ended = self.process.wait(max(0.0, deadline - time.monotonic()) + 1)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"after {timeout:g} s it still runs: {self}") from None
        if self.process.stdout is not None:
            self.process.stdout.close()
        assert status in (None, ended), f"status {ended}: {self}"
        return subprocess.CompletedProcess(self.process.args, ended, self._said.decode(), self.log.read_text())

    def stop(self) -> int:
        """Ask it to end, then make it; its status."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(_GRACE)
            except subprocess.TimeoutExpired:
                self.process.kill()
        if self.process.stdout is not None:
            self.process.stdout.close()
        return self.process.wait(_GRACE)

    def _read(self, deadline: float) -> bytes:
        assert self.process.stdout is not None
        if self.process.stdout.closed:
            return b""
        out = self.process.stdout.fileno()
        there = select.poll()  # as select() takes no descriptor above 1,023
        there.register(out, select.POLLIN)
        if not there.poll(max(0.0, deadline - time.monotonic()) * 1000):
            return b""
        part = os.read(out, 65536)
        self._said += part
        return part

    def __str__(self) -> str:
        wrote = self._said.decode(errors="replace")[-2000:] + self.log.read_text(errors="replace")[-4000:]
        return f"`{' '.join(map(str, self.process.args))}` (process {self.pid}), which wrote:\n{wrote}\n"  # type: ignore[arg-type]


def with_parent(parent: int) -> Callable[[], None]:
    """For the child: the kernel sends it SIGTERM when its parent dies in any way."""

    def arrange() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)

    return arrange

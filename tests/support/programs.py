"""Programs that tests run: their output and exit status. None outlives the process that started it.

Programs are to be started in the main thread: the kernel ends them with the thread that started them.
"""

from __future__ import annotations

import os
import queue
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from scistream.demo import die_with_parent
from support.fork_server import Child, ForkServer
from support.waiting import PATIENCE, until

INSTALLED = Path(sys.executable).parent
"""The folder of the installed commands."""

_GRACE = 10.0
_TETHER = [sys.executable, "-I", "-S", die_with_parent.__file__]


_fork_server: ForkServer | None = None

Descriptors = Mapping[int, int | None]
"""Files for standard descriptors of a process, by the number of the descriptor; None where it is closed."""


def _start(
    command: Sequence[str],
    errors: IO[Any],
    env: Mapping[str, str],
    cwd: Path,
    descriptors: Descriptors,
    lasting: bool,
) -> subprocess.Popen[str] | Child:
    if _fork_server is not None and not lasting and _fork_server.can_start(command, env):
        return _fork_server.start(command, errors, env, cwd, descriptors)

    def replace() -> None:
        for number, file in descriptors.items():
            if file is None:
                os.close(number)
            else:
                os.dup2(file, number)

    return subprocess.Popen(
        [*([] if lasting else [*_TETHER, str(os.getpid())]), *command],
        stdin=subprocess.DEVNULL,
        stdout=errors if lasting else subprocess.PIPE,
        stderr=errors,
        text=True,
        env=env,
        cwd=cwd,
        start_new_session=lasting,
        preexec_fn=replace if descriptors else None,
    )


@contextmanager
def many_processes() -> Iterator[None]:
    """Within this the project's commands are forked, which takes little time; any thread may start them."""
    global _fork_server
    assert _fork_server is None
    _fork_server = ForkServer([*_TETHER, str(os.getpid())])
    try:
        yield
    finally:
        server, _fork_server = _fork_server, None
        server.close()


@contextmanager
def executed_programs() -> Iterator[None]:
    """Within this no command is forked: the list of processes shows each with its arguments."""
    global _fork_server
    server, _fork_server = _fork_server, None
    try:
        yield
    finally:
        _fork_server = server


class Program:
    """A process in a session of its own. Its standard output comes as lines, its standard error goes to a file.

    The kernel ends it when this process dies.

    :param log: the file for its standard error; the process runs in the folder of this file.
    :param env: its environment; that of this process if not given.
    :param descriptors: what its standard descriptors are instead.
    :param lasting: whether it may outlive this process; its standard output goes to the file, too.
    """

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        env: Mapping[str, str] | None = None,
        *,
        descriptors: Descriptors | None = None,
        lasting: bool = False,
    ) -> None:
        self.log = log
        self.command = list(command)
        self._asked = False
        self._out: list[str] = []
        self._lines: queue.Queue[str | None] = queue.Queue()
        with open(log, "ab") as errors:
            env = os.environ if env is None else env
            self.process = _start(command, errors, env, log.parent, descriptors or {}, lasting)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """Its number."""
        return self.process.pid

    def line(self, timeout: float = PATIENCE) -> str:
        """Return the next line of its output."""
        try:
            line = self._lines.get(timeout=timeout)
        except queue.Empty:
            raise AssertionError(f"no line from {self} within {timeout:g} s") from None
        assert line is not None, f"{self} has ended"
        return line.rstrip("\n")

    def has_line(self) -> bool:
        """Return True if it is there already."""
        return not self._lines.empty() and self._lines.queue[0] is not None

    def peek(self) -> str:
        """Return the next line of its output without consuming it."""
        return str(self._lines.queue[0])

    def next_line(self) -> str | None:
        """Return the next line of its output if it is already there."""
        with suppress(queue.Empty):
            line = self._lines.get_nowait()
            if line is not None:
                return line.rstrip("\n")
            self._lines.put(None)
        return None

    def end(self, timeout: float = PATIENCE, *, status: int | None = 0) -> subprocess.CompletedProcess[str]:
        """Wait until it has ended, with this status if one is given."""
        try:
            ended = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self} still runs after {timeout:g} s") from None
        self._reader.join(timeout)
        assert status in (None, ended), f"{self} ended with status {ended}"
        return subprocess.CompletedProcess(self.command, ended, "".join(self._out), self.log.read_text())

    def stop(self) -> int:
        """Ask it to end, then make it and whatever it has started; its status."""
        self.ask_to_end()
        if self.process.returncode is None:
            with suppress(AssertionError):
                until(self._has_ended, lambda: "", _GRACE)
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        return self.process.wait(PATIENCE)

    def ask_to_end(self) -> None:
        """Send it SIGTERM, once."""
        if not self._asked and self.process.returncode is None:
            self._asked = True
            os.kill(self.pid, signal.SIGTERM)

    def _has_ended(self) -> bool:
        """As long as nobody has waited for it, its number is not given to another."""
        handle = os.pidfd_open(self.pid)
        try:
            ended = select.poll()
            ended.register(handle, select.POLLIN)
            return bool(ended.poll(0))
        finally:
            os.close(handle)

    def __str__(self) -> str:
        wrote = "".join(self._out)[-2000:] + self.log.read_text(errors="replace")[-4000:]
        return f"`{' '.join(self.command)}` (process {self.pid}), which wrote:\n{wrote}\n"

    def _read(self) -> None:
        if self.process.stdout is not None:
            with self.process.stdout as output:
                for line in output:
                    self._out.append(line)
                    self._lines.put(line)
        self._lines.put(None)

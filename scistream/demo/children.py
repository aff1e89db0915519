"""The processes that the demonstration starts and ends.

Each process has a session of its own and writes to files in the demonstration's folder. At the end it gets SIGTERM,
and is killed with all its descendants if it does not end within `timing.DEMO_STOP`. Nothing here blocks.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.error import ProcessTerminated
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from scistream import timing
from scistream.app.startup import JOIN_VARIABLE


class Child(ProcessProtocol):
    """One process, with its output files and how it ended."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.out = folder / f"{name}.out"
        self.log = folder / f"{name}.log"
        self.pid = 0
        self.end: str | None = None
        """How it ended, such as "status 1" or "SIGKILL"; None while it runs."""
        self.succeeded = False
        self._waiting: list[Deferred[None]] = []

    def ended(self) -> Deferred[None]:
        """Return a Deferred that fires when the process has ended."""
        waiting: Deferred[None] = Deferred()
        if self.end is None:
            self._waiting.append(waiting)
        else:
            waiting.callback(None)
        return waiting

    def processEnded(self, reason: Failure) -> None:
        """Note how the process ended, and fire the Deferreds of `ended`."""
        value = reason.value
        self.succeeded = not isinstance(value, ProcessTerminated)
        if isinstance(value, ProcessTerminated) and value.signal is not None:
            self.end = signal.Signals(value.signal).name
        else:
            self.end = f"status {getattr(value, 'exitCode', 0)}"
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            if not each.called:
                each.callback(None)

    def tail(self, lines: int = 15) -> list[str]:
        """Return the last lines of its standard error, or of its standard output if that has none."""
        for path in (self.log, self.out):
            with suppress(OSError):
                written = path.read_text(errors="replace").splitlines()
                if written:
                    return written[-lines:]
        return []


class Children:
    """All processes of one demonstration. Their output files are in `folder`."""

    def __init__(self, reactor: Any, folder: Path) -> None:
        self._reactor = reactor
        self._folder = folder
        self._all: list[Child] = []
        self._ending = False

    def start(
        self, name: str, command: Sequence[str], env: Mapping[str, str], on_end: Callable[[Child], None]
    ) -> Child:
        """Start a process whose standard output and standard error go to files.

        :param name: a unique name, also of its files.
        :param env: variables in addition to this process's own environment without the user's join string.
        :param on_end: called when the process has ended, unless `end_all` was called before.
        """
        child = Child(name, self._folder)
        wrapped = [sys.executable, "-P", "-m", "scistream.demo.die_with_parent", str(os.getpid()), *command]
        devnull = os.open(os.devnull, os.O_RDONLY)
        out = os.open(child.out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        log = os.open(child.log, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            process = self._reactor.spawnProcess(
                child,
                wrapped[0],
                wrapped,
                env={**_inherited(), "PYTHONPATH": _python_path(), **env},
                path=str(self._folder),
                childFDs={0: devnull, 1: out, 2: log},
            )
        finally:
            for fd in (devnull, out, log):
                os.close(fd)
        child.pid = process.pid
        self._all.append(child)
        child.ended().addCallback(lambda _: None if self._ending else on_end(child))
        return child

    def tails(self) -> list[str]:
        """Return the last lines of every log, each after the name of its process."""
        return [f"{child.name}: {line}" for child in self._all for line in child.tail(5)]

    async def end_all(self) -> None:
        """End every process with all its descendants, and return when none is left."""
        self._ending = True
        for child in self._all:
            _signal(os.kill, child, signal.SIGTERM)
        ends: Deferred[Any] = DeferredList([child.ended() for child in self._all], consumeErrors=True)
        ends.addTimeout(timing.DEMO_STOP, self._reactor, onTimeoutCancel=lambda *_: None)
        await ends
        for child in self._all:
            _signal(os.killpg, child, signal.SIGKILL, even_if_ended=True)
            _signal(os.kill, child, signal.SIGKILL)
        await DeferredList([child.ended() for child in self._all])
        await self._until_gone()

    async def _until_gone(self) -> None:
        """Poll, for a bounded time, until killed descendants are gone. They are not children of this process."""
        deadline = self._reactor.seconds() + timing.DEMO_GONE
        while self._reactor.seconds() < deadline and any(_group_lives(child) for child in self._all):
            await deferLater(self._reactor, timing.DEMO_GONE_POLL)


def _signal(send: Callable[[int, int], None], child: Child, number: int, *, even_if_ended: bool = False) -> None:
    if child.end is None or even_if_ended:
        with suppress(ProcessLookupError):
            send(child.pid, number)


def _group_lives(child: Child) -> bool:
    try:
        os.killpg(child.pid, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _inherited() -> dict[str, str]:
    """Return the environment of this process without the join string of a stream of the user's own."""
    return {name: value for name, value in os.environ.items() if name != JOIN_VARIABLE}


def _python_path() -> str:
    """Return the module path of this process with absolute folders, since children run in another folder."""
    return os.pathsep.join(os.path.abspath(path) for path in sys.path if path)  # "" is the folder of this process

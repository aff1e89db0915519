"""The processes that the demonstration starts, and their end.

Each has a session of its own, writes to files in the demonstration's folder, and ends with it: asked by SIGTERM
first, killed with all its descendants after a time of grace. Nothing here blocks.
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
    """One process, its end, and what it has written."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.out = folder / f"{name}.out"
        self.log = folder / f"{name}.log"
        self.pid = 0
        self.end: str | None = None
        """How it ended ("status 1", "SIGKILL"), or None while it runs."""
        self.succeeded = False
        self._waiting: list[Deferred[None]] = []

    def ended(self) -> Deferred[None]:
        """Fires once the process has ended."""
        waiting: Deferred[None] = Deferred()
        if self.end is None:
            self._waiting.append(waiting)
        else:
            waiting.callback(None)
        return waiting

    def processEnded(self, reason: Failure) -> None:
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
        """The last lines of what it has written: to its standard error, or, if nothing there, to its output."""
        for path in (self.log, self.out):
            with suppress(OSError):
                written = path.read_text(errors="replace").splitlines()
                if written:
                    return written[-lines:]
        return []


class Children:
    """All processes of one demonstration; their files go to `folder`."""

    def __init__(self, reactor: Any, folder: Path) -> None:
        self._reactor = reactor
        self._folder = folder
        self._all: list[Child] = []
        self._ending = False

    def start(
        self, name: str, command: Sequence[str], env: Mapping[str, str], on_end: Callable[[Child], None]
    ) -> Child:
        """Start a process; its standard output and standard error go to its files.

        :param name: unique; names its files.
        :param env: added to this process's own environment, of which the user's join string is left out.
        :param on_end: called when it has ended, unless `end_all` was called first.
        """
        child = Child(name, self._folder)
        tethered = [sys.executable, "-P", "-m", "scistream.demo.die_with_parent", str(os.getpid()), *command]
        nothing = os.open(os.devnull, os.O_RDONLY)
        out = os.open(child.out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        log = os.open(child.log, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            process = self._reactor.spawnProcess(
                child,
                tethered[0],
                tethered,
                env={**_inherited(), "PYTHONPATH": _python_path(), **env},
                path=str(self._folder),
                childFDs={0: nothing, 1: out, 2: log},
            )
        finally:
            for fd in (nothing, out, log):
                os.close(fd)
        child.pid = process.pid
        self._all.append(child)
        child.ended().addCallback(lambda _: None if self._ending else on_end(child))
        return child

    def tails(self) -> list[str]:
        """The last lines of every log, each with its name before it."""
        return [f"{child.name}: {line}" for child in self._all for line in child.tail(5)]

    async def end_all(self) -> None:
        """End every process and whatever it has started; returns when none is left."""
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
        """Killed descendants are not our own to wait for: look until they have left, for a bounded time."""
        deadline = self._reactor.seconds() + timing.DEMO_GONE
        while self._reactor.seconds() < deadline and any(_group_lives(child) for child in self._all):
            await deferLater(self._reactor, timing.DEMO_GONE_LOOK)


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
    """The environment of this process without the secret of a stream that is not the demonstration's."""
    return {name: value for name, value in os.environ.items() if name != JOIN_VARIABLE}


def _python_path() -> str:
    """Children find the same modules as this process, from whichever folder it was started."""
    return os.pathsep.join(os.path.abspath(path) for path in sys.path if path)  # "" is that folder

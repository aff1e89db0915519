"""Starts the project's commands in little time: forks them from a process that has imported all of it.

A test that needs some hundred processes would spend most of its time on their imports. What a child runs is what the
installed command runs, from its entry point on, in a process and a session of its own, with files of its own.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

_MODULES = (
    "scistream.app.cli",
    "scistream.s2cs.tap",
    "scistream.s2ds.tap",
    "scistream.s2uc.cli",
    "twisted.internet.epollreactor",
    "twisted.plugins.scistream_services",
    "twisted.scripts.twistd",
)
_ENTRIES = {
    "appctrl": ("scistream.app.cli", "main"),
    "s2uc": ("scistream.s2uc.cli", "main"),
    "twistd": ("twisted.scripts.twistd", "run"),
}
_PR_SET_PDEATHSIG = 1
_LONGEST = 1024 * 1024
_PATIENCE = 60.0
"""Seconds for an answer; the first one comes when all modules have been imported."""


class ForkServer:
    """Where children are forked; it ends with this process. Any thread may use it.

    :param launcher: a command that runs another one, so that it ends with this process.
    """

    def __init__(self, launcher: Sequence[str]) -> None:
        self._lock = threading.Lock()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(_PATIENCE)
        with theirs:
            command = [*launcher, sys.executable, __file__, str(theirs.fileno())]
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)

    def can_start(self, command: Sequence[str], env: Mapping[str, str]) -> bool:
        """Whether it is one of the project's commands, or a script given to Python, with nothing to load before it."""
        is_known = Path(command[0]).name in _ENTRIES or list(command[:2]) == [sys.executable, "-c"]
        return is_known and "LD_PRELOAD" not in env

    def start(self, command: Sequence[str], errors: IO[Any], env: Mapping[str, str], cwd: Path) -> Child:
        """Start a command; its standard output can be read from the child."""
        output, theirs = os.pipe()
        order = {"command": list(command), "env": dict(env), "cwd": str(cwd)}
        try:
            pid = self._ask(order, [theirs, errors.fileno()])
        finally:
            os.close(theirs)
        return Child(pid, os.fdopen(output), lambda: self._ask({"wait": pid}, []))

    def close(self) -> None:
        """End it; its children are asked to end, too, should any be left."""
        self._socket.close()
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise AssertionError(f"the process that forks commands did not end within {_PATIENCE:g} s") from None

    def _ask(self, order: Mapping[str, Any], files: list[int]) -> int:
        with self._lock:
            socket.send_fds(self._socket, [json.dumps(order).encode()], files)
            try:
                answer = self._socket.recv(_LONGEST)
            except TimeoutError:
                answer = b""
        assert answer, f"the process that forks commands has ended, or not answered within {_PATIENCE:g} s: {order}"
        return int(answer)


class Child:
    """A forked process, with as much of `subprocess.Popen` as is needed."""

    def __init__(self, pid: int, stdout: IO[str], reap: Callable[[], int]) -> None:
        self.pid = pid
        self.stdout = stdout
        self.returncode: int | None = None
        self._reap = reap
        self._lock = threading.Lock()
        self._handle = os.pidfd_open(pid)

    def poll(self) -> int | None:
        """Its status, or None while it runs."""
        return self._ended(0.0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it has ended; its status.

        :raises subprocess.TimeoutExpired: if it runs longer.
        """
        status = self._ended(timeout)
        if status is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
        return status

    def kill(self) -> None:
        """End it as a crash would."""
        self.send_signal(signal.SIGKILL)

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        with self._lock:
            if self.returncode is None:
                signal.pidfd_send_signal(self._handle, number)

    def _ended(self, timeout: float | None) -> int | None:
        watched = select.poll()
        with self._lock:
            if self.returncode is not None:
                return self.returncode
            handle = os.dup(self._handle)  # another thread may close the other one, and its number be given away
        try:
            watched.register(handle, select.POLLIN)
            if not watched.poll(None if timeout is None else timeout * 1000):
                return None
        finally:
            os.close(handle)
        with self._lock:
            if self.returncode is None:
                self.returncode = self._reap()
                os.close(self._handle)
        return self.returncode


# In the server


def _main() -> int:
    """Fork for each order until there are no more; a child comes out of here as the command that it is to be."""
    orders = socket.socket(fileno=int(sys.argv[1]))
    for module in _MODULES:
        importlib.import_module(module)
    assert "twisted.internet.reactor" not in sys.modules, "each child needs a reactor of its own"
    me = os.getpid()
    while True:
        line, files, _, _ = socket.recv_fds(orders, _LONGEST, 2)
        if not line:
            return 0
        order = json.loads(line)
        if "wait" in order:
            _, status = os.waitpid(order["wait"], 0)
            orders.send(str(os.waitstatus_to_exitcode(status)).encode())
            continue
        pid = os.fork()
        if not pid:
            orders.close()
            return _become(order, files, me)
        for file in files:
            os.close(file)
        orders.send(str(pid).encode())


def _become(order: Mapping[str, Any], files: Sequence[int], parent: int) -> int:
    os.setsid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        return 1
    for number, file in enumerate(files, 1):
        os.dup2(file, number)
        os.close(file)
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["env"])
    command = order["command"]
    if command[1] == "-c":
        sys.argv = ["-c", *command[3:]]
        exec(compile(command[2], "<script>", "exec"), {"__name__": "__main__"})
        return 0
    sys.argv = command
    module, name = _ENTRIES[os.path.basename(command[0])]
    getattr(importlib.import_module(module), name)()
    return 0


if __name__ == "__main__":
    sys.exit(_main())

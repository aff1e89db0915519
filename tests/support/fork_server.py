"""Start the project's commands quickly: fork them from a process that has imported all their modules.

The tests start thousands of processes and would spend most of their time on imports. A child runs what the installed
command runs, from its entry point on, in a process and a session of its own, with files of its own.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
import io
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

from scistream import timing

_ELEMENTS = "forked_elements"
"""The module beside this file that lets gateways fork their elements."""
_MODULES = (
    _ELEMENTS,
    "scistream.app.cli",
    "scistream.app.controller",
    "scistream.app.handover",
    "scistream.cli",
    "scistream.demo.cli",
    "scistream.links.resolver",
    "scistream.pki.cli",
    "scistream.reactors",
    "scistream.s2cs.policy.cli",
    "scistream.s2cs.store.cli",
    "scistream.s2cs.store.usage_cli",
    "scistream.s2cs.tap",
    "scistream.s2ds.tap",
    "scistream.s2uc.cli",
    "scistream.s2uc.commands",
    "scistream.s2uc.listing",
    "scistream.s2uc.show",
    "twisted.internet.epollreactor",
    "twisted.plugins.scistream_services",
    "twisted.scripts.twistd",
)
_ENTRIES = {
    "appctrl": ("scistream.entry", "appctrl"),
    "s2uc": ("scistream.entry", "s2uc"),
    "scistream": ("scistream.entry", "scistream"),
    "twistd": ("twisted.scripts.twistd", "run"),
}
TIMING = "SCISTREAM_TEST_TIMING"
"""A variable with other limits of `scistream.timing` for a forked process and its elements, as JSON. A process that is
executed ignores it."""
_BESIDE = os.path.dirname(sys.executable)
_READ_BY_PYTHON_ALONE = ("LANG", "LC_", "LD_", "MALLOC_", "OPENSSL_", "PYTHON")
"""What begins so in the environment takes effect when an interpreter starts, and not in a fork of one."""
_ON_A_HOST = ["ip", "netns", "exec"]
"""How a command begins that is run in a network namespace; its name is next."""
_PR_SET_PDEATHSIG, _CLONE_NEWNET = 1, 0x40000000
_LONGEST = 1024 * 1024
_PATIENCE = 60.0
"""Seconds for an answer; the first one comes when all modules have been imported."""


class ForkServer:
    """Where children are forked; it ends with this process. Any thread may use it.

    :param launcher: a command that runs another one, so that it ends with this process.
    """

    def __init__(self, launcher: Sequence[str]) -> None:
        self._lock = threading.Lock()
        self._interpreter = _for_the_interpreter(os.environ)
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(_PATIENCE)
        with theirs:
            command = [*launcher, sys.executable, __file__, str(theirs.fileno())]
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)

    def can_start(self, command: Sequence[str], env: Mapping[str, str]) -> bool:
        """Return whether a fork does what the command would do.

        It must be one of the project's commands, or a script given to this Python, be it in a network namespace, and
        its environment must not ask for another interpreter than that of the tests.
        """
        _, (program, *arguments) = _split(command)
        folder, name = os.path.split(program)
        is_known = (folder == _BESIDE and name in _ENTRIES) or [program, *arguments[:1]] == [sys.executable, "-c"]
        return is_known and _for_the_interpreter(env) == self._interpreter

    def start(
        self,
        command: Sequence[str],
        errors: IO[Any],
        env: Mapping[str, str],
        cwd: Path,
        descriptors: Mapping[int, int | None],
    ) -> Child:
        """Start a command; its standard output can be read from the child.

        :param descriptors: the files of its standard descriptors, where they differ from the usual; None: it is closed.
        """
        namespace, command = _split(command)
        output, theirs = os.pipe()
        wanted = {1: theirs, 2: errors.fileno(), **descriptors}
        files = {number: file for number, file in wanted.items() if file is not None}
        order = {
            "namespace": namespace,
            "command": command,
            "env": dict(env),
            "cwd": str(cwd),
            "open": list(files),
            "closed": list(wanted.keys() - files),
        }
        try:
            pid = self._ask(order, list(files.values()))
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

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

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


def _split(command: Sequence[str]) -> tuple[str | None, list[str]]:
    """Return the network namespace that a command is run in, None if that of the tests, and the command itself."""
    if list(command[:3]) == _ON_A_HOST:
        return command[3], list(command[4:])
    return None, list(command)


def _for_the_interpreter(env: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if name.startswith(_READ_BY_PYTHON_ALONE)}


# In the server


def _main() -> int:
    """Fork for each order until there are no more; a child comes out of here as the command that it is to be."""
    orders = socket.socket(fileno=int(sys.argv[1]))
    for module in _MODULES:
        importlib.import_module(module)
    assert "twisted.internet.reactor" not in sys.modules, "each child needs a reactor of its own"
    gc.collect()
    gc.freeze()  # the collectors of the children leave these objects, and the pages they are in, alone
    me = os.getpid()
    while True:
        line, files, _, _ = socket.recv_fds(orders, _LONGEST, 3)
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
            try:
                _become(order, files, me)
            except SystemExit as stop:
                _leave(stop)
                raise
        for file in files:
            os.close(file)
        orders.send(str(pid).encode())


def _become(order: Mapping[str, Any], files: Sequence[int], parent: int) -> NoReturn:
    os.setsid()
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit(1)
    if order["namespace"] is not None:
        with open(f"/run/netns/{order['namespace']}") as namespace:
            if libc.setns(namespace.fileno(), _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), f"the namespace {order['namespace']} cannot be entered")
    for number, file in zip(order["open"], files, strict=True):
        os.dup2(file, number)
        os.close(file)
    for number in order["closed"]:
        os.close(number)
    if 0 in order["closed"]:
        sys.stdin = sys.__stdin__ = None
    # What is inherited may belong to a terminal.
    sys.stdout = sys.__stdout__ = None if 1 in order["closed"] else _stream(1, "<stdout>", sys.stdout)
    sys.stderr = sys.__stderr__ = None if 2 in order["closed"] else _stream(2, "<stderr>", sys.stderr)
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["env"])
    for limit, seconds in json.loads(os.environ.pop(TIMING, "{}")).items():
        assert hasattr(timing, limit), limit
        setattr(timing, limit, seconds)
    command = order["command"]
    if command[1] == "-c":
        sys.argv = ["-c", *command[3:]]
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(command[2], "<string>", "exec"), main.__dict__)
        sys.exit()
    sys.argv = command
    module, name = _ENTRIES[os.path.basename(command[0])]
    if "coverage" not in sys.modules:  # Twisted ends the measurement of what it forks
        importlib.import_module(_ELEMENTS).fork_elements()
    sys.exit(getattr(importlib.import_module(module), name)())


def _leave(stop: SystemExit) -> None:
    """End as an interpreter does, without deleting all modules: that takes ten times as long as the fork.

    Return if the interpreter has to say something first.
    """
    if not isinstance(stop.code, int | None):
        return
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None and not stream.closed:
                stream.flush()
    except OSError:
        return
    os._exit((stop.code or 0) & 0xFF)


def _stream(descriptor: int, name: str, usual: io.TextIOWrapper) -> io.TextIOWrapper:
    """Return the stream that an interpreter opens for a standard descriptor."""
    raw = io.FileIO(descriptor, "w", closefd=False)
    raw.name = name
    is_error, is_unbuffered = descriptor == 2, bool(os.environ.get("PYTHONUNBUFFERED"))
    return io.TextIOWrapper(
        raw if is_unbuffered else io.BufferedWriter(raw),
        usual.encoding,
        usual.errors,
        line_buffering=is_error or raw.isatty(),
        write_through=is_unbuffered,
    )


if __name__ == "__main__":
    sys.exit(_main())

"""Start a program in place of `appctrl`, so that its caller deals with the program itself.

`split` forks. The first process waits, and *becomes* the program when the stream is ready (`become`): the program has
the process id of `appctrl`, its process group, session and terminal, its descriptors, ignored signals, limits and
environment. It receives every signal exactly once, and the caller sees its exit status. The second process, the
keeper, keeps the link to the S2CS. It is not a child of the program, ignores signals to the process group, and ends
with the program.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NoReturn

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReadDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from scistream.protocol.address import Address

CANNOT_EXECUTE = 126
NOT_FOUND = 127
"""The exit statuses that a shell uses, too."""

_SET_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)
_OWN_SIGNALS = {
    signal.SIGKILL,
    signal.SIGSTOP,
    signal.SIGCHLD,
    signal.SIGPIPE,
    signal.SIGXFSZ,
    signal.SIGABRT,
    signal.SIGBUS,
    signal.SIGFPE,
    signal.SIGILL,
    signal.SIGSEGV,
    signal.SIGSYS,
    signal.SIGTRAP,
}
"""The signals that the keeper does not ignore, since they report its own faults and children."""


class ProgramStartError(Exception):
    """The program cannot be started.

    :param sentence: what is wrong, for a person.
    :param status: the exit status with which a shell reports this.
    """

    def __init__(self, sentence: str, status: int) -> None:
        super().__init__(sentence)
        self.status = status


class Keeper:
    """The keeper's connection to the first process.

    :param channel: a socket to the first process.
    :param watched: a descriptor that becomes readable when the first process, or the program in its place, has ended.
    """

    def __init__(self, channel: socket.socket, watched: int) -> None:
        self._channel = channel
        self._watched = watched
        self._process_end: _ProcessEnd | None = None

    def start(self, listeners: Sequence[str]) -> None:
        """Let the first process become the program."""
        self._send({"listeners": list(listeners)})

    def ended(self, reactor: Any) -> Deferred[None]:
        """Return a Deferred that fires when the first process, or the program in its place, has ended."""
        self._process_end = _ProcessEnd(reactor, self._watched)
        return self._process_end.fired

    def end(self, status: int) -> None:
        """Let the first process exit with this status, if it has not become the program."""
        self._send({"status": status})

    def _send(self, instruction: Mapping[str, Any]) -> None:
        with suppress(OSError):  # the process has ended, which `ended` reports
            self._channel.sendall(json.dumps(instruction).encode() + b"\n")


@implementer(IReadDescriptor)
class _ProcessEnd:
    """Waits in the reactor for the end of a process.

    :ivar fired: fires when the process has ended.
    """

    def __init__(self, reactor: Any, watched: int) -> None:
        self.fired: Deferred[None] = Deferred(self._stop)
        self._reactor = reactor
        self._watched = watched
        reactor.addReader(self)

    def fileno(self) -> int:
        """Return the descriptor to watch."""
        return self._watched

    def doRead(self) -> None:
        """Fire, since the process has ended."""
        self._reactor.removeReader(self)
        self.fired.callback(None)

    def connectionLost(self, reason: Failure) -> None:
        """Do nothing when the reactor stops."""

    def logPrefix(self) -> str:
        """Return the name of this descriptor in the log."""
        return "program"

    def _stop(self, _fired: Deferred[None]) -> None:
        self._reactor.removeReader(self)


def check_executable(command: str, environment: Mapping[str, str]) -> None:
    """Check that a program can be started, before the user waits for a stream.

    :raises ProgramStartError: if there is no such program, or it cannot be executed.
    """
    path = environment.get("PATH", os.defpath)
    if shutil.which(command, path=path) is not None:
        return
    if os.sep in command and os.path.exists(command):
        reason = "it is a folder" if os.path.isdir(command) else "it is not executable: check its mode"
        raise ProgramStartError(f"{command} cannot be started: {reason}", CANNOT_EXECUTE)
    reason = "there is no such file" if os.sep in command else "there is no such program in any folder of PATH"
    raise ProgramStartError(f"{command} cannot be started: {reason}", NOT_FOUND)


def split(keep: Callable[[Keeper], int]) -> list[str]:
    """Start the keeper and wait for its instruction.

    :param keep: runs in the keeper; returns the exit status to use if the program was not started.
    :returns: in the first process, the listeners, once it may become the program.
    :raises SystemExit: in the first process, with the keeper's status, if the program is not to be started.
    """
    ours, theirs = socket.socketpair()
    watched = _own_pidfd()
    sys.stdout.flush()
    sys.stderr.flush()
    intermediate = os.fork()
    if not intermediate:
        if os.fork():
            os._exit(0)  # so that the keeper is not a child of the program
        ours.close()
        _run_keeper(keep, Keeper(theirs, theirs.fileno() if watched is None else watched))
    theirs.close()
    if watched is not None:
        os.close(watched)
    with suppress(ChildProcessError):  # there is no child to wait for if the caller ignores SIGCHLD
        os.waitpid(intermediate, 0)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # from now on signals act as they would on the program
    with ours:
        return _wait(ours)


def become(command: Sequence[str], environment: Mapping[str, str]) -> NoReturn:
    """Replace this process by the program.

    :raises ProgramStartError: if the program cannot be executed.
    """
    for number in _SET_BY_PYTHON:
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvpe(command[0], list(command), dict(environment))
    except OSError as problem:
        status = NOT_FOUND if isinstance(problem, FileNotFoundError | NotADirectoryError) else CANNOT_EXECUTE
        raise ProgramStartError(f"{command[0]} cannot be started: {problem.strerror}", status) from None


def fill_placeholders(command: Sequence[str], listeners: Sequence[str]) -> list[str]:
    """Replace {host}, {port} and {listeners} in a consumer's command line. Other braces are left as they are."""
    if not listeners:
        return list(command)
    first = Address.parse(listeners[0])
    values = {"host": first.host, "port": str(first.port), "listeners": ",".join(listeners)}
    return [_fill(word, values) for word in command]


def _fill(word: str, values: Mapping[str, str]) -> str:
    for name, value in values.items():
        word = word.replace("{" + name + "}", value)
    return word


def _wait(channel: socket.socket) -> list[str]:
    received = b""
    while not received.endswith(b"\n"):
        part = channel.recv(65536)
        if not part:
            print("error: the process that keeps the link to the S2CS has ended unexpectedly", file=sys.stderr)
            raise SystemExit(1)
        received += part
    instruction = json.loads(received)
    if "status" in instruction:
        raise SystemExit(instruction["status"])
    listeners: list[str] = instruction["listeners"]
    return listeners


def _own_pidfd() -> int | None:
    """Return a descriptor that becomes readable when this process ends, even after it has become another program."""
    try:
        return os.pidfd_open(os.getpid())
    except (AttributeError, OSError):
        return None  # then the keeper watches the channel, which is closed when the program starts


def _run_keeper(keep: Callable[[Keeper], int], keeper: Keeper) -> NoReturn:
    """Run the keeper, and end its process whatever happens."""
    try:
        for number in signal.valid_signals() - _OWN_SIGNALS:
            with suppress(OSError):
                signal.signal(number, signal.SIG_IGN)
        _close_inherited()
        keeper.end(keep(keeper))
    except Exception:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(0)


def _close_inherited() -> None:
    """Close the descriptors of the program, so that the readers of its pipes see their end when the program ends."""
    with open(os.devnull, "r+b", buffering=0) as nothing:
        os.dup2(nothing.fileno(), 0)
        os.dup2(nothing.fileno(), 1)
    for number in [int(name) for name in os.listdir("/dev/fd")]:
        with suppress(OSError):
            if number > 2 and os.get_inheritable(number):
                os.close(number)

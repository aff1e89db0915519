"""Starting a program so that nothing stands between it and whoever started `appctrl`.

`split` makes two processes of one. The first waits; when the stream is ready it *becomes* the program (`become`): the
program has the process id that `appctrl` was started with, its place in the process group, in the session and at the
terminal, its descriptors, ignored signals, limits and environment. Every signal reaches it, once; its end is the end
that the caller sees. The second, the keeper, keeps the link to the S2CS. It is no child of the program, ignores the
signals that a process group gets, and ends with the program.
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
"""What a shell answers with, too."""

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
"""Those that the keeper does not ignore: they tell of itself."""


class ProgramStartError(Exception):
    """The program cannot be started.

    :param status: what a shell ends with for that reason.
    """

    def __init__(self, sentence: str, status: int) -> None:
        super().__init__(sentence)
        self.status = status


class Keeper:
    """The end of the keeper: tells the first process what becomes of it.

    :param channel: to the first process.
    :param watched: a descriptor that can be read when the first process, or the program that it has become, is gone.
    """

    def __init__(self, channel: socket.socket, watched: int) -> None:
        self._channel = channel
        self._watched = watched
        self._over: _Over | None = None

    def start(self, listeners: Sequence[str]) -> None:
        """Let the first process become the program."""
        self._say({"listeners": list(listeners)})

    def ended(self, reactor: Any) -> Deferred[None]:
        """Fires when the program is gone, or the first process before that."""
        self._over = _Over(reactor, self._watched)
        return self._over.fired

    def end(self, status: int) -> None:
        """Let the first process end, if it has not become the program."""
        self._say({"status": status})

    def _say(self, what: Mapping[str, Any]) -> None:
        with suppress(OSError):  # it is gone, which `ended` tells
            self._channel.sendall(json.dumps(what).encode() + b"\n")


@implementer(IReadDescriptor)
class _Over:
    """Looks for the end of a process in the reactor."""

    def __init__(self, reactor: Any, watched: int) -> None:
        self.fired: Deferred[None] = Deferred(self._stop)
        self._reactor = reactor
        self._watched = watched
        reactor.addReader(self)

    def fileno(self) -> int:
        return self._watched

    def doRead(self) -> None:
        self._reactor.removeReader(self)
        self.fired.callback(None)

    def connectionLost(self, reason: Failure) -> None:
        """The reactor stops."""

    def logPrefix(self) -> str:
        return "program"

    def _stop(self, _fired: Deferred[None]) -> None:
        self._reactor.removeReader(self)


def find(command: str, environment: Mapping[str, str]) -> None:
    """Look whether there is such a program, before anybody waits for a stream in vain.

    :raises ProgramStartError: if there is none, or it cannot be executed.
    """
    path = environment.get("PATH", os.defpath)
    if shutil.which(command, path=path) is not None:
        return
    if os.sep in command and os.path.exists(command):
        why = "it is a folder" if os.path.isdir(command) else "it is not executable: see its mode"
        raise ProgramStartError(f"{command} cannot be started: {why}", CANNOT_EXECUTE)
    where = "there is no such file" if os.sep in command else "no folder of PATH has such a program"
    raise ProgramStartError(f"{command} cannot be started: {where}", NOT_FOUND)


def split(keep: Callable[[Keeper], int]) -> list[str]:
    """Start the keeper and wait for its word.

    :param keep: runs in the keeper; gives the status to end with where the program was not started.
    :returns: the listeners, in the first process, once it may become the program.
    :raises SystemExit: if the keeper has ended instead, with its status.
    """
    ours, theirs = socket.socketpair()
    watched = _handle_of_this_process()
    sys.stdout.flush()
    sys.stderr.flush()
    between = os.fork()
    if not between:
        if os.fork():
            os._exit(0)
        ours.close()
        _run_keeper(keep, Keeper(theirs, theirs.fileno() if watched is None else watched))
    theirs.close()
    if watched is not None:
        os.close(watched)
    with suppress(ChildProcessError):  # where whoever started us ignores SIGCHLD
        os.waitpid(between, 0)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # from now on every signal does what it would do to the program
    with ours:
        return _wait(ours)


def become(command: Sequence[str], environment: Mapping[str, str]) -> NoReturn:
    """Become the program.

    :raises ProgramStartError: if that is not possible.
    """
    for number in _SET_BY_PYTHON:
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvpe(command[0], list(command), dict(environment))
    except OSError as problem:
        status = NOT_FOUND if isinstance(problem, FileNotFoundError | NotADirectoryError) else CANNOT_EXECUTE
        raise ProgramStartError(f"{command[0]} cannot be started: {problem.strerror}", status) from None


def filled_in(command: Sequence[str], listeners: Sequence[str]) -> list[str]:
    """Replace {host}, {port} and {listeners} of a consumer; other braces stay, since programs have their own."""
    if not listeners:
        return list(command)
    first = Address.parse(listeners[0])
    known = {"host": first.host, "port": str(first.port), "listeners": ",".join(listeners)}
    return [_replaced(word, known) for word in command]


def _replaced(word: str, known: Mapping[str, str]) -> str:
    for name, value in known.items():
        word = word.replace("{" + name + "}", value)
    return word


def _wait(channel: socket.socket) -> list[str]:
    said = b""
    while not said.endswith(b"\n"):
        part = channel.recv(65536)
        if not part:
            print("error: the process that keeps the link to the S2CS has ended unexpectedly", file=sys.stderr)
            raise SystemExit(1)
        said += part
    word = json.loads(said)
    if "status" in word:
        raise SystemExit(word["status"])
    listeners: list[str] = word["listeners"]
    return listeners


def _handle_of_this_process() -> int | None:
    """A descriptor that can be read when this process is gone, also after it has become another program."""
    try:
        return os.pidfd_open(os.getpid())
    except (AttributeError, OSError):
        return None  # the channel takes its place: it is closed when the program starts, and the keeper ends then


def _run_keeper(keep: Callable[[Keeper], int], keeper: Keeper) -> NoReturn:
    """Be the keeper; whatever happens, it does not return into what the first process does."""
    try:
        for number in signal.valid_signals() - _OWN_SIGNALS:
            with suppress(OSError):
                signal.signal(number, signal.SIG_IGN)
        _let_go()
        keeper.end(keep(keeper))
    except Exception:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(0)


def _let_go() -> None:
    """Hold nothing that is the program's: whoever waits for the end of a pipe waits for the program alone."""
    with open(os.devnull, "r+b", buffering=0) as nothing:
        os.dup2(nothing.fileno(), 0)
        os.dup2(nothing.fileno(), 1)
    for number in [int(name) for name in os.listdir("/dev/fd")]:
        with suppress(OSError):
            if number > 2 and os.get_inheritable(number):
                os.close(number)

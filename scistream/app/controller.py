"""An application controller: keeps a link to the S2CS, says Hello for a program, and may start it.

`Controller` carries out what the machine of a ProdApp or a ConsApp decides. It never touches the data.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ProcessDone, ProcessTerminated
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from scistream.app.machine import Application, Core, new_consumer, new_producer
from scistream.logs import trace
from scistream.security.control import pinned_dialer
from scistream.wire.address import Address
from scistream.wire.errors import StreamError
from scistream.wire.join import Join
from scistream.wire.line import Link
from scistream.wire.link import UNSENT
from scistream.wire.messages import PROD, Error, Hello, Message, StartConn

HELLO_PATIENCE = 30.0


class Controller:
    """Says Hello for one application of one stream.

    :param reactor: the reactor, with monotonic timers.
    :param join: what the join string says.
    :param listeners: where ProdApp listens; a wildcard host becomes the address that we reach the S2CS from.
    :param command: the program to start, or nothing.
    :param announce: gets the line that tells a consumer without a program where to connect.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        join: Join,
        listeners: Sequence[Address],
        command: Sequence[str],
        announce: Callable[[str], None],
    ) -> None:
        self._reactor = reactor
        self._join = join
        self._listeners = listeners
        self._command = command
        self._announce = announce
        self._core = Core(self)
        self.machine: Application = (new_producer if join.role == PROD else new_consumer)(self._core)
        trace(self.machine, self.log, party="app", uid=join.uid, role=join.role)
        self._dialer = pinned_dialer(reactor, join.server, f"the S2CS at {join.server}", join.ca)
        self._dialer.on_up = self._hello_again
        self._dialer.on_down = self._down
        self._dialer.on_poll = self._hello_if_answered
        self._dialer.on_message = self._heard
        self._greeted = False
        self._give_up_at = 0.0
        self._hello: Deferred[Any] | None = None
        self._program: _Program | None = None
        self._finished: Deferred[int] = Deferred(self._cancelled)

    def run(self) -> Deferred[int]:
        """Do it all; fires with the exit status: the program's, or 0.

        Without a program a consumer is done when it knows where to connect, and a producer when its Hello is
        answered. Cancelling it passes SIGTERM on to the program.

        :raises StreamError: if the S2CS refuses, or the stream ends before the application could start.
        """
        self._give_up_at = self._reactor.seconds() + HELLO_PATIENCE
        self._dialer.startService()
        self.machine.start()
        return self._finished

    # -- Effects

    def say_hello(self) -> None:
        self._ask_hello()

    def serve(self) -> None:
        if self._command:
            self._start(self._command, {})
        else:
            self._end(0)

    def connect(self, listeners: list[str]) -> None:
        if not self._command:
            self._announce(json.dumps({"uid": self._join.uid, "listeners": listeners}))
            self._end(0)
            return
        first = Address.parse(listeners[0])
        known = {"host": first.host, "port": str(first.port), "listeners": ",".join(listeners)}
        self._start([_filled_in(word, known) for word in self._command], {"SCISTREAM_LISTENERS": json.dumps(listeners)})

    def finish(self, error: StreamError | None) -> None:
        if self._program is not None:
            if error is not None:
                self.log.warn("{reason}; the program goes on", reason=str(error))
                self._stop_link()
            return
        if error is not None and not self._finished.called:
            self._stop_link()
            self._finished.errback(Failure(error))

    # -- the link

    def _ask_hello(self) -> None:
        if self._hello is not None:
            self._hello.cancel()
        listeners = None if self._join.role != PROD else [str(one) for one in self._reachable()]
        hello = Hello(
            uid=self._join.uid, role=self._join.role, seq=UNSENT, app_key=self._join.app_key, listeners=listeners
        )
        patience = None if self._greeted else max(0.0, self._give_up_at - self._reactor.seconds())
        self._hello = self._dialer.ask(hello, patience)
        self._hello.addCallbacks(self._welcomed, self._refused)

    def _reachable(self) -> list[Address]:
        """The listeners as others reach them."""
        link = self._dialer.link
        own = link.transport.getHost().host if link is not None else None
        return [
            Address(own, one.port)
            if own is not None and one.numeric is not None and one.numeric.is_unspecified
            else one
            for one in self._listeners
        ]

    def _hello_again(self) -> None:
        """The S2CS may have forgotten our link, or lost its StartConn."""
        if self._core_is_waiting():
            self._ask_hello()

    def _hello_if_answered(self) -> None:
        """While we wait; a Hello without an answer is repeated by the link itself."""
        if self._hello is not None and self._hello.called:
            self._hello_again()

    def _core_is_waiting(self) -> bool:
        return self._hello is not None and self._program is None and not self._finished.called

    def _welcomed(self, _answer: Any) -> None:
        self._greeted = True
        self.machine.welcomed()

    def _refused(self, failure: Failure) -> None:
        failure.trap(StreamError, CancelledError)
        if isinstance(failure.value, StreamError) and failure.value.code != "shutting-down":
            self.machine.failed(failure.value)

    def _down(self, trouble: str, hopeless: bool) -> None:
        if hopeless:
            self.machine.failed(StreamError("not-authenticated", f"the S2CS at {self._join.server}: {trouble}"))

    def _heard(self, link: Link, message: Message) -> None:
        if isinstance(message, StartConn) and message.uid == self._join.uid:
            link.answer(message, "Connected", "connecting")
            self.machine.start_conn(message.listeners)
        elif isinstance(message, Error) and message.uid == self._join.uid:
            self.machine.failed(StreamError.heard(message.code, message.msg))

    # -- the program

    def _start(self, command: Sequence[str], extra: Mapping[str, str]) -> None:
        environment = {name: value for name, value in os.environ.items() if name != "SCISTREAM_JOIN"}
        self._program = _Program(self._program_ended)
        try:
            self._reactor.spawnProcess(
                self._program, command[0], list(command), env={**environment, **extra}, childFDs={0: 0, 1: 1, 2: 2}
            )
        except OSError as problem:
            self._program = None
            self.machine.failed(StreamError("gateway-failed", f"{command[0]} cannot be started: {problem.strerror}"))

    def _program_ended(self, status: int) -> None:
        self.machine.done()
        self._end(status)

    def _end(self, status: int) -> None:
        self._stop_link()
        if not self._finished.called:
            self._finished.callback(status)

    def _stop_link(self) -> None:
        if self._dialer.running:
            self._dialer.stopService()

    def _cancelled(self, _finished: Deferred[int]) -> None:
        self._stop_link()
        if self._program is not None:
            self._program.stop()


class _Program(ProcessProtocol):
    """The program; it has our standard input, output and error."""

    def __init__(self, ended: Callable[[int], None]) -> None:
        self._ended = ended

    def stop(self) -> None:
        """Pass our own end on."""
        if self.transport is not None and self.transport.pid is not None:
            self.transport.signalProcess("TERM")

    def processEnded(self, reason: Failure) -> None:
        problem = reason.value
        if isinstance(problem, ProcessTerminated):
            self._ended(problem.exitCode if problem.exitCode is not None else 128 + (problem.signal or 0))
        else:
            assert isinstance(problem, ProcessDone)
            self._ended(0)


def _filled_in(word: str, known: Mapping[str, str]) -> str:
    """Replace {host}, {port} and {listeners}; other braces stay, since programs have their own."""
    for name, value in known.items():
        word = word.replace("{" + name + "}", value)
    return word

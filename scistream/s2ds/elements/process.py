"""An element in a process of its own, or in this process."""

from __future__ import annotations

import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred, DeferredList, fail, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import Factory, ProcessProtocol, connectionDone
from twisted.internet.task import LoopingCall
from twisted.logger import Logger, LogLevel
from twisted.protocols.basic import LineOnlyReceiver
from twisted.python.failure import Failure

from scistream import timing
from scistream.protocol.errors import StreamError
from scistream.s2ds.elements.commands import (
    ElementCommand,
    Failed,
    HandOver,
    LogLine,
    NumberedCommand,
    PathsReport,
    Ping,
    PlaceAnswer,
    PlaceRequest,
    Reset,
    ResetsReport,
    encode,
    read_report,
)
from scistream.s2ds.elements.element import Element
from scistream.s2ds.elements.element_settings import ElementSettings
from scistream.s2ds.elements.shared_figures import SharedFigures
from scistream.s2ds.elements.worker import COMMAND_FD, FIGURES_FD, HAND_OVER_FD, MAX_COMMAND

_log = Logger()

_SCHEDULED = 2
"""The kind of processor clock in a clock id: see clock_getcpuclockid(3)."""


class ElementDiedError(Exception):
    """The element has died before it carried out a command."""


class InProcessElement:
    """An element in this process."""

    number = 0
    ready = True
    restarts = 0

    def __init__(self, element: Element) -> None:
        self._element = element
        self.has_started: Deferred[None] = succeed(None)

    def start(self) -> None:
        """Do nothing: the element is ready."""

    def stop(self) -> Deferred[None]:
        """Reset every connection."""
        self._element.stop()
        return succeed(None)

    def ask(self, command: ElementCommand) -> Deferred[None]:
        """Carry out a command; fail with the StreamError that it raises."""
        try:
            self._element.carry_out(command)
        except StreamError as error:
            return fail(error)
        return succeed(None)

    def is_alive(self) -> bool:
        """Return True: it ends with this process."""
        return True

    def tell(self, answer: PlaceAnswer) -> None:
        """Answer a request for a place."""
        self._element.carry_out(answer)

    def carry(self, hand_over: HandOver, sock: socket.socket) -> bool:
        """Hand over a connection."""
        self._element.carry(hand_over, sock)
        return True

    def most_descriptors(self) -> int:
        """Return how many descriptors this process may have open."""
        return descriptors_of(0)


class ElementProcess:
    """An element in a process of its own, which is restarted whenever it ends.

    :param replay: returns the commands for a new process.
    :param count_lost: called with the element's number when its process has ended; returns how many connections it had.
    :param on_resets: called with reports of reset connections.
    :param on_request: called with the element's number and its requests for places.
    :param on_start_failure: called with the reason when the element has failed to start twice in a row.
    :param on_paths: called with reports of the paths of channels.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        figures: SharedFigures,
        number: int,
        settings: ElementSettings,
        replay: Callable[[], list[ElementCommand]],
        count_lost: Callable[[int], int],
        on_resets: Callable[[list[Reset]], None],
        on_request: Callable[[int, PlaceRequest], None],
        on_start_failure: Callable[[str], None],
        on_paths: Callable[[PathsReport], None],
    ) -> None:
        self.number = number
        self.ready = False
        self.has_started: Deferred[None] = Deferred()
        self._on_start_failure = on_start_failure
        self._failed_starts = 0
        self._reactor = reactor
        self._figures = figures
        self._settings = settings
        self._replay = replay
        self._count_lost = count_lost
        self._on_resets = on_resets
        self._on_request = on_request
        self._on_paths = on_paths
        self._link: CommandLink | None = None
        self._hand_over_sock: socket.socket | None = None
        self._process: Any = None
        self._pings = LoopingCall(self._ping)
        self._pings.clock = reactor
        self._restart: IDelayedCall | None = None
        self.restarts = 0
        """How often the process has ended and was started again."""
        self._restart_delay = timing.ELEMENT_AGAIN
        self._started_at = 0.0
        self._stopped: Deferred[None] | None = None

    def start(self) -> None:
        """Start the process; try again later if the system lacks resources."""
        self._restart = None
        self._started_at = self._reactor.seconds()
        try:
            self._start()
        except OSError as problem:  # out of descriptors, processes or memory
            self._disconnect()
            self.log.error(
                "element {number} cannot be started: {reason}; it is retried", number=self.number, reason=str(problem)
            )
            if self._process is None:
                self._schedule_restart()
            else:
                self._kill()  # `_ended` starts another one

    def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        hand_over_sock, element_sock = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        settings = encode(self._settings).decode()
        arguments = [self._figures.slots, self._figures.elements, self.number, settings, os.getpid()]
        with ours, theirs, element_sock, open(os.devnull, "rb") as nothing:
            ours.setblocking(False)
            hand_over_sock.setblocking(False)
            self._hand_over_sock = hand_over_sock
            self._process = self._reactor.spawnProcess(
                _ExitWatcher(self._ended),
                sys.executable,
                [sys.executable, "-P", "-m", "scistream.s2ds.elements.worker", *map(str, arguments)],
                env=None,
                childFDs={
                    0: nothing.fileno(),
                    1: 2,
                    2: 2,
                    COMMAND_FD: theirs.fileno(),
                    HAND_OVER_FD: element_sock.fileno(),
                    FIGURES_FD: self._figures.fd,
                },
            )
            link = CommandLink(
                self._reactor,
                self.number,
                partial(processor_time, self._process.pid),
                self._kill_stuck,
                self._on_resets,
                partial(self._on_request, self.number),
                self._on_paths,
            )
            factory = Factory.forProtocol(lambda: link)
            factory.noisy = False
            self._reactor.adoptStreamConnection(ours.fileno(), socket.AF_UNIX, factory)
            self._link = link
        # Commands wait in the socket while the process starts. It gets no connection before it knows its streams.
        answers = [
            link.ask(command, timing.ELEMENT_START).addErrback(self._not_replayed)
            for command in [*self._replay(), Ping()]
        ]
        DeferredList(answers).addCallback(lambda _: self._is_ready(link))

    def stop(self) -> Deferred[None]:
        """End the process, which resets its connections; fire when it has ended."""
        if self._restart is not None:
            self._restart.cancel()
            self._restart = None
        if self._process is None:
            return succeed(None)
        stopped: Deferred[None] = Deferred()
        self._stopped = stopped
        self._disconnect()
        stuck = self._reactor.callLater(timing.ELEMENT_STOP, self._kill)
        return stopped.addCallback(lambda _: stuck.active() and stuck.cancel()).addCallback(lambda _: None)

    def ask(self, command: ElementCommand) -> Deferred[None]:
        """Send a command; fail with its StreamError, or with `ElementDiedError`."""
        if self._link is None:
            return fail(ElementDiedError())
        return self._link.ask(command, timing.ELEMENT_ANSWER if self.ready else timing.ELEMENT_START)

    def is_alive(self) -> bool:
        """Return False if the process has ended, also if this process has not been told yet."""
        if self._hand_over_sock is None:
            return False
        try:
            return self._hand_over_sock.recv(1, socket.MSG_PEEK) != b""
        except BlockingIOError:  # it never sends anything there
            return True
        except OSError:
            return False

    def tell(self, answer: PlaceAnswer) -> None:
        """Answer a request for a place. If the process has died, its places count as given back."""
        if self._link is not None:
            self._link.tell(answer)

    def carry(self, hand_over: HandOver, sock: socket.socket) -> bool:
        """Hand over a connection. Return False if the process cannot take it now."""
        assert self._hand_over_sock is not None
        try:
            socket.send_fds(self._hand_over_sock, [encode(hand_over)], [sock.fileno()])
        except OSError:  # the queue of the socket is full, or the process has died
            return False
        sock.close()  # only the element keeps the connection open
        return True

    def most_descriptors(self) -> int:
        """Return how many descriptors the process may have open."""
        return descriptors_of(self._process.pid)

    def _is_ready(self, link: CommandLink) -> None:
        if link is self._link and self._process is not None:
            self.ready = True
            if not self.has_started.called:
                self.has_started.callback(None)
            self._failed_starts = 0
            self.log.info("element {number} is ready (process {pid})", number=self.number, pid=self._process.pid)
            if not self._pings.running:
                self._pings.start(timing.ELEMENT_BEAT, now=False)

    def _not_replayed(self, failure: Failure) -> None:
        if not failure.check(ElementDiedError):
            self.log.error(
                "element {number} could not take over a stream: {reason}",
                number=self.number,
                reason=str(failure.value),
            )

    def _ping(self) -> None:
        self.ask(Ping()).addErrback(log_failure)

    def _kill_stuck(self, command: ElementCommand, timeout: float) -> None:
        self.log.error(
            "element {number} has not answered {command} in {seconds} s and is killed",
            number=self.number,
            command=command.__struct_config__.tag,
            seconds=round(timeout, 1),
        )
        self._kill()

    def _kill(self) -> None:
        if self._process is not None and self._process.pid is not None:
            os.kill(self._process.pid, signal.SIGKILL)

    def _disconnect(self) -> None:
        """Close both sockets, after which the process exits."""
        self.ready = False
        if self._pings.running:
            self._pings.stop()
        hand_over_sock, self._hand_over_sock = self._hand_over_sock, None
        if hand_over_sock is not None:
            hand_over_sock.close()
        link, self._link = self._link, None
        if link is not None:
            link.close()

    def _ended(self, reason: Failure) -> None:
        started, self.ready = self.ready, False
        self._process = None
        self.restarts += self._stopped is None
        lost = self._count_lost(self.number)
        self._disconnect()
        if self._stopped is not None:
            self._stopped.callback(None)
            return
        if self._reactor.seconds() - self._started_at >= timing.ELEMENT_YOUNG:
            self._restart_delay = timing.ELEMENT_AGAIN
        self.log.error(
            "element {number} ended ({reason}); connections reset: {lost}; it is restarted",
            number=self.number,
            reason=reason.getErrorMessage(),
            lost=lost,
        )
        if not started and getattr(reason.value, "exitCode", None):  # it was not killed: another try may fail, too
            self._failed_starts += 1
            if self._failed_starts > 1:
                self._on_start_failure(f"element {self.number} does not start ({reason.getErrorMessage()})")
        self._schedule_restart()

    def _schedule_restart(self) -> None:
        self._restart = self._reactor.callLater(self._restart_delay, self.start)
        self._restart_delay = min(2 * self._restart_delay, timing.LONGEST_ELEMENT_AGAIN)


class _ExitWatcher(ProcessProtocol):
    """A process protocol that only reports the end of the process."""

    def __init__(self, on_end: Callable[[Failure], None]) -> None:
        self._on_end = on_end

    def processEnded(self, reason: Failure) -> None:
        """Report the end of the process."""
        self._on_end(reason)


class CommandLink(LineOnlyReceiver):
    """The initiator's end of the command link.

    :param processor_time: returns the processor time of the element in seconds: while it grows, the element is busy.
    :param on_stuck: called with a command that was not answered in time, and the seconds waited for it.
    :param on_resets: called with reports of reset connections.
    :param on_request: called with requests for places.
    :param on_paths: called with reports of the paths of channels.
    """

    delimiter = b"\n"
    MAX_LENGTH = MAX_COMMAND
    transport: Any
    log = Logger()

    def __init__(
        self,
        reactor: Any,
        number: int,
        processor_time: Callable[[], float],
        on_stuck: Callable[[ElementCommand, float], None],
        on_resets: Callable[[list[Reset]], None],
        on_request: Callable[[PlaceRequest], None],
        on_paths: Callable[[PathsReport], None],
    ) -> None:
        self._on_paths = on_paths
        self._reactor = reactor
        self._number = number
        self._processor_time = processor_time
        self._on_stuck = on_stuck
        self._on_resets = on_resets
        self._on_request = on_request
        self._seq = 0
        self._waiting: dict[int, tuple[Deferred[None], IDelayedCall]] = {}

    def ask(self, command: ElementCommand, timeout: float) -> Deferred[None]:
        """Send a command that must be answered within `timeout` seconds; fire when it was carried out, or fail."""
        self._seq += 1
        answered: Deferred[None] = Deferred()
        self._waiting[self._seq] = answered, self._wait(self._seq, command, timeout, 0.0)
        self.transport.write(encode(NumberedCommand(seq=self._seq, command=command)) + b"\n")
        return answered

    def tell(self, command: ElementCommand) -> None:
        """Send a command that needs no answer."""
        self.transport.write(encode(NumberedCommand(seq=0, command=command)) + b"\n")

    def _wait(self, seq: int, command: ElementCommand, timeout: float, waited: float) -> IDelayedCall:
        timer: IDelayedCall = self._reactor.callLater(
            timeout, self._time_out, seq, command, timeout, waited + timeout, self._processor_time()
        )
        return timer

    def _time_out(self, seq: int, command: ElementCommand, timeout: float, waited: float, before: float) -> None:
        answered, _ = self._waiting[seq]
        if self._processor_time() > before and waited < timing.ELEMENT_BUSY:
            self._waiting[seq] = answered, self._wait(seq, command, timeout, waited)
        else:
            self._on_stuck(command, waited)

    def close(self) -> None:
        """Close the link; commands without an answer fail with `ElementDiedError`."""
        self.transport.abortConnection()
        waiting, self._waiting = self._waiting, {}
        for answered, timer in waiting.values():
            if timer.active():
                timer.cancel()
            answered.errback(ElementDiedError())

    def lineReceived(self, line: bytes) -> None:
        """Handle an answer, a report or a request of the element."""
        report = read_report(line)
        if isinstance(report, LogLine):
            level = LogLevel.lookupByName(report.level)
            fields = {name: value for name, value in report.fields.items() if name not in ("number", "text")}
            self.log.emit(level, "element {number}: {text}", **fields, number=self._number, text=report.text)
            return
        if isinstance(report, ResetsReport):
            self._on_resets(report.resets)
            return
        if isinstance(report, PlaceRequest):
            self._on_request(report)
            return
        if isinstance(report, PathsReport):
            self._on_paths(report)
            return
        answered, timer = self._waiting.pop(report.seq, (None, None))
        if answered is None or timer is None:
            return
        if timer.active():
            timer.cancel()
        if isinstance(report, Failed):
            answered.errback(StreamError(report.code, report.msg))
        else:
            answered.callback(None)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Do nothing: the end of the process follows and is handled."""


def descriptors_of(pid: int) -> int:
    """Return how many descriptors a process may have open; a pid of 0 is this process."""
    try:
        most, _ = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    except ProcessLookupError:
        return 0
    return most


def processor_time(pid: int) -> float:
    """Return the processor time that a process has used, in seconds; 0 if it has ended."""
    try:
        return time.clock_gettime(~pid << 3 | _SCHEDULED)
    except OSError:
        return 0.0


def ignore_death(failure: Failure) -> None:
    """Ignore that an element died before it answered: its successor gets the command again."""
    failure.trap(ElementDiedError)


def log_failure(failure: Failure) -> None:
    """Log that an element failed to carry out a command, unless it died."""
    if not failure.check(ElementDiedError):
        _log.error("an element failed to carry out a command: {reason}", reason=str(failure.value))

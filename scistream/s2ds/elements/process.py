"""An element, as a process of its own or within this one."""

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
    Ping,
    Reset,
    ResetsReport,
    encode,
    read_report,
)
from scistream.s2ds.elements.element import Element, ElementSettings
from scistream.s2ds.elements.shared_figures import SharedFigures
from scistream.s2ds.elements.worker import BOARD_FD, HANDING_FD, LINE_FD, MAX_COMMAND

_log = Logger()

_SCHEDULED = 2
"""Which of the processor clocks of a process is asked: see clock_getcpuclockid(3)."""


class ElementDiedError(Exception):
    """The element that was to do it is no more."""


class InProcessElement:
    """The element in this process."""

    number = 0
    ready = True

    def __init__(self, element: Element) -> None:
        self._element = element

    def start(self) -> None:
        """It is there."""

    def stop(self) -> Deferred[None]:
        self._element.stop()
        return succeed(None)

    def ask(self, order: ElementCommand) -> Deferred[None]:
        try:
            self._element.carry_out(order)
        except StreamError as error:
            return fail(error)
        return succeed(None)

    def carry(self, carry: HandOver, sock: socket.socket) -> bool:
        self._element.carry(carry, sock)
        return True

    def most_descriptors(self) -> int:
        return descriptors_of(0)


class ElementProcess:
    """An element in a process of its own, which is started again whenever it ends.

    :param replay: gives what a new one has to be told.
    :param settle: counts what went with one that died.
    :param hear: hears what it says of connections that it has reset.
    :param give_up: hears why it does not start, when it has failed to twice in a row.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        figures: SharedFigures,
        number: int,
        settings: ElementSettings,
        replay: Callable[[], list[ElementCommand]],
        settle: Callable[[int], int],
        hear: Callable[[list[Reset]], None],
        give_up: Callable[[str], None],
    ) -> None:
        self.number = number
        self.ready = False
        self._give_up = give_up
        self._failed_starts = 0
        self._reactor = reactor
        self._board = figures
        self._settings = settings
        self._replay = replay
        self._settle = settle
        self._hear = hear
        self._line: CommandLine | None = None
        self._handing: socket.socket | None = None
        self._process: Any = None
        self._beats = LoopingCall(self._beat)
        self._beats.clock = reactor
        self._again: IDelayedCall | None = None
        self._pause = timing.ELEMENT_AGAIN
        self._born = 0.0
        self._stopped: Deferred[None] | None = None

    def start(self) -> None:
        self._again = None
        self._born = self._reactor.seconds()
        try:
            self._start()
        except OSError as problem:  # no descriptor, process or memory just now
            self._cut()
            self.log.error(
                "element {number} cannot be started: {reason}; tried again", number=self.number, reason=str(problem)
            )
            if self._process is None:
                self._start_again()
            else:
                self._kill()  # its end starts another

    def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        handing, taking = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        settings = encode(self._settings).decode()
        arguments = [self._board.slots, self._board.elements, self.number, settings, os.getpid()]
        with ours, theirs, taking, open(os.devnull, "rb") as nothing:
            ours.setblocking(False)
            handing.setblocking(False)
            self._handing = handing
            self._process = self._reactor.spawnProcess(
                _Ends(self._ended),
                sys.executable,
                [sys.executable, "-P", "-m", "scistream.s2ds.elements.worker", *map(str, arguments)],
                env=None,
                childFDs={
                    0: nothing.fileno(),
                    1: 2,
                    2: 2,
                    LINE_FD: theirs.fileno(),
                    HANDING_FD: taking.fileno(),
                    BOARD_FD: self._board.fd,
                },
            )
            line = CommandLine(
                self._reactor, self.number, partial(processor_time, self._process.pid), self._stuck, self._hear
            )
            factory = Factory.forProtocol(lambda: line)
            factory.noisy = False
            self._reactor.adoptStreamConnection(ours.fileno(), socket.AF_UNIX, factory)
            self._line = line
        # What it is told before it is there waits in the pair; it gets no connection before it knows its streams.
        told = [
            line.ask(order, timing.ELEMENT_START).addErrback(self._not_replayed) for order in [*self._replay(), Ping()]
        ]
        DeferredList(told).addCallback(lambda _: self._is_ready(line))

    def stop(self) -> Deferred[None]:
        if self._again is not None:
            self._again.cancel()
            self._again = None
        if self._process is None:
            return succeed(None)
        stopped: Deferred[None] = Deferred()
        self._stopped = stopped
        self._cut()
        stuck = self._reactor.callLater(timing.ELEMENT_STOP, self._kill)
        return stopped.addCallback(lambda _: stuck.active() and stuck.cancel()).addCallback(lambda _: None)

    def ask(self, order: ElementCommand) -> Deferred[None]:
        if self._line is None:
            return fail(ElementDiedError())
        return self._line.ask(order, timing.ELEMENT_ANSWER if self.ready else timing.ELEMENT_START)

    def carry(self, carry: HandOver, sock: socket.socket) -> bool:
        assert self._handing is not None
        try:
            socket.send_fds(self._handing, [encode(carry)], [sock.fileno()])
        except OSError:  # it does not take any off the pair just now, or has died
            return False
        sock.close()  # it is the element's alone
        return True

    def most_descriptors(self) -> int:
        return descriptors_of(self._process.pid)

    def _is_ready(self, line: CommandLine) -> None:
        if line is self._line and self._process is not None:
            self.ready = True
            self._failed_starts = 0
            self.log.info("element {number} is ready (process {pid})", number=self.number, pid=self._process.pid)
            if not self._beats.running:
                self._beats.start(timing.ELEMENT_BEAT, now=False)

    def _not_replayed(self, failure: Failure) -> None:
        if not failure.check(ElementDiedError):
            self.log.error(
                "element {number}: a stream could not be taken up: {reason}",
                number=self.number,
                reason=str(failure.value),
            )

    def _beat(self) -> None:
        self.ask(Ping()).addErrback(log_failure)

    def _stuck(self, order: ElementCommand, timeout: float) -> None:
        self.log.error(
            "element {number} has not answered {order} in {seconds} s and is killed",
            number=self.number,
            order=order.__struct_config__.tag,
            seconds=round(timeout, 1),
        )
        self._kill()

    def _kill(self) -> None:
        if self._process is not None and self._process.pid is not None:
            os.kill(self._process.pid, signal.SIGKILL)

    def _cut(self) -> None:
        """It is to take and do nothing any more."""
        self.ready = False
        if self._beats.running:
            self._beats.stop()
        handing, self._handing = self._handing, None
        if handing is not None:
            handing.close()
        line, self._line = self._line, None
        if line is not None:
            line.close()

    def _ended(self, reason: Failure) -> None:
        started, self.ready = self.ready, False
        self._process = None
        lost = self._settle(self.number)
        self._cut()
        if self._stopped is not None:
            self._stopped.callback(None)
            return
        if self._reactor.seconds() - self._born >= timing.ELEMENT_YOUNG:
            self._pause = timing.ELEMENT_AGAIN
        self.log.error(
            "element {number} ended ({reason}); connections reset: {lost}; another is started",
            number=self.number,
            reason=reason.getErrorMessage(),
            lost=lost,
        )
        if not started and getattr(reason.value, "exitCode", None):  # not for want of something: nobody has killed it
            self._failed_starts += 1
            if self._failed_starts > 1:
                self._give_up(f"element {self.number} does not start ({reason.getErrorMessage()})")
        self._start_again()

    def _start_again(self) -> None:
        self._again = self._reactor.callLater(self._pause, self.start)
        self._pause = min(2 * self._pause, timing.LONGEST_ELEMENT_AGAIN)


class _Ends(ProcessProtocol):
    """Hears of a process's end."""

    def __init__(self, ended: Callable[[Failure], None]) -> None:
        self._on_end = ended

    def processEnded(self, reason: Failure) -> None:
        self._on_end(reason)


class CommandLine(LineOnlyReceiver):
    """This end of the line of orders.

    :param pulse: gives the processor time that the element has used: as long as it grows the element is busy.
    :param stuck: called with an order that has not been answered in time, and with that time.
    :param hear: called with what it says of connections that it has reset.
    """

    delimiter = b"\n"
    MAX_LENGTH = MAX_COMMAND
    transport: Any
    log = Logger()

    def __init__(
        self,
        reactor: Any,
        number: int,
        pulse: Callable[[], float],
        stuck: Callable[[ElementCommand, float], None],
        hear: Callable[[list[Reset]], None],
    ) -> None:
        self._reactor = reactor
        self._number = number
        self._pulse = pulse
        self._stuck = stuck
        self._hear = hear
        self._seq = 0
        self._waiting: dict[int, tuple[Deferred[None], IDelayedCall]] = {}

    def ask(self, order: ElementCommand, timeout: float) -> Deferred[None]:
        """Give an order that is to be answered in so many seconds; fires when it was carried out, or fails."""
        self._seq += 1
        answered: Deferred[None] = Deferred()
        self._waiting[self._seq] = answered, self._wait(self._seq, order, timeout, 0.0)
        self.transport.write(encode(NumberedCommand(seq=self._seq, order=order)) + b"\n")
        return answered

    def _wait(self, seq: int, order: ElementCommand, timeout: float, waited: float) -> IDelayedCall:
        timer: IDelayedCall = self._reactor.callLater(
            timeout, self._is_late, seq, order, timeout, waited + timeout, self._pulse()
        )
        return timer

    def _is_late(self, seq: int, order: ElementCommand, timeout: float, waited: float, before: float) -> None:
        answered, _ = self._waiting[seq]
        if self._pulse() > before and waited < timing.ELEMENT_BUSY:
            self._waiting[seq] = answered, self._wait(seq, order, timeout, waited)
        else:
            self._stuck(order, waited)

    def close(self) -> None:
        """No more of it: what is not answered will not be."""
        self.transport.abortConnection()
        waiting, self._waiting = self._waiting, {}
        for answered, timer in waiting.values():
            if timer.active():
                timer.cancel()
            answered.errback(ElementDiedError())

    def lineReceived(self, line: bytes) -> None:
        report = read_report(line)
        if isinstance(report, LogLine):
            level = LogLevel.lookupByName(report.level)
            self.log.emit(level, "element {number}: {text}", number=self._number, text=report.text)
            return
        if isinstance(report, ResetsReport):
            self._hear(report.resets)
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
        """The process will end, if it has not yet: that is what counts."""


def descriptors_of(pid: int) -> int:
    """How many descriptors a process may have open; 0 is this one."""
    try:
        most, _ = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    except ProcessLookupError:
        return 0
    return most


def processor_time(pid: int) -> float:
    """Seconds of processor time that a process has used; 0 when it is gone."""
    try:
        return time.clock_gettime(~pid << 3 | _SCHEDULED)
    except OSError:
        return 0.0


def is_dead(failure: Failure) -> None:
    """An element that died has nothing of a stream any more; the next one is told what it has to know."""
    failure.trap(ElementDiedError)


def log_failure(failure: Failure) -> None:
    """Log that an element could not do what it was told, unless it died: nobody waits for the answer."""
    if not failure.check(ElementDiedError):
        _log.error("an element could not do what it was told: {reason}", reason=str(failure.value))

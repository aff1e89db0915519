"""The process of an element: `python -m scistream.s2ds.elements.worker`, which only the initiator starts.

It inherits three descriptors: a socket for commands, a socket on which connections are handed over, and the shared
figures. When the command socket is closed, the process exits and the kernel resets its connections.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from itertools import islice
from typing import Any

import msgspec
from twisted.internet.interfaces import IReadWriteDescriptor
from twisted.internet.protocol import Factory, connectionDone
from twisted.logger import (
    ILogObserver,
    LogLevel,
    formatEvent,
    globalLogBeginner,
)
from twisted.protocols.basic import LineOnlyReceiver
from twisted.python.failure import Failure
from zope.interface import implementer

from scistream.logs import fields_of, level_of
from scistream.os_process import end_with, keep_secrets, raise_descriptor_limit
from scistream.protocol.errors import StreamError
from scistream.reactors import run_on_monotonic_time
from scistream.s2ds.elements.channel import refuse
from scistream.s2ds.elements.commands import (
    MAX_PACKET,
    Done,
    Failed,
    LogLine,
    NumberedCommand,
    PathsReport,
    Report,
    Reset,
    ResetsReport,
    encode,
    read_command,
    read_hand_over,
)
from scistream.s2ds.elements.element import Element
from scistream.s2ds.elements.element_settings import ElementSettings
from scistream.s2ds.elements.shared_figures import SharedFigures
from scistream.s2ds.names import use_dns
from scistream.s2ds.relay.poller import install

COMMAND_FD, HAND_OVER_FD, FIGURES_FD = 3, 4, 5
"""The descriptors that the initiator gives this process."""

MAX_COMMAND = 4 * 1024 * 1024
HANDED_A_TURN = 16


class CommandReceiver(LineOnlyReceiver):
    """The element's end of the command link: it carries out commands at once, in order."""

    delimiter = b"\n"
    MAX_LENGTH = MAX_COMMAND
    transport: Any

    def __init__(self, reactor: Any, element: Element) -> None:
        self._reactor = reactor
        self._element = element

    def lineReceived(self, line: bytes) -> None:
        """Carry out a command, and answer it if it needs an answer."""
        numbered = read_command(line)
        answer = self._carry_out(numbered)
        if numbered.seq:
            self.send(answer)

    def _carry_out(self, numbered: NumberedCommand) -> Report:
        try:
            self._element.carry_out(numbered.command)
        except StreamError as error:
            return Failed(seq=numbered.seq, code=error.code, msg=error.msg)
        except Exception as fault:
            self._element.log.failure("Failed to carry out a command")
            return Failed(seq=numbered.seq, code="gateway-failed", msg=f"an element of the gateway failed: {fault!r}")
        return Done(seq=numbered.seq)

    def send(self, report: Report) -> None:
        """Send a report to the initiator."""
        self.transport.write(encode(report) + b"\n")

    def report_resets(self, resets: list[Reset]) -> None:
        """Report connections that were reset to the initiator, if it is connected."""
        if self.connected:
            self.send(ResetsReport(resets=resets))

    def report_paths(self, report: PathsReport) -> None:
        """Report the paths of a channel to the initiator, if it is connected."""
        if self.connected:
            self.send(report)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Stop the element and the process."""
        self._element.stop()
        if self._reactor.running:
            self._reactor.stop()


@implementer(IReadWriteDescriptor)
class ConnectionReceiver:
    """A receiver of the connections that the initiator hands over.

    :param sock: the element's end of the socket pair.
    """

    def __init__(self, reactor: Any, sock: socket.socket, element: Element) -> None:
        self._reactor = reactor
        self._sock = sock
        self._element = element
        reactor.addReader(self)

    def fileno(self) -> int:
        """Return the descriptor of the socket."""
        return self._sock.fileno()

    def logPrefix(self) -> str:
        """Return the prefix of log lines."""
        return "handed"

    def doRead(self) -> None:
        """Take over the waiting connections, up to a limit."""
        for _ in range(HANDED_A_TURN):
            try:
                packet, descriptors, _flags, _sender = socket.recv_fds(self._sock, MAX_PACKET, 1)
            except BlockingIOError:
                return
            if not packet:
                self._reactor.removeReader(self)
                return
            if not descriptors:  # this process is out of descriptors, and the kernel has closed the connection
                self._element.lost(read_hand_over(packet))
            for descriptor in descriptors:
                sock = socket.socket(fileno=descriptor)
                try:
                    self._element.carry(read_hand_over(packet), sock)
                except Exception:  # a fault with one connection must not affect the others
                    self._element.log.failure("Failed to carry a connection")
                    refuse(sock)

    def doWrite(self) -> None:
        """Do nothing: this socket is only read."""

    def connectionLost(self, reason: Failure) -> None:
        """Do nothing: the command link notices the end of the initiator, too."""


MOST_FIELDS = 32
MOST_TEXT = 8000
"""Characters of a text, or of a value, in a line of the log that an element sends."""


def log_line(event: Any) -> LogLine | None:
    """Return an event of this process for the log of the gateway, or None if it is not for operators."""
    level = level_of(event)
    if level < LogLevel.info:
        return None
    text = formatEvent(event)
    if "log_failure" in event:
        text += "\n" + event["log_failure"].getTraceback()
    fields = dict(islice(fields_of(event).items(), MOST_FIELDS))
    cut = {name: value[:MOST_TEXT] if isinstance(value, str) else value for name, value in fields.items()}
    return LogLine(level=level.name, text=text[:MOST_TEXT], fields=cut)


def _log_to(receiver: CommandReceiver) -> None:
    """Send the log of this process to the initiator, which writes the log of the gateway."""

    @implementer(ILogObserver)
    def observe(event: Any) -> None:
        line = log_line(event)
        if line is not None and receiver.connected:
            receiver.send(line)

    globalLogBeginner.beginLoggingTo([observe], redirectStandardIO=False, discardBuffer=True)


def main() -> None:
    """Carry connections until the initiator closes the command link."""
    slots, elements, number = map(int, sys.argv[1:4])
    settings = msgspec.json.decode(sys.argv[4], type=ElementSettings)
    end_with(int(sys.argv[5]))
    keep_secrets()
    raise_descriptor_limit()
    for signal_number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(signal_number, signal.SIG_IGN)  # the initiator decides when this process ends

    install()
    from twisted.internet import reactor as installed

    reactor: Any = installed
    run_on_monotonic_time(reactor)
    use_dns(reactor)
    element = Element(
        reactor,
        SharedFigures(FIGURES_FD, slots, elements),
        number,
        settings,
        lambda request: receiver.send(request),
        lambda resets: receiver.report_resets(resets),
        lambda report: receiver.report_paths(report),
    )
    receiver = CommandReceiver(reactor, element)
    os.set_blocking(COMMAND_FD, False)
    os.set_blocking(HAND_OVER_FD, False)
    factory = Factory.forProtocol(lambda: receiver)
    factory.noisy = False
    reactor.adoptStreamConnection(COMMAND_FD, socket.AF_UNIX, factory)
    os.close(COMMAND_FD)  # the reactor has duplicated it
    _log_to(receiver)
    ConnectionReceiver(reactor, socket.socket(fileno=HAND_OVER_FD), element)
    reactor.run(installSignalHandlers=False)


if __name__ == "__main__":
    main()

"""The process of an element: `python -m scistream.s2ds.elements.worker`, which the initiator starts and nobody else.

It inherits three descriptors: the line of orders, the pair on which connections are handed over, and the memory of the
figures. When the line ends, so does the process, and the kernel resets what it carried.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
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

from scistream.os_process import end_with, keep_secrets, raise_descriptor_limit
from scistream.protocol.errors import StreamError
from scistream.reactors import run_on_monotonic_time
from scistream.s2ds.elements.commands import (
    MAX_PACKET,
    Done,
    Failed,
    LogLine,
    Report,
    Reset,
    ResetsReport,
    encode,
    read_carry,
    read_command,
)
from scistream.s2ds.elements.element import Element, ElementSettings, refuse
from scistream.s2ds.elements.shared_figures import SharedFigures
from scistream.s2ds.names import use_dns
from scistream.s2ds.relay.poller import install

LINE_FD, HANDING_FD, BOARD_FD = 3, 4, 5
"""The descriptors that the initiator gives this process."""

MAX_COMMAND = 4 * 1024 * 1024
HANDED_A_TURN = 16


class CommandReceiver(LineOnlyReceiver):
    """This end of the line: what is said on it is done at once, in order."""

    delimiter = b"\n"
    MAX_LENGTH = MAX_COMMAND
    transport: Any

    def __init__(self, reactor: Any, element: Element) -> None:
        self._reactor = reactor
        self._element = element

    def lineReceived(self, line: bytes) -> None:
        ordered = read_command(line)
        try:
            self._element.carry_out(ordered.order)
        except StreamError as error:
            self.say(Failed(seq=ordered.seq, code=error.code, msg=error.msg))
        except Exception as fault:
            self._element.log.failure("An order could not be carried out")
            self.say(Failed(seq=ordered.seq, code="gateway-failed", msg=f"an element failed here: {fault!r}"))
        else:
            self.say(Done(seq=ordered.seq))

    def say(self, report: Report) -> None:
        """Tell the initiator."""
        self.transport.write(encode(report) + b"\n")

    def tell(self, resets: list[Reset]) -> None:
        """Tell it why connections were reset."""
        if self.connected:
            self.say(ResetsReport(resets=resets))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._element.stop()
        if self._reactor.running:
            self._reactor.stop()


@implementer(IReadWriteDescriptor)
class ConnectionReceiver:
    """Takes the connections that the initiator hands over.

    :param pair: this end of it.
    """

    def __init__(self, reactor: Any, pair: socket.socket, element: Element) -> None:
        self._reactor = reactor
        self._pair = pair
        self._element = element
        reactor.addReader(self)

    def fileno(self) -> int:
        return self._pair.fileno()

    def logPrefix(self) -> str:
        return "handed"

    def doRead(self) -> None:
        for _ in range(HANDED_A_TURN):
            try:
                packet, descriptors, _flags, _sender = socket.recv_fds(self._pair, MAX_PACKET, 1)
            except BlockingIOError:
                return
            if not packet:
                self._reactor.removeReader(self)
                return
            if not descriptors:  # there was no room for it, and the kernel has closed it
                lost = read_carry(packet)
                self._element.lost(lost)
            for descriptor in descriptors:
                sock = socket.socket(fileno=descriptor)
                try:
                    carry = read_carry(packet)
                    self._element.carry(carry, sock)
                except Exception:  # of this one connection: the others go on
                    self._element.log.failure("A connection could not be carried")
                    refuse(sock)

    def doWrite(self) -> None:
        """Nothing is ever written here."""

    def connectionLost(self, reason: Failure) -> None:
        """The initiator is gone: the line will say so, too."""


def _log_to(orders: CommandReceiver) -> None:
    """What this process logs is said to the initiator, whose log is the gateway's."""

    @implementer(ILogObserver)
    def observe(event: Any) -> None:
        level = event.get("log_level", LogLevel.info)
        if level < LogLevel.info or not orders.connected:
            return
        text = formatEvent(event)
        if "log_failure" in event:
            text += "\n" + event["log_failure"].getTraceback()
        orders.say(LogLine(level=level.name, text=text[:8000]))

    globalLogBeginner.beginLoggingTo([observe], redirectStandardIO=False, discardBuffer=True)


def main() -> None:
    """Carry what is handed over until the initiator goes away."""
    slots, elements, number = map(int, sys.argv[1:4])
    settings = msgspec.json.decode(sys.argv[4], type=ElementSettings)
    end_with(int(sys.argv[5]))
    keep_secrets()
    raise_descriptor_limit()
    for number_of_signal in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number_of_signal, signal.SIG_IGN)  # it is for the initiator to say when this ends

    install()
    from twisted.internet import reactor as installed

    reactor: Any = installed
    run_on_monotonic_time(reactor)
    use_dns(reactor)
    element = Element(
        reactor, SharedFigures(BOARD_FD, slots, elements), number, settings, lambda told: orders.tell(told)
    )
    orders = CommandReceiver(reactor, element)
    os.set_blocking(LINE_FD, False)
    os.set_blocking(HANDING_FD, False)
    factory = Factory.forProtocol(lambda: orders)
    factory.noisy = False
    reactor.adoptStreamConnection(LINE_FD, socket.AF_UNIX, factory)
    os.close(LINE_FD)  # the reactor has made a descriptor of its own
    _log_to(orders)
    ConnectionReceiver(reactor, socket.socket(fileno=HANDING_FD), element)
    reactor.run(installSignalHandlers=False)


if __name__ == "__main__":
    main()

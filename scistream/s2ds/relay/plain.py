"""The LAN leg: plain TCP, and how a relay dials."""

from __future__ import annotations

import errno
import os
import socket
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReadWriteDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from scistream.s2ds.relay.leg import (
    EOF,
    WANT,
    Broken,
    Leg,
    Refused,
    explain,
    is_event_of_another,
    pending_error,
    prepare,
)
from scistream.wire.address import Address


class PlainLeg(Leg):
    """A leg whose bytes are the application's own; a FIN ends a direction."""

    def read_into(self, room: memoryview) -> int:
        try:
            return self._sock.recv_into(room) or EOF
        except BlockingIOError:
            return WANT
        except OSError as problem:
            raise self._break(problem) from None

    def write(self, data: memoryview) -> int:
        try:
            return self._sock.send(data)
        except BlockingIOError:
            return 0
        except OSError as problem:
            raise self._break(problem) from None

    def finish_writing(self) -> bool:
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError as problem:
            raise self._break(problem) from None
        return True

    def pending(self) -> bool:
        return False

    def _break(self, problem: OSError) -> Broken:
        return Broken(f"{explain(problem)} ({self.peer})")


def dial(reactor: Any, target: Address, timeout: float, patience: float) -> Deferred[socket.socket]:
    """Connect to a numeric address within `timeout` seconds: a socket that is prepared as a relay's are.

    Fails with `Broken`; cancelling it abandons the attempt.
    """
    family = socket.AF_INET6 if ":" in target.host else socket.AF_INET
    result: Deferred[socket.socket]
    try:
        sock = socket.socket(family, socket.SOCK_STREAM)
    except OSError as problem:
        result = Deferred()
        result.errback(Failure(Broken(f"{target} cannot be dialled: {explain(problem)}")))
        return result
    dialling = _Dialling(reactor, sock, target)
    result = dialling.result
    try:
        prepare(sock, patience)
        code = sock.connect_ex((target.host, target.port))
    except OSError as problem:
        dialling.fail(explain(problem))
        return result
    dialling.start(code, timeout)
    return result


@implementer(IReadWriteDescriptor)
class _Dialling:
    """One attempt to connect."""

    def __init__(self, reactor: Any, sock: socket.socket, target: Address) -> None:
        self.result: Deferred[socket.socket] = Deferred(self._cancelled)
        self._reactor = reactor
        self._sock: socket.socket | None = sock
        self._target = target
        self._timer: Any = None

    def start(self, code: int, timeout: float) -> None:
        if code not in (0, errno.EINPROGRESS):
            self.fail(explain(OSError(code, "")))
            return
        self._timer = self._reactor.callLater(timeout, self._time_out, timeout)
        self._reactor.addWriter(self)

    def fail(self, reason: str) -> None:
        if self._let_go():
            kind = Refused if reason == os.strerror(errno.ECONNREFUSED) else Broken
            self.result.errback(Failure(kind(f"{self._target} cannot be reached: {reason}")))

    def _time_out(self, timeout: float) -> None:
        self._timer = None
        self.fail(f"no answer within {timeout:g} s")

    def _detach(self) -> socket.socket | None:
        sock = self._sock
        if sock is not None:
            self._reactor.removeWriter(self)
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            self._sock = None
        return sock

    def _let_go(self) -> bool:
        sock = self._detach()
        if sock is None:
            return False
        sock.close()
        return True

    def _cancelled(self, _result: Deferred[socket.socket]) -> None:
        self._let_go()

    # IReadWriteDescriptor

    def fileno(self) -> int:
        return -1 if self._sock is None else self._sock.fileno()

    def logPrefix(self) -> str:
        return "dial"

    def doWrite(self) -> None:
        assert self._sock is not None
        failure = pending_error(self._sock)
        if failure:
            self.fail(failure)
            return
        try:
            self._sock.getpeername()
        except OSError:
            return  # the event was about another that had this descriptor before
        sock = self._detach()
        assert sock is not None
        self.result.callback(sock)

    def doRead(self) -> None:
        """Nothing: reached only by an event about another that had this descriptor before."""

    def connectionLost(self, reason: Failure) -> None:
        if self._sock is None:
            return
        if is_event_of_another(self._sock, reason):
            self._reactor.addWriter(self)
        else:
            self.fail(pending_error(self._sock) or "the connection was lost")

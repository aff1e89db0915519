"""A leg of plain TCP, as the LAN's are, and how a relay dials."""

from __future__ import annotations

import errno
import os
import socket
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from scistream.protocol.address import Address
from scistream.s2ds.relay.buffers import Buffer, Pipe
from scistream.s2ds.relay.leg import (
    SHORT_HERE,
    WANT,
    ConnectionBrokenError,
    DialRefusedError,
    Leg,
    ShortageError,
    pending_error,
    prepare,
)
from scistream.s2ds.relay.poller import WRITABLE, Poller

_SPLICE = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK
_NO_SPLICE = frozenset({errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.ENOMEM})
"""What the system says where it does not splice, or not these descriptors, or not now."""


class CannotSpliceError(Exception):
    """The system does not move bytes between a socket and a pipe by itself."""


class PlainLeg(Leg):
    """A leg whose bytes are the application's own; a FIN ends a direction."""

    __slots__ = ()

    def read_into(self, buffer: Buffer, room: int) -> int:
        try:
            count = self._sock.recv_into(buffer.view, room)
        except BlockingIOError:
            self.readable = False
            return WANT
        except OSError as problem:
            raise self._break(problem) from None
        if count < room and not self.is_ending and not self.is_urgent:
            self.readable = False  # that was all: whatever comes now is told
        return count

    def write(self, buffer: Buffer, start: int, end: int) -> int:
        try:
            count = self._sock.send(buffer.view[start:end])
        except BlockingIOError:
            self.writable = False
            return 0
        except OSError as problem:
            raise self._break(problem) from None
        return count

    def splice_to(self, pipe: Pipe, room: int) -> int:
        """Move up to `room` bytes that have come into a pipe: as `read_into`, where `WANT` may mean that it is full.

        :raises CannotSpliceError: the system does not do that, and nothing was moved.
        """
        try:
            count = os.splice(self._sock.fileno(), pipe.writing, room, flags=_SPLICE)
        except BlockingIOError:
            if not pipe.held:  # so it is the socket that has nothing
                self.readable = False
            return WANT
        except OSError as problem:
            if problem.errno in _NO_SPLICE:
                raise CannotSpliceError from None
            raise self._break(problem) from None
        if not count:  # the end, or an urgent byte: only reading tells
            raise CannotSpliceError
        pipe.held += count
        return count

    def splice_from(self, pipe: Pipe) -> int:
        """Write what a pipe holds: as `write`.

        :raises CannotSpliceError: the system does not do that, and nothing was moved.
        """
        try:
            count = os.splice(pipe.reading, self._sock.fileno(), pipe.held, flags=_SPLICE)
        except BlockingIOError:
            self.writable = False
            return 0
        except OSError as problem:
            if problem.errno in _NO_SPLICE:
                raise CannotSpliceError from None
            raise self._break(problem) from None
        pipe.held -= count
        return count

    def finish_writing(self) -> bool:
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError as problem:
            raise self._break(problem) from None
        return True


def dial(
    reactor: Any,
    poller: Poller,
    target: Address,
    far: str,
    timeout: float,
    dead_after: float,
    congestion: str = "",
    *,
    wan: bool,
) -> Deferred[socket.socket]:
    """Connect to a numeric address within `timeout` seconds: a socket that is prepared as a relay's are.

    Fails with `ConnectionBrokenError`, or `DialRefusedError` or `ShortageError` where another try may help;
    cancelling it abandons the attempt.

    :param far: who is there, in words for a person.
    :param congestion: the congestion control of the connection; empty: the system's.
    """
    family = socket.AF_INET6 if ":" in target.host else socket.AF_INET
    result: Deferred[socket.socket]
    try:
        sock = socket.socket(family, socket.SOCK_STREAM)
    except OSError as problem:
        result = Deferred()
        result.errback(Failure(_not_dialled(far, problem.errno or errno.EIO, wan=wan)))
        return result
    dialling = _Dialling(poller, sock, far, wan=wan)
    result = dialling.result
    try:
        prepare(sock, dead_after, congestion)
        code = sock.connect_ex((target.host, target.port))
    except OSError as problem:
        dialling.fail(problem.errno or errno.EIO)
        return result
    dialling.start(reactor, code, timeout)
    return result


def _not_dialled(far: str, code: int, *, wan: bool) -> ConnectionBrokenError:
    """Why there is no connection."""
    if code == errno.ECONNREFUSED:
        return DialRefusedError(f"{far} refused the connection", "wan" if wan else "application")
    if code in SHORT_HERE:
        return ShortageError(f"this gateway cannot connect to {far}: {os.strerror(code)}", "gateway")
    return ConnectionBrokenError(f"{far} cannot be reached: {os.strerror(code)}", "wan" if wan else "application")


class _Dialling:
    """One attempt to connect."""

    born = 0

    def __init__(self, poller: Poller, sock: socket.socket, far: str, *, wan: bool) -> None:
        self.result: Deferred[socket.socket] = Deferred(self._cancelled)
        self._poller = poller
        self._sock: socket.socket | None = sock
        self._far = far
        self._wan = wan
        self._timer: Any = None
        self._is_polled = False

    def start(self, reactor: Any, code: int, timeout: float) -> None:
        if code not in (0, errno.EINPROGRESS):
            self.fail(code)
            return
        try:
            self._poller.add(self)
        except OSError as problem:
            self.fail(problem.errno or errno.EIO)
            return
        self._is_polled = True
        self._timer = reactor.callLater(timeout, self._time_out, timeout)

    def fail(self, code: int) -> None:
        self._end(_not_dialled(self._far, code, wan=self._wan))

    def _time_out(self, timeout: float) -> None:
        self._timer = None
        self._end(
            ConnectionBrokenError(
                f"{self._far} did not answer within {max(1, round(timeout))} s", "wan" if self._wan else "application"
            )
        )

    def _end(self, broken: ConnectionBrokenError) -> None:
        sock = self._detach()
        if sock is not None:
            sock.close()
            self.result.errback(Failure(broken))

    def _detach(self) -> socket.socket | None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._is_polled:
            self._poller.remove(self)
            self._is_polled = False
        sock, self._sock = self._sock, None
        return sock

    def _cancelled(self, _result: Deferred[socket.socket]) -> None:
        sock = self._detach()
        if sock is not None:
            sock.close()

    # of the poller

    def fileno(self) -> int:
        return -1 if self._sock is None else self._sock.fileno()

    def event(self, mask: int) -> None:
        if self._sock is None or not mask & WRITABLE:
            return
        failure = pending_error(self._sock)
        if failure:
            self.fail(failure)
            return
        if is_itself(self._sock):
            self.fail(errno.ECONNREFUSED)
            return
        sock = self._detach()
        assert sock is not None
        self.result.callback(sock)


def is_itself(sock: socket.socket) -> bool:
    """Return whether a socket is connected to itself: nobody listens there, and the kernel gave it that very port."""
    try:
        return bool(sock.getsockname() == sock.getpeername())
    except OSError:  # it has ended already, so it had a peer
        return False

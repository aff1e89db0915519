"""A leg of plain TCP, as used on the LAN, and outgoing connections of a relay."""

from __future__ import annotations

import errno
import os
import socket
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from scistream.protocol.address import Address
from scistream.s2ds.relay.attempt import Attempt
from scistream.s2ds.relay.buffers import Buffer, Pipe
from scistream.s2ds.relay.leg import (
    LOCAL_SHORTAGES,
    WANT,
    ConnectionBrokenError,
    DialRefusedError,
    Leg,
    ShortageError,
    pending_error,
    prepare,
)
from scistream.s2ds.relay.mptcp import address_for, tcp_socket
from scistream.s2ds.relay.poller import WRITABLE, Poller

_SPLICE = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK
_NO_SPLICE = frozenset({errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.ENOMEM})
"""Errors that mean that the system cannot splice, or cannot splice these descriptors at the moment."""


class CannotSpliceError(Exception):
    """The system cannot splice between this socket and a pipe."""


class PlainLeg(Leg):
    """A leg that carries application bytes in the clear; a FIN ends a direction."""

    __slots__ = ()

    def read_into(self, buffer: Buffer, room: int) -> int:
        """Read up to `room` bytes: see `Leg.read_into`."""
        try:
            count = self._sock.recv_into(buffer.view, room)
        except BlockingIOError:
            self.readable = False
            return WANT
        except OSError as problem:
            raise self._break(problem) from None
        if count < room and not self.is_ending and not self.is_urgent:
            self.readable = False  # the socket is empty: the poller reports further bytes
        return count

    def write(self, buffer: Buffer, start: int, end: int) -> int:
        """Write `buffer[start:end]`: see `Leg.write`."""
        try:
            count = self._sock.send(buffer.view[start:end])
        except BlockingIOError:
            self.writable = False
            return 0
        except OSError as problem:
            raise self._break(problem) from None
        return count

    def splice_to(self, pipe: Pipe, room: int) -> int:
        """Move up to `room` received bytes into a pipe. Return their number, or `WANT` if the socket or pipe blocks.

        :raises CannotSpliceError: if the system cannot splice, or only `read_into` can tell what comes next. Nothing
            was moved.
        :raises ConnectionBrokenError: if the connection has ended abnormally.
        """
        try:
            count = os.splice(self._sock.fileno(), pipe.writing, room, flags=_SPLICE)
        except BlockingIOError:
            if not pipe.held:  # an empty pipe cannot block, so the socket is empty
                self.readable = False
            return WANT
        except OSError as problem:
            if problem.errno in _NO_SPLICE:
                raise CannotSpliceError from None
            raise self._break(problem) from None
        if not count:  # the end of the stream or an urgent byte, which only a read can tell apart
            raise CannotSpliceError
        pipe.held += count
        return count

    def splice_from(self, pipe: Pipe) -> int:
        """Write the bytes in a pipe. Return how many were written, 0 if the socket has no room.

        :raises CannotSpliceError: if the system cannot splice. Nothing was moved.
        :raises ConnectionBrokenError: if the connection has ended abnormally.
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
        """Send a FIN: see `Leg.finish_writing`."""
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError as problem:
            raise self._break(problem) from None
        return True


def dial(
    reactor: Any,
    poller: Poller,
    target: Address,
    peer_name: str,
    timeout: float,
    dead_after: float,
    congestion: str = "",
    *,
    wan: bool,
    multipath: bool = False,
    mixed: bool = False,
) -> Deferred[socket.socket]:
    """Connect to a numeric address within `timeout` seconds; fire with a prepared socket.

    The Deferred fails with `DialRefusedError` or `ShortageError` if another attempt may succeed, and with
    `ConnectionBrokenError` otherwise. Cancelling it abandons the attempt.

    :param peer_name: a readable name of the peer.
    :param dead_after: the seconds after which an unreachable host is noticed once connected.
    :param congestion: the congestion control of the connection; empty: the system's.
    :param multipath: whether the connection may use several paths.
    :param mixed: whether these may be of both IPv4 and IPv6.
    """
    family = socket.AF_INET6 if ":" in target.host else socket.AF_INET
    result: Deferred[socket.socket]
    try:
        sock = tcp_socket(family, multipath=multipath, mixed=mixed)
    except OSError as problem:
        result = Deferred()
        result.errback(Failure(_not_dialled(peer_name, problem.errno or errno.EIO, wan=wan)))
        return result
    dialling = _Dialling(poller, sock, peer_name, wan=wan)
    result = dialling.result
    try:
        prepare(sock, dead_after, congestion)
        code = sock.connect_ex((address_for(sock, target.host), target.port))
    except OSError as problem:
        dialling.fail(problem.errno or errno.EIO)
        return result
    dialling.start(reactor, code, timeout)
    return result


def _not_dialled(peer_name: str, code: int, *, wan: bool) -> ConnectionBrokenError:
    """Return the exception for a connection attempt that failed with this error."""
    if code == errno.ECONNREFUSED:
        return DialRefusedError(f"{peer_name} refused the connection", "wan" if wan else "application")
    if code in LOCAL_SHORTAGES:
        return ShortageError(f"this gateway cannot connect to {peer_name}: {os.strerror(code)}", "gateway")
    return ConnectionBrokenError(f"{peer_name} cannot be reached: {os.strerror(code)}", "wan" if wan else "application")


class _Dialling(Attempt):
    """One connection attempt."""

    def __init__(self, poller: Poller, sock: socket.socket, peer_name: str, *, wan: bool) -> None:
        super().__init__(poller, sock)
        self.result: Deferred[socket.socket] = Deferred(lambda _: self.close())
        self._far = peer_name
        self._wan = wan

    def start(self, reactor: Any, code: int, timeout: float) -> None:
        if code not in (0, errno.EINPROGRESS):
            self.fail(code)
            return
        try:
            self.watch(reactor, timeout, partial(self._not_answered, timeout))
        except OSError as problem:
            self.fail(problem.errno or errno.EIO)

    def fail(self, code: int) -> None:
        self._end(_not_dialled(self._far, code, wan=self._wan))

    def _not_answered(self, timeout: float) -> None:
        self._end(
            ConnectionBrokenError(
                f"{self._far} did not answer within {max(1, round(timeout))} s", "wan" if self._wan else "application"
            )
        )

    def _end(self, broken: ConnectionBrokenError) -> None:
        if self._sock is not None:
            self.close()
            self.result.errback(Failure(broken))

    # -- Polled

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
        sock = self.detach()
        assert sock is not None
        self.result.callback(sock)


def is_itself(sock: socket.socket) -> bool:
    """Return True if a socket is connected to itself: nobody listened there, and the kernel chose that same port."""
    try:
        return bool(sock.getsockname() == sock.getpeername())
    except OSError:  # the connection has ended, so it had a peer
        return False

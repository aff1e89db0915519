"""The TLS handshake of a WAN leg. It takes a bounded number of records from the far end.

From a socket OpenSSL would read for as long as records come, each of one byte if the far end likes it so, and nobody
else at this element would have a turn. So it gets them from memory, a little at a time, and whatever comes after the
handshake is left in the socket, which OpenSSL has from then on.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from typing import TYPE_CHECKING, Any

from OpenSSL import SSL
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from scistream.s2ds.relay import openssl
from scistream.s2ds.relay.leg import ConnectionBrokenError, broken_by

if TYPE_CHECKING:
    from scistream.s2ds.relay.tls import TlsLeg

MOST_RECORDS = 256
"""Records that a handshake takes from the far end at most: most have a few."""

_HEADER = 5
"""Bytes of a record's header; the last two are the length of what follows it."""
_PIECE = 4096
"""Bytes that OpenSSL gets at a time: mostly all that the far end has to say."""
_SOME = 65536


class Handshake:
    """The first thing that happens on a leg; gone when it is over.

    :ivar result: fires when keys are agreed on, or fails with `ConnectionBrokenError`; cancelling it
        gives the handshake up.
    """

    def __init__(self, leg: TlsLeg, reactor: Any, timeout: float) -> None:
        self.result: Deferred[None] = Deferred(lambda _: self._stop())
        self._leg = leg
        self._is_begun = self._is_agreed = self._is_over = False
        self._records = 0
        self._begun = b""  # the beginning of a header whose rest has not come
        self._skip = 0  # bytes that are still to come of the record under way
        self._to_send = b""
        self._timer = reactor.callLater(timeout, self._time_out, timeout)

    def turn(self) -> None:
        leg = self._leg
        try:
            self._go_on()
        except SSL.Error as problem:
            self._end(leg.broken(problem))
        except ConnectionBrokenError as broken:
            self._end(broken)
        except OSError as problem:
            self._end(broken_by(problem.errno or errno.EIO, leg))

    def _go_on(self) -> None:
        leg = self._leg
        while self._sent():
            if self._is_agreed:
                leg.take_over()
                self._end(None)
                return
            piece = b""
            if self._is_begun:
                try:
                    piece = leg.sock.recv(_PIECE, socket.MSG_PEEK)
                except BlockingIOError:
                    leg.readable = False
                    return
                if not piece:
                    raise SSL.SysCallError(-1, "Unexpected EOF")
                leg.connection.bio_write(piece)
            self._is_begun = True
            self._shake()
            if piece:
                self._took(leg.sock.recv(len(piece) - self._left_over()))
        leg.writable = False

    def _shake(self) -> None:
        connection = self._leg.connection
        try:
            connection.do_handshake()
        except SSL.WantReadError:
            pass
        except SSL.Error:
            self._listen()
            with contextlib.suppress(OSError):
                self._sent()  # why it is refused
            raise
        else:
            self._is_agreed = True
        self._listen()

    def _listen(self) -> None:
        """Gather what OpenSSL has to say to the far end."""
        with contextlib.suppress(SSL.WantReadError):
            while True:
                self._to_send += self._leg.connection.bio_read(_SOME)

    def _sent(self) -> bool:
        """Send what there is; False if not all of it goes now."""
        while self._to_send:
            try:
                count = self._leg.sock.send(self._to_send)
            except BlockingIOError:
                return False
            except (BrokenPipeError, ConnectionResetError):
                if not self._is_agreed:
                    raise
                self._to_send = b""  # tickets alone, and what the far end has sent before it went can still be read
                break
            self._to_send = self._to_send[count:]
        return True

    def _left_over(self) -> int:
        """Bytes that OpenSSL was given and has not read: what follows the handshake."""
        return openssl.unread_bytes(self._leg.connection)

    def _took(self, piece: bytes) -> None:
        """Count the records that begin in the next piece of what the far end has sent.

        :raises Broken: if there have been too many of them.
        """
        begun, at = self._begun + piece, self._skip
        while at + _HEADER <= len(begun):
            self._records += 1
            at += _HEADER + int.from_bytes(begun[at + _HEADER - 2 : at + _HEADER])
        self._begun = begun[at:]
        self._skip = max(0, at - len(begun))
        if self._records > MOST_RECORDS:
            raise ConnectionBrokenError(
                f"{self._leg.far} cut its TLS handshake into too many records", "far-side", self._leg
            )

    def _time_out(self, timeout: float) -> None:
        self._timer = None
        self._end(ConnectionBrokenError(f"no TLS handshake within {timeout:g} s", "wan"))

    def _end(self, problem: ConnectionBrokenError | None) -> None:
        if self._is_over:
            return
        self._stop()
        if problem is None:
            self.result.callback(None)
        else:
            self.result.errback(Failure(problem))

    def _stop(self) -> None:
        self._is_over = True
        self._leg.is_opening = False
        self._leg.reader = self._leg.writer = None
        self._leg.readable = self._leg.writable = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

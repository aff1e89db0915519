"""The TLS handshake of a WAN leg, with limits on the TLS records and bytes from the peer.

OpenSSL reads from a socket for as long as records arrive. A peer could send records of one byte without end and block
all other connections of the element; a first message of 64 KiB could name thousands of tickets, each of which is looked
up. The handshake therefore passes small pieces to OpenSSL through memory, up to these limits. Bytes after
the handshake stay in the socket, from which OpenSSL reads directly later on.
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
from scistream.tls.stream_channels import speaks_connect

if TYPE_CHECKING:
    from scistream.s2ds.relay.tls import TlsLeg

MOST_RECORDS = 256
"""The number of records that a handshake accepts from the peer. A normal one needs only a few."""
MOST_BYTES = 16384
"""The number of bytes that a handshake accepts from the peer, with the headers of the records.

A normal one needs less than 4,096; two certificates with keys and signatures of RSA-8192 would need 6,000 more.
"""

_HEADER = 5
"""The size of a record's header in bytes. Its last two bytes are the length of the record's content."""
_PIECE_SIZE = 4096
"""The number of bytes passed to OpenSSL at a time; the messages of a peer usually fit into one piece."""


class OldGatewayError(ConnectionBrokenError):
    """The peer does not know Connect. It has not seen the end of the handshake, so it has dialled nobody."""


class SlowHandshakeError(ConnectionBrokenError):
    """The handshake was not complete in time."""


class Handshake:
    """The handshake of one leg.

    :ivar result: fires when the handshake is complete, or fails with `ConnectionBrokenError`. Cancelling it abandons
        the handshake.
    """

    waits = False

    def __init__(self, leg: TlsLeg, reactor: Any, timeout: float) -> None:
        self.result: Deferred[None] = Deferred(lambda _: self._stop())
        self._leg = leg
        self._is_started = self._is_complete = self._is_over = False
        self._records = self._bytes = 0
        self._partial_header = b""  # the first part of a header whose rest has not arrived
        self._record_left = 0  # bytes of the current record that have not arrived
        self._output = b""
        self._timer = reactor.callLater(timeout, self._time_out, timeout)

    def advance(self) -> None:
        """Continue as far as the socket allows."""
        leg = self._leg
        try:
            self._advance()
        except SSL.Error as problem:
            self._end(leg.broken(problem))
        except ConnectionBrokenError as broken:
            self._end(broken)
        except OSError as problem:
            self._end(broken_by(problem.errno or errno.EIO, leg))

    def _advance(self) -> None:
        leg = self._leg
        while self._flush():
            if self._is_complete:
                leg.take_over()
                self._end(None)
                return
            piece = b""
            if self._is_started:
                try:
                    piece = leg.sock.recv(min(_PIECE_SIZE, self._bytes_left()), socket.MSG_PEEK)
                except BlockingIOError:
                    leg.readable = False
                    return
                if not piece:
                    raise SSL.SysCallError(-1, "Unexpected EOF")
                openssl.give_input(leg.connection, piece)
            self._is_started = True
            self._step()
            if piece:
                self._count(leg.sock.recv(len(piece) - self._unread_bytes()))
        leg.writable = False

    def _step(self) -> None:
        connection = self._leg.connection
        try:
            self._is_complete = openssl.advance_handshake(connection)
        except SSL.Error:
            self._collect_output()
            with contextlib.suppress(OSError):
                self._flush()  # the alert that tells the peer why
            raise
        if self._is_complete and self._leg.must_speak_connect and not speaks_connect(connection):
            raise OldGatewayError(f"{self._leg.peer_name} does not know Connect", "far-side", self._leg)
        if self._is_complete and self._leg.must_accept_ticket and not openssl.is_resumed(connection):
            raise ConnectionBrokenError(f"{self._leg.peer_name} accepts no ticket", "far-side", self._leg)
        self._collect_output()

    def _collect_output(self) -> None:
        """Collect OpenSSL's output to the peer."""
        self._output += openssl.take_output(self._leg.connection)

    def _flush(self) -> bool:
        """Send the collected output. Return False if the socket does not take all of it now."""
        while self._output:
            try:
                count = self._leg.sock.send(self._output)
            except BlockingIOError:
                return False
            except (BrokenPipeError, ConnectionResetError):
                if not self._is_complete:
                    raise
                self._leg.is_reset = True
                self._output = b""  # only session tickets are lost, and bytes from the peer can still be read
                break
            self._output = self._output[count:]
        return True

    def _unread_bytes(self) -> int:
        """Return how many bytes OpenSSL was given and has not read: they follow the handshake."""
        return openssl.unread_bytes(self._leg.connection)

    def _bytes_left(self) -> int:
        """Return how many more bytes OpenSSL may read.

        :raises ConnectionBrokenError: if it has read too many.
        """
        if self._bytes >= MOST_BYTES:
            raise ConnectionBrokenError(
                f"{self._leg.peer_name} sent more than {MOST_BYTES} bytes in its handshake", "far-side", self._leg
            )
        return MOST_BYTES - self._bytes

    def _count(self, piece: bytes) -> None:
        """Count the next bytes of input, and the records that begin in them.

        :raises ConnectionBrokenError: if there have been too many records.
        """
        self._bytes += len(piece)
        begun, at = self._partial_header + piece, self._record_left
        while at + _HEADER <= len(begun):
            self._records += 1
            at += _HEADER + int.from_bytes(begun[at + _HEADER - 2 : at + _HEADER])
        self._partial_header = begun[at:]
        self._record_left = max(0, at - len(begun))
        if self._records > MOST_RECORDS:
            raise ConnectionBrokenError(
                f"{self._leg.peer_name} sent too many TLS records in its handshake", "far-side", self._leg
            )

    def _time_out(self, timeout: float) -> None:
        self._timer = None
        self._end(SlowHandshakeError(f"the TLS handshake was not complete within {timeout:g} s", "wan"))

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

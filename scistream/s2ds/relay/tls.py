"""A WAN leg under TLS, in which OpenSSL uses the socket directly.

Twisted's TLS transport ends both directions at the first close_notify. Here each direction ends with its own
close_notify, and without one the connection counts as broken: protocol sections 10.1 and 10.2.

pyOpenSSL does the handshake and the error handling. Application bytes move between OpenSSL and a buffer directly,
since pyOpenSSL would create and copy an object for each record.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import time
from collections.abc import Callable
from typing import Any

from OpenSSL import SSL
from twisted.internet.defer import Deferred

from scistream.s2ds.relay import openssl
from scistream.s2ds.relay.buffers import Buffer, Buffers
from scistream.s2ds.relay.dead_peers import DeadPeerDetector
from scistream.s2ds.relay.handshake import Handshake
from scistream.s2ds.relay.leg import EOF, WANT, ConnectionBrokenError, Leg, LegOwner, broken_by
from scistream.s2ds.relay.openssl import WANT_READ, WANT_WRITE, ffi, get_error, peek, read, write
from scistream.s2ds.relay.poller import Poller

RECORD = 16384
"""The largest number of bytes in one TLS record, which is also the most that OpenSSL reads at once."""

MOST_RECORDS = 64
"""The number of records that one read may consume: a record can contain a single byte."""
RECORD_COST = 4096
"""The least cost of a record in bytes of a turn, however small it is."""
ASIDE = 32768
"""The most bytes of an application that are encrypted into memory at once."""
_PIECE = Buffers(4096).borrow()
"""For the pieces of a line, of all connections in turn."""
EMPTY_BURST = 32
"""The number of records without application data, such as key updates, that a peer may send at once.

Each costs as much processor time as 16 KiB of data, and none counts against the rate of the stream.
"""
EMPTY_A_SECOND = 8.0
"""The number of such records that a peer may send per second in the long run."""


def tune(context: SSL.Context | None) -> None:
    """Let idle connections of a context release their buffers. Call it before its first connection."""
    if context is not None:
        with contextlib.suppress(ValueError):  # the context is in use, and was tuned before
            context.set_mode(SSL.MODE_RELEASE_BUFFERS)


class TlsLeg(Leg):
    """A leg that carries application bytes under TLS; a close_notify ends a direction, a bare FIN breaks it.

    :param server_name: the name of the server to ask for, at the client's end; None at the server's end.
    :ivar must_speak_connect: fail the handshake before the peer sees its end if the peer does not know Connect.
    :ivar must_accept_ticket: the same if the peer does not accept the ticket that it is offered.
    :ivar first_line: called before a read until it returns True, after which application bytes may be read.
    """

    __slots__ = (
        "_empty",
        "_empty_since",
        "_holds_record",
        "_line",
        "_ssl",
        "_taken",
        "_unsent",
        "connection",
        "first_line",
        "must_accept_ticket",
        "must_speak_connect",
    )

    def __init__(
        self,
        poller: Poller,
        sock: socket.socket,
        dead_peers: DeadPeerDetector,
        owner: LegOwner,
        peer_name: str,
        context: SSL.Context,
        server_name: str | None,
    ) -> None:
        super().__init__(poller, sock, dead_peers, owner, peer_name, wan=True)
        self.connection = SSL.Connection(context, None)  # without a socket until the handshake is complete
        if server_name is None:
            self.connection.set_accept_state()
        else:
            self.connection.set_tlsext_host_name(server_name.encode("ascii"))
            self.connection.set_connect_state()
        self._ssl = openssl.handle_of(self.connection)
        openssl.end_reads_at_each_record(self.connection)
        self._empty = 0.0  # a decaying count of records without application data
        self._empty_since = 0.0
        self._line = b""
        self._unsent = b""  # encrypted, and not taken by the socket
        self._taken = 0  # the bytes of the application in `_unsent`
        self._holds_record = False  # OpenSSL has one that the socket has not taken
        self.first_line: Callable[[], bool] | None = None
        self.must_speak_connect = self.must_accept_ticket = False

    def handshake(self, reactor: Any, timeout: float) -> Deferred[None]:
        """Do the TLS handshake within `timeout` seconds. The caller must verify the peer afterwards.

        The Deferred fails with `ConnectionBrokenError`; cancelling it abandons the handshake.
        """
        handshake = Handshake(self, reactor, timeout)
        self.is_opening = True
        self.reader = self.writer = handshake
        handshake.advance()
        return handshake.result

    def take_over(self) -> None:
        """Let OpenSSL use the socket directly, once the handshake is complete."""
        openssl.move_to_socket(self.connection, self._sock.fileno())

    def read_into(self, buffer: Buffer, room: int) -> int:
        """Read up to `room` bytes: see `Leg.read_into`."""
        if self.first_line is not None and not self.first_line():
            return WANT
        ssl, at, filled, records = self._ssl, buffer.address, 0, 0
        while filled < room and records < MOST_RECORDS:
            count = read(ssl, at + filled if filled else at, room - filled)  # reads one record at most
            records += 1
            self.read_cost = records * RECORD_COST
            if count <= 0:
                if ffi.errno != errno.EAGAIN and get_error(ssl, count) == WANT_READ:
                    self._no_data()
                    continue
                return self._no_record(count, filled)
            filled += count
            if self.is_first and count < RECORD:
                # Probably a single message: pass it on before another read.
                self.is_first = False
                self.looks_empty = filled < room
                break
        return filled

    def read_line(self, limit: int) -> bytes | None:
        """Read a line, and nothing after it. Return it without its LF, or None if its end has not arrived.

        :param limit: the most bytes of a line.
        :raises ConnectionBrokenError: if the line is longer, or the connection has ended.
        """
        while True:
            count = peek(self._ssl, _PIECE.address, _PIECE.pool.size)  # of one record at most
            if count <= 0:
                if ffi.errno != errno.EAGAIN and get_error(self._ssl, count) == WANT_READ:
                    self._no_data()
                    continue
                if self._no_record(count, 0) == EOF:
                    raise ConnectionBrokenError(
                        f"{self.peer_name} ended the connection before a line", "far-side", self
                    )
                return None
            end = bytes(_PIECE.view[:count]).find(b"\n")
            taken: int = read(self._ssl, _PIECE.address, count if end < 0 else end + 1)
            self._line += bytes(_PIECE.view[:taken])
            if len(self._line) > limit:
                raise ConnectionBrokenError(
                    f"{self.peer_name} sent a first line of more than {limit} bytes", "far-side", self
                )
            if end >= 0:
                line, self._line = self._line[:-1], b""
                return line

    def write_line(self, line: bytes) -> None:
        """Write a line as the first bytes, which the socket has room for.

        :raises ConnectionBrokenError: if the connection has ended.
        """
        self._check_reset()
        if not self._write_aside(ffi.from_buffer("char[]", line), len(line)):
            raise ConnectionBrokenError(f"{self.peer_name} takes no bytes", "wan", self)

    def _no_data(self) -> None:
        """Count a record without application data.

        :raises ConnectionBrokenError: if there are too many of them.
        """
        now = time.monotonic()
        faded = (now - self._empty_since) * EMPTY_A_SECOND
        self._empty, self._empty_since = max(0.0, self._empty - faded) + 1, now
        if self._empty > EMPTY_BURST:
            raise ConnectionBrokenError(f"{self.peer_name} sent too many TLS records without data", "far-side", self)

    def write(self, buffer: Buffer, start: int, end: int) -> int:
        """Write `buffer[start:end]`: see `Leg.write`."""
        if self._unsent:
            return self._send_unsent()
        self._check_reset()
        if self.readable and self.reader is not None and self.reader.waits:
            return self._write_aside(buffer.address + start, end - start)
        at, length = buffer.address + start if start else buffer.address, end - start
        corks = length > RECORD
        if corks:  # without it each record would be a packet of its own, and wake the peer
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
        count: int = write(self._ssl, at, length)
        if corks:
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)
        return count if count > 0 else self._no_room(count)

    def _write_aside(self, at: Any, size: int) -> int:
        """Write as `write` does, but so that what has arrived can be read even if a reset comes meanwhile."""
        most = size if self._holds_record else ASIDE  # OpenSSL wants the same bytes again for its record
        self._holds_record = False
        count, self._unsent = openssl.write_aside(
            self.connection, self.fileno(), lambda: int(write(self._ssl, at, min(size, most))), self._send
        )
        if count <= 0:
            return self._no_room(count)
        self._taken = count
        if self._unsent:
            self.writable = False
            return 0
        return count

    def _send_unsent(self) -> int:
        """Send what is encrypted. Return the number of the application's bytes in it, or 0 if some are left."""
        self._unsent = self._unsent[self._send(self._unsent) :]
        if self._unsent:
            self.writable = False
            return 0
        return self._taken

    def _send(self, data: Any) -> int:
        try:
            return self._sock.send(data)
        except BlockingIOError:
            return 0
        except OSError as problem:
            self.writable, self.is_reset = False, True
            raise self._break(problem) from None

    def _check_reset(self) -> None:
        """Let OpenSSL not write after a reset: once a write has failed, it refuses to read what came before the reset.

        :raises ConnectionBrokenError: if the peer has reset the connection. What arrived before can still be read.
        """
        code = errno.ECONNRESET if self.is_reset else self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self.writable, self.is_reset = False, True
            raise broken_by(code, self)

    def finish_writing(self) -> bool:
        """Send a close_notify: see `Leg.finish_writing`."""
        if self._unsent:
            return bool(self._send_unsent())
        self._check_reset()
        try:
            if self.readable and self.reader is not None and self.reader.waits:
                _, self._unsent = openssl.write_aside(
                    self.connection, self.fileno(), self.connection.shutdown, self._send
                )
                self._taken, self.writable = 1, not self._unsent
                return self.writable
            self.connection.shutdown()
        except SSL.WantWriteError:
            self.writable = False
            return False
        except SSL.WantReadError:
            self.writable = False
            self._retries_both = True
            return False
        except SSL.Error as problem:
            raise self.broken(problem) from None
        return True

    def _no_record(self, result: int, filled: int) -> int:
        error = get_error(self._ssl, result)
        if error == WANT_READ:
            self.readable = False
            return filled or WANT
        if error == WANT_WRITE:
            self.readable = self.writable = False
            self._retries_both = True
            return filled or WANT
        try:
            openssl.raise_error(self.connection, result)
        except SSL.ZeroReturnError:
            return filled or EOF  # the next read returns `EOF`
        except SSL.Error as problem:
            raise self.broken(problem) from None
        raise AssertionError(f"a read of OpenSSL returned {result} without an error")

    def _no_room(self, result: int) -> int:
        error = get_error(self._ssl, result)
        self.writable = False
        if error == WANT_WRITE:
            self._holds_record = True
            return 0
        if error == WANT_READ:
            self._retries_both = True
            return 0
        try:
            openssl.raise_error(self.connection, result)
        except SSL.Error as problem:
            raise self.broken(problem) from None
        raise AssertionError(f"a write of OpenSSL returned {result} without an error")

    def broken(self, problem: SSL.Error) -> ConnectionBrokenError:
        """Return the exception for an error of OpenSSL."""
        if isinstance(problem, SSL.SysCallError) and problem.args[0] > 0:
            return broken_by(problem.args[0], self)
        return ConnectionBrokenError(_explain(problem), "wan", self)


def _explain(problem: SSL.Error) -> str:
    """Return the reason for an error of OpenSSL."""
    if isinstance(problem, SSL.SysCallError):
        return "the connection over the WAN ended without a close_notify"
    reasons = [entry[-1] for entry in (problem.args[0] if problem.args else ()) if isinstance(entry, tuple)]
    return "TLS failed: " + (", ".join(reasons) or "OpenSSL gave no reason")

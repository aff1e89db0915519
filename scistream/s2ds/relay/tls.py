"""A WAN leg under TLS, on the socket itself.

Twisted's TLS transport ends both directions at the first close_notify; here each direction ends by
one of its own, and an end without one counts as broken: protocol sections 10.1 and 10.2.

pyOpenSSL keeps the handshake and all that goes wrong. Application bytes go between OpenSSL and a buffer directly:
pyOpenSSL would make an object, and a copy, of each record that it reads.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import time
from typing import Any

from OpenSSL import SSL
from twisted.internet.defer import Deferred

from scistream.s2ds.relay import openssl
from scistream.s2ds.relay.buffers import Buffer
from scistream.s2ds.relay.dead_peers import DeadPeerDetector
from scistream.s2ds.relay.handshake import Handshake
from scistream.s2ds.relay.leg import EOF, WANT, ConnectionBrokenError, Leg, LegOwner, broken_by
from scistream.s2ds.relay.openssl import WANT_READ, WANT_WRITE, ffi, get_error, read, write
from scistream.s2ds.relay.poller import Poller

RECORD = 16384
"""The largest number of bytes in one TLS record, and so the most that OpenSSL reads at once."""

MOST_RECORDS = 64
"""Records that one call reads at most: the smallest ones hold a byte each."""
RECORD_COST = 4096
"""What a record costs of a turn at least, in bytes, however little it holds."""
EMPTY_BURST = 32
EMPTY_A_SECOND = 8.0
"""Records without application data, such as updates of keys, that a peer may send at once and in a second. Each costs
as much work as 16 KiB of data, and none of them counts against the rate of a stream."""


def tune(context: SSL.Context | None) -> None:
    """Before the first connection of a context: an idle one is to give its buffers back."""
    if context is not None:
        with contextlib.suppress(ValueError):  # it is in use: it was tuned when it was first armed
            context.set_mode(SSL.MODE_RELEASE_BUFFERS)


class TlsLeg(Leg):
    """A leg whose bytes are sealed; a close_notify ends a direction, a bare FIN breaks it.

    :param server_name: whom to ask for as a client; None is the server's side.
    """

    __slots__ = ("_empty", "_empty_since", "_ssl", "connection")

    def __init__(
        self,
        poller: Poller,
        sock: socket.socket,
        watch: DeadPeerDetector,
        owner: LegOwner,
        far: str,
        context: SSL.Context,
        server_name: str | None,
    ) -> None:
        super().__init__(poller, sock, watch, owner, far, wan=True)
        self.connection = SSL.Connection(context, None)  # until the handshake is over
        if server_name is None:
            self.connection.set_accept_state()
        else:
            self.connection.set_tlsext_host_name(server_name.encode("ascii"))
            self.connection.set_connect_state()
        self._ssl = openssl.handle_of(self.connection)
        openssl.end_reads_at_each_record(self.connection)
        self._empty = 0.0  # records without application data that were read lately
        self._empty_since = 0.0

    def handshake(self, reactor: Any, timeout: float) -> Deferred[None]:
        """Agree on keys within `timeout` seconds; who the peer is must still be verified.

        Fails with `ConnectionBrokenError`; cancelling it gives it up.
        """
        handshake = Handshake(self, reactor, timeout)
        self.is_opening = True
        self.reader = self.writer = handshake
        handshake.turn()
        return handshake.result

    def take_over(self) -> None:
        """The handshake is over: from now on OpenSSL has the socket itself."""
        openssl.move_to_socket(self.connection, self._sock.fileno())

    def read_into(self, buffer: Buffer, room: int) -> int:
        ssl, at, filled, records = self._ssl, buffer.at, 0, 0
        while filled < room and records < MOST_RECORDS:
            count = read(ssl, at + filled, room - filled)  # one record at most
            records += 1
            self.work = records * RECORD_COST
            if count <= 0:
                if ffi.errno != errno.EAGAIN and get_error(ssl, count) == WANT_READ:
                    self._no_data()
                    continue
                return self._no_record(count, filled)
            filled += count
            if self.is_first and count < RECORD:
                # A message by itself, most likely: it is to go on before there is a look for another.
                self.is_first = False
                break
        return filled

    def _no_data(self) -> None:
        """Count a record without application data.

        :raises Broken: if there are too many of them.
        """
        now = time.monotonic()
        faded = (now - self._empty_since) * EMPTY_A_SECOND
        self._empty, self._empty_since = max(0.0, self._empty - faded) + 1, now
        if self._empty > EMPTY_BURST:
            raise ConnectionBrokenError(f"{self.far} sent too many TLS records without data", "far-side", self)

    def write(self, buffer: Buffer, start: int, end: int) -> int:
        corks = end - start > RECORD
        if corks:  # or each record would be sent by itself, and wake the far end
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
        count: int = write(self._ssl, buffer.at + start, end - start)
        if corks:
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)
        return count if count > 0 else self._no_room(count)

    def finish_writing(self) -> bool:
        try:
            self.connection.shutdown()
        except SSL.WantWriteError:
            self.writable = False
            return False
        except SSL.WantReadError:
            self.writable = False
            self._crossed = True
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
            self._crossed = True
            return filled or WANT
        try:
            openssl.raise_error(self.connection, result)
        except SSL.ZeroReturnError:
            return filled or EOF  # which is told again
        except SSL.Error as problem:
            raise self.broken(problem) from None
        raise AssertionError(f"OpenSSL read {result} and found nothing wrong")

    def _no_room(self, result: int) -> int:
        error = get_error(self._ssl, result)
        self.writable = False
        if error == WANT_WRITE:
            return 0
        if error == WANT_READ:
            self._crossed = True
            return 0
        try:
            openssl.raise_error(self.connection, result)
        except SSL.Error as problem:
            raise self.broken(problem) from None
        raise AssertionError(f"OpenSSL wrote {result} and found nothing wrong")

    def broken(self, problem: SSL.Error) -> ConnectionBrokenError:
        """What to raise of an error of OpenSSL's."""
        if isinstance(problem, SSL.SysCallError) and problem.args[0] > 0:
            return broken_by(problem.args[0], self)
        return ConnectionBrokenError(_explain(problem), "wan", self)


def _explain(problem: SSL.Error) -> str:
    """What OpenSSL found wrong."""
    if isinstance(problem, SSL.SysCallError):
        return "the connection over the WAN ended in the middle of a stream"
    reasons = [entry[-1] for entry in (problem.args[0] if problem.args else ()) if isinstance(entry, tuple)]
    return "TLS failed: " + (", ".join(reasons) or "no reason was given")

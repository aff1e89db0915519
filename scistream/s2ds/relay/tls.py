"""The WAN leg: TLS on the socket itself.

Twisted's TLS transport ends both directions at the first close_notify; here each direction ends by
one of its own, and an end without one counts as broken. Section 9, "Connect", of the protocol.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from typing import Any

from OpenSSL import SSL
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from scistream.s2ds.relay.leg import EOF, WANT, Broken, Leg
from scistream.s2ds.relay.watch import Watch

RECORD = 16384
"""The largest number of bytes in one TLS record, and so the most that one read returns."""


def tune(context: SSL.Context) -> None:
    """Before the first connection of a context: an idle one is to give its buffers back."""
    with contextlib.suppress(ValueError):  # it is in use: it was tuned when it was first armed
        context.set_mode(SSL.MODE_RELEASE_BUFFERS)


class TlsLeg(Leg):
    """A leg whose bytes are sealed; a close_notify ends a direction, a bare FIN breaks it.

    :param server_name: whom to ask for as a client; None is the server's side.
    """

    wan = True

    def __init__(
        self,
        reactor: Any,
        sock: socket.socket,
        watch: Watch,
        on_broken: Callable[[str], None],
        context: SSL.Context,
        server_name: str | None,
    ) -> None:
        super().__init__(reactor, sock, watch, on_broken)
        self.connection = SSL.Connection(context, sock)
        if server_name is None:
            self.connection.set_accept_state()
        else:
            self.connection.set_tlsext_host_name(server_name.encode("ascii"))
            self.connection.set_connect_state()
        self._shaking: Deferred[None] | None = None
        self._timer: Any = None

    def handshake(self, timeout: float) -> Deferred[None]:
        """Agree on keys within `timeout` seconds; who the peer is must still be verified.

        Fails with `Broken`; cancelling it gives it up.
        """
        shaking: Deferred[None] = Deferred(self._cancelled)
        self._shaking = shaking
        self._timer = self._reactor.callLater(timeout, self._time_out, timeout)
        self.on_readable = self.on_writable = self._shake
        self._shake()
        return shaking

    def read_into(self, room: memoryview) -> int:
        filled = 0
        try:
            while filled < len(room):
                count = self.connection.recv_into(room[filled:], min(RECORD, len(room) - filled))
                filled += count
                if count < RECORD and not self.connection.pending():
                    break  # the tail of what was sent, most likely
        except SSL.WantReadError:
            self._read_waits_for_room = False
        except SSL.WantWriteError:
            self._read_waits_for_room = True
        except SSL.ZeroReturnError:
            return filled or EOF
        except SSL.Error as problem:
            raise self._break(problem) from None
        return filled or WANT

    def write(self, data: memoryview) -> int:
        try:
            return self.connection.send(data)
        except SSL.WantWriteError:
            self._write_waits_for_data = False
        except SSL.WantReadError:
            self._write_waits_for_data = True
        except SSL.Error as problem:
            raise self._break(problem) from None
        return 0

    def finish_writing(self) -> bool:
        try:
            self.connection.shutdown()
        except SSL.WantWriteError:
            self._write_waits_for_data = False
            return False
        except SSL.WantReadError:
            self._write_waits_for_data = True
            return False
        except SSL.Error as problem:
            raise self._break(problem) from None
        return True

    def pending(self) -> bool:
        # The peer's close_notify may have been read together with its last record: the socket says no more of it.
        ended = self.connection.get_shutdown() & SSL.RECEIVED_SHUTDOWN
        return bool(ended) or self.connection.pending() > 0

    def _shake(self) -> None:
        try:
            self.connection.do_handshake()
        except SSL.WantReadError:
            self.want_write(False)
            self.want_read(True)
        except SSL.WantWriteError:
            self.want_read(False)
            self.want_write(True)
        except SSL.Error as problem:
            self._shaken(self._break(problem))
        else:
            self._shaken(None)

    def _time_out(self, timeout: float) -> None:
        self._timer = None
        self._shaken(Broken(f"no TLS handshake within {timeout:g} s ({self.peer})"))

    def _shaken(self, problem: Broken | None) -> None:
        shaking = self._stop_shaking()
        if shaking is None:
            return
        if problem is None:
            shaking.callback(None)
        else:
            shaking.errback(Failure(problem))

    def _stop_shaking(self) -> Deferred[None] | None:
        shaking, self._shaking = self._shaking, None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.want_read(False)
        self.want_write(False)
        return shaking

    def _cancelled(self, _shaking: Deferred[None]) -> None:
        self._stop_shaking()

    def _break(self, problem: SSL.Error) -> Broken:
        return Broken(f"{_explain(problem)} ({self.peer})")


def _explain(problem: SSL.Error) -> str:
    """What OpenSSL found wrong."""
    if isinstance(problem, SSL.SysCallError):
        code = problem.args[0]
        return os.strerror(code) if code > 0 else "the connection ended in the middle of a stream"
    reasons = [entry[-1] for entry in (problem.args[0] if problem.args else ()) if isinstance(entry, tuple)]
    return "TLS failed: " + (", ".join(reasons) or "no reason was given")

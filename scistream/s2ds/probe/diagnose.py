"""The diagnosis of a failed connection to another gateway, by a test connection that sends nothing.

A probe uses it when one of its channels has no connection.
"""

from __future__ import annotations

import errno
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectError, ConnectionRefusedError
from twisted.internet.protocol import ClientFactory, Protocol, connectionDone
from twisted.python.failure import Failure

from scistream import timing
from scistream.protocol.address import Address
from scistream.s2ds.relay.plain import is_itself
from scistream.s2ds.self_target import source_towards
from scistream.tls.explain import explain


async def diagnose_connection(reactor: Any, target: Address) -> str:
    """Return why connections to another gateway fail, as far as a test connection shows it."""
    connection = _TestConnection(reactor, target)
    factory = _TestConnectionFactory(connection)
    connector = reactor.connectTCP(target.host, target.port, factory, timeout=timing.DIAGNOSIS_CONNECT)
    try:
        return await connection.found
    finally:
        connector.disconnect()


class _TestConnection(Protocol):
    """A connection that sends nothing: the reaction of the other gateway shows what is wrong."""

    transport: Any

    def __init__(self, reactor: Any, target: Address) -> None:
        self.found: Deferred[str] = Deferred()
        self._reactor = reactor
        self._target = target
        self._timer: Any = None

    def connectionMade(self) -> None:
        """Wait whether the other gateway keeps the connection open."""
        if is_itself(self.transport.getHandle()):
            self.transport.abortConnection()
            self.failed(Failure(ConnectionRefusedError()))
            return
        self._timer = self._reactor.callLater(timing.DIAGNOSIS_WAIT, self._was_kept)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Report that the other gateway has closed the connection, if it did so early."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
            self._was_closed()

    def failed(self, reason: Failure) -> None:
        """Report that the connection failed."""
        if isinstance(reason.value, ConnectError) and reason.value.osError == errno.ECONNRESET:
            self._was_closed()
            return
        self._report(
            f"from this gateway to {self._target}: {explain(reason)} The other facility has to open all `ports` of its "
            "gateway to this one, and `advertise` in its [wan] has to be an address that reaches it"
        )

    def _was_closed(self) -> None:
        self._report(
            f"the gateway at {self._target} accepts a connection and closes it at once: add "
            f"{source_name(self._target)}, the address of this gateway, to its `wan_networks`"
        )

    def _was_kept(self) -> None:
        self._report(
            f"the gateway at {self._target} accepts a connection, but the TLS handshake fails: compare the clocks of "
            "both gateways, look for a firewall that intercepts TLS, and see both logs"
        )

    def _report(self, text: str) -> None:
        if not self.found.called:
            self.found.callback(text)


def source_name(target: Address) -> str:
    """Return the source address of this gateway towards another one, or "this gateway". No packet is sent."""
    source = source_towards(target.numeric) if target.numeric is not None else None
    return source or "this gateway"


class _TestConnectionFactory(ClientFactory):
    noisy = False

    def __init__(self, connection: _TestConnection) -> None:
        self._connection = connection

    def buildProtocol(self, addr: Any) -> Protocol:
        """Return the connection."""
        return self._connection

    def clientConnectionFailed(self, connector: Any, reason: Failure) -> None:
        """Report that the connection failed."""
        self._connection.failed(reason)

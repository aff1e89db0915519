"""The diagnosis of a failed connection to another gateway, by a test connection that sends nothing.

A probe uses it when one of its channels has no connection.
"""

from __future__ import annotations

import errno
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectError, ConnectionRefusedError
from twisted.internet.protocol import ClientFactory, Protocol, connectionDone
from twisted.python.failure import Failure

from scistream import timing
from scistream.protocol.address import Address
from scistream.s2ds.relay.plain import is_itself
from scistream.s2ds.relay.proxy import NotAProxyError, ProxyRefusedError, length_of_answer, request_for
from scistream.s2ds.self_target import source_towards
from scistream.tls.explain import explain


class Diagnosis(NamedTuple):
    """Why connections to another gateway fail.

    :ivar text: for the log of this gateway.
    :ivar proxy_fails: True if the proxy cannot be used at all, whatever it is asked for.
    """

    text: str
    proxy_fails: bool = False


async def diagnose_connection(reactor: Any, target: Address, proxy: Address | None = None) -> Diagnosis:
    """Return why connections to another gateway fail, as far as a test connection shows it.

    :param proxy: the HTTP proxy through which this gateway connects to others.
    """
    connection = _TestConnection(reactor, target) if proxy is None else _ThroughProxy(reactor, target, proxy)
    factory = _TestConnectionFactory(connection)
    near = proxy or target
    connector = reactor.connectTCP(near.host, near.port, factory, timeout=timing.DIAGNOSIS_CONNECT)
    try:
        return await connection.found
    finally:
        connector.disconnect()


class _TestConnection(Protocol):
    """A connection that sends nothing: the reaction of the other gateway shows what is wrong."""

    transport: Any

    def __init__(self, reactor: Any, target: Address) -> None:
        self.found: Deferred[Diagnosis] = Deferred()
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
            f"{self._seen_as()} to its `wan_networks`"
        )

    def _was_kept(self) -> None:
        self._report(
            f"the gateway at {self._target} accepts a connection, but the TLS handshake fails: compare the clocks of "
            "both gateways, look for a firewall that intercepts TLS, and see both logs"
        )

    def _seen_as(self) -> str:
        """Return whose address the other gateway sees."""
        return f"{source_name(self._target)}, the address of this gateway,"

    def _report(self, text: str, *, proxy_fails: bool = False) -> None:
        if not self.found.called:
            self.found.callback(Diagnosis(text, proxy_fails))


class _ThroughProxy(_TestConnection):
    """A test connection through an HTTP proxy, which may be the cause of the failure."""

    def __init__(self, reactor: Any, target: Address, proxy: Address) -> None:
        super().__init__(reactor, target)
        self._name = f"the proxy at {proxy}"
        self._seen = b""
        self._is_connected = False

    def connectionMade(self) -> None:
        """Ask the proxy to connect."""
        if is_itself(self.transport.getHandle()):
            self.transport.abortConnection()
            self.failed(Failure(ConnectionRefusedError()))
            return
        self.transport.write(request_for(self._target))
        self._timer = self._reactor.callLater(timing.DIAGNOSIS_CONNECT, self._hangs)

    def dataReceived(self, data: bytes) -> None:
        """Look at the proxy's answer; then wait whether the other gateway keeps the connection open."""
        if self._is_connected or self.found.called:
            return
        self._seen += data
        try:
            self._is_connected = length_of_answer(self._seen) > 0
        except ProxyRefusedError as refused:
            self._of_proxy(str(refused), proxy_fails=isinstance(refused, NotAProxyError))
        else:
            if self._is_connected:
                self._timer.cancel()
                self._timer = self._reactor.callLater(timing.DIAGNOSIS_WAIT, self._was_kept)

    def failed(self, reason: Failure) -> None:
        """Report that the proxy cannot be reached."""
        self._of_proxy(f"cannot be reached from this gateway: {explain(reason)}", proxy_fails=True)

    def _hangs(self) -> None:
        self._of_proxy(f"did not answer within {timing.DIAGNOSIS_CONNECT:g} s")

    def _was_closed(self) -> None:
        if self._is_connected:
            super()._was_closed()
        else:
            self._of_proxy("closed the connection before it answered")

    def _seen_as(self) -> str:
        return f"the address from which {self._name} connects"

    def _of_proxy(self, what: str, *, proxy_fails: bool = False) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._report(f"{self._name}, asked for the gateway at {self._target}, {what}", proxy_fails=proxy_fails)


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

"""What stands between this gateway and another one, found out by knocking there: a connection of its own, on which
nothing is said. A probe asks when one of its channels has none.
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
    """Why there is no connection to another gateway, as far as a connection attempt of one's own shows it."""
    knock = _TestConnection(reactor, target)
    connector = reactor.connectTCP(
        target.host, target.port, _TestConnectionFactory(knock), timeout=timing.KNOCK_CONNECT
    )
    try:
        return await knock.found
    finally:
        connector.disconnect()


class _TestConnection(Protocol):
    """Connects and says nothing: what the other gateway does then tells how far one gets."""

    transport: Any

    def __init__(self, reactor: Any, target: Address) -> None:
        self.found: Deferred[str] = Deferred()
        self._reactor = reactor
        self._target = target
        self._let_in: Any = None

    def connectionMade(self) -> None:
        if is_itself(self.transport.getHandle()):
            self.transport.abortConnection()
            self.failed(Failure(ConnectionRefusedError()))
            return
        self._let_in = self._reactor.callLater(timing.KNOCK_LET_IN, self._was_let_in)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._let_in is not None and self._let_in.active():
            self._let_in.cancel()
            self._was_shut_out()

    def failed(self, reason: Failure) -> None:
        """There is no connection at all, or it was over before it was looked at."""
        if isinstance(reason.value, ConnectError) and reason.value.osError == errno.ECONNRESET:
            self._was_shut_out()
            return
        self._say(
            f"from this gateway to {self._target}: {explain(reason)} The other facility has to open all `ports` of its "
            "gateway to this one, and `advertise` in its [wan] has to be an address that reaches it"
        )

    def _was_shut_out(self) -> None:
        self._say(
            f"the gateway at {self._target} accepts a connection and closes it at once: its `wan_networks` have to "
            f"contain {comes_from(self._target)}, from which this gateway comes"
        )

    def _was_let_in(self) -> None:
        self._say(
            f"the gateway at {self._target} accepts a connection, but no TLS session comes of it: compare the clocks "
            "of both gateways, look for a firewall that opens TLS, and see both logs"
        )

    def _say(self, what: str) -> None:
        if not self.found.called:
            self.found.callback(what)


def comes_from(target: Address) -> str:
    """The address from which this gateway comes to another one, in words for a person. No packet is sent."""
    found = source_towards(target.numeric) if target.numeric is not None else None
    return found or "this gateway"


class _TestConnectionFactory(ClientFactory):
    noisy = False

    def __init__(self, knock: _TestConnection) -> None:
        self._knock = knock

    def buildProtocol(self, addr: Any) -> Protocol:
        return self._knock

    def clientConnectionFailed(self, connector: Any, reason: Failure) -> None:
        self._knock.failed(reason)

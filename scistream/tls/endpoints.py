"""TLS endpoints for Twisted, with contexts that can be replaced at run time."""

from __future__ import annotations

from OpenSSL import SSL
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IOpenSSLClientConnectionCreator,
    IOpenSSLServerConnectionCreator,
    IProtocol,
    IProtocolFactory,
    IReactorTime,
    IStreamClientEndpoint,
)
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from zope.interface import implementer

from scistream.tls.contexts import ContextSource
from scistream.tls.verify import is_ip_address


@implementer(IOpenSSLServerConnectionCreator)
class ServerTLS:
    """Creates the TLS state of each accepted connection."""

    def __init__(self, context: ContextSource) -> None:
        self._context = context

    def serverConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        """Return the server side of a new connection."""
        connection = SSL.Connection(_in_force(self._context), None)
        connection.set_accept_state()
        return connection


@implementer(IOpenSSLClientConnectionCreator)
class ClientTLS:
    """Creates the TLS state of each outgoing connection, and sends the host name to the server (SNI)."""

    def __init__(self, context: ContextSource, host: str) -> None:
        self._context = context
        host = host.partition("%")[0].rstrip(".")
        self._server_name = None if is_ip_address(host) else host.encode("idna")

    def clientConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        """Return the client side of a new connection."""
        connection = SSL.Connection(_in_force(self._context), None)
        connection.set_connect_state()
        if self._server_name is not None:
            connection.set_tlsext_host_name(self._server_name)
        return connection


@implementer(IStreamClientEndpoint)
class _TLSEndpoint:
    """Connects with TLS. Not all supported versions of Twisted let their own wrapper take a clock."""

    def __init__(self, tls: ClientTLS, endpoint: IStreamClientEndpoint, clock: IReactorTime) -> None:
        self._tls = tls
        self._endpoint = endpoint
        self._clock = clock

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """Connect; the Deferred fires with the protocol inside TLS."""
        factory = TLSMemoryBIOFactory(self._tls, True, protocolFactory, self._clock)
        return self._endpoint.connect(factory).addCallback(_inside)


def _inside(outer: IProtocol) -> IProtocol:
    assert isinstance(outer, TLSMemoryBIOProtocol), "our factory builds nothing else"
    inner: IProtocol = outer.wrappedProtocol
    return inner


def _in_force(context: ContextSource) -> SSL.Context:
    return context if isinstance(context, SSL.Context) else context()


def wrap_server_factory(context: ContextSource, factory: IProtocolFactory, clock: IReactorTime) -> IProtocolFactory:
    """Return a factory for a listening port whose connections speak TLS and pass the plain bytes to `factory`'s."""
    return TLSMemoryBIOFactory(ServerTLS(context), False, factory, clock)


def wrap_client_endpoint(
    context: ContextSource, host: str, endpoint: IStreamClientEndpoint, clock: IReactorTime
) -> IStreamClientEndpoint:
    """Return an endpoint that connects through `endpoint` and speaks TLS with `host`, a name or an address.

    Its Deferred fires when TCP is connected. The handshake ends later: with `handshakeCompleted`, or with
    `connectionLost` and a reason that `explain` can explain.
    """
    return _TLSEndpoint(ClientTLS(context, host), endpoint, clock)

"""How control links are made: who dials whom, under which certificates, checked how.

A `Trust` says with what a party shows itself and whom it believes; None in its place means plain TCP,
which is allowed on loopback only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from OpenSSL import SSL
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.interfaces import IListeningPort, IProtocolFactory
from twisted.python.failure import Failure

from scistream.security.pki import fingerprint
from scistream.security.tls import (
    CertificateProblem,
    Identity,
    client_context,
    explain,
    pinned_client_context,
    server_context,
    verify_client,
    verify_pinned_server,
    verify_server,
    wrap_client_endpoint,
    wrap_server_factory,
)
from scistream.wire.address import Address
from scistream.wire.errors import StreamError
from scistream.wire.line import Link, LinkOwner
from scistream.wire.link import Dialer, LinkFactory

CONNECT_SECONDS = 10.0

PLAIN_IDENTITY = Identity(issuer="none", name="insecure:loopback")
"""Who everybody is where links are plain TCP."""


@dataclass(frozen=True)
class Trust:
    """With what a party shows itself (a chain and its key), and which authorities it believes."""

    certificate: Path
    key: Path
    authorities: tuple[Path, ...]


def dialer(reactor: Any, address: Address, peer_name: str, trust: Trust | None) -> Dialer:
    """A lasting link to a server whose authority we know. Its peer is the SHA-256 of that authority's certificate.

    :param trust: None dials plain TCP; the peer is then an empty string.
    :raises CertificateProblem: if the files of `trust` are not usable.
    :raises StreamError: `not-authenticated` if plain TCP would leave this machine.
    """
    if trust is None:
        return _plain_dialer(reactor, address, peer_name)
    context = client_context(trust.certificate, trust.key, trust.authorities)

    def authenticate(connection: SSL.Connection) -> str:
        verify_server(connection, address.host)
        chain = connection.get_verified_chain(as_cryptography=True)
        assert chain, "verify_server has seen it"
        return fingerprint(chain[-1])

    return _tls_dialer(reactor, address, peer_name, context, authenticate)


def pinned_dialer(reactor: Any, address: Address, peer_name: str, ca_sha256: str | None) -> Dialer:
    """A lasting link to a server of which we know the SHA-256 of its authority's certificate.

    :param ca_sha256: None dials plain TCP.
    :raises StreamError: `not-authenticated` if plain TCP would leave this machine.
    """
    if ca_sha256 is None:
        return _plain_dialer(reactor, address, peer_name)

    def authenticate(connection: SSL.Connection) -> str:
        verify_pinned_server(connection, address.host, ca_sha256)
        return ca_sha256

    return _tls_dialer(reactor, address, peer_name, pinned_client_context(), authenticate)


def is_hopeless(reason: Failure) -> bool:
    """Whether dialling again cannot help: it is the certificates, not the network."""
    return isinstance(reason.value, CertificateProblem) or (
        isinstance(reason.value, SSL.Error) and not isinstance(reason.value, SSL.SysCallError)
    )


class Door:
    """Where a server listens for control links.

    :param client_certificate: whether every peer must have one (`required`), or may (`optional`).
    :raises CertificateProblem: if the files of `trust` are not usable.
    :raises StreamError: `not-authenticated` if plain TCP would be offered beyond this machine.
    """

    def __init__(self, reactor: Any, address: Address, trust: Trust | None, *, client_certificate: str) -> None:
        self._reactor = reactor
        self._address = address
        self._context: SSL.Context | None = None
        if trust is None:
            _only_loopback(address)
        elif client_certificate == "required":
            self._context = server_context(
                trust.certificate, trust.key, trust.authorities, client_certificate="required"
            )
        else:
            self._context = server_context(
                trust.certificate, trust.key, trust.authorities, client_certificate="optional"
            )

    def open(self, owner_of: Callable[[], LinkOwner]) -> IListeningPort:
        """Listen; each link gets an owner of its own. The peer of a link is an `Identity` or None.

        :raises twisted.internet.error.CannotListenError: if the address is taken or not ours.
        """
        authenticate = verify_client if self._context is not None else None
        plain_peer = None if self._context is not None else PLAIN_IDENTITY
        factory: IProtocolFactory = LinkFactory(
            lambda _: Link(owner_of(), self._reactor, authenticate, plain_peer, accepted=True)
        )
        if self._context is not None:
            factory = wrap_server_factory(self._context, factory, self._reactor)
        port: IListeningPort = self._reactor.listenTCP(self._address.port, factory, 128, self._address.host)
        return port


def _tls_dialer(
    reactor: Any, address: Address, peer_name: str, context: SSL.Context, authenticate: Callable[[SSL.Connection], str]
) -> Dialer:
    endpoint = HostnameEndpoint(reactor, address.host, address.port, timeout=CONNECT_SECONDS)
    secured = wrap_client_endpoint(context, address.host, endpoint, reactor)
    return Dialer(secured, reactor, peer_name, authenticate, explain, is_hopeless)


def _plain_dialer(reactor: Any, address: Address, peer_name: str) -> Dialer:
    _only_loopback(address)
    endpoint = HostnameEndpoint(reactor, address.host, address.port, timeout=CONNECT_SECONDS)
    return Dialer(endpoint, reactor, peer_name, None, explain, is_hopeless)


def _only_loopback(address: Address) -> None:
    numeric = address.numeric
    if not (numeric.is_loopback if numeric is not None else address.host == "localhost"):
        raise StreamError(
            "not-authenticated",
            f"{address} is not on loopback, and plain TCP goes no further: use certificates (`scistream pki`)",
        )

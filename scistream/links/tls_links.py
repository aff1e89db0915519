"""Create the two ends of control links: dialers and listeners, with their certificates and checks.

`CertificateFiles` names the certificate that a party shows and the authorities that it trusts; None in its place means
plain TCP, which is allowed on loopback only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from OpenSSL import SSL
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.interfaces import IListeningPort, IProtocolFactory
from twisted.logger import Logger
from twisted.python.failure import Failure

from scistream import timing
from scistream.links.admission import Admission, AdmissionController, AdmissionFactory
from scistream.links.dialer import Dialer, LinkFactory
from scistream.links.link import Link, LinkOwner
from scistream.pki.authority import fingerprint
from scistream.protocol.address import Address
from scistream.protocol.errors import StreamError
from scistream.protocol.messages import Error
from scistream.tls.contexts import ClientCertificate, ContextSource, pinned_client_context
from scistream.tls.endpoints import wrap_client_endpoint, wrap_server_factory
from scistream.tls.explain import RefusedCertificate, explain
from scistream.tls.files import CertificateError
from scistream.tls.files import CertificateFiles as Trust
from scistream.tls.reloadable import ReloadableCredentials, client_credentials, server_credentials
from scistream.tls.verify import Identity, certificate_expiry, verify_client, verify_pinned_server, verify_server

BACKLOG = 1024

_log = Logger()

PLAIN_IDENTITY = Identity(issuer="none", name="insecure:loopback")
"""The identity of every peer if links are plain TCP."""


def dialer(reactor: Any, address: Address, peer_name: str, trust: Trust | ReloadableCredentials | None) -> Dialer:
    """Return the dialer of a server whose authority is trusted.

    The `peer` of its link is the SHA-256 of that authority's certificate.

    :param trust: None connects by plain TCP, and `peer` is then None. Several dialers may share reloadable
        credentials; each attempt to connect uses the current ones.
    :raises CertificateError: if the files of `trust` cannot be used.
    :raises StreamError: `not-authenticated` if plain TCP would leave this machine.
    """
    if trust is None:
        return _plain_dialer(reactor, address, peer_name)
    credentials = trust if isinstance(trust, ReloadableCredentials) else client_credentials(trust)

    def authenticate(connection: SSL.Connection) -> str:
        verify_server(connection, address.host)
        credentials.check(connection)
        chain = connection.get_verified_chain(as_cryptography=True)
        assert chain, "verify_server has checked it"
        return fingerprint(chain[-1])

    return _tls_dialer(reactor, address, peer_name, lambda: credentials.context, authenticate)


def pinned_dialer(reactor: Any, address: Address, peer_name: str, ca_sha256: str | None) -> Dialer:
    """Return the dialer of a server known by the SHA-256 of its authority's certificate.

    :param ca_sha256: None connects by plain TCP.
    :raises StreamError: `not-authenticated` if plain TCP would leave this machine.
    """
    if ca_sha256 is None:
        return _plain_dialer(reactor, address, peer_name)

    def authenticate(connection: SSL.Connection) -> str:
        verify_pinned_server(connection, address.host, ca_sha256)
        return ca_sha256

    return _tls_dialer(reactor, address, peer_name, pinned_client_context(), authenticate)


def is_permanent(reason: Failure) -> bool:
    """Return True if the certificates, and not the network, made the connection fail, so that retrying cannot help."""
    return isinstance(reason.value, CertificateError) or (
        isinstance(reason.value, SSL.Error) and not isinstance(reason.value, SSL.SysCallError)
    )


class LinkListener:
    """Listens for control links of a server.

    :param client_certificate: whether every peer must show a certificate (`required`) or may (`optional`).
    :raises CertificateError: if the files of `trust` cannot be used.
    :raises StreamError: `not-authenticated` if plain TCP would be offered beyond this machine.
    """

    def __init__(
        self, reactor: Any, address: Address, trust: Trust | None, *, client_certificate: ClientCertificate
    ) -> None:
        self._reactor = reactor
        self._address = address
        self.credentials: ReloadableCredentials | None = None
        """The server's certificates; None if links are plain TCP."""
        if trust is None:
            _only_loopback(address)
        else:
            self.credentials = server_credentials(trust, client_certificate)

    def open(self, owner_of: Callable[[], LinkOwner], admission_controller: AdmissionController) -> IListeningPort:
        """Listen, and give each accepted link an owner. The `peer` of a link is an `Identity` or None.

        :raises twisted.internet.error.CannotListenError: if the address is in use or not of this machine.
        """
        credentials = self.credentials
        authenticate = None if credentials is None else _client_verifier(credentials)
        expiry = None if credentials is None else certificate_expiry
        plain_peer = PLAIN_IDENTITY if credentials is None else None

        def link_factory(admission: Callable[[], Admission]) -> IProtocolFactory:
            factory: IProtocolFactory = LinkFactory(
                lambda _: Link(
                    owner_of(),
                    self._reactor,
                    authenticate,
                    plain_peer,
                    accepted=True,
                    admission=admission(),
                    expiry=expiry,
                )
            )
            if credentials is not None:
                factory = wrap_server_factory(lambda: credentials.context, factory, self._reactor)
            return factory

        entrance = AdmissionFactory(admission_controller, link_factory)
        port: IListeningPort = self._reactor.listenTCP(self._address.port, entrance, BACKLOG, self._address.host)
        return port


def _client_verifier(credentials: ReloadableCredentials) -> Callable[[SSL.Connection], Identity | None]:
    def authenticate(connection: SSL.Connection) -> Identity | None:
        peer = verify_client(connection)
        credentials.check(connection)
        return peer

    return authenticate


def log_refusal(link: Link, reason: Failure) -> None:
    """Log whose certificate was refused and why, if a link was lost because of that."""
    if isinstance(reason.value, RefusedCertificate):
        link.note("refused a certificate", reason.value.sentence, reason.value.reason)


HANDSHAKE_FAILURES = ("certificate", "tls", "timeout")
"""The results of `handshake_failure`."""


def handshake_failure(reason: Failure) -> str | None:
    """Return why a link was lost before it was up, as one of `HANDSHAKE_FAILURES`; None if its peer has closed it.

    "certificate": the peer's certificate was refused; "tls": the TLS handshake failed otherwise; "timeout": the peer
    was too slow, or its place was needed.
    """
    problem = reason.value
    if isinstance(problem, RefusedCertificate | CertificateError):
        return "certificate"
    if isinstance(problem, SSL.Error):
        return None if isinstance(problem, SSL.SysCallError) else "tls"
    return "timeout" if isinstance(problem, StreamError) else None


def close_refused(links: Iterable[Link | None], credentials: ReloadableCredentials) -> None:
    """Close the links whose peer would be refused now that authorities or CRLs have changed."""
    for link in links:
        refusal = credentials.refusal(link)
        if link is not None and refusal is not None:
            _log.warn("closed the link of {peer}: {refusal}", peer=link.address, refusal=refusal)
            link.send(Error(uid=None, code="not-authenticated", msg=f"your certificate is refused: {refusal}"))
            link.close()


def _tls_dialer(
    reactor: Any,
    address: Address,
    peer_name: str,
    context: ContextSource,
    authenticate: Callable[[SSL.Connection], str],
) -> Dialer:
    endpoint = HostnameEndpoint(reactor, address.host, address.port, timeout=timing.CONNECT)
    secured = wrap_client_endpoint(context, address.host, endpoint, reactor)
    return Dialer(secured, reactor, peer_name, authenticate, explain, is_permanent, certificate_expiry)


def _plain_dialer(reactor: Any, address: Address, peer_name: str) -> Dialer:
    _only_loopback(address)
    endpoint = HostnameEndpoint(reactor, address.host, address.port, timeout=timing.CONNECT)
    return Dialer(endpoint, reactor, peer_name, None, explain, is_permanent)


def _only_loopback(address: Address) -> None:
    if not address.is_on_loopback:
        raise StreamError(
            "not-authenticated",
            f"{address} is not on loopback, and plain TCP is allowed there only: use certificates (`scistream pki`)",
        )

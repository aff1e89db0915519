"""TLS for the control links: contexts, who the far end is, and the wrapping of Twisted's endpoints.

Every link is TLS 1.3 with ALPN ``scistream/1``, trusts only the authorities that its configuration names, and
resumes no session. A protocol that runs on such a link implements `IHandshakeListener`, and in `handshakeCompleted`
calls `verify_server`, `verify_pinned_server` or `verify_client` with ``transport.getHandle()`` before it writes or
believes anything: the handshake alone checks neither the server's name nor ALPN. Nothing here opens a socket.
"""

from __future__ import annotations

import errno
import math
import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL import SSL
from OpenSSL.crypto import X509, X509Store, X509StoreContext, X509StoreContextError, X509StoreFlags
from service_identity import CertificateError, VerificationError
from service_identity.hazmat import (
    DNS_ID,
    CertificatePattern,
    DNSPattern,
    IPAddress_ID,
    IPAddressPattern,
    ServiceID,
    verify_service_identity,
)
from twisted.internet import error
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
from twisted.python.failure import Failure
from zope.interface import implementer

from scistream.security.material import (
    NOT_AMONG_OURS,
    WEAK_HASHES,
    Material,
    is_authority,
    load_certificates,
    printable,
    read_material,
)
from scistream.security.material import CertificateProblem as CertificateProblem

ALPN = b"scistream/1"
"""The name of version 1 of the control protocol in the TLS handshake."""

ClientCertificate = Literal["required", "optional"]
"""Whether everybody who dials must have a certificate, or may."""

ContextSource = SSL.Context | Callable[[], SSL.Context]
"""A context, or what gives the one that is in force when a connection is made."""

VerifyCallback = Callable[[SSL.Connection, X509, int, int, int], bool]
"""What pyOpenSSL calls for each certificate of a path: connection, certificate, error, depth, verdict so far."""


class RefusedCertificate(SSL.Error):
    """The handshake failed because we refuse the far end's certificate.

    :param sentence: says which one and why.
    :param reason: why, in the same words for each certificate.
    """

    def __init__(self, sentence: str, reason: str) -> None:
        super().__init__([("SSL routines", "", sentence)])
        self.sentence = sentence
        self.reason = reason


@dataclass(frozen=True)
class Identity:
    """Who presented a verified client certificate, and by which authority's word.

    :param issuer: ``sha256:`` and the hex SHA-256 of the SubjectPublicKeyInfo (DER) of the authority at the
        end of the verified path, so that a renewed certificate of the same authority changes no identity.
    :param name: the one URI or e-mail address among the certificate's subjectAltNames.
    """

    issuer: str
    name: str

    def __str__(self) -> str:
        return f"{self.name} ({self.issuer})"


# --- contexts


def server_context(
    certificate: Path,
    key: Path,
    authorities: Sequence[Path],
    *,
    client_certificate: ClientCertificate,
    crl: Sequence[Path] = (),
) -> SSL.Context:
    """The context of a control server. A client certificate that is sent has to be valid, even where it is optional.

    :param certificate: a PEM file, the server's certificate first, then the rest of its chain.
    :param key: its private key, a PEM file that only its owner may read.
    :param authorities: PEM files of the authorities that clients may come from; no others are trusted.
    :param crl: PEM files of their CRLs; if there are any, each authority whose clients are to get in needs one.
    :raises CertificateProblem: if a file is missing, unreadable, too readable or does not fit.
    """
    return server_context_of(read_material(certificate, key, authorities, crl), client_certificate)


def server_context_of(material: Material, client_certificate: ClientCertificate) -> SSL.Context:
    """The same of files that have been read.

    :raises CertificateProblem: if OpenSSL refuses them.
    """
    context = _context(SSL.TLS_SERVER_METHOD, material)
    required = SSL.VERIFY_FAIL_IF_NO_PEER_CERT if client_certificate == "required" else 0
    context.set_verify(SSL.VERIFY_PEER | required, naming_refusals(NOT_AMONG_OURS, material.revoked))
    context.set_session_id(ALPN)
    context.set_alpn_select_callback(_select_alpn)
    return context


def client_context(
    certificate: Path | None, key: Path | None, authorities: Sequence[Path], crl: Sequence[Path] = ()
) -> SSL.Context:
    """The context of a dialer that has the authorities of the far end, and a certificate or none.

    :raises CertificateProblem: as `server_context`, and if there is a certificate without a key or the reverse.
    """
    return client_context_of(read_material(certificate, key, authorities, crl))


def client_context_of(material: Material) -> SSL.Context:
    """The same of files that have been read.

    :raises CertificateProblem: if OpenSSL refuses them.
    """
    context = _context(SSL.TLS_CLIENT_METHOD, material)
    context.set_verify(SSL.VERIFY_PEER, naming_refusals(NOT_AMONG_OURS, material.revoked))
    context.set_alpn_protos([ALPN])
    return context


def pinned_client_context() -> SSL.Context:
    """The context of a dialer that knows only the SHA-256 of the far end's authority.

    Its handshake trusts whoever answers: `verify_pinned_server` must follow before a byte is sent.
    """
    context = tls13_context(SSL.TLS_CLIENT_METHOD)
    context.set_verify(SSL.VERIFY_NONE)
    context.set_alpn_protos([ALPN])
    return context


def tls13_context(method: int) -> SSL.Context:
    """A context for TLS 1.3 alone, that trusts nobody yet and resumes no session.

    OpenSSL sends tickets all the same (pyOpenSSL has no way to ask for none). `OP_NO_TICKET` makes each a mere
    reference into the session cache; the cache being off, there is nothing that it could refer to.
    """
    context = SSL.Context(method)
    context.set_min_proto_version(SSL.TLS1_3_VERSION)
    context.set_max_proto_version(SSL.TLS1_3_VERSION)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_options(SSL.OP_NO_TICKET)
    return context


def trust(context: SSL.Context, authority: x509.Certificate) -> None:
    """Trust this authority in this context."""
    store = context.get_cert_store()
    assert store is not None, "every context has a store"
    store.add_cert(X509.from_cryptography(authority))


def naming_refusals(untrusted: str, revoked: Callable[[x509.Certificate], str | None] | None = None) -> VerifyCallback:
    """A verify callback that, when OpenSSL refuses a certificate, says which one and why.

    OpenSSL's own error is a bare "certificate verify failed". The callback decides one thing: where CRLs are asked,
    the far end's own certificate needs one of its authority, and what stands above it is asked for only if the CRL
    is there, since the root of a chain seldom issues one.

    :param untrusted: what to say of a certificate whose authority is not trusted in this context.
    :param revoked: gives when and why a certificate was revoked.
    """

    def name(_connection: SSL.Connection, certificate: X509, code: int, depth: int, ok: int) -> bool:
        if not ok and code == _CODES.ERR_UNABLE_TO_GET_CRL and depth > 0:
            return True
        if not ok:
            unknown = f"OpenSSL refuses it with verification error {code}"
            why = reason = untrusted if code in _UNTRUSTED else _REFUSALS.get(code, unknown)
            if code in _OUT_OF_DATE:
                why += _both_times(certificate)
            if code == _CODES.ERR_CERT_REVOKED and revoked is not None:
                why = _when_revoked(certificate, revoked) or why
            raise RefusedCertificate(f"The far end's certificate is refused: {_describe(certificate)}: {why}.", reason)
        return True

    return name


def _both_times(certificate: X509) -> str:
    """When a certificate is valid, and what time it is here."""
    try:
        parsed = certificate.to_cryptography()
        start, end = parsed.not_valid_before_utc, parsed.not_valid_after_utc
    except ValueError:  # hostile bytes, and nothing is lost but the words
        return ""
    now = datetime.now(UTC)
    return f" (valid from {start:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC; it is {now:%Y-%m-%d %H:%M} here)"


def _when_revoked(certificate: X509, revoked: Callable[[x509.Certificate], str | None]) -> str | None:
    try:
        return revoked(certificate.to_cryptography())
    except ValueError:  # hostile bytes, and nothing is lost but the words
        return None


def _select_alpn(_connection: SSL.Connection, offered: list[bytes]) -> bytes:
    if ALPN in offered:
        return ALPN
    # pyOpenSSL turns an exception into the alert of that name, and raises it again from the handshake;
    # it must be an SSL.Error, which is all that Twisted expects there.
    raise SSL.Error([("SSL routines", "", "no application protocol")])


def _context(method: int, material: Material) -> SSL.Context:
    """What the contexts of both ends have in common."""
    context = tls13_context(method)
    for authority in material.authorities:
        trust(context, authority.certificate)
    if material.chain:
        _present(context, material)
    if material.crls:
        _ask_crls(context, material)
    return context


def _present(context: SSL.Context, material: Material) -> None:
    """Show this certificate and its chain to the far end."""
    leaf, *chain = (held.certificate for held in material.chain)
    assert material.key is not None, "a chain comes with its key"
    try:
        context.use_certificate(leaf)
        for link in chain:
            context.add_extra_chain_cert(link)
        context.use_privatekey(material.key)
    except SSL.Error as wrong:
        raise CertificateProblem(
            f"OpenSSL refuses the certificate {material.chain[0].file} or its key: {_reason(wrong)}. Have a new one "
            "issued."
        ) from wrong


def _ask_crls(context: SSL.Context, material: Material) -> None:
    """Refuse what is revoked, on the whole path; see `naming_refusals` for authorities whose CRL is not there."""
    store = context.get_cert_store()
    assert store is not None, "every context has a store"
    for held in material.crls:
        store.add_crl(held.crl)
    store.set_flags(X509StoreFlags.CRL_CHECK | X509StoreFlags.CRL_CHECK_ALL)


# --- who the far end is


def verify_server(connection: SSL.Connection, host: str) -> None:
    """After a handshake under `client_context`: the far end speaks our protocol and is `host`, a name or an address.

    :raises CertificateProblem: if not; close the connection without writing to it.
    """
    _check_alpn(connection)
    check_name(verified_certificate(connection), host)


def verify_pinned_server(connection: SSL.Connection, host: str, ca_sha256: str) -> None:
    """After a handshake under `pinned_client_context`: the far end is `host` by the word of the pinned authority.

    Protocol section 2.5.

    The pinned certificate has to be among those that the server sent, and has to be an authority's, and the server's
    own certificate has to lead to it by valid signatures: it is the only one trusted.

    :param ca_sha256: the SHA-256 of the authority's certificate (DER), in hex.
    :raises CertificateProblem: if not; close the connection without writing to it.
    """
    _check_alpn(connection)
    sent = connection.get_peer_cert_chain() or []
    pinned = next((certificate for certificate in sent if _sha256(certificate) == ca_sha256.lower()), None)
    if pinned is None:
        raise CertificateProblem(
            f"None of the {len(sent)} certificates that {host} sent is the authority with SHA-256 {ca_sha256}: the "
            "server is not the one meant, does not send its whole chain, or has a new authority. Ask for a new join "
            "string."
        )
    store = X509Store()
    store.add_cert(pinned)
    store.set_flags(X509StoreFlags.PARTIAL_CHAIN)  # an authority that another one signed can be pinned too
    try:
        path = X509StoreContext(store, sent[0], sent[1:]).get_verified_chain()
        leaf, *links, anchor = (certificate.to_cryptography() for certificate in path)
        fit = is_authority(anchor) and all(_fit_for_server(certificate) for certificate in (leaf, *links))
    except X509StoreContextError as wrong:
        raise CertificateProblem(
            f"The certificate of {host} does not lead to the pinned authority ({wrong}): the server is not the one "
            "meant, or its operator has to renew the certificate."
        ) from wrong
    except ValueError:  # an extension that cannot be read, or a path of the pinned certificate alone
        fit = False
    if not fit or _sha256(path[-1]) != ca_sha256.lower():
        raise CertificateProblem(
            f"The certificate of {host} is no server's certificate of the pinned authority: the server is not the one "
            "meant."
        )
    check_name(leaf, host)


def verify_client(connection: SSL.Connection) -> Identity | None:
    """After a handshake under `server_context`: who has dialled, or None if it sent no certificate.

    :raises CertificateProblem: if it speaks no `ALPN`, or its certificate has not exactly one name.
    """
    _check_alpn(connection)
    if connection.get_peer_certificate() is None:
        return None
    leaf = verified_certificate(connection)
    chain = connection.get_verified_chain(as_cryptography=True)
    assert chain, "verified_certificate has seen it"
    names: list[str] = []
    found = _alternative_names(leaf)
    if found is not None:
        names += found.get_values_for_type(x509.UniformResourceIdentifier)
        names += found.get_values_for_type(x509.RFC822Name)
    if len(names) != 1 or not names[0] or not names[0].isprintable():
        raise CertificateProblem(
            "A client certificate needs exactly one URI or e-mail address among its subjectAltNames, and this one has "
            f"{_listed(names)}: have one issued with scistream pki issue."
        )
    return Identity(issuer=issuer_name(chain[-1]), name=names[0])


def issuer_name(authority: x509.Certificate) -> str:
    """What `Identity.issuer` is for those whom this authority vouches for."""
    spki = authority.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    digest = hashes.Hash(hashes.SHA256())
    digest.update(spki)
    return f"sha256:{digest.finalize().hex()}"


def load_authority(path: Path, setting: str) -> x509.Certificate:
    """The one authority whose certificate a PEM file holds.

    :param setting: the setting that names the file, for the message.
    :raises CertificateProblem: if the file cannot be read, or holds anything else.
    """
    found = load_certificates(path, setting)
    if len(found) != 1 or not is_authority(found[0]):
        raise CertificateProblem(
            f"{path} is not the certificate of one authority (it holds {len(found)}): name the authority's own file in "
            f"`{setting}`."
        )
    return found[0]


def verified_certificate(connection: SSL.Connection) -> x509.Certificate:
    """The far end's certificate, which this very handshake has verified.

    OpenSSL keeps the verified path of a full handshake only, so a resumed session is refused here, and so is
    a context that does not verify.

    :raises CertificateProblem: if there is none.
    """
    verifies = connection.get_context().get_verify_mode() & SSL.VERIFY_PEER
    chain = connection.get_verified_chain(as_cryptography=True) if verifies else None
    if not chain:
        raise CertificateProblem("The far end has not proved who it is in this handshake: connect anew.")
    return chain[0]


def certificate_lasts(connection: SSL.Connection) -> tuple[float, str]:
    """How many seconds the certificates by which the far end has proved itself still last, and what to say then.

    A far end that has shown none lasts for ever.
    """
    path = connection.get_verified_chain() or connection.get_peer_cert_chain() or []
    ends = [(certificate.to_cryptography().not_valid_after_utc, certificate) for certificate in path]
    if not ends:
        return math.inf, ""
    end, first = min(ends, key=lambda each: each[0])
    now = datetime.now(UTC)
    return (end - now).total_seconds(), (
        f"the certificate that this link was made with has ended: {_describe(first)}: it was valid until "
        f"{end:%Y-%m-%d %H:%M} UTC, and the clock here says {now:%Y-%m-%d %H:%M}"
    )


def check_name(certificate: x509.Certificate, host: str) -> None:
    """Check with service-identity that a certificate is valid for a host name or an IP address.

    :raises CertificateProblem: saying what was expected and which names the certificate has.
    """
    host = host.partition("%")[0].rstrip(".")
    found = _alternative_names(certificate)
    try:
        expected: ServiceID = IPAddress_ID(host) if _is_address(host) else DNS_ID(host)
        verify_service_identity(_patterns(found), [expected], [])
    except (VerificationError, CertificateError, ValueError) as wrong:
        names = _listed(str(name.value) for name in found or ())
        raise CertificateProblem(
            f"The far end should be {host}, and its certificate is for {names}: dial it by a name in its certificate, "
            "or have it issued one with that name."
        ) from wrong


def _patterns(names: x509.SubjectAlternativeName | None) -> list[CertificatePattern]:
    """The names that a server can be dialled by.

    service-identity's own extract_patterns also reads URIs, and fails on ours, which have two colons.
    """
    if names is None:
        return []
    return [
        *(DNSPattern.from_bytes(name.encode()) for name in names.get_values_for_type(x509.DNSName)),
        *(
            IPAddressPattern(address)
            for address in names.get_values_for_type(x509.IPAddress)
            if isinstance(address, IPv4Address | IPv6Address)  # and not a network, as in a name constraint
        ),
    ]


def _check_alpn(connection: SSL.Connection) -> None:
    spoken = connection.get_alpn_proto_negotiated()
    if spoken != ALPN:
        raise CertificateProblem(
            f"The far end does not speak {ALPN.decode()} (its handshake agreed on {spoken!r}): check its address, its "
            "port and its version."
        )


def _alternative_names(certificate: x509.Certificate) -> x509.SubjectAlternativeName | None:
    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return None


def _fit_for_server(certificate: x509.Certificate) -> bool:
    """What OpenSSL checks in a handshake and not in a verification of its own: purpose, and no broken hash."""
    try:
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        meant = True
    except x509.DuplicateExtension:
        meant = False
    else:
        meant = ExtendedKeyUsageOID.SERVER_AUTH in usage
    algorithm = certificate.signature_hash_algorithm
    return meant and (algorithm is None or algorithm.name not in WEAK_HASHES)


def _sha256(certificate: X509) -> str:
    return certificate.digest("sha256").decode().replace(":", "").lower()


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _listed(names: Iterable[str]) -> str:
    return ", ".join(printable(name) for name in names) or "no name"


def _describe(certificate: X509) -> str:
    try:
        parsed = certificate.to_cryptography()
        subject, issuer = parsed.subject.rfc4514_string(), parsed.issuer.rfc4514_string()
    except Exception:  # hostile bytes, and nothing is lost but the words
        return "one that cannot be read"
    return f"{printable(subject) or 'one without a subject'}, issued by {printable(issuer) or 'nobody'}"


_CODES = SSL.X509VerificationCodes
_UNTRUSTED = frozenset(
    {
        _CODES.ERR_DEPTH_ZERO_SELF_SIGNED_CERT,
        _CODES.ERR_SELF_SIGNED_CERT_IN_CHAIN,
        _CODES.ERR_UNABLE_TO_GET_ISSUER_CERT,
        _CODES.ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY,
        _CODES.ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE,
    }
)
_OUT_OF_DATE = frozenset({_CODES.ERR_CERT_HAS_EXPIRED, _CODES.ERR_CERT_NOT_YET_VALID})
_REFUSALS: dict[int, str] = {
    _CODES.ERR_CERT_HAS_EXPIRED: "it has expired, or our clock is ahead",
    _CODES.ERR_CERT_NOT_YET_VALID: "it is not valid yet, or our clock is behind",
    _CODES.ERR_CERT_SIGNATURE_FAILURE: "its signature is not that of its authority",
    _CODES.ERR_INVALID_CA: "it has signed another one and is no authority",
    _CODES.ERR_PATH_LENGTH_EXCEEDED: "its authority may not have authorities below it",
    _CODES.ERR_CERT_REVOKED: "it was revoked",
    _CODES.ERR_UNABLE_TO_GET_CRL: "there is no CRL of its authority in `crl`, and without one nobody can tell whether "
    "it was revoked: name that authority's CRL there (scistream pki crl makes it)",
    _CODES.ERR_CRL_HAS_EXPIRED: "the CRL of its authority has expired, or our clock is ahead: a fresh one has to be "
    "put in place (scistream pki crl makes it), and the server told to reload",
    _CODES.ERR_CRL_NOT_YET_VALID: "the CRL of its authority is not valid yet: our clock is behind",
    _CODES.ERR_CRL_SIGNATURE_FAILURE: "the CRL of its authority is not signed by that authority: have it made again",
    _CODES.ERR_KEYUSAGE_NO_CRL_SIGN: "its authority may not issue the CRL that `crl` names",
    _CODES.ERR_INVALID_PURPOSE: "it is issued for another purpose (a server's is for servers, a client's for clients)",
}


# --- Twisted


@implementer(IOpenSSLServerConnectionCreator)
class ServerTLS:
    """Makes the TLS side of each accepted connection."""

    def __init__(self, context: ContextSource) -> None:
        self._context = context

    def serverConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        connection = SSL.Connection(_in_force(self._context), None)
        connection.set_accept_state()
        return connection


@implementer(IOpenSSLClientConnectionCreator)
class ClientTLS:
    """Makes the TLS side of each dialled connection, and tells the server which name it was dialled by."""

    def __init__(self, context: ContextSource, host: str) -> None:
        self._context = context
        host = host.partition("%")[0].rstrip(".")
        self._server_name = None if _is_address(host) else host.encode("idna")

    def clientConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        connection = SSL.Connection(_in_force(self._context), None)
        connection.set_connect_state()
        if self._server_name is not None:
            connection.set_tlsext_host_name(self._server_name)
        return connection


@implementer(IStreamClientEndpoint)
class _TLSEndpoint:
    """Dials with TLS. Twisted's own wrapper takes no clock in all versions that we run on."""

    def __init__(self, tls: ClientTLS, endpoint: IStreamClientEndpoint, clock: IReactorTime) -> None:
        self._tls = tls
        self._endpoint = endpoint
        self._clock = clock

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """Dial; the Deferred gives the protocol that runs inside TLS."""
        factory = TLSMemoryBIOFactory(self._tls, True, protocolFactory, self._clock)
        return self._endpoint.connect(factory).addCallback(_inside)


def _inside(outer: IProtocol) -> IProtocol:
    assert isinstance(outer, TLSMemoryBIOProtocol), "our factory builds nothing else"
    inner: IProtocol = outer.wrappedProtocol
    return inner


def _in_force(context: ContextSource) -> SSL.Context:
    return context if isinstance(context, SSL.Context) else context()


def wrap_server_factory(context: ContextSource, factory: IProtocolFactory, clock: IReactorTime) -> IProtocolFactory:
    """A factory to listen with, whose connections speak TLS and hand the plain bytes to those of `factory`."""
    return TLSMemoryBIOFactory(ServerTLS(context), False, factory, clock)


def wrap_client_endpoint(
    context: ContextSource, host: str, endpoint: IStreamClientEndpoint, clock: IReactorTime
) -> IStreamClientEndpoint:
    """An endpoint that dials as `endpoint` does and speaks TLS with `host`, a name or an address.

    Its Deferred fires when TCP is connected; the handshake ends later, with `handshakeCompleted`, or with
    `connectionLost` and a reason for `explain`.
    """
    return _TLSEndpoint(ClientTLS(context, host), endpoint, clock)


# --- why a link failed


def explain(problem: Failure | BaseException) -> str:
    """One sentence for a person who dialled and got this failure instead of a link."""
    wrong = problem.value if isinstance(problem, Failure) else problem
    if isinstance(wrong, RefusedCertificate):
        return wrong.sentence
    if isinstance(wrong, SSL.Error):
        return _explain_tls(wrong)
    for kinds, sentence in _NETWORK_PROBLEMS:
        if isinstance(wrong, kinds):
            return sentence
    code = getattr(wrong, "osError", None) or getattr(wrong, "errno", None)
    if code in (errno.EHOSTUNREACH, errno.ENETUNREACH):
        return "There is no route to that address: check the address and this machine's network."
    if isinstance(wrong, OSError) and wrong.strerror:
        return f"The connection failed: {wrong.strerror}."
    return str(wrong) or type(wrong).__name__


def _explain_tls(wrong: SSL.Error) -> str:
    reason = _reason(wrong)
    if reason is None or reason.casefold().startswith("unexpected eof"):
        return _CLOSED
    before, alert, name = reason.rpartition(" alert ")
    if alert and not before.count(" "):
        said = printable(name)
        return _ALERTS.get(name, f"The far end ended the TLS handshake, saying {said!r}: its log says more.")
    return _TLS_PROBLEMS.get(reason, f"TLS failed: {printable(reason)}.")


def _reason(wrong: SSL.Error) -> str | None:
    """OpenSSL's words for the first thing that went wrong, or None if there are none."""
    if isinstance(wrong, SSL.SysCallError):
        return str(wrong.args[-1]) if wrong.args else None
    queue = wrong.args[0] if wrong.args else None
    return str(queue[0][-1]) if queue else None


_CLOSED = "The far end closed the connection without a reason: check the address and the port, and see its log."
_NOT_OURS = "The far end does not speak scistream/1, the control protocol: check its address, its port and its version."
_NOT_TLS = "The far end does not speak TLS: check the address and the port."

_ALERTS: dict[str, str] = {
    "certificate required": "The far end asks for a client certificate and got none: set `certificate` and `key`.",
    "unknown ca": "The far end does not trust the authority of our certificate: use a certificate that this facility "
    "issued, or ask its operator to trust the authority.",
    "certificate expired": "The far end finds our certificate expired (have a new one issued, and compare the clocks), "
    "or its own list of revoked ones (then its log says so).",
    "certificate revoked": "The far end says that our certificate is revoked: have a new one issued.",
    "certificate unknown": "The far end refuses our certificate without saying why: its log says more.",
    "bad certificate": "The far end refuses our certificate as not valid: compare the clocks, and see its log.",
    "unsupported certificate": "The far end refuses our certificate because it is for another purpose: a client needs "
    "a user's or a controller's certificate, a server a server's.",
    "decrypt error": "The far end refuses our signature: check that `certificate` and `key` belong together.",
    "access denied": "The far end denies us access: its operator can say why.",
    "no application protocol": _NOT_OURS,
    "protocol version": "The far end does not speak TLS 1.3, which SciStream requires: check the address and the port.",
    "handshake failure": "The far end found no common ground in the TLS handshake: check the address and the port.",
    "internal error": "The far end failed inside the TLS handshake: its log says more.",
}
_TLS_PROBLEMS: dict[str, str] = {
    "certificate verify failed": "The far end's certificate is refused: check `authorities`.",
    "peer did not return a certificate": "The far end sent no client certificate, and one is required.",
    "no application protocol": _NOT_OURS,
    "unsupported protocol": "The far end does not speak TLS 1.3, which SciStream requires.",
    "wrong version number": _NOT_TLS,
    "packet length too long": _NOT_TLS,
    "http request": _NOT_TLS,
    "https proxy request": _NOT_TLS,
}
_NETWORK_PROBLEMS: tuple[tuple[tuple[type[BaseException], ...], str], ...] = (
    (
        (error.ConnectionRefusedError, ConnectionRefusedError),
        "The connection was refused: check the address and the port, and that the server runs.",
    ),
    (
        (error.TimeoutError, error.TCPTimedOutError, TimeoutError),
        "There was no answer in time: check the address, and that no firewall stands in the way.",
    ),
    (
        (error.DNSLookupError, error.UnknownHostError, socket.gaierror),
        "The host name is not known: check its spelling and this machine's name service.",
    ),
    (
        (error.NoRouteError,),
        "There is no route to that address: check the address and this machine's network.",
    ),
    ((error.ConnectionDone, error.ConnectionLost, ConnectionResetError, BrokenPipeError), _CLOSED),
)

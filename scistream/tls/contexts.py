"""TLS contexts for each role on a control link."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from cryptography import x509
from OpenSSL import SSL
from OpenSSL.crypto import X509, X509StoreFlags

from scistream.tls.explain import RefusedCertificate, openssl_reason
from scistream.tls.files import (
    NOT_AMONG_OURS,
    CertificateError,
    LoadedCertificates,
    printable,
    read_material,
)

ALPN = b"scistream/1"
"""The name of version 1 of the control protocol in the TLS handshake."""

ClientCertificate = Literal["required", "optional"]
"""Whether everybody who dials must have a certificate, or may."""

ContextSource = SSL.Context | Callable[[], SSL.Context]
"""A context, or what gives the one that is in force when a connection is made."""

VerifyCallback = Callable[[SSL.Connection, X509, int, int, int], bool]
"""What pyOpenSSL calls for each certificate of a path: connection, certificate, error, depth, verdict so far."""


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
    :raises CertificateError: if a file is missing, unreadable, too readable or does not fit.
    """
    return server_context_of(read_material(certificate, key, authorities, crl), client_certificate)


def server_context_of(material: LoadedCertificates, client_certificate: ClientCertificate) -> SSL.Context:
    """The same of files that have been read.

    :raises CertificateError: if OpenSSL refuses them.
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

    :raises CertificateError: as `server_context`, and if there is a certificate without a key or the reverse.
    """
    return client_context_of(read_material(certificate, key, authorities, crl))


def client_context_of(material: LoadedCertificates) -> SSL.Context:
    """The same of files that have been read.

    :raises CertificateError: if OpenSSL refuses them.
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
            raise RefusedCertificate(
                f"The far end's certificate is refused: {describe_certificate(certificate)}: {why}.", reason
            )
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


def _context(method: int, material: LoadedCertificates) -> SSL.Context:
    """What the contexts of both ends have in common."""
    context = tls13_context(method)
    for authority in material.authorities:
        trust(context, authority.certificate)
    if material.chain:
        _present(context, material)
    if material.crls:
        _ask_crls(context, material)
    return context


def _present(context: SSL.Context, material: LoadedCertificates) -> None:
    """Show this certificate and its chain to the far end."""
    leaf, *chain = (held.certificate for held in material.chain)
    assert material.key is not None, "a chain comes with its key"
    try:
        context.use_certificate(leaf)
        for link in chain:
            context.add_extra_chain_cert(link)
        context.use_privatekey(material.key)
    except SSL.Error as wrong:
        raise CertificateError(
            f"OpenSSL refuses the certificate {material.chain[0].file} or its key: {openssl_reason(wrong)}. "
            "Have a new one issued."
        ) from wrong


def _ask_crls(context: SSL.Context, material: LoadedCertificates) -> None:
    """Refuse what is revoked, on the whole path; see `naming_refusals` for authorities whose CRL is not there."""
    store = context.get_cert_store()
    assert store is not None, "every context has a store"
    for held in material.crls:
        store.add_crl(held.crl)
    store.set_flags(X509StoreFlags.CRL_CHECK | X509StoreFlags.CRL_CHECK_ALL)


def listed(names: Iterable[str]) -> str:
    return ", ".join(printable(name) for name in names) or "no name"


def describe_certificate(certificate: X509) -> str:
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

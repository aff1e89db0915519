"""TLS contexts for each role on a control link."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

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
HTTP_ALPN = b"http/1.1"
"""The name of HTTP/1.1 there."""

ClientCertificate = Literal["required", "optional"]
"""How a server treats clients without a certificate: it refuses them, or serves them too."""

ContextSource = SSL.Context | Callable[[], SSL.Context]
"""A context, or a function that returns the current one for each new connection."""

VerifyCallback = Callable[[SSL.Connection, X509, int, int, int], bool]
"""What pyOpenSSL calls for each certificate of a path: connection, certificate, error, depth, verdict so far."""


def server_context(
    certificate: Path,
    key: Path,
    authorities: Sequence[Path],
    *,
    client_certificate: ClientCertificate,
    crl: Sequence[Path] = (),
) -> SSL.Context:
    """Return the context of a control server. A client certificate must be valid even where it is optional.

    :param certificate: a PEM file with the server's certificate first, then the rest of its chain.
    :param key: its private key, a PEM file that only its owner may read.
    :param authorities: PEM files of the authorities whose clients are trusted; no others are.
    :param crl: PEM files of their CRLs. If there are any, every authority whose clients should be admitted needs one.
    :raises CertificateError: if a file is missing, unreadable, readable by others, or does not match the others.
    """
    return server_context_of(read_material(certificate, key, authorities, crl), client_certificate)


def server_context_of(material: LoadedCertificates, client_certificate: ClientCertificate) -> SSL.Context:
    """Return the context of a control server for files that have been read already.

    :raises CertificateError: if OpenSSL refuses them.
    """
    context = _context(SSL.TLS_SERVER_METHOD, material)
    required = SSL.VERIFY_FAIL_IF_NO_PEER_CERT if client_certificate == "required" else 0
    context.set_verify(SSL.VERIFY_PEER | required, naming_refusals(NOT_AMONG_OURS, material.revoked))
    context.set_session_id(ALPN)
    context.set_alpn_select_callback(_select_alpn)
    return context


def http_context_of(material: LoadedCertificates) -> SSL.Context:
    """Return the context of an HTTPS server that requires a client certificate.

    :raises CertificateError: if OpenSSL refuses the files.
    """
    context = _context(SSL.TLS_SERVER_METHOD, material)
    required = SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT
    context.set_verify(required, naming_refusals(NOT_AMONG_OURS, material.revoked))
    context.set_session_id(HTTP_ALPN)
    context.set_alpn_select_callback(_select_http)
    return context


def client_context(
    certificate: Path | None, key: Path | None, authorities: Sequence[Path], crl: Sequence[Path] = ()
) -> SSL.Context:
    """Return the context of a client that knows the authorities of its server, with or without a certificate.

    :raises CertificateError: as `server_context`, and if only one of certificate and key is given.
    """
    return client_context_of(read_material(certificate, key, authorities, crl))


def client_context_of(material: LoadedCertificates) -> SSL.Context:
    """Return the context of a client for files that have been read already.

    :raises CertificateError: if OpenSSL refuses them.
    """
    context = _context(SSL.TLS_CLIENT_METHOD, material)
    context.set_verify(SSL.VERIFY_PEER, naming_refusals(NOT_AMONG_OURS, material.revoked))
    context.set_alpn_protos([ALPN])
    return context


def pinned_client_context() -> SSL.Context:
    """Return the context of a client that knows only the SHA-256 of its server's authority.

    The handshake accepts any server: call `verify_pinned_server` after it, before any byte is sent.
    """
    context = tls13_context(SSL.TLS_CLIENT_METHOD)
    context.set_verify(SSL.VERIFY_NONE)
    context.set_alpn_protos([ALPN])
    return context


def tls13_context(method: int) -> SSL.Context:
    """Return a context for TLS 1.3 only, without trusted authorities and without session resumption.

    OpenSSL sends tickets nevertheless (pyOpenSSL cannot turn them off). With `OP_NO_TICKET` a ticket is only a
    reference into the session cache, and as the cache is off it refers to nothing.
    """
    context = SSL.Context(method)
    context.set_min_proto_version(SSL.TLS1_3_VERSION)
    context.set_max_proto_version(SSL.TLS1_3_VERSION)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_options(SSL.OP_NO_TICKET)
    return context


def trust(context: SSL.Context, authority: x509.Certificate) -> None:
    """Trust `authority` in `context`."""
    store = context.get_cert_store()
    assert store is not None, "every context has a store"
    store.add_cert(X509.from_cryptography(authority))


def naming_refusals(untrusted: str, revoked: Callable[[x509.Certificate], str | None] | None = None) -> VerifyCallback:
    """Return a verify callback that names the certificate that OpenSSL refuses, and the reason.

    OpenSSL's own error is only "certificate verify failed". The callback changes one decision: with CRLs, the peer's
    own certificate requires the CRL of its authority, but the certificates above it are checked only if their CRL is
    present, since the root of a chain seldom issues one.

    :param untrusted: the reason to give for a certificate whose authority is not trusted in this context.
    :param revoked: returns when and why a certificate was revoked.
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
    """Return the period for which a certificate is valid, and the current time, as text."""
    try:
        parsed = certificate.to_cryptography()
        start, end = parsed.not_valid_before_utc, parsed.not_valid_after_utc
    except ValueError:  # malformed on purpose, perhaps; only the explanation is lost
        return ""
    now = datetime.now(UTC)
    return f" (valid from {start:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC; it is {now:%Y-%m-%d %H:%M} here)"


def _when_revoked(certificate: X509, revoked: Callable[[x509.Certificate], str | None]) -> str | None:
    try:
        return revoked(certificate.to_cryptography())
    except ValueError:  # malformed on purpose, perhaps; only the explanation is lost
        return None


def _select_alpn(_connection: SSL.Connection, offered: list[bytes]) -> bytes:
    if ALPN in offered:
        return ALPN
    # pyOpenSSL sends the alert of that name for an exception, and raises the exception again from the handshake, where
    # Twisted handles nothing but SSL.Error.
    raise SSL.Error([("SSL routines", "", "no application protocol")])


def _select_http(_connection: SSL.Connection, offered: list[bytes]) -> Any:
    return HTTP_ALPN if HTTP_ALPN in offered else SSL.NO_OVERLAPPING_PROTOCOLS


def _context(method: int, material: LoadedCertificates) -> SSL.Context:
    """Return a context with what both ends have in common."""
    context = tls13_context(method)
    for authority in material.authorities:
        trust(context, authority.certificate)
    if material.chain:
        _present(context, material)
    if material.crls:
        _ask_crls(context, material)
    return context


def _present(context: SSL.Context, material: LoadedCertificates) -> None:
    """Show this certificate and its chain to the peer."""
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
    """Refuse revoked certificates on the whole path; see `naming_refusals` for authorities without a CRL."""
    store = context.get_cert_store()
    assert store is not None, "every context has a store"
    for held in material.crls:
        store.add_crl(held.crl)
    store.set_flags(X509StoreFlags.CRL_CHECK | X509StoreFlags.CRL_CHECK_ALL)


def listed(names: Iterable[str]) -> str:
    """Join names with commas, for messages."""
    return ", ".join(printable(name) for name in names) or "no name"


def describe_certificate(certificate: X509) -> str:
    """Return the subject and the issuer of a certificate, for messages."""
    try:
        parsed = certificate.to_cryptography()
        subject, issuer = parsed.subject.rfc4514_string(), parsed.issuer.rfc4514_string()
    except Exception:  # malformed on purpose, perhaps; only the explanation is lost
        return "one that cannot be decoded"
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
    _CODES.ERR_INVALID_CA: "it has signed another certificate but is not an authority",
    _CODES.ERR_PATH_LENGTH_EXCEEDED: "its authority may not have authorities below it",
    _CODES.ERR_CERT_REVOKED: "it was revoked",
    _CODES.ERR_UNABLE_TO_GET_CRL: "there is no CRL of its authority in `crl`, so it is not known whether it was "
    "revoked: add that authority's CRL (made by scistream pki crl)",
    _CODES.ERR_CRL_HAS_EXPIRED: "the CRL of its authority has expired, or our clock is ahead: put a new one in place "
    "(made by scistream pki crl) and reload the server",
    _CODES.ERR_CRL_NOT_YET_VALID: "the CRL of its authority is not valid yet: our clock is behind",
    _CODES.ERR_CRL_SIGNATURE_FAILURE: "the CRL of its authority is not signed by that authority: have it made again",
    _CODES.ERR_KEYUSAGE_NO_CRL_SIGN: "its authority may not issue the CRL that is in `crl`",
    _CODES.ERR_INVALID_PURPOSE: "it was issued for another purpose: a server needs a server certificate, a client a "
    "client certificate",
}

"""Authenticate the peer of a control link by its certificate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import service_identity
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL import SSL
from OpenSSL.crypto import X509, X509Store, X509StoreContext, X509StoreContextError, X509StoreFlags
from service_identity.hazmat import (
    DNS_ID,
    CertificatePattern,
    DNSPattern,
    IPAddress_ID,
    IPAddressPattern,
    ServiceID,
    verify_service_identity,
)

from scistream.tls.contexts import ALPN, describe_certificate, listed
from scistream.tls.files import (
    WEAK_HASHES,
    CertificateError,
    is_authority,
    load_certificates,
)


@dataclass(frozen=True)
class Identity:
    """The owner of a verified client certificate.

    :param issuer: ``sha256:`` and the hex SHA-256 of the SubjectPublicKeyInfo (DER) of the authority at the end of the
        verified path, so that renewing the authority's certificate changes no identity.
    :param name: the one URI or e-mail address among the certificate's subjectAltNames.
    """

    issuer: str
    name: str

    def __str__(self) -> str:
        return f"{self.name} ({self.issuer})"


def verify_server(connection: SSL.Connection, host: str) -> None:
    """Check, after a handshake under `client_context`, that the peer speaks our protocol and is `host`.

    :param host: a host name or an IP address.
    :raises CertificateError: if not; close the connection without writing to it.
    """
    _check_alpn(connection)
    check_name(verified_certificate(connection), host)


def verify_pinned_server(connection: SSL.Connection, host: str, ca_sha256: str) -> None:
    """Check, after a handshake under `pinned_client_context`, that the pinned authority certifies the peer as `host`.

    The server must have sent the pinned certificate, which must be an authority's and is the only one trusted, and the
    server's own certificate must lead to it by valid signatures. Protocol section 2.5.

    :param ca_sha256: the SHA-256 of the authority's certificate (DER), in hex.
    :raises CertificateError: if not; close the connection without writing to it.
    """
    _check_alpn(connection)
    sent = connection.get_peer_cert_chain() or []
    pinned = next((certificate for certificate in sent if _sha256(certificate) == ca_sha256.lower()), None)
    if pinned is None:
        raise CertificateError(
            f"None of the {len(sent)} certificates that {host} sent is the authority with SHA-256 {ca_sha256}: it is "
            "the wrong server, does not send its whole chain, or has a new authority. Ask for a new join string."
        )
    store = X509Store()
    store.add_cert(pinned)
    store.set_flags(X509StoreFlags.PARTIAL_CHAIN)  # an authority that another one signed can be pinned too
    try:
        path = X509StoreContext(store, sent[0], sent[1:]).get_verified_chain()
        leaf, *links, anchor = (certificate.to_cryptography() for certificate in path)
        fit = is_authority(anchor) and all(_fit_for_server(certificate) for certificate in (leaf, *links))
    except X509StoreContextError as wrong:
        raise CertificateError(
            f"The certificate of {host} does not lead to the pinned authority ({wrong}): it is the wrong server, or "
            "its operator has to renew the certificate."
        ) from wrong
    except ValueError:  # an extension that cannot be decoded, or a path with nothing but the pinned certificate
        fit = False
    if not fit or _sha256(path[-1]) != ca_sha256.lower():
        raise CertificateError(
            f"The certificate of {host} is not a server certificate of the pinned authority: it is the wrong server."
        )
    check_name(leaf, host)


def verify_client(connection: SSL.Connection) -> Identity | None:
    """Return the identity of the client after a handshake under `server_context`; None if it has no certificate.

    :raises CertificateError: if it does not speak `ALPN`, or its certificate does not have exactly one name.
    """
    _check_alpn(connection)
    return None if connection.get_peer_certificate() is None else certified_client(connection)


def certified_client(connection: SSL.Connection) -> Identity:
    """Return the identity in the certificate that the client has shown in this very handshake.

    :raises CertificateError: if there is no certificate, or it does not have exactly one name.
    """
    leaf = verified_certificate(connection)
    chain = connection.get_verified_chain(as_cryptography=True)
    assert chain, "verified_certificate has checked it"
    names: list[str] = []
    found = _alternative_names(leaf)
    if found is not None:
        names += found.get_values_for_type(x509.UniformResourceIdentifier)
        names += found.get_values_for_type(x509.RFC822Name)
    if len(names) != 1 or not names[0] or not names[0].isprintable():
        raise CertificateError(
            "A client certificate needs exactly one URI or e-mail address among its subjectAltNames, but this one has "
            f"{listed(names)}: have a new one issued (scistream pki issue)."
        )
    return Identity(issuer=issuer_name(chain[-1]), name=names[0])


def issuer_name(authority: x509.Certificate) -> str:
    """Return the `Identity.issuer` of clients that this authority certifies."""
    spki = authority.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    digest = hashes.Hash(hashes.SHA256())
    digest.update(spki)
    return f"sha256:{digest.finalize().hex()}"


def load_authority(path: Path, setting: str) -> x509.Certificate:
    """Load a PEM file that contains the certificate of one authority.

    :param setting: the setting that names the file, for the message.
    :raises CertificateError: if the file cannot be read, or contains anything else.
    """
    found = load_certificates(path, setting)
    if len(found) != 1 or not is_authority(found[0]):
        raise CertificateError(
            f"{path} is not the certificate of one authority ({len(found)} certificates found): name the authority's "
            f"own file in `{setting}`."
        )
    return found[0]


def verified_certificate(connection: SSL.Connection) -> x509.Certificate:
    """Return the peer's certificate, as verified in this very handshake.

    OpenSSL keeps the verified path only after a full handshake, so a resumed session is refused here, and so is a
    context that does not verify.

    :raises CertificateError: if the handshake verified no certificate.
    """
    verifies = connection.get_context().get_verify_mode() & SSL.VERIFY_PEER
    chain = connection.get_verified_chain(as_cryptography=True) if verifies else None
    if not chain:
        raise CertificateError("The far end has not shown a certificate in this handshake: connect again.")
    return chain[0]


def certificate_expiry(connection: SSL.Connection) -> tuple[float, str]:
    """Return the seconds until the first certificate of the peer's path expires, and the sentence to log then.

    The time is infinite for a peer that has shown no certificate.
    """
    path = connection.get_verified_chain() or connection.get_peer_cert_chain() or []
    ends = [(certificate.to_cryptography().not_valid_after_utc, certificate) for certificate in path]
    if not ends:
        return math.inf, ""
    end, first = min(ends, key=lambda each: each[0])
    now = datetime.now(UTC)
    return (end - now).total_seconds(), (
        f"the certificate of this link has expired: {describe_certificate(first)}: it was valid until "
        f"{end:%Y-%m-%d %H:%M} UTC, and it is {now:%Y-%m-%d %H:%M} here"
    )


def check_name(certificate: x509.Certificate, host: str) -> None:
    """Check with service-identity that a certificate is valid for a host name or an IP address.

    :raises CertificateError: saying what was expected and which names the certificate has.
    """
    host = host.partition("%")[0].rstrip(".")
    found = _alternative_names(certificate)
    try:
        expected: ServiceID = IPAddress_ID(host) if is_ip_address(host) else DNS_ID(host)
        verify_service_identity(_patterns(found), [expected], [])
    except (service_identity.VerificationError, service_identity.CertificateError, ValueError) as wrong:
        names = listed(str(name.value) for name in found or ())
        raise CertificateError(
            f"The far end should be {host}, but its certificate is for {names}: use a name in its certificate, or have "
            "a certificate with that name issued for it."
        ) from wrong


def _patterns(names: x509.SubjectAlternativeName | None) -> list[CertificatePattern]:
    """Return the names under which clients may reach a server.

    service-identity's own extract_patterns also reads URIs, and fails on ours, which have two colons.
    """
    if names is None:
        return []
    return [
        *(DNSPattern.from_bytes(name.encode()) for name in names.get_values_for_type(x509.DNSName)),
        *(
            IPAddressPattern(address)
            for address in names.get_values_for_type(x509.IPAddress)
            if isinstance(address, IPv4Address | IPv6Address)  # not a network, as in a name constraint
        ),
    ]


def _check_alpn(connection: SSL.Connection) -> None:
    spoken = connection.get_alpn_proto_negotiated()
    if spoken != ALPN:
        raise CertificateError(
            f"The far end does not speak {ALPN.decode()} (the handshake agreed on {spoken!r}): check its address, its "
            "port and its version."
        )


def _alternative_names(certificate: x509.Certificate) -> x509.SubjectAlternativeName | None:
    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return None


def _fit_for_server(certificate: x509.Certificate) -> bool:
    """Check the purpose and the hash of a certificate, which OpenSSL does only within a handshake."""
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


def is_ip_address(host: str) -> bool:
    """Return True if `host` is a numeric address, not a name."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True

"""Who the peer of a control link is, and whether its certificate says so."""

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
    """Who presented a verified client certificate, and by which authority's word.

    :param issuer: ``sha256:`` and the hex SHA-256 of the SubjectPublicKeyInfo (DER) of the authority at the
        end of the verified path, so that a renewed certificate of the same authority changes no identity.
    :param name: the one URI or e-mail address among the certificate's subjectAltNames.
    """

    issuer: str
    name: str

    def __str__(self) -> str:
        return f"{self.name} ({self.issuer})"


# --- who the far end is


def verify_server(connection: SSL.Connection, host: str) -> None:
    """After a handshake under `client_context`: the far end speaks our protocol and is `host`, a name or an address.

    :raises CertificateError: if not; close the connection without writing to it.
    """
    _check_alpn(connection)
    check_name(verified_certificate(connection), host)


def verify_pinned_server(connection: SSL.Connection, host: str, ca_sha256: str) -> None:
    """After a handshake under `pinned_client_context`: the far end is `host` by the word of the pinned authority.

    Protocol section 2.5.

    The pinned certificate has to be among those that the server sent, and has to be an authority's, and the server's
    own certificate has to lead to it by valid signatures: it is the only one trusted.

    :param ca_sha256: the SHA-256 of the authority's certificate (DER), in hex.
    :raises CertificateError: if not; close the connection without writing to it.
    """
    _check_alpn(connection)
    sent = connection.get_peer_cert_chain() or []
    pinned = next((certificate for certificate in sent if _sha256(certificate) == ca_sha256.lower()), None)
    if pinned is None:
        raise CertificateError(
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
        raise CertificateError(
            f"The certificate of {host} does not lead to the pinned authority ({wrong}): the server is not the one "
            "meant, or its operator has to renew the certificate."
        ) from wrong
    except ValueError:  # an extension that cannot be read, or a path of the pinned certificate alone
        fit = False
    if not fit or _sha256(path[-1]) != ca_sha256.lower():
        raise CertificateError(
            f"The certificate of {host} is no server's certificate of the pinned authority: the server is not the one "
            "meant."
        )
    check_name(leaf, host)


def verify_client(connection: SSL.Connection) -> Identity | None:
    """After a handshake under `server_context`: who has dialled, or None if it sent no certificate.

    :raises CertificateError: if it speaks no `ALPN`, or its certificate has not exactly one name.
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
        raise CertificateError(
            "A client certificate needs exactly one URI or e-mail address among its subjectAltNames, and this one has "
            f"{listed(names)}: have one issued with scistream pki issue."
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
    :raises CertificateError: if the file cannot be read, or holds anything else.
    """
    found = load_certificates(path, setting)
    if len(found) != 1 or not is_authority(found[0]):
        raise CertificateError(
            f"{path} is not the certificate of one authority (it holds {len(found)}): name the authority's own file in "
            f"`{setting}`."
        )
    return found[0]


def verified_certificate(connection: SSL.Connection) -> x509.Certificate:
    """The far end's certificate, which this very handshake has verified.

    OpenSSL keeps the verified path of a full handshake only, so a resumed session is refused here, and so is
    a context that does not verify.

    :raises CertificateError: if there is none.
    """
    verifies = connection.get_context().get_verify_mode() & SSL.VERIFY_PEER
    chain = connection.get_verified_chain(as_cryptography=True) if verifies else None
    if not chain:
        raise CertificateError("The far end has not proved who it is in this handshake: connect anew.")
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
        f"the certificate that this link was made with has ended: {describe_certificate(first)}: it was valid until "
        f"{end:%Y-%m-%d %H:%M} UTC, and the clock here says {now:%Y-%m-%d %H:%M}"
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
        raise CertificateError(
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


def is_ip_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True

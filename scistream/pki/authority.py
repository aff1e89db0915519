"""The authority of a facility: a small certificate authority kept in one directory.

`init_authority` creates it, and `issue` issues the certificates of servers, controllers and users; revocation.py
revokes and renews them, and enrolment.py issues certificates without moving a key. `make_authority` and `make_leaf`
build certificates in memory, also for authorities that are never written to a disk. Nothing here opens a connection,
and private key files are readable by their owner only.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Literal, get_args

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import (
    CertificateIssuerPrivateKeyTypes,
    CertificatePublicKeyTypes,
    PrivateKeyTypes,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from scistream.pki import register
from scistream.pki.register import PkiError
from scistream.tls.files import PrivateKey

Kind = Literal["server", "controller", "user"]
"""Whom a certificate is for: a server, an S2CS that connects to its S2DS, or a user who connects to an S2CS."""

BACKDATE = timedelta(hours=1)
"""Certificates are valid from this long before their issue, since the clocks of two parties may differ."""

_FILE_NAME = re.compile(r"[A-Za-z0-9_@+:][A-Za-z0-9_@+:.-]{0,63}\Z")
_HOST_LABEL = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)\Z")
_MAX_COMMON_NAME = 64
_PUBLIC_KEYS = (ec.EllipticCurvePublicKey, rsa.RSAPublicKey, ed25519.Ed25519PublicKey, ed448.Ed448PublicKey)
_RESERVED = ("ca", "crl")


@dataclass(frozen=True)
class Authority:
    """A certificate authority: its chain, beginning with its own certificate, and its private key."""

    chain: tuple[x509.Certificate, ...]
    key: CertificateIssuerPrivateKeyTypes

    @property
    def certificate(self) -> x509.Certificate:
        """The authority's own certificate."""
        return self.chain[0]


@dataclass(frozen=True)
class Issued:
    """The files of a certificate: the leaf with its chain, and the private key."""

    certificate: Path
    key: Path


def init_authority(directory: Path, facility: str, days: int = 3650) -> Issued:
    """Create the authority of a facility: ``ca.pem`` and ``ca.key`` in a directory, which is created if missing.

    :param facility: the facility's name, at most 64 characters, shown in the certificate.
    :param days: how long the authority is valid.
    :raises PkiError: if it exists already, or cannot be written.
    """
    check_days(days)
    if not facility.strip() or len(facility) > _MAX_COMMON_NAME or not facility.isprintable():
        raise PkiError(f"{facility!r} cannot be the name of a facility: use 1 to 64 printable characters.")
    files = Issued(directory / "ca.pem", directory / "ca.key")
    refuse_overwriting(files, "Choose another directory; a new authority invalidates all certificates of the old one.")
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as wrong:
        raise PkiError(f"{directory} could not be created: {wrong.strerror}. Choose another directory.") from wrong
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, facility),
            x509.NameAttribute(NameOID.COMMON_NAME, "SciStream authority"),
        ]
    )
    _write(files, pem_of(make_authority(subject, key, datetime.now(UTC) + timedelta(days=days))), key)
    return files


def issue(directory: Path, kind: Kind, name: str, san: Sequence[str] = (), days: int = 397) -> Issued:
    """Issue a certificate with the authority in a directory; write ``NAME.pem`` and ``NAME.key`` there.

    The certificate file contains the leaf and then the authority, since both ends of a link send their whole chain.

    :param name: a server's host name, address or short name; a controller's name; a user's name or e-mail address.
    :param san: further host names or addresses of a server. Other kinds have exactly one name.
    :param days: how long the certificate is valid, but never longer than the authority.
    :raises PkiError: if the names do not fit the kind, a file exists already, or the authority is missing.
    """
    names = names_for(kind, name, san)
    authority = load_authority(directory)
    files = files_of(directory, name)
    refuse_overwriting(files, "Renew it (scistream pki renew), choose another name, or move both files away first.")
    key = ec.generate_private_key(ec.SECP256R1())
    leaf = certify(authority, kind, name, names, key.public_key(), days)
    register.record_issue(directory, kind, name, leaf)
    _write(files, pem_of(leaf, *authority.chain), key)
    return files


def files_of(directory: Path, name: str) -> Issued:
    """Return the paths of the certificate of this name and of its key."""
    return Issued(directory / f"{name}.pem", directory / f"{name}.key")


def names_for(kind: Kind, name: str, san: Sequence[str] = ()) -> list[x509.GeneralName]:
    """Return the subjectAltNames of a certificate for `name`.

    :raises PkiError: if the names do not fit the kind, or `name` cannot be used as a file name.
    """
    if kind not in get_args(Kind):
        raise PkiError(f"{kind!r} is not a kind of certificate: choose one of {', '.join(get_args(Kind))}.")
    if not _FILE_NAME.match(name):
        raise PkiError(
            f"{name!r} cannot be the name of a certificate, since it is also the name of the file: use up to 64 "
            "letters, digits and _ @ + : . - and begin with none of the last two."
        )
    if name in _RESERVED:
        raise PkiError(f"The name {name!r} is reserved for the authority's own files: choose another one.")
    return _server_names(name, san) if kind == "server" else _client_names(kind, name, san)


def certify(
    authority: Authority,
    kind: Kind,
    name: str,
    names: Sequence[x509.GeneralName],
    public_key: CertificatePublicKeyTypes,
    days: int,
) -> x509.Certificate:
    """Sign a certificate, valid for `days`, but never longer than the authority.

    :raises PkiError: if `days` is out of range.
    """
    check_days(days)
    usage = ExtendedKeyUsageOID.SERVER_AUTH if kind == "server" else ExtendedKeyUsageOID.CLIENT_AUTH
    not_after = min(datetime.now(UTC) + timedelta(days=days), authority.certificate.not_valid_after_utc)
    return make_leaf(name, names, [usage], public_key, authority.certificate, authority.key, not_after)


def make_authority(subject: x509.Name, key: CertificateIssuerPrivateKeyTypes, not_after: datetime) -> x509.Certificate:
    """Make a self-signed authority that signs leaf certificates only, valid from an hour ago."""
    public_key = key.public_key()
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - BACKDATE)
        .not_valid_after(not_after)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(public_key), critical=False)
        .sign(key, hash_for(key))
    )


def hash_for(key: CertificateIssuerPrivateKeyTypes) -> hashes.SHA256 | None:
    """Return the hash with which a key signs; None for Ed25519 and Ed448, which have their own."""
    return None if isinstance(key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey) else hashes.SHA256()


def make_leaf(
    common_name: str,
    names: Sequence[x509.GeneralName],
    usages: Sequence[x509.ObjectIdentifier],
    public_key: CertificatePublicKeyTypes,
    authority: x509.Certificate,
    authority_key: CertificateIssuerPrivateKeyTypes,
    not_after: datetime,
) -> x509.Certificate:
    """Make a certificate with these subjectAltNames and extended key usages, valid from an hour ago."""
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)]))
        .issuer_name(authority.subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - BACKDATE)
        .not_valid_after(not_after)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(issuer_id(authority), critical=False)
        .sign(authority_key, hash_for(authority_key))
    )


def issuer_id(authority: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    """Return the extension by which certificates and CRLs refer to the key of the authority that signed them."""
    try:
        own = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:  # an authority made by other software
        public_key = authority.public_key()
        assert isinstance(public_key, _PUBLIC_KEYS), "load_authority has checked it"
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(public_key)
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)


def fingerprint(certificate: bytes | x509.Certificate) -> str:
    """Return the SHA-256 of a certificate's DER as 64 hex digits; for PEM bytes, of the first certificate in them.

    :raises PkiError: if the bytes contain no certificate.
    """
    if not isinstance(certificate, x509.Certificate):
        try:
            certificate = x509.load_pem_x509_certificate(certificate)
        except ValueError as wrong:
            raise PkiError(f"This is not a certificate in PEM form: {wrong}") from wrong
    return certificate.fingerprint(hashes.SHA256()).hex()


def check_days(days: int) -> None:
    """Check a validity period.

    :raises PkiError: if it is out of range.
    """
    if not 1 <= days <= 36500:
        raise PkiError(f"A certificate cannot be valid for {days} days: use 1 to 36500.")


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _server_names(name: str, san: Sequence[str]) -> list[x509.GeneralName]:
    """Return the host names and addresses of a server, each once, including `name` if it is one."""
    found: list[x509.GeneralName] = []
    own = _host(name)
    if own is not None:
        found.append(own)
    for text in san:
        host = _host(text)
        if host is None:
            raise PkiError(f"{text!r} is neither a host name nor an IP address: a server has no other kind of name.")
        if host not in found:
            found.append(host)
    if not found:
        raise PkiError(
            f"{name!r} is neither a host name nor an IP address: name at least one with --san, by which clients reach "
            "the server."
        )
    return found


def _host(text: str) -> x509.GeneralName | None:
    address = _address(text)
    if address is not None:
        return x509.IPAddress(address)
    labels = text.rstrip(".").split(".")
    if labels[0] == "*" and len(labels) >= 3:
        labels = labels[1:]
    if len(text) > 253 or labels[-1].isdigit() or not all(_HOST_LABEL.match(label) for label in labels):
        return None
    return x509.DNSName(text.rstrip(".").lower())


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


def _client_names(kind: Kind, name: str, san: Sequence[str]) -> list[x509.GeneralName]:
    """Return the only name of a controller or a user."""
    if san:
        raise PkiError(
            f"A {kind} certificate has only one name, derived from NAME: leave --san out, or ask for a server "
            "certificate."
        )
    if kind == "controller" or "@" not in name:
        return [x509.UniformResourceIdentifier(f"scistream:{kind}:{name}")]
    local, _, host = name.partition("@")
    if not local or not isinstance(_host(host), x509.DNSName) or "*" in host:
        raise PkiError(f"{name!r} is not an e-mail address: write it like ada@example.org, or use a name without @.")
    return [x509.RFC822Name(name)]


def load_authority(directory: Path) -> Authority:
    """Load the authority of a directory: ``ca.pem`` (its certificate, then those above it, if any) and ``ca.key``.

    :raises PkiError: if it is missing, unreadable or inconsistent, or has expired.
    """
    try:
        chain = x509.load_pem_x509_certificates((directory / "ca.pem").read_bytes())
        key = serialization.load_pem_private_key((directory / "ca.key").read_bytes(), None)
    except FileNotFoundError as wrong:
        raise PkiError(
            f"{wrong.filename} does not exist: create an authority first (scistream pki init {directory})."
        ) from wrong
    except OSError as wrong:
        raise PkiError(f"{wrong.filename} could not be read: {wrong.strerror}. Run this as its owner.") from wrong
    except (ValueError, TypeError) as wrong:
        raise PkiError(
            f"The authority in {directory} could not be read: {wrong}. Restore ca.pem and ca.key."
        ) from wrong
    authority = chain[0]
    if not isinstance(key, PrivateKey):
        raise PkiError(f"{directory / 'ca.key'} is neither an elliptic-curve nor an RSA key: create a new authority.")
    if key.public_key() != authority.public_key():
        raise PkiError(f"ca.key and ca.pem in {directory} do not belong together: restore both of the same authority.")
    if authority.not_valid_after_utc <= datetime.now(UTC):
        raise PkiError(
            f"The authority in {directory} expired on {authority.not_valid_after_utc:%Y-%m-%d}: create a new one in "
            "another directory."
        )
    return Authority(tuple(chain), key)


def pem_of(*certificates: x509.Certificate) -> bytes:
    """Return certificates in PEM form."""
    return b"".join(certificate.public_bytes(serialization.Encoding.PEM) for certificate in certificates)


def key_pem(key: PrivateKeyTypes) -> bytes:
    """Return a private key in PEM form, unencrypted."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def refuse_overwriting(files: Issued, remedy: str) -> None:
    """Check that neither file exists.

    :raises PkiError: if one does.
    """
    for path in (files.certificate, files.key):
        if os.path.lexists(path):
            raise PkiError(f"{path} exists already and is not overwritten. {remedy}")


def _write(files: Issued, certificate: bytes, key: PrivateKeyTypes) -> None:
    """Write both files or neither."""
    create_file(files.key, key_pem(key), 0o600)
    try:
        create_file(files.certificate, certificate, 0o644)
    except PkiError:
        files.key.unlink(missing_ok=True)
        raise


def create_file(path: Path, data: bytes, mode: int) -> None:
    """Create a file with this mode from the start, without following a link or replacing an existing file.

    :raises PkiError: if it exists, or cannot be written.
    """
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(data)
    except FileExistsError as wrong:
        raise PkiError(f"{path} exists already and is not overwritten. Move it away first.") from wrong
    except OSError as wrong:
        raise PkiError(f"{path} could not be written: {wrong.strerror}. Choose a writable directory.") from wrong


def replace_files(*contents: tuple[Path, bytes, int]) -> None:
    """Write files (path, bytes, mode), replacing existing ones atomically, after all contents are on the disk.

    :raises PkiError: if one cannot be written; then none has changed.
    """
    ready: list[tuple[Path, Path]] = []
    try:
        for path, data, mode in contents:
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            ready.append((Path(name), path))
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                os.fchmod(file.fileno(), mode)
                os.fsync(file.fileno())
        for new, path in ready:
            new.replace(path)
    except OSError as wrong:
        for new, _ in ready:
            new.unlink(missing_ok=True)
        raise PkiError(
            f"{wrong.filename} could not be written: {wrong.strerror}. Choose a writable directory."
        ) from wrong

"""TLS without sockets: two pyOpenSSL connections joined in memory, and certificates that `pki` would not make."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from OpenSSL import SSL

from scistream.pki.authority import make_authority, make_leaf

SERVER = ExtendedKeyUsageOID.SERVER_AUTH
CLIENT = ExtendedKeyUsageOID.CLIENT_AUTH


@dataclass
class Joined:
    """The result of a handshake: both ends, and the error that each saw, if any."""

    server: SSL.Connection
    client: SSL.Connection
    server_error: SSL.Error | None = None
    client_error: SSL.Error | None = None

    @property
    def done(self) -> bool:
        return self.server_error is None and self.client_error is None


def join(
    server: SSL.Context,
    client: SSL.Context,
    name: bytes | None = None,
    session: SSL.Session | None = None,
    prepare: Callable[[SSL.Connection], object] | None = None,
) -> Joined:
    """Run a handshake to its end, and let each side read what came after it (tickets, alerts).

    :param prepare: called with the client before the handshake.
    """
    ends = Joined(SSL.Connection(server, None), SSL.Connection(client, None))
    ends.server.set_accept_state()
    ends.client.set_connect_state()
    if name is not None:
        ends.client.set_tlsext_host_name(name)
    if session is not None:
        ends.client.set_session(session)
    if prepare is not None:
        prepare(ends.client)
    moved = True
    while moved:
        ends.client_error = ends.client_error or _step(ends.client)
        moved = _carry(ends.client, ends.server)
        ends.server_error = ends.server_error or _step(ends.server)
        moved = _carry(ends.server, ends.client) or moved
    return ends


def _step(end: SSL.Connection) -> SSL.Error | None:
    try:
        end.do_handshake()
        end.recv(1)
    except SSL.WantReadError:
        return None
    except SSL.Error as wrong:
        return wrong
    raise AssertionError("nobody has sent a byte of data")


def _carry(source: SSL.Connection, sink: SSL.Connection) -> bool:
    try:
        sink.bio_write(source.bio_read(1 << 20))
    except SSL.WantReadError:
        return False
    return True


def say(source: SSL.Connection, sink: SSL.Connection, words: bytes) -> bytes:
    """Send bytes one way, and give back what arrives."""
    source.sendall(words)
    _carry(source, sink)
    return sink.recv(len(words))


@dataclass
class Authority:
    """An authority in memory whose every certificate can be chosen freely."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def make(cls, name: str = "an authority") -> Authority:
        key = ec.generate_private_key(ec.SECP256R1())
        return cls(make_authority(common_name(name), key, datetime.now(UTC) + timedelta(days=1)), key)

    @classmethod
    def load(cls, directory: Path) -> Authority:
        key = serialization.load_pem_private_key((directory / "ca.key").read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return cls(x509.load_pem_x509_certificate((directory / "ca.pem").read_bytes()), key)

    def leaf(
        self,
        *names: x509.GeneralName,
        usage: x509.ObjectIdentifier = SERVER,
        left: timedelta = timedelta(hours=2),
    ) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        key = ec.generate_private_key(ec.SECP256R1())
        until = datetime.now(UTC) + left
        return make_leaf("a leaf", names, [usage], key.public_key(), self.certificate, self.key, until), key


def common_name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def self_signed_leaf(host: str) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """Return a server's self-signed certificate that is not an authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(common_name(host))
        .issuer_name(common_name(host))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return certificate, key


def store(
    directory: Path, chain: Sequence[x509.Certificate], key: ec.EllipticCurvePrivateKey, stem: str = "odd"
) -> tuple[Path, Path]:
    """Write a chain and a key as `pki` would have."""
    directory.mkdir(exist_ok=True)
    certificate_file, key_file = directory / f"{stem}.pem", directory / f"{stem}.key"
    certificate_file.write_bytes(b"".join(each.public_bytes(serialization.Encoding.PEM) for each in chain))
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    with os.fdopen(os.open(key_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(pem)
    return certificate_file, key_file


def ca_without_crl_sign(directory: Path) -> None:
    """Give an authority in a directory a certificate by which it may sign certificates and nothing else."""
    authority = Authority.load(directory)
    old = authority.certificate
    usage = old.extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.crl_sign
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(old.subject)
        .issuer_name(old.subject)
        .public_key(authority.key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            x509.KeyUsage(False, False, False, False, False, key_cert_sign=True, crl_sign=False,
                          encipher_only=False, decipher_only=False),
            critical=True,
        )
    )  # fmt: skip
    made = builder.sign(authority.key, hashes.SHA256())
    (directory / "ca.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))


def an_intermediate(above: Authority, name: str) -> Authority:
    """Return an authority below another one."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(common_name(name))
        .issuer_name(above.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(above.key, hashes.SHA256())
    )
    return Authority(certificate, key)


def a_root(name: str) -> Authority:
    """Return an authority that may have authorities below it."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(common_name(name))
        .issuer_name(common_name(name))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=2))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Authority(certificate, key)


def a_crl(
    authority: Authority, *revoked: x509.Certificate, left: timedelta = timedelta(days=1)
) -> x509.CertificateRevocationList:
    """Return a CRL such as any authority may issue."""
    now = datetime.now(UTC)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(authority.certificate.subject)
        .last_update(now - timedelta(days=3))
        .next_update(now + left)
    )
    for certificate in revoked:
        one = x509.RevokedCertificateBuilder().serial_number(certificate.serial_number).revocation_date(now)
        builder = builder.add_revoked_certificate(one.build())
    return builder.sign(authority.key, hashes.SHA256())


def written(file: Path, *things: x509.Certificate | x509.CertificateRevocationList) -> Path:
    """PEM of these in a file."""
    file.write_bytes(b"".join(thing.public_bytes(serialization.Encoding.PEM) for thing in things))
    return file

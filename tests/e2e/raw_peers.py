"""Peers of a daemon, by hand: control links, WAN connections, and certificates of any kind."""

from __future__ import annotations

import json
import os
import socket
import ssl
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from OpenSSL import SSL

from scistream.pki.authority import Issued
from scistream.protocol.address import Address

SERVER, CLIENT = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH
HOUR = timedelta(hours=1)
TIMEOUT = 60.0


class RawLink:
    """A control link by hand: TLS, and lines.

    :param issued: the certificate to show, or None.
    :param source: the address that it comes from, if not any.
    :param alpn: what it offers to speak.
    :param newest: the newest version of TLS that it speaks.
    :param room: the bytes that the kernel keeps for it until it reads; 0: as many as usual, which is millions.
    """

    def __init__(
        self,
        address: Address,
        authority: Path,
        issued: Issued | None = None,
        *,
        source: str = "",
        alpn: Sequence[str] = ("scistream/1",),
        newest: ssl.TLSVersion = ssl.TLSVersion.MAXIMUM_SUPPORTED,
        room: int = 0,
    ) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(authority)
        context.maximum_version = newest
        if alpn:
            context.set_alpn_protocols(list(alpn))
        if issued is not None:
            context.load_cert_chain(issued.certificate, issued.key)
        sock = socket.socket(socket.AF_INET6 if ":" in address.host else socket.AF_INET)
        try:
            sock.settimeout(TIMEOUT)
            if room:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
            if source:
                sock.bind((source, 0))
            sock.connect(address)
            self.sock = context.wrap_socket(sock, server_hostname=address.host)
        except BaseException:
            sock.close()
            raise
        self._lines = self.sock.makefile("rb")

    def __enter__(self) -> RawLink:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        self.sock.close()

    def send(self, line: bytes) -> None:
        self.sock.sendall(line)

    def say(self, cmd: str, **fields: Any) -> None:
        self.send(json.dumps({"cmd": cmd, **fields}).encode() + b"\n")

    def hear(self) -> dict[str, Any] | None:
        """Return the next message, or None when the link has ended in any way."""
        try:
            line = self._lines.readline()
        except (ssl.SSLError, ConnectionResetError):
            return None
        return json.loads(line) if line else None

    def ask(self, cmd: str, **fields: Any) -> dict[str, Any]:
        self.say(cmd, **fields)
        answer = self.hear()
        assert answer is not None
        return answer


def dial_wan(address: Address, context: SSL.Context, name: bytes) -> str:
    """Handshake with a gateway as another gateway would, and read; how that ends.

    ``closed`` is the end of a connection that was let in; what is said there first comes before it.
    """
    sock = socket.create_connection(address, timeout=TIMEOUT)
    connection = SSL.Connection(context, None)
    if name:
        connection.set_tlsext_host_name(name)
    connection.set_connect_state()
    try:
        while True:
            try:
                connection.do_handshake()
                connection.recv(1)
            except SSL.WantReadError:
                _flush(connection, sock)
                try:
                    data = sock.recv(65536)
                except ConnectionResetError:
                    return "reset"
                if not data:
                    return "closed"
                connection.bio_write(data)
    except SSL.ZeroReturnError:
        return "closed"
    except SSL.Error as refused:
        return f"alert {refused.args[0]}"
    finally:
        sock.close()


def _flush(connection: SSL.Connection, sock: socket.socket) -> None:
    with suppress(SSL.WantReadError):
        sock.sendall(connection.bio_read(1 << 20))


# -- certificates


@dataclass(frozen=True)
class Chain:
    """A certificate, those that lead from it to an authority, and its key."""

    certificates: tuple[x509.Certificate, ...]
    key: ec.EllipticCurvePrivateKey

    def write(self, folder: Path) -> Issued:
        """Both files, as `scistream pki` writes them."""
        stem = uuid4().hex
        files = Issued(folder / f"{stem}.pem", folder / f"{stem}.key")
        pem = serialization.Encoding.PEM
        files.certificate.write_bytes(b"".join(each.public_bytes(pem) for each in self.certificates))
        with os.fdopen(os.open(files.key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            plain = serialization.NoEncryption()
            file.write(self.key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
        return files


class Signer:
    """A key that signs certificates, even if its own certificate does not allow that.

    :param certificate: in whose name.
    """

    def __init__(self, certificate: x509.Certificate | None = None, key: Any = None) -> None:
        self.key = key or ec.generate_private_key(ec.SECP256R1())
        self.certificate = certificate or _certificate("an authority", self.key.public_key(), None, self.key, [], None)

    @classmethod
    def of(cls, folder: Path) -> Signer:
        """Return the authority in a folder of `scistream pki`."""
        key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), None)
        return cls(x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes()), key)

    def sign(
        self,
        names: Sequence[x509.GeneralName],
        usage: x509.ObjectIdentifier | None,
        *,
        public_key: ec.EllipticCurvePublicKey | None = None,
        begins: timedelta = -HOUR,
        ends: timedelta = HOUR,
    ) -> Chain:
        """Issue a certificate for these names and this use, and return it with the signer's own.

        :param usage: None makes an authority.
        :param begins: from now on; `ends` likewise.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        leaf = _certificate(
            uuid4().hex, public_key or key.public_key(), self.certificate, self.key, names, usage, begins, ends
        )
        return Chain((leaf, self.certificate), key)


def self_signed(names: Sequence[x509.GeneralName], usage: x509.ObjectIdentifier) -> Chain:
    """Return a self-signed certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    return Chain((_certificate("itself", key.public_key(), None, key, names, usage),), key)


def _certificate(
    subject: str,
    public_key: ec.EllipticCurvePublicKey,
    issuer: x509.Certificate | None,
    issuer_key: ec.EllipticCurvePrivateKey,
    names: Sequence[x509.GeneralName],
    usage: x509.ObjectIdentifier | None,
    begins: timedelta = -HOUR,
    ends: timedelta = HOUR,
) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)])
    now, authority = datetime.now(UTC), usage is None
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer.subject if issuer is not None else name)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + begins)
        .not_valid_after(now + ends)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
    )
    if usage is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())

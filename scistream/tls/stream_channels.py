"""The credentials of a stream's WAN connections at a gateway.

An S2DS creates a `StreamSecret` for each stream that it reserves, sends its certificate request to the S2CS, and makes
`Credentials` of the certificates that come back with the targets. Its elements make a context of the credentials of
each generation. `verify_peer` completes each handshake under these contexts (protocol section 10.1), whichever side has
dialled. Until then no application is connected and no byte forwarded. The private key stays in memory. Nothing here
opens a socket.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any
from uuid import uuid4

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from msgspec import Struct
from OpenSSL import SSL, crypto

from scistream.protocol.errors import StreamError
from scistream.protocol.messages import CONS, PROD, Role
from scistream.tls.contexts import naming_refusals, tls13_context, trust
from scistream.tls.files import CertificateError, algorithm_of
from scistream.tls.verify import check_name, verified_certificate

CIPHERS = {
    "aes": b"TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256",
    "chacha20": b"TLS_CHACHA20_POLY1305_SHA256:TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384",
}
"""The ciphers of WAN connections, in order of preference; the producer's gateway chooses.

``aes`` begins with AES-128, the fastest on processors with AES instructions; 128 bits suffice, since each key lives no
longer than its connection.
"""

DATA_ALPN = b"scistream-data/1"
"""The protocol of connections between gateways that begin with Connect. Gateways of earlier versions do not know it."""

_NOT_THIS_STREAM = "it belongs to another stream, or to another generation of this stream's credentials"

_SSL_MODE_ENABLE_PARTIAL_WRITE = 0x1
"""OpenSSL's constant; pyOpenSSL sets this mode on every context but does not export a name for it."""


def server_name(uid: str, channel: int, server: Role = PROD) -> str:
    """Return the name under which a gateway connects to the other side's gateway, for this channel.

    :param server: the role of the gateway that accepts the connection.
    """
    return f"{channel}.{server.lower()}.{uid}.scistream"


def producer_name(uid: str) -> str:
    """Return the name in the certificates of the producer's gateways, which covers all channels of the stream."""
    return f"*.prod.{uid}.scistream"


def consumer_name(uid: str) -> str:
    """Return the name in the certificates of the consumer's gateways."""
    return f"cons.{uid}.scistream"


class StreamSecret:
    """A gateway's key pair for one (uid, role), which exists only in memory, as long as this object.

    :ivar csr: the certificate request, PEM. Its subject is random: the signer chooses the names.
    """

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        request = x509.CertificateSigningRequestBuilder().subject_name(
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, uuid4().hex)])
        )
        self.csr = request.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()

    def credentials(self, data_conn_key: str, uid: str, role: Role) -> Credentials:
        """Return the credentials of this gateway's WAN connections.

        :param data_conn_key: PEM: the stream's authority, then one certificate for each gateway.
        :raises StreamError: ``bad-message`` if it cannot be parsed, or has no certificate for this key and stream.
        """
        authority, certificates = _parse(data_conn_key)
        leaf = self._own(authority, certificates, uid, role)
        encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        made = Credentials(
            role=role,
            authority=authority.public_bytes(encoding).decode(),
            certificate=leaf.public_bytes(encoding).decode(),
            key=self._key.private_bytes(encoding, form, serialization.NoEncryption()).decode(),
            ticket_key=os.urandom(16),
        )
        made.context()  # to find errors now: OpenSSL may parse more strictly than `cryptography`
        return made

    def _own(
        self, authority: x509.Certificate, certificates: list[x509.Certificate], uid: str, role: Role
    ) -> x509.Certificate:
        """Return the certificate that was issued for our key, checked as protocol section 9.3 says."""
        leaf = next((certificate for certificate in certificates if self._fits(certificate)), None)
        if leaf is None:
            raise _bad(f"none of its {len(certificates)} certificates is for the key of this gateway")
        try:
            leaf.verify_directly_issued_by(authority)
            check_name(leaf, server_name(uid, 0) if role == PROD else consumer_name(uid))
        except CertificateError as wrong:
            raise _bad(f"the certificate for this gateway is not for this stream and role: {wrong}") from wrong
        except UnsupportedAlgorithm as wrong:
            raise _bad(f"its authority's signature cannot be checked here ({algorithm_of(leaf)})") from wrong
        except Exception as wrong:  # InvalidSignature, ValueError, TypeError: no common base
            raise _bad("the certificate for this gateway is not signed by the authority at its beginning") from wrong
        now = datetime.now(UTC)
        if not leaf.not_valid_before_utc <= now <= leaf.not_valid_after_utc:
            raise _bad(
                f"the certificate for this gateway is valid from {leaf.not_valid_before_utc:%Y-%m-%d %H:%M} to "
                f"{leaf.not_valid_after_utc:%Y-%m-%d %H:%M} UTC, and the clock here says {now:%Y-%m-%d %H:%M}: compare "
                "the clocks"
            )
        return leaf

    def _fits(self, certificate: x509.Certificate) -> bool:
        try:
            return certificate.public_key() == self._key.public_key()
        except Exception:  # a key of a kind or curve that this library does not know is not ours
            return False


class Credentials(Struct, frozen=True, kw_only=True):
    """The credentials of a stream's WAN connections at one gateway, as its elements get them.

    Secret, so its repr hides them: the key is passed between processes of one machine only.
    """

    role: Role
    authority: str
    certificate: str
    key: str
    ticket_key: bytes

    def __repr__(self) -> str:
        return f"<Credentials of {self.role}>"

    @property
    def ends_at(self) -> datetime:
        """Until when the certificates are valid."""
        certificates = (self.certificate, self.authority)
        return min(x509.load_pem_x509_certificate(pem.encode()).not_valid_after_utc for pem in certificates)

    def context(self, cipher: str = "aes", *, dials: bool | None = None) -> SSL.Context:
        """Return the context of these connections: a client's for the gateway that dials, a server's for the other.

        A `send` under it takes either all of its bytes or, on a full socket, none (`WantWriteError`: retry with the
        same bytes). The server's session tickets are useless but arrive right after the handshake: a client that
        closes without reading them resets its connection.

        :param cipher: the preferred cipher, a key of `CIPHERS`.
        :param dials: True if this gateway dials the other; None: the consumer's gateway does.
        :raises StreamError: ``bad-message`` if OpenSSL refuses the certificates.
        """
        is_client = self.role == CONS if dials is None else dials
        context = tls13_context(SSL.TLS_CLIENT_METHOD if is_client else SSL.TLS_SERVER_METHOD)
        try:
            trust(context, x509.load_pem_x509_certificate(self.authority.encode()))
            context.use_certificate(x509.load_pem_x509_certificate(self.certificate.encode()))
            context.use_privatekey(_load_key(self.key))
        except (SSL.Error, crypto.Error) as wrong:
            raise _bad(f"OpenSSL refuses its certificates: {wrong}") from wrong
        context.set_tls13_ciphersuites(CIPHERS[cipher])
        context.clear_mode(_SSL_MODE_ENABLE_PARTIAL_WRITE)
        context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, naming_refusals(_NOT_THIS_STREAM))
        if is_client:
            context.set_alpn_protos([DATA_ALPN])
        else:
            context.set_alpn_select_callback(_select_alpn)
            context.set_options(SSL.OP_CIPHER_SERVER_PREFERENCE)
            context.set_session_id(uuid4().bytes)
        return context


def _select_alpn(_connection: SSL.Connection, offered: list[bytes]) -> Any:
    return DATA_ALPN if DATA_ALPN in offered else SSL.NO_OVERLAPPING_PROTOCOLS


def speaks_connect(connection: SSL.Connection) -> bool:
    """Return True if the handshake agreed that the connection begins with Connect."""
    return bool(connection.get_alpn_proto_negotiated() == DATA_ALPN)


def _load_key(pem: str) -> ec.EllipticCurvePrivateKey:
    """Load the private key of a stream."""
    key = serialization.load_pem_private_key(pem.encode(), password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


def verify_peer(
    connection: SSL.Connection, uid: str, channel: int, role: Role, *, dials: bool, resumed: bool = False
) -> None:
    """Check that the peer is this stream's gateway of the other side and wants this channel.

    Call it after the handshake.

    :param role: the role of this gateway.
    :param dials: True if this gateway has dialled.
    :param resumed: True if both ends have proved themselves with a ticket, which only a connection can have given
        whose peer this function has accepted under the same credentials.
    :raises CertificateError: if not; close the connection, connect to no application and forward nothing.
    """
    if not dials:
        expected, named = server_name(uid, channel, role).encode(), connection.get_servername()
        if named != expected:
            raise CertificateError(
                f"The far end asked for {named!r}, but this port belongs to {expected.decode()}: it has connected to "
                "the port of another stream or channel."
            )
    if resumed:
        return
    expected_name = consumer_name(uid) if role == PROD else server_name(uid, channel)
    _check_name(verified_certificate(connection), expected_name)


@lru_cache(1024)
def _check_name(certificate: x509.Certificate, name: str) -> None:
    """Call `check_name` once for all connections of a stream, since the names in a certificate do not change.

    OpenSSL checks trust and validity in each handshake.
    """
    check_name(certificate, name)


def _parse(data_conn_key: str) -> tuple[x509.Certificate, list[x509.Certificate]]:
    try:
        authority, *certificates = x509.load_pem_x509_certificates(data_conn_key.encode())
        is_authority = authority.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (ValueError, x509.InvalidVersion, x509.ExtensionNotFound, x509.DuplicateExtension) as wrong:
        raise _bad(f"it is not a bundle of certificates in PEM form: {wrong}") from wrong
    if not is_authority:
        raise _bad("its first certificate is not that of an authority")
    return authority, certificates


def _bad(why: str) -> StreamError:
    return StreamError("bad-message", f"data_conn_key: {why}.")

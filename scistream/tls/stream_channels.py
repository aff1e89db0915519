"""The credentials of one stream's WAN connections, as a gateway holds them.

An S2DS makes a `StreamSecret` for each stream that it reserves, sends its certificate request upwards, and makes
`Credentials` of the certificates that come back with the targets; its elements make a context of them, and of each
new generation another one.
Connect is the handshake under these contexts (protocol section 10.1), and `verify_consumer` at the producer
and `verify_producer` at the consumer complete it: until they return, no application is dialled and no byte passed.
The private key stays in memory. Nothing here opens a socket.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from uuid import uuid4

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from msgspec import Struct
from OpenSSL import SSL, crypto

from scistream.protocol.errors import StreamError
from scistream.protocol.messages import PROD, Role
from scistream.tls.contexts import naming_refusals, tls13_context, trust
from scistream.tls.files import CertificateError, algorithm_of
from scistream.tls.verify import check_name, verified_certificate

CIPHERS = {
    "aes": b"TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256",
    "chacha20": b"TLS_CHACHA20_POLY1305_SHA256:TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384",
}
"""The ciphers of a connection over the WAN, the preferred ones first; the producer's gateway chooses.

``aes`` begins with AES-128: it is the fastest where a processor has AES, and a key lives no longer than its connection.
"""

_NOT_THIS_STREAM = "it belongs to another stream, or to another generation of this one's credentials"

_SSL_MODE_ENABLE_PARTIAL_WRITE = 0x1
"""OpenSSL's constant, which pyOpenSSL sets on every context and has no name for."""


def server_name(uid: str, channel: int) -> str:
    """The name that the consumer's gateway dials the producer's by, on this channel."""
    return f"{channel}.prod.{uid}.scistream"


def producer_name(uid: str) -> str:
    """The name in the certificates of the producer's gateways: all channels of this stream."""
    return f"*.prod.{uid}.scistream"


def consumer_name(uid: str) -> str:
    """The name in the certificates of the consumer's gateways."""
    return f"cons.{uid}.scistream"


class StreamSecret:
    """A gateway's key pair for one (uid, role). It is made here, is never written anywhere, and goes with this object.

    :ivar csr: the certificate request, PEM. Its subject means nothing: whoever signs it chooses the names.
    """

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        request = x509.CertificateSigningRequestBuilder().subject_name(
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, uuid4().hex)])
        )
        self.csr = request.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()

    def credentials(self, data_conn_key: str, uid: str, role: Role) -> Credentials:
        """What this gateway's WAN connections show and check from now on.

        :param data_conn_key: PEM, the stream's authority and then one certificate a gateway.
        :raises StreamError: ``bad-message``, if it does not parse, or no certificate in it fits this key and stream.
        """
        authority, certificates = _parse(data_conn_key)
        leaf = self._own(authority, certificates, uid, role)
        encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        made = Credentials(
            role=role,
            authority=authority.public_bytes(encoding).decode(),
            certificate=leaf.public_bytes(encoding).decode(),
            key=self._key.private_bytes(encoding, form, serialization.NoEncryption()).decode(),
        )
        made.context()  # OpenSSL may read more strictly than `cryptography`
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
            raise _bad(f"how its authority signs cannot be checked here ({algorithm_of(leaf)})") from wrong
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

    Secret, and so it does not show itself: the key goes from memory to memory of one machine and nowhere else.
    """

    role: Role
    authority: str
    certificate: str
    key: str

    def __repr__(self) -> str:
        return f"<Credentials of {self.role}>"

    def context(self, cipher: str = "aes") -> SSL.Context:
        """The context of these connections: a server's for PROD, else a client's.

        :param cipher: which is preferred, a key of `CIPHERS`.

        A `send` under it takes all of its bytes or, on a full socket, none (`WantWriteError`: come again with the
        same bytes). The far end's tickets, which mean nothing, arrive right after the handshake: a client that
        closes without having read them resets its connection.

        :raises StreamError: ``bad-message``, if OpenSSL refuses them.
        """
        context = tls13_context(SSL.TLS_SERVER_METHOD if self.role == PROD else SSL.TLS_CLIENT_METHOD)
        try:
            trust(context, x509.load_pem_x509_certificate(self.authority.encode()))
            context.use_certificate(x509.load_pem_x509_certificate(self.certificate.encode()))
            context.use_privatekey(_load_key(self.key))
        except (SSL.Error, crypto.Error) as wrong:
            raise _bad(f"OpenSSL refuses its certificates: {wrong}") from wrong
        context.set_tls13_ciphersuites(CIPHERS[cipher])
        context.clear_mode(_SSL_MODE_ENABLE_PARTIAL_WRITE)
        context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, naming_refusals(_NOT_THIS_STREAM))
        if self.role == PROD:
            context.set_options(SSL.OP_CIPHER_SERVER_PREFERENCE)
            context.set_session_id(uuid4().bytes)
        return context


def _load_key(pem: str) -> ec.EllipticCurvePrivateKey:
    """The private key of a stream."""
    key = serialization.load_pem_private_key(pem.encode(), password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


def verify_consumer(connection: SSL.Connection, uid: str, channel: int) -> None:
    """At the producer's gateway, after the handshake: the dialler is this stream's consumer and means this channel.

    :raises CertificateError: if not; close the connection and dial nothing.
    """
    expected = server_name(uid, channel).encode()
    named = connection.get_servername()
    if named != expected:
        raise CertificateError(
            f"The far end dialled {named!r} and {expected.decode()} listens here: this is the port of another stream "
            "or channel than it means."
        )
    _check_name(verified_certificate(connection), consumer_name(uid))


def verify_producer(connection: SSL.Connection, uid: str, channel: int) -> None:
    """At the consumer's gateway, after the handshake: the far end is this stream's producer, on this channel.

    :raises CertificateError: if not; close the connection and pass nothing.
    """
    _check_name(verified_certificate(connection), server_name(uid, channel))


@lru_cache(1024)
def _check_name(certificate: x509.Certificate, name: str) -> None:
    """The same as `check_name`, once for all connections of a stream: the names in a certificate do not change.

    Whether it is trusted and still valid, OpenSSL finds out anew in each handshake.
    """
    check_name(certificate, name)


def _parse(data_conn_key: str) -> tuple[x509.Certificate, list[x509.Certificate]]:
    try:
        authority, *certificates = x509.load_pem_x509_certificates(data_conn_key.encode())
        is_authority = authority.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (ValueError, x509.InvalidVersion, x509.ExtensionNotFound, x509.DuplicateExtension) as wrong:
        raise _bad(f"it is no bundle of certificates in PEM form: {wrong}") from wrong
    if not is_authority:
        raise _bad("its first certificate is not an authority's")
    return authority, certificates


def _bad(why: str) -> StreamError:
    return StreamError("bad-message", f"data_conn_key: {why}.")

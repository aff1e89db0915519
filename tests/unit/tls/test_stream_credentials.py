"""Connect: the two gateways of a stream accept each other, and nobody else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL import SSL
from OpenSSL.crypto import X509

from scistream.pki.authority import make_leaf
from scistream.protocol.errors import StreamError
from scistream.protocol.messages import CONS, PROD, Role
from scistream.s2uc.stream_certificates import MAX_GATEWAYS, issue_credentials
from scistream.tls.explain import explain
from scistream.tls.files import CertificateError
from scistream.tls.stream_channels import StreamSecret, server_name, speaks_connect, verify_peer
from support.memory_tls import CLIENT, Authority, Joined, common_name, join, say


@dataclass
class Stream:
    """A stream with one gateway at each side, and its credentials of one generation."""

    uid: str = field(default_factory=lambda: str(uuid4()))
    producer: StreamSecret = field(default_factory=StreamSecret)
    consumer: StreamSecret = field(default_factory=StreamSecret)

    def __post_init__(self) -> None:
        self.renew(1)

    def renew(self, generation: int) -> None:
        self.bundles = issue_credentials(
            self.uid, generation, 3600.0, {PROD: self.producer.csr, CONS: self.consumer.csr}
        )
        self.server = self.producer.credentials(self.bundles[PROD], self.uid, PROD).context()
        self.client = self.consumer.credentials(self.bundles[CONS], self.uid, CONS).context()

    def name(self, channel: int = 0) -> bytes:
        return server_name(self.uid, channel).encode()


@pytest.fixture
def stream() -> Stream:
    return Stream()


def certificates(bundle: str) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(bundle.encode())


def pem(*made: x509.Certificate | x509.CertificateSigningRequest) -> str:
    return "".join(each.public_bytes(serialization.Encoding.PEM).decode() for each in made)


def assert_refused(ends: Joined, server: str, client: str) -> None:
    assert server in explain(ends.server_error or AssertionError("the server saw no error"))
    assert client in explain(ends.client_error or AssertionError("the client saw no error"))


# --- the handshake


def test_the_gateways_of_a_stream_meet_on_each_channel_and_bytes_pass(stream: Stream) -> None:
    for channel in (0, 7, 1023):
        ends = join(stream.server, stream.client, stream.name(channel))
        assert ends.done
        verify_peer(ends.server, stream.uid, channel, PROD, dials=False)
        verify_peer(ends.client, stream.uid, channel, CONS, dials=True)
        assert say(ends.client, ends.server, b"GET /") == b"GET /"
        assert say(ends.server, ends.client, b"frame") == b"frame"
    assert ends.client.get_protocol_version_name() == "TLSv1.3"
    assert ends.client.get_cipher_name() == "TLS_AES_128_GCM_SHA256"
    assert speaks_connect(ends.client)
    assert speaks_connect(ends.server)


def test_another_streams_gateways_are_refused_by_both_sides(stream: Stream) -> None:
    other = Stream()
    ends = join(stream.server, other.client, stream.name())
    assert not ends.done
    assert "belongs to another stream" in explain(ends.client_error or AssertionError())
    lax = SSL.Context(SSL.TLS_CLIENT_METHOD)  # a far end that trusts anyone, to see what ours says
    leaf = certificates(other.bundles[CONS])[1]
    lax.use_certificate(leaf)
    lax.use_privatekey(other.consumer._key)
    assert_refused(join(stream.server, lax, stream.name()), "belongs to another stream", "does not trust the authority")


def test_a_dialler_without_a_certificate_is_refused(stream: Stream) -> None:
    anyone = SSL.Context(SSL.TLS_CLIENT_METHOD)
    assert_refused(join(stream.server, anyone, stream.name()), "sent no client certificate", "asks for a client")


def test_a_producers_certificate_is_no_consumers_and_the_reverse(stream: Stream) -> None:
    producer = stream.producer.credentials(stream.bundles[PROD], stream.uid, PROD)
    consumer = stream.consumer.credentials(stream.bundles[CONS], stream.uid, CONS)
    for own, dials in ((producer, False), (producer, True), (consumer, False), (consumer, True)):
        server, client = own.context(dials=False), own.context(dials=True)
        ends = join(server, client, server_name(stream.uid, 0, own.role).encode())
        with pytest.raises(CertificateError, match="name"):
            verify_peer(ends.client if dials else ends.server, stream.uid, 0, own.role, dials=dials)


def test_the_producers_gateway_may_dial_the_consumers(stream: Stream) -> None:
    producer = stream.producer.credentials(stream.bundles[PROD], stream.uid, PROD).context(dials=True)
    consumer = stream.consumer.credentials(stream.bundles[CONS], stream.uid, CONS).context(dials=False)
    ends = join(consumer, producer, server_name(stream.uid, 3, CONS).encode())
    verify_peer(ends.client, stream.uid, 3, PROD, dials=True)
    verify_peer(ends.server, stream.uid, 3, CONS, dials=False)
    with pytest.raises(CertificateError, match="another stream or channel"):
        verify_peer(ends.server, stream.uid, 4, CONS, dials=False)


def test_a_dialler_of_another_channel_or_of_no_name_is_refused_at_the_producer(stream: Stream) -> None:
    for name in (stream.name(1), None, server_name(str(uuid4()), 0).encode(), stream.name().upper(), b"localhost"):
        ends = join(stream.server, stream.client, name)
        assert ends.done
        with pytest.raises(CertificateError, match="another stream or channel"):
            verify_peer(ends.server, stream.uid, 0, PROD, dials=False)
    ends = join(stream.server, stream.client, stream.name())
    verify_peer(ends.server, stream.uid, 0, PROD, dials=False)


def test_names_of_another_stream_under_the_same_authority_are_refused(stream: Stream) -> None:
    ends = join(stream.server, stream.client, stream.name())
    wrong = str(uuid4())
    with pytest.raises(CertificateError, match=f"should be 0.prod.{wrong}"):
        verify_peer(ends.client, wrong, 0, CONS, dials=True)
    authority = Authority.make()
    uid = stream.uid

    def leaf(secret: StreamSecret, name: str, usage: x509.ObjectIdentifier) -> x509.Certificate:
        key = x509.load_pem_x509_csr(secret.csr.encode()).public_key()
        until = datetime.now(UTC) + timedelta(hours=1)
        return make_leaf("x", [x509.DNSName(name)], [usage], key, authority.certificate, authority.key, until)

    own = leaf(stream.producer, f"*.prod.{uid}.scistream", ExtendedKeyUsageOID.SERVER_AUTH)
    server = stream.producer.credentials(pem(authority.certificate, own), uid, PROD).context()
    for name, good in ((f"cons.{uid}.scistream", True), (f"cons.{wrong}.scistream", False)):
        client = SSL.Context(SSL.TLS_CLIENT_METHOD)
        client.use_certificate(leaf(stream.consumer, name, CLIENT))
        client.use_privatekey(stream.consumer._key)
        ends = join(server, client, stream.name())
        assert ends.done
        if good:
            verify_peer(ends.server, uid, 0, PROD, dials=False)
        else:
            with pytest.raises(CertificateError, match=f"should be cons.{uid}"):
                verify_peer(ends.server, uid, 0, PROD, dials=False)


def test_credentials_of_an_old_generation_do_not_meet_those_of_the_new(stream: Stream) -> None:
    old_server, old_client = stream.server, stream.client
    stream.renew(2)
    for server, client in ((old_server, stream.client), (stream.server, old_client)):
        ends = join(server, client, stream.name())
        assert "belongs to another stream" in explain(ends.client_error or AssertionError())
    assert join(stream.server, stream.client, stream.name()).done
    assert join(old_server, old_client, stream.name()).done, "what was agreed on stays agreed on until it is closed"


def test_a_session_is_never_resumed(stream: Stream) -> None:
    first = join(stream.server, stream.client, stream.name())  # kept: a session dies with an unclosed connection
    again = join(stream.server, stream.client, stream.name(), session=first.client.get_session())
    assert again.done
    assert again.server.get_verified_chain(), "a resumed handshake verifies no certificates"
    verify_peer(again.server, stream.uid, 0, PROD, dials=False)
    verify_peer(again.client, stream.uid, 0, CONS, dials=True)


def test_a_resumed_session_would_be_refused(stream: Stream) -> None:
    def lax(bundle: str, secret: StreamSecret) -> SSL.Context:
        context = SSL.Context(SSL.TLS_METHOD)  # the same credentials with OpenSSL's defaults
        authority, leaf = certificates(bundle)
        context.use_certificate(leaf)
        context.use_privatekey(secret._key)
        context.set_session_id(b"lax")
        context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT)
        context.get_cert_store().add_cert(X509.from_cryptography(authority))  # type: ignore[union-attr]
        return context

    server, client = lax(stream.bundles[PROD], stream.producer), lax(stream.bundles[CONS], stream.consumer)
    first = join(server, client, stream.name())
    verify_peer(first.server, stream.uid, 0, PROD, dials=False)
    resumed = join(server, client, stream.name(), session=first.client.get_session())
    assert resumed.done
    with pytest.raises(CertificateError, match="has not shown a certificate"):
        verify_peer(resumed.server, stream.uid, 0, PROD, dials=False)
    with pytest.raises(CertificateError, match="has not shown a certificate"):
        verify_peer(resumed.client, stream.uid, 0, CONS, dials=True)


def test_tls_1_2_is_refused(stream: Stream) -> None:
    old = SSL.Context(SSL.TLS_CLIENT_METHOD)
    old.set_max_proto_version(SSL.TLS1_2_VERSION)
    assert_refused(join(stream.server, old, stream.name()), "does not speak TLS 1.3", "does not speak TLS 1.3")


def test_a_large_write_is_taken_whole(stream: Stream) -> None:
    ends = join(stream.server, stream.client, stream.name())
    assert ends.client.send(b"x" * 300_000) == 300_000


# --- what a gateway makes of a bundle


def test_each_gateway_of_a_side_finds_its_own_certificate() -> None:
    uid = str(uuid4())
    producers, consumers = [StreamSecret() for _ in range(3)], [StreamSecret() for _ in range(2)]
    bundles = issue_credentials(
        uid, 1, 60.0, {PROD: "".join(s.csr for s in producers), CONS: "\n".join(s.csr for s in consumers)}
    )
    assert (len(certificates(bundles[PROD])), len(certificates(bundles[CONS]))) == (4, 3)
    for producer in producers:
        for consumer in consumers:
            server, client = (
                producer.credentials(bundles[PROD], uid, PROD).context(),
                consumer.credentials(bundles[CONS], uid, CONS).context(),
            )
            ends = join(server, client, server_name(uid, 3).encode())
            verify_peer(ends.server, uid, 3, PROD, dials=False)
            verify_peer(ends.client, uid, 3, CONS, dials=True)


def test_one_gateway_can_serve_both_ends_of_a_stream() -> None:
    uid = str(uuid4())
    both = StreamSecret()
    bundles = issue_credentials(uid, 1, 60.0, {PROD: both.csr, CONS: both.csr})
    ends = join(
        both.credentials(bundles[PROD], uid, PROD).context(), both.credentials(bundles[CONS], uid, CONS).context(), None
    )
    assert ends.done


def test_a_bundle_that_does_not_fit_is_refused_and_says_why(stream: Stream) -> None:
    good = certificates(stream.bundles[PROD])
    mine, authority, stranger = stream.producer, Authority.make(), StreamSecret()
    expired = Authority.make()
    key = x509.load_pem_x509_csr(mine.csr.encode()).public_key()
    late = make_leaf(
        "x",
        [x509.DNSName(f"*.prod.{stream.uid}.scistream")],
        [ExtendedKeyUsageOID.SERVER_AUTH],
        key,
        expired.certificate,
        expired.key,
        datetime.now(UTC) - timedelta(minutes=1),
    )
    for bundle, uid, role, why in (
        ("", stream.uid, PROD, "not a bundle of certificates"),
        ("nonsense", stream.uid, PROD, "not a bundle of certificates"),
        ("ünï", stream.uid, PROD, "not a bundle of certificates"),
        (mine.csr, stream.uid, PROD, "not a bundle of certificates"),
        (pem(good[0]), stream.uid, PROD, "none of its 0 certificates"),
        (pem(good[1]), stream.uid, PROD, "not that of an authority"),
        (pem(good[1], good[0]), stream.uid, PROD, "not that of an authority"),
        (pem(authority.certificate, good[1]), stream.uid, PROD, "not signed by the authority"),
        (stream.bundles[PROD], str(uuid4()), PROD, "not for this stream and role"),
        (stream.bundles[PROD], stream.uid, CONS, "not for this stream and role"),
        (stream.bundles[CONS], stream.uid, CONS, "is for the key of this gateway"),
        (pem(expired.certificate, late), stream.uid, PROD, "compare the clocks"),
    ):
        with pytest.raises(StreamError) as refused:
            mine.credentials(bundle, uid, role).context()
        assert refused.value.code == "bad-message"
        assert refused.value.msg.startswith("data_conn_key: ")
        assert why in refused.value.msg
    with pytest.raises(StreamError, match="is for the key of this gateway"):
        stranger.credentials(stream.bundles[PROD], stream.uid, PROD).context()
    mine.credentials(stream.bundles[PROD], stream.uid, PROD).context()


def test_an_authority_that_openssl_cannot_read_is_refused_though_another_library_could(stream: Stream) -> None:
    """A fuzzer found this certificate, whose issuer is not UTF-8."""
    authority, leaf = certificates(stream.bundles[PROD])
    der = authority.public_bytes(serialization.Encoding.DER)
    odd = x509.load_der_x509_certificate(der.replace(b"stream ", b"\xfftream ", 1))
    with pytest.raises(StreamError, match="OpenSSL refuses its certificates") as refused:
        stream.producer.credentials(pem(odd, leaf), stream.uid, PROD).context()
    assert refused.value.code == "bad-message"


def test_a_secret_shows_its_request_and_not_its_key() -> None:
    secret, other = StreamSecret(), StreamSecret()
    request = x509.load_pem_x509_csr(secret.csr.encode())
    assert request.is_signature_valid
    assert request.public_key() != x509.load_pem_x509_csr(other.csr.encode()).public_key()
    assert "PRIVATE" not in secret.csr
    assert "PRIVATE" not in repr(secret)


# --- what a user's client makes of requests


def test_certificates_have_the_names_and_the_life_that_the_user_chose_and_nothing_of_the_request() -> None:
    uid = str(uuid4())
    key = ec.generate_private_key(ec.SECP256R1())
    grasping = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(common_name("root of everything"))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("bank.example")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    bundles = issue_credentials(uid, 2**53, 7200.0, {PROD: pem(grasping), CONS: StreamSecret().csr})
    now = datetime.now(UTC)
    either_end = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    for role, name in ((PROD, f"*.prod.{uid}.scistream"), (CONS, f"cons.{uid}.scistream")):
        authority, leaf = certificates(bundles[role])
        assert authority == certificates(bundles[PROD])[0], "one authority for both sides"
        found = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert list(found) == [x509.DNSName(name)]
        assert list(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == either_end
        assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        assert "everything" not in leaf.subject.rfc4514_string()
        for certificate in (authority, leaf):
            assert abs(certificate.not_valid_before_utc - now + timedelta(hours=1)) < timedelta(minutes=1)
            assert abs(certificate.not_valid_after_utc - now - timedelta(hours=3)) < timedelta(minutes=1)


def test_each_stream_and_generation_has_an_authority_of_its_own(stream: Stream) -> None:
    first = certificates(stream.bundles[PROD])[0]
    stream.renew(2)
    assert certificates(stream.bundles[PROD])[0].public_key() != first.public_key()


BEGIN, END = "-----BEGIN CERTIFICATE REQUEST-----", "-----END CERTIFICATE REQUEST-----"


def request_of(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> str:
    return pem(x509.CertificateSigningRequestBuilder().subject_name(common_name("x")).sign(key, hashes.SHA256()))


def forged() -> str:
    """Return a request with one key and the signature of another: its sender does not have the key."""
    der = bytearray(x509.load_pem_x509_csr(StreamSecret().csr.encode()).public_bytes(serialization.Encoding.DER))
    der[-1] ^= 1
    return pem(x509.load_der_x509_csr(bytes(der)))


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: "", "no certificate requests"),
        (lambda: "nonsense", "no certificate requests"),
        (lambda: StreamSecret().csr + "and more", "no certificate requests"),
        (lambda: StreamSecret().csr.replace("M", "!", 1), "no certificate requests"),
        (lambda: StreamSecret().csr.replace("CERTIFICATE REQUEST", "CERTIFICATE"), "no certificate requests"),
        (lambda: f"{BEGIN}\nMIIB\n{END}\n", "cannot be read"),
        (lambda: f"{BEGIN}\n{END}\n", "cannot be read"),
        (forged, "signature is wrong"),
        (lambda: StreamSecret().csr + forged(), "signature is wrong"),
        (lambda: request_of(ec.generate_private_key(ec.SECP384R1())), "P-256"),
        (lambda: request_of(rsa.generate_private_key(65537, 1024)), "P-256"),
        (lambda: StreamSecret().csr * (MAX_GATEWAYS + 1), "at most 64"),
    ],
)
def test_requests_that_are_not_sound_are_refused_by_the_side_that_sent_them(make: object, why: str) -> None:
    good, bad = StreamSecret().csr, make()  # type: ignore[operator]
    for csr, side in (({PROD: bad, CONS: good}, "producer"), ({PROD: good, CONS: bad}, "consumer")):
        requests: Mapping[Role, str] = csr
        with pytest.raises(StreamError) as refused:
            issue_credentials(str(uuid4()), 1, 60.0, requests)
        assert refused.value.code == "gateway-failed"
        assert why in refused.value.msg
        assert side in refused.value.msg


def test_as_many_gateways_as_a_bundle_may_have_fit_into_a_message() -> None:
    full = StreamSecret().csr * MAX_GATEWAYS
    bundles = issue_credentials(str(uuid4()), 1, 60.0, {PROD: full, CONS: full})
    assert all(len(bundle) < 131072 for bundle in bundles.values())

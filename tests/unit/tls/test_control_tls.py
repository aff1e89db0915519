"""TLS on control links: who is accepted, under which identity, and what the user is told on failure."""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from OpenSSL import SSL
from twisted.internet import error
from twisted.internet.defer import succeed
from twisted.internet.interfaces import IHandshakeListener
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from zope.interface import implementer

from scistream.pki.authority import fingerprint, init_authority, issue
from scistream.tls import contexts, endpoints, explain, files, verify
from scistream.tls.files import CertificateError
from scistream.tls.verify import Identity
from support.memory_tls import CLIENT, Authority, Joined, join, say, self_signed_leaf, store

HOST = "s2cs.example.org"


class Facility:
    """Files with an authority and certificates of each kind."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ca = init_authority(directory, "Example").certificate
        self.server = issue(directory, "server", HOST, ["127.0.0.1", "::1"])
        self.user = issue(directory, "user", "ada@example.org")
        self.controller = issue(directory, "controller", "s2cs")
        self.pin = fingerprint(self.ca.read_bytes())

    def server_context(self, client_certificate: str = "required") -> SSL.Context:
        return contexts.server_context(
            self.server.certificate,
            self.server.key,
            [self.ca],
            client_certificate=client_certificate,  # type: ignore[arg-type]
        )

    def client_context(self) -> SSL.Context:
        return contexts.client_context(self.user.certificate, self.user.key, [self.ca])

    def serve(self, *chain: x509.Certificate, key: object) -> SSL.Context:
        """Return a server with a chain that no tool here would issue."""
        certificate, key_file = store(self.directory, chain, key)
        return contexts.server_context(certificate, key_file, [self.ca], client_certificate="optional")


@pytest.fixture(scope="module")
def facility(tmp_path_factory: pytest.TempPathFactory) -> Facility:
    return Facility(tmp_path_factory.mktemp("facility") / "pki")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Facility:
    return Facility(tmp_path_factory.mktemp("other") / "pki")


def names_of_dns(*names: str) -> list[x509.GeneralName]:
    return [x509.DNSName(name) for name in names]


# --- the handshake and the identities


def test_both_ends_know_each_other_and_can_talk(facility: Facility) -> None:
    ends = join(facility.server_context(), facility.client_context(), HOST.encode())
    assert ends.done
    assert ends.client.get_protocol_version_name() == "TLSv1.3"
    verify.verify_server(ends.client, HOST)
    spki = x509.load_pem_x509_certificate(facility.ca.read_bytes()).public_key()
    der = spki.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    assert verify.verify_client(ends.server) == Identity(
        issuer="sha256:" + hashlib.sha256(der).hexdigest(), name="ada@example.org"
    )
    assert say(ends.client, ends.server, b"hello\n") == b"hello\n"
    assert say(ends.server, ends.client, b"hello yourself\n") == b"hello yourself\n"


def test_a_controller_is_known_by_its_uri_and_authority(facility: Facility, other: Facility) -> None:
    def identity(home: Facility) -> Identity | None:
        context = contexts.client_context(home.controller.certificate, home.controller.key, [home.ca])
        return verify.verify_client(join(home.server_context(), context).server)

    here, there = identity(facility), identity(other)
    assert here is not None
    assert there is not None
    assert here.name == there.name == "scistream:controller:s2cs"
    assert here.issuer != there.issuer
    assert str(here) == f"scistream:controller:s2cs ({here.issuer})"


def test_several_authorities_can_be_trusted_in_one_file_or_many(
    facility: Facility, other: Facility, tmp_path: Path
) -> None:
    both = tmp_path / "both.pem"
    both.write_bytes(facility.ca.read_bytes() + other.ca.read_bytes())
    for authorities in ([both], [facility.ca, other.ca]):
        server = contexts.server_context(
            facility.server.certificate, facility.server.key, authorities, client_certificate="required"
        )
        for home in (facility, other):
            context = contexts.client_context(home.user.certificate, home.user.key, authorities)
            found = verify.verify_client(join(server, context).server)
            assert found is not None
            assert found.name == "ada@example.org"


def test_a_client_without_a_certificate_is_nobody_where_that_is_allowed_and_refused_elsewhere(
    facility: Facility,
) -> None:
    bare = contexts.client_context(None, None, [facility.ca])
    allowed = join(facility.server_context("optional"), bare)
    assert allowed.done
    assert verify.verify_client(allowed.server) is None
    refused = join(facility.server_context("required"), bare)
    assert refused.server_error is not None
    assert refused.client_error is not None
    assert "sent no client certificate" in explain.explain(refused.server_error)
    assert "asks for a client certificate" in explain.explain(refused.client_error)


@pytest.mark.parametrize("rule", ["required", "optional"])
def test_a_clients_certificate_of_an_authority_that_is_not_trusted_is_refused(
    facility: Facility, other: Facility, rule: str
) -> None:
    stranger = contexts.client_context(other.user.certificate, other.user.key, [facility.ca])
    refused = join(facility.server_context(rule), stranger)
    assert refused.server_error is not None
    assert refused.client_error is not None
    assert "not in `authorities`" in explain.explain(refused.server_error)
    assert "does not trust the authority of our certificate" in explain.explain(refused.client_error)
    assert join(facility.server_context(rule), facility.client_context()).done


def test_a_server_of_an_authority_that_is_not_trusted_is_refused(facility: Facility, other: Facility) -> None:
    refused = join(other.server_context("optional"), facility.client_context())
    assert refused.client_error is not None
    assert "not in `authorities`" in explain.explain(refused.client_error)
    assert "CN=s" in explain.explain(refused.client_error).replace("SciStream", "s")


def test_expired_certificates_are_refused_on_both_sides(facility: Facility) -> None:
    authority = Authority.load(facility.directory)

    def server(left: timedelta) -> SSL.Context:
        leaf, key = authority.leaf(*names_of_dns(HOST), left=left)
        return facility.serve(leaf, authority.certificate, key=key)

    def client(left: timedelta) -> SSL.Context:
        leaf, key = authority.leaf(x509.RFC822Name("old@example.org"), usage=CLIENT, left=left)
        return contexts.client_context(
            *store(facility.directory, [leaf, authority.certificate], key, "old"), [facility.ca]
        )

    past, future = timedelta(minutes=-5), timedelta(minutes=5)
    refused = join(server(past), facility.client_context())
    assert "expired" in explain.explain(refused.client_error or AssertionError())
    refused = join(facility.server_context(), client(past))
    assert "expired" in explain.explain(refused.server_error or AssertionError())
    assert "have a new one issued" in explain.explain(refused.client_error or AssertionError())
    assert join(server(future), client(future)).done


def test_a_certificate_is_good_for_its_own_purpose_only(facility: Facility) -> None:
    pretender = contexts.server_context(
        facility.user.certificate, facility.user.key, [facility.ca], client_certificate="optional"
    )
    refused = join(pretender, facility.client_context())
    assert "another purpose" in explain.explain(refused.client_error or AssertionError())
    reverse = contexts.client_context(facility.server.certificate, facility.server.key, [facility.ca])
    refused = join(facility.server_context(), reverse)
    assert "another purpose" in explain.explain(refused.server_error or AssertionError())
    assert "another purpose" in explain.explain(refused.client_error or AssertionError())


@pytest.mark.parametrize("host", [HOST, HOST.upper(), HOST + ".", "127.0.0.1", "::1", "0:0::1", "::1%lo"])
def test_a_server_is_taken_for_each_of_its_names(facility: Facility, host: str) -> None:
    ends = join(facility.server_context(), facility.client_context())
    verify.verify_server(ends.client, host)
    pinned = join(facility.server_context("optional"), contexts.pinned_client_context())
    verify.verify_pinned_server(pinned.client, host, facility.pin)


@pytest.mark.parametrize("host", ["example.org", "x." + HOST, "127.0.0.2", "::2", "localhost", "12", "a b", ""])
def test_a_server_is_taken_for_nobody_else(facility: Facility, host: str) -> None:
    ends = join(facility.server_context(), facility.client_context())
    with pytest.raises(CertificateError, match=rf"should be {host}, .* is for {HOST}, 127\.0\.0\.1, ::1"):
        verify.verify_server(ends.client, host)
    pinned = join(facility.server_context("optional"), contexts.pinned_client_context())
    with pytest.raises(CertificateError, match="should be"):
        verify.verify_pinned_server(pinned.client, host, facility.pin)


def test_a_server_may_have_uris_beside_its_host_names(facility: Facility) -> None:
    authority = Authority.load(facility.directory)
    uri = x509.UniformResourceIdentifier("scistream:user:both")
    leaf, key = authority.leaf(x509.DNSName(HOST), uri)
    ends = join(facility.serve(leaf, key=key), facility.client_context())
    verify.verify_server(ends.client, HOST)
    leaf, key = authority.leaf(uri)
    ends = join(facility.serve(leaf, key=key), facility.client_context())
    with pytest.raises(CertificateError, match="is for scistream:user:both"):
        verify.verify_server(ends.client, HOST)


@pytest.mark.parametrize(
    ("names", "good"),
    [
        ([x509.RFC822Name("ada@example.org")], True),
        ([x509.DNSName("host.example.org"), x509.UniformResourceIdentifier("scistream:user:ada")], True),
        ([x509.DNSName("host.example.org")], False),
        ([x509.RFC822Name("ada@example.org"), x509.RFC822Name("bob@example.org")], False),
        ([x509.RFC822Name("ada@example.org"), x509.UniformResourceIdentifier("scistream:user:ada")], False),
        ([x509.UniformResourceIdentifier("scistream:user:ada\nadmin")], False),
    ],
)
def test_a_client_has_exactly_one_name(facility: Facility, names: list[x509.GeneralName], good: bool) -> None:
    authority = Authority.load(facility.directory)
    leaf, key = authority.leaf(*names, usage=CLIENT)
    context = contexts.client_context(*store(facility.directory, [leaf], key, "named"), [facility.ca])
    ends = join(facility.server_context(), context)
    assert ends.done
    if good:
        found = verify.verify_client(ends.server)
        assert found is not None
        assert "ada" in found.name
    else:
        with pytest.raises(CertificateError, match="exactly one URI or e-mail address") as refused:
            verify.verify_client(ends.server)
        assert "\n" not in str(refused.value)


# --- version, ALPN, resumption


def dialer(facility: Facility, *protocols: bytes, version: int = SSL.TLS1_3_VERSION) -> SSL.Context:
    """Return a client of our authority that is not one of ours."""
    context = SSL.Context(SSL.TLS_METHOD)
    context.use_certificate_chain_file(str(facility.user.certificate))
    context.use_privatekey_file(str(facility.user.key))
    context.load_verify_locations(str(facility.ca))
    context.set_verify(SSL.VERIFY_PEER)
    context.set_max_proto_version(version)
    if protocols:
        context.set_alpn_protos(list(protocols))
    return context


def test_tls_1_2_is_refused(facility: Facility) -> None:
    assert join(facility.server_context(), dialer(facility, contexts.ALPN)).done
    refused = join(facility.server_context(), dialer(facility, contexts.ALPN, version=SSL.TLS1_2_VERSION))
    assert "does not speak TLS 1.3" in explain.explain(refused.client_error or AssertionError())
    assert "does not speak TLS 1.3" in explain.explain(refused.server_error or AssertionError())


def test_a_client_that_offers_other_protocols_only_is_refused_in_the_handshake(facility: Facility) -> None:
    refused = join(facility.server_context(), dialer(facility, b"h2", b"scistream/9"))
    assert "does not speak scistream/1" in explain.explain(refused.client_error or AssertionError())
    assert "does not speak scistream/1" in explain.explain(refused.server_error or AssertionError())
    ends = join(facility.server_context(), dialer(facility, b"scistream/9", contexts.ALPN))
    assert ends.done
    assert verify.verify_client(ends.server) is not None


def test_a_far_end_without_alpn_is_refused_after_the_handshake(facility: Facility) -> None:
    ends = join(facility.server_context(), dialer(facility))
    with pytest.raises(CertificateError, match="does not speak scistream/1"):
        verify.verify_client(ends.server)
    silent = SSL.Context(SSL.TLS_METHOD)
    silent.use_certificate_chain_file(str(facility.server.certificate))
    silent.use_privatekey_file(str(facility.server.key))
    ends = join(silent, facility.client_context())
    with pytest.raises(CertificateError, match="does not speak scistream/1"):
        verify.verify_server(ends.client, HOST)
    ends = join(silent, contexts.pinned_client_context())
    with pytest.raises(CertificateError, match="does not speak scistream/1"):
        verify.verify_pinned_server(ends.client, HOST, facility.pin)


def test_a_session_cannot_be_resumed(facility: Facility) -> None:
    server, client = facility.server_context(), facility.client_context()
    first = join(server, client)  # kept, since a session dies with a connection that was not closed
    again = join(server, client, session=first.client.get_session())
    assert again.done
    assert verify.verify_client(again.server) is not None
    verify.verify_server(again.client, HOST)

    lax = SSL.Context(SSL.TLS_SERVER_METHOD)  # the same server, had it kept OpenSSL's defaults
    lax.use_certificate_chain_file(str(facility.server.certificate))
    lax.use_privatekey_file(str(facility.server.key))
    lax.load_verify_locations(str(facility.ca))
    lax.set_session_id(b"lax")
    lax.set_verify(SSL.VERIFY_PEER)
    lax.set_alpn_select_callback(lambda *_: contexts.ALPN)
    first = join(lax, client)
    resumed = join(lax, client, session=first.client.get_session())
    assert resumed.done
    with pytest.raises(CertificateError, match="has not shown a certificate"):
        verify.verify_server(resumed.client, HOST)
    with pytest.raises(CertificateError, match="has not shown a certificate"):
        verify.verify_client(resumed.server)


def test_a_context_that_does_not_verify_proves_nothing(facility: Facility) -> None:
    ends = join(facility.server_context("optional"), contexts.pinned_client_context())
    with pytest.raises(CertificateError, match="has not shown a certificate"):
        verify.verify_server(ends.client, HOST)


# --- the pinned authority


def pinned(server: SSL.Context) -> SSL.Connection:
    ends = join(server, contexts.pinned_client_context(), HOST.encode())
    assert ends.done, "the handshake of a pinned client trusts whoever answers"
    return ends.client


def test_a_pinned_authority_is_enough_to_know_a_server(facility: Facility) -> None:
    server = facility.server_context("optional")
    verify.verify_pinned_server(pinned(server), HOST, facility.pin)
    verify.verify_pinned_server(pinned(server), HOST, facility.pin.upper())


def test_a_server_of_another_authority_is_not_the_pinned_one(facility: Facility, other: Facility) -> None:
    with pytest.raises(CertificateError, match="None of the 2 certificates"):
        verify.verify_pinned_server(pinned(other.server_context("optional")), HOST, facility.pin)


def test_a_chain_that_merely_contains_the_pinned_authority_is_refused(facility: Facility) -> None:
    real, mallory = Authority.load(facility.directory), Authority.make("mallory")
    leaf, key = mallory.leaf(*names_of_dns(HOST))
    for chain in ([leaf, real.certificate], [leaf, mallory.certificate, real.certificate]):
        with pytest.raises(CertificateError, match="does not lead to the pinned authority"):
            verify.verify_pinned_server(pinned(facility.serve(*chain, key=key)), HOST, facility.pin)
    honest, key = real.leaf(*names_of_dns(HOST))
    server = facility.serve(honest, mallory.certificate, real.certificate, key=key)
    verify.verify_pinned_server(pinned(server), HOST, facility.pin)


def test_an_authority_of_the_same_name_as_the_pinned_one_is_refused(facility: Facility) -> None:
    real = Authority.load(facility.directory)
    forger = Authority.make()
    forged = Authority(real.certificate, forger.key)  # issues in the real one's name, with another key
    leaf, key = forged.leaf(*names_of_dns(HOST))
    with pytest.raises(CertificateError, match="does not lead to the pinned authority"):
        verify.verify_pinned_server(pinned(facility.serve(leaf, real.certificate, key=key)), HOST, facility.pin)


def test_a_pinned_certificate_that_is_no_authority_is_refused(facility: Facility) -> None:
    leaf, key = self_signed_leaf(HOST)
    with pytest.raises(CertificateError, match="not a server certificate of the pinned authority"):
        verify.verify_pinned_server(pinned(facility.serve(leaf, key=key)), HOST, fingerprint(leaf))
    own = fingerprint(facility.server.certificate.read_bytes())
    with pytest.raises(CertificateError, match="not a server certificate of the pinned authority"):
        verify.verify_pinned_server(pinned(facility.server_context("optional")), HOST, own)


def test_the_pinned_authority_itself_is_no_server(facility: Facility) -> None:
    real = Authority.load(facility.directory)
    server = facility.serve(real.certificate, key=real.key)
    with pytest.raises(CertificateError, match="not a server certificate of the pinned authority"):
        verify.verify_pinned_server(pinned(server), HOST, facility.pin)


def test_a_users_certificate_of_the_pinned_authority_is_no_servers(facility: Facility) -> None:
    real = Authority.load(facility.directory)
    leaf, key = real.leaf(*names_of_dns(HOST), usage=CLIENT)
    with pytest.raises(CertificateError, match="not a server certificate"):
        verify.verify_pinned_server(pinned(facility.serve(leaf, real.certificate, key=key)), HOST, facility.pin)
    leaf, key = real.leaf(*names_of_dns(HOST))
    verify.verify_pinned_server(pinned(facility.serve(leaf, real.certificate, key=key)), HOST, facility.pin)


def test_an_expired_certificate_of_the_pinned_authority_is_refused(facility: Facility) -> None:
    real = Authority.load(facility.directory)
    leaf, key = real.leaf(*names_of_dns(HOST), left=timedelta(minutes=-5))
    with pytest.raises(CertificateError, match="expired"):
        verify.verify_pinned_server(pinned(facility.serve(leaf, real.certificate, key=key)), HOST, facility.pin)


def test_a_certificate_that_a_pinned_authoritys_leaf_has_signed_is_refused(facility: Facility) -> None:
    real = Authority.load(facility.directory)
    middle, middle_key = real.leaf(*names_of_dns("middle.example.org"))
    leaf, key = Authority(middle, middle_key).leaf(*names_of_dns(HOST))
    with pytest.raises(CertificateError, match="does not lead to the pinned authority"):
        verify.verify_pinned_server(pinned(facility.serve(leaf, middle, real.certificate, key=key)), HOST, facility.pin)


# --- files


def both_contexts(certificate: Path, key: Path, authorities: list[Path]) -> list[Callable[[], SSL.Context]]:
    return [
        lambda: contexts.server_context(certificate, key, authorities, client_certificate="required"),
        lambda: contexts.client_context(certificate, key, authorities),
    ]


def test_files_that_are_missing_or_nonsense_are_named_with_the_setting(facility: Facility, tmp_path: Path) -> None:
    cert, key, ca = facility.user.certificate, facility.user.key, facility.ca
    gone, nonsense = tmp_path / "gone.pem", tmp_path / "nonsense.pem"
    nonsense.write_text("-----BEGIN NONSENSE-----\n")
    nonsense.chmod(0o600)
    for bad, setting, make in (
        (gone, "certificate", both_contexts(gone, key, [ca])),
        (gone, "key", both_contexts(cert, gone, [ca])),
        (gone, "authorities", both_contexts(cert, key, [ca, gone])),
        (nonsense, "certificate", both_contexts(nonsense, key, [ca])),
        (nonsense, "key", both_contexts(cert, nonsense, [ca])),
        (nonsense, "authorities", both_contexts(cert, key, [nonsense])),
        (tmp_path, "key", both_contexts(cert, tmp_path, [ca])),
    ):
        for build in make:
            with pytest.raises(CertificateError) as refused:
                build()
            assert str(bad) in str(refused.value)
            assert f"`{setting}`" in str(refused.value)
            assert str(refused.value).endswith(".")
    for build in both_contexts(cert, key, [ca]):
        build()


def test_a_key_of_another_certificate_is_refused(facility: Facility) -> None:
    for build in both_contexts(facility.user.certificate, facility.server.key, [facility.ca]):
        with pytest.raises(CertificateError, match="does not belong to"):
            build()


NOBODY = 65534


@pytest.mark.parametrize(
    ("mode", "owner"),
    [
        *((mode, owner) for mode in (0o604, 0o660, 0o644, 0o601, 0o444) for owner in (0, NOBODY)),
        *((mode, NOBODY) for mode in (0o640, 0o440, 0o610)),
    ],
)
def test_a_private_key_that_others_may_use_is_refused_until_chmod_600(
    facility: Facility, tmp_path: Path, mode: int, owner: int
) -> None:
    key = tmp_path / "loose.key"
    key.write_bytes(facility.user.key.read_bytes())
    if os.geteuid() == 0:
        os.chown(key, owner, -1)
    elif owner != 0:
        pytest.skip("another owner takes root; this user's own files stand for them above")
    key.chmod(mode)
    for build in both_contexts(facility.user.certificate, key, [facility.ca]):
        with pytest.raises(CertificateError, match=f"mode {mode:04o}.*chmod 600 {key}"):
            build()
    key.chmod(0o600)
    for build in both_contexts(facility.user.certificate, key, [facility.ca]):
        build()


@pytest.mark.parametrize("mode", [0o640, 0o440, 0o600, 0o400])
@pytest.mark.skipif(os.geteuid() != 0, reason="it takes root to have a file of root's")
def test_a_private_key_of_root_s_may_be_read_by_the_group_of_the_service(facility: Facility, mode: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        key = Path(folder) / "service.key"
        key.write_bytes(facility.user.key.read_bytes())
        os.chown(key, 0, NOBODY)
        key.chmod(mode)
        Path(folder).chmod(0o755)
        for build in both_contexts(facility.user.certificate, key, [facility.ca]):
            build()
        service = os.fork()
        if service == 0:
            os._exit(_as_nobody(key))
        assert os.waitstatus_to_exitcode(os.waitpid(service, 0)[1]) == (0 if mode & 0o040 else 3)


def _as_nobody(key: Path) -> int:
    """Read the key as another user in the service's group; return 0 if that works, 3 if it is refused."""
    try:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        files.load_key(key)
    except CertificateError as problem:
        return 3 if "could not be read: Permission denied" in str(problem) else 4
    except BaseException:
        return 5
    return 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_this_user_may_not_read_is_named(facility: Facility, tmp_path: Path) -> None:
    secret = tmp_path / "secret.pem"
    secret.write_bytes(facility.ca.read_bytes())
    secret.chmod(0)
    with pytest.raises(CertificateError, match=r"secret\.pem could not be read"):
        contexts.client_context(None, None, [secret])


def test_a_locked_key_is_refused(facility: Facility, tmp_path: Path) -> None:
    key = serialization.load_pem_private_key(facility.user.key.read_bytes(), None)
    locked = tmp_path / "locked.key"
    locked.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    locked.chmod(0o600)
    with pytest.raises(CertificateError, match="passphrase"):
        contexts.client_context(facility.user.certificate, locked, [facility.ca])


def test_a_context_needs_authorities_and_both_files_or_neither(facility: Facility) -> None:
    with pytest.raises(CertificateError, match="`authorities`"):
        contexts.client_context(None, None, [])
    with pytest.raises(CertificateError, match="not the certificate of an authority"):
        contexts.client_context(None, None, [facility.server.certificate])
    for certificate, key in ((facility.user.certificate, None), (None, facility.user.key)):
        with pytest.raises(CertificateError, match="both"):
            contexts.client_context(certificate, key, [facility.ca])


# --- Twisted


@implementer(IHandshakeListener)
class Greeter(Protocol):
    """A protocol that checks its peer after the handshake, and greets it only then."""

    verify: Callable[[SSL.Connection], object]
    seen: object = None
    heard = b""
    lost: Failure | None = None

    def handshakeCompleted(self) -> None:
        assert self.transport is not None
        self.seen = self.verify(self.transport.getHandle())
        self.transport.write(b"greetings")

    def dataReceived(self, data: bytes) -> None:
        self.heard += data

    def connectionLost(self, reason: Failure | None = None) -> None:
        self.lost = reason


class Greeters(Factory):
    def __init__(self, verify: Callable[[SSL.Connection], object]) -> None:
        self.verify = verify
        self.made: list[Greeter] = []

    def buildProtocol(self, addr: object) -> Greeter:
        made = Greeter()
        made.verify = self.verify
        self.made.append(made)
        return made


class DialOnce:
    """An endpoint whose connection is a `StringTransport`."""

    def __init__(self) -> None:
        self.transport = StringTransport()

    def connect(self, factory: Factory) -> object:
        self.protocol = factory.buildProtocol(None)
        self.protocol.makeConnection(self.transport)  # type: ignore[union-attr]
        return succeed(self.protocol)


def test_twisted_protocols_meet_over_wrapped_endpoints_and_factories(facility: Facility) -> None:
    clock = Clock()
    servers, clients = Greeters(verify.verify_client), Greeters(lambda c: verify.verify_server(c, HOST))
    server = endpoints.wrap_server_factory(facility.server_context(), servers, clock).buildProtocol(None)  # type: ignore[arg-type]
    far = StringTransport()
    server.makeConnection(far)
    endpoint = DialOnce()
    dialled: list[object] = []
    wrapped = endpoints.wrap_client_endpoint(facility.client_context(), HOST, endpoint, clock)  # type: ignore[arg-type]
    wrapped.connect(clients).addCallback(dialled.append)
    assert dialled == clients.made, "the endpoint gives the inner protocol"
    for _ in range(6):
        clock.advance(0)
        for source, sink in ((endpoint.transport, server), (far, endpoint.protocol)):
            data = source.value()
            source.clear()
            if data:
                sink.dataReceived(data)  # type: ignore[union-attr]
    assert isinstance(servers.made[0].seen, Identity)
    assert servers.made[0].seen.name == "ada@example.org"
    assert servers.made[0].heard == clients.made[0].heard == b"greetings"
    handle = servers.made[0].transport.getHandle()  # type: ignore[union-attr]
    assert handle.get_servername() == HOST.encode()


@pytest.mark.parametrize(
    ("host", "expected"),
    [(HOST, HOST.encode()), (HOST + ".", HOST.encode()), ("127.0.0.1", None), ("::1", None), ("fe80::1%eth0", None)],
)
def test_a_server_name_is_sent_for_names_and_not_for_addresses(
    facility: Facility, host: str, expected: bytes | None
) -> None:
    client = endpoints.ClientTLS(facility.client_context(), host).clientConnectionForTLS(None)  # type: ignore[arg-type]
    server = endpoints.ServerTLS(facility.server_context()).serverConnectionForTLS(None)  # type: ignore[arg-type]
    with pytest.raises(SSL.WantReadError):
        client.do_handshake()
    server.bio_write(client.bio_read(1 << 16))
    with pytest.raises(SSL.WantReadError):
        server.do_handshake()
    assert server.get_servername() == expected


def test_a_wrapped_link_that_fails_tells_its_protocol_why(facility: Facility, other: Facility) -> None:
    clock = Clock()
    clients = Greeters(lambda c: verify.verify_server(c, HOST))
    endpoint = DialOnce()
    endpoints.wrap_client_endpoint(facility.client_context(), HOST, endpoint, clock).connect(clients)  # type: ignore[arg-type]
    server = SSL.Connection(other.server_context("optional"), None)
    server.set_accept_state()
    server.bio_write(endpoint.transport.value())
    with pytest.raises(SSL.WantReadError):
        server.do_handshake()
    endpoint.protocol.dataReceived(server.bio_read(1 << 16))  # type: ignore[union-attr]
    endpoint.protocol.connectionLost(Failure(error.ConnectionDone()))  # type: ignore[union-attr]
    (made,) = clients.made
    assert made.lost is not None
    assert "not in `authorities`" in explain.explain(made.lost)
    assert made.heard == b""


def test_no_reactor_is_imported_or_asked_for(facility: Facility) -> None:
    program = """
import sys
from pathlib import Path
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock
from scistream.tls import contexts, endpoints, stream_channels
context = contexts.client_context(None, None, [Path(sys.argv[1])])
endpoints.wrap_server_factory(context, Factory(), Clock())
endpoints.wrap_client_endpoint(context, "host", None, Clock())
sys.exit("twisted.internet.reactor" in sys.modules)
"""
    root = Path(verify.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program, str(facility.ca)], cwd=root, check=False, timeout=60)
    assert done.returncode == 0


# --- explanations


def alert(words: str) -> SSL.Error:
    return SSL.Error([("SSL routines", "", words)])


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        (CertificateError("As it says."), "As it says."),
        (alert("tlsv13 alert certificate required"), "asks for a client certificate"),
        (alert("tlsv1 alert unknown ca"), "does not trust the authority"),
        (alert("sslv3 alert certificate expired"), "expired"),
        (alert("ssl/tls alert certificate expired"), "expired"),
        (alert("tls alert unsupported certificate"), "another purpose"),
        (alert("tlsv1 alert no application protocol"), "scistream/1"),
        (alert("tlsv1 alert protocol version"), "TLS 1.3"),
        (alert("tlsv1 alert user cancelled"), "saying 'user cancelled'"),
        (alert("wrong version number"), "does not speak TLS"),
        (alert("http request"), "does not speak TLS"),
        (alert("something new"), "something new"),
        (SSL.Error([]), "closed the connection"),
        (SSL.Error(), "closed the connection"),
        (SSL.SysCallError(-1, "Unexpected EOF"), "closed the connection"),
        (error.ConnectionRefusedError(), "refused"),
        (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), "refused"),
        (error.TimeoutError(), "no answer in time"),
        (error.TCPTimedOutError(), "no answer in time"),
        (TimeoutError(), "no answer in time"),
        (error.DNSLookupError(), "host name could not be resolved"),
        (socket.gaierror(-2, "Name or service not known"), "host name could not be resolved"),
        (error.NoRouteError(), "no route"),
        (OSError(errno.EHOSTUNREACH, "No route to host"), "no route"),
        (error.ConnectError(errno.EHOSTUNREACH, "No route to host"), "no route"),
        (OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address"), "Cannot assign requested address"),
        (error.ConnectionLost(), "closed the connection"),
        (error.ConnectionDone(), "closed the connection"),
        (ConnectionResetError(), "closed the connection"),
        (RuntimeError(), "RuntimeError"),
    ],
)
def test_a_failure_is_explained_in_one_readable_line(problem: Exception, words: str) -> None:
    for given in (problem, Failure(problem)):
        said = explain.explain(given)
        assert words in said
        assert "\n" not in said


def test_what_a_hostile_certificate_says_cannot_forge_log_lines(facility: Facility) -> None:
    mallory = Authority.make("innocent\nERROR forged line " + "x" * 30)
    leaf, key = mallory.leaf(*names_of_dns(HOST))
    refused: Joined = join(facility.serve(leaf, mallory.certificate, key=key), facility.client_context())
    said = explain.explain(refused.client_error or AssertionError())
    assert "innocent?ERROR" in said
    assert "\n" not in said

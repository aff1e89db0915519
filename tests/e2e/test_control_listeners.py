"""Which peers the control listeners of S2CS and S2DS accept: each wrong certificate beside a right one."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from harness import World
from raw_peers import CLIENT, HOUR, SERVER, Chain, RawLink, Signer, self_signed

from scistream.pki.authority import Issued
from scistream.protocol.address import Address
from support.facilities import CONTROLLER

pytestmark = pytest.mark.usefixtures("nothing_left")

ADA = x509.UniformResourceIdentifier("scistream:user:ada")
OURS = x509.UniformResourceIdentifier(f"scistream:controller:{CONTROLLER}")


@dataclass(frozen=True)
class Listener:
    """A control listener.

    :param server: the authority of its own certificate; `clients`: the folder of the one that it trusts.
    :param right: whom it serves.
    """

    address: Address
    server: Path
    clients: Path
    right: x509.GeneralName
    welcome: Issued

    def serves(
        self, issued: Issued | None, *, alpn: Sequence[str] = ("scistream/1",), newest: ssl.TLSVersion | None = None
    ) -> bool:
        """Return True if a client with this certificate gets an answer that is no refusal."""
        version = newest or ssl.TLSVersion.MAXIMUM_SUPPORTED
        try:
            with RawLink(self.address, self.server, issued, alpn=alpn, newest=version) as link:
                link.say("Status", uid=None, role=None, seq=1)
                answer = link.hear()
        except (ssl.SSLError, ConnectionError):
            return False
        return answer is not None and answer["cmd"] == "RESP"


@pytest.fixture(params=["s2cs", "s2ds"])
def listener(request: pytest.FixtureRequest, world: World) -> Listener:
    """Each control listener of a facility."""
    users, pki = world.folder / "users", world.lab.pki
    if request.param == "s2cs":
        ada = Issued(users / "ada.pem", users / "ada.key")
        return Listener(world.lab.server.address, world.lab.authority, users, ADA, ada)
    controller = Issued(pki / f"{CONTROLLER}.pem", pki / f"{CONTROLLER}.key")
    return Listener(world.lab.gateways[0].address, world.lab.authority, pki, OURS, controller)


def by_another_authority(listener: Listener) -> Chain:
    return Signer().sign([listener.right], CLIENT)


def by_one_of_the_same_name(listener: Listener) -> Chain:
    return Signer(Signer.of(listener.clients).certificate).sign([listener.right], CLIENT)


def expired(listener: Listener) -> Chain:
    return Signer.of(listener.clients).sign([listener.right], CLIENT, begins=-2 * HOUR, ends=-timedelta(minutes=1))


def not_yet_valid(listener: Listener) -> Chain:
    return Signer.of(listener.clients).sign([listener.right], CLIENT, begins=HOUR, ends=2 * HOUR)


def signed_by_itself(listener: Listener) -> Chain:
    return self_signed([listener.right], CLIENT)


def signed_by_a_leaf(listener: Listener) -> Chain:
    leaf = Signer.of(listener.clients).sign([listener.right], CLIENT)
    forged = Signer(leaf.certificates[0], leaf.key).sign([listener.right], CLIENT)
    return Chain((*forged.certificates, leaf.certificates[1]), forged.key)


def by_an_authority_below_the_one_that_signs_leaves_only(listener: Listener) -> Chain:
    below = Signer.of(listener.clients).sign([], None)
    long = Signer(below.certificates[0], below.key).sign([listener.right], CLIENT)
    return Chain((*long.certificates, below.certificates[1]), long.key)


def beside_the_authority_that_did_not_sign_it(listener: Listener) -> Chain:
    other = Signer().sign([listener.right], CLIENT)
    return Chain((*other.certificates, Signer.of(listener.clients).certificate), other.key)


def a_servers(listener: Listener) -> Chain:
    return Signer.of(listener.clients).sign([listener.right], SERVER)


def an_authoritys_own(listener: Listener) -> Chain:
    signer = Signer.of(listener.clients)
    return Chain((signer.certificate,), signer.key)


def of_no_name(listener: Listener) -> Chain:
    return Signer.of(listener.clients).sign([], CLIENT)


def of_a_host_name(listener: Listener) -> Chain:
    return Signer.of(listener.clients).sign([x509.DNSName("ada.lab.example")], CLIENT)


def of_two_names(listener: Listener) -> Chain:
    return Signer.of(listener.clients).sign([listener.right, x509.RFC822Name("eve@lab.example")], CLIENT)


WRONG = [
    by_another_authority,
    by_one_of_the_same_name,
    expired,
    not_yet_valid,
    signed_by_itself,
    signed_by_a_leaf,
    by_an_authority_below_the_one_that_signs_leaves_only,
    beside_the_authority_that_did_not_sign_it,
    a_servers,
    an_authoritys_own,
    of_no_name,
    of_a_host_name,
    of_two_names,
]


@pytest.mark.parametrize("make", WRONG)
def test_a_wrong_certificate_is_served_nothing(
    listener: Listener, tmp_path: Path, make: Callable[[Listener], Chain]
) -> None:
    assert not listener.serves(make(listener).write(tmp_path))
    right = Signer.of(listener.clients).sign([listener.right], CLIENT).write(tmp_path)
    assert listener.serves(right), "the control differs in nothing else"


def test_no_certificate_is_served_nothing(listener: Listener) -> None:
    assert not listener.serves(None)
    assert listener.serves(listener.welcome)


def test_tls_1_2_is_not_spoken(listener: Listener) -> None:
    assert not listener.serves(listener.welcome, newest=ssl.TLSVersion.TLSv1_2)
    assert listener.serves(listener.welcome, newest=ssl.TLSVersion.TLSv1_3)


@pytest.mark.parametrize("alpn", [[], ["h2"], ["scistream/2"], ["scistream"], ["scistream/10", "http/1.1"]])
def test_a_client_that_does_not_offer_our_protocol_is_served_nothing(listener: Listener, alpn: list[str]) -> None:
    assert not listener.serves(listener.welcome, alpn=alpn)
    assert listener.serves(listener.welcome, alpn=[*alpn, "scistream/1"])


def test_without_alpn_a_controller_or_user_is_not_even_heard(listener: Listener, world: World) -> None:
    """A REQ or REL in the same segment as the end of the handshake must not count either."""
    rows = {facility.name: facility.states() for facility in world.facilities}
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(listener.server)
    context.load_cert_chain(listener.welcome.certificate, listener.welcome.key)
    uid = "12345678-1234-4234-8234-123456789abc"
    line = f'{{"cmd":"REL","uid":"{uid}","role":"PROD","seq":1}}\n'.encode()
    with _wrapped(listener, context) as sock:
        assert _answer_to(sock, line) == b""
    assert {facility.name: facility.states() for facility in world.facilities} == rows


def _answer_to(sock: ssl.SSLSocket, line: bytes) -> bytes:
    try:
        sock.sendall(line)
        return sock.recv(1)
    except (ssl.SSLError, ConnectionError):
        return b""


def _wrapped(listener: Listener, context: ssl.SSLContext) -> ssl.SSLSocket:
    return context.wrap_socket(
        socket.create_connection(listener.address, timeout=20), server_hostname=listener.address.host
    )

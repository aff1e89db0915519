"""Who is let in at the control listeners of an S2CS and of an S2DS: each wrong certificate beside a right one."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from harness import CONTROLLER, World
from raw_peers import CLIENT, HOUR, SERVER, Chain, RawLink, Signer, self_signed

from scistream.pki.authority import Issued
from scistream.protocol.address import Address

pytestmark = pytest.mark.usefixtures("nothing_left")

ADA = x509.UniformResourceIdentifier("scistream:user:ada")
OURS = x509.UniformResourceIdentifier(f"scistream:controller:{CONTROLLER}")


@dataclass(frozen=True)
class Door:
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
        """Whether who shows this gets an answer that is no refusal."""
        version = newest or ssl.TLSVersion.MAXIMUM_SUPPORTED
        try:
            with RawLink(self.address, self.server, issued, alpn=alpn, newest=version) as link:
                link.say("Status", uid=None, role=None, seq=1)
                answer = link.hear()
        except (ssl.SSLError, ConnectionError):
            return False
        return answer is not None and answer["cmd"] == "RESP"


@pytest.fixture(params=["s2cs", "s2ds"])
def door(request: pytest.FixtureRequest, world: World) -> Door:
    """Each control listener of a facility."""
    users, pki = world.folder / "users", world.lab.pki
    if request.param == "s2cs":
        ada = Issued(users / "ada.pem", users / "ada.key")
        return Door(world.lab.server.address, world.lab.authority, users, ADA, ada)
    controller = Issued(pki / f"{CONTROLLER}.pem", pki / f"{CONTROLLER}.key")
    return Door(world.lab.gateways[0].address, world.lab.authority, pki, OURS, controller)


def by_another_authority(door: Door) -> Chain:
    return Signer().sign([door.right], CLIENT)


def by_one_of_the_same_name(door: Door) -> Chain:
    return Signer(Signer.of(door.clients).certificate).sign([door.right], CLIENT)


def expired(door: Door) -> Chain:
    return Signer.of(door.clients).sign([door.right], CLIENT, begins=-2 * HOUR, ends=-timedelta(minutes=1))


def not_yet_valid(door: Door) -> Chain:
    return Signer.of(door.clients).sign([door.right], CLIENT, begins=HOUR, ends=2 * HOUR)


def signed_by_itself(door: Door) -> Chain:
    return self_signed([door.right], CLIENT)


def signed_by_a_leaf(door: Door) -> Chain:
    leaf = Signer.of(door.clients).sign([door.right], CLIENT)
    forged = Signer(leaf.certificates[0], leaf.key).sign([door.right], CLIENT)
    return Chain((*forged.certificates, leaf.certificates[1]), forged.key)


def by_an_authority_below_the_one_that_signs_leaves_only(door: Door) -> Chain:
    below = Signer.of(door.clients).sign([], None)
    long = Signer(below.certificates[0], below.key).sign([door.right], CLIENT)
    return Chain((*long.certificates, below.certificates[1]), long.key)


def beside_the_authority_that_did_not_sign_it(door: Door) -> Chain:
    other = Signer().sign([door.right], CLIENT)
    return Chain((*other.certificates, Signer.of(door.clients).certificate), other.key)


def a_servers(door: Door) -> Chain:
    return Signer.of(door.clients).sign([door.right], SERVER)


def an_authoritys_own(door: Door) -> Chain:
    signer = Signer.of(door.clients)
    return Chain((signer.certificate,), signer.key)


def of_no_name(door: Door) -> Chain:
    return Signer.of(door.clients).sign([], CLIENT)


def of_a_host_name(door: Door) -> Chain:
    return Signer.of(door.clients).sign([x509.DNSName("ada.lab.example")], CLIENT)


def of_two_names(door: Door) -> Chain:
    return Signer.of(door.clients).sign([door.right, x509.RFC822Name("eve@lab.example")], CLIENT)


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
def test_a_wrong_certificate_is_served_nothing(door: Door, tmp_path: Path, make: Callable[[Door], Chain]) -> None:
    assert not door.serves(make(door).write(tmp_path))
    right = Signer.of(door.clients).sign([door.right], CLIENT).write(tmp_path)
    assert door.serves(right), "the control differs in nothing else"


def test_no_certificate_is_served_nothing(door: Door) -> None:
    assert not door.serves(None)
    assert door.serves(door.welcome)


def test_tls_1_2_is_not_spoken(door: Door) -> None:
    assert not door.serves(door.welcome, newest=ssl.TLSVersion.TLSv1_2)
    assert door.serves(door.welcome, newest=ssl.TLSVersion.TLSv1_3)


@pytest.mark.parametrize("alpn", [[], ["h2"], ["scistream/2"], ["scistream"], ["scistream/10", "http/1.1"]])
def test_who_does_not_offer_our_protocol_is_served_nothing(door: Door, alpn: list[str]) -> None:
    assert not door.serves(door.welcome, alpn=alpn)
    assert door.serves(door.welcome, alpn=[*alpn, "scistream/1"])


def test_without_alpn_a_controller_or_user_is_not_even_heard(door: Door, world: World) -> None:
    """A REQ or REL in the same segment as the end of the handshake must not count either."""
    rows = {facility.name: facility.states() for facility in world.facilities}
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(door.server)
    context.load_cert_chain(door.welcome.certificate, door.welcome.key)
    uid = "12345678-1234-4234-8234-123456789abc"
    line = f'{{"cmd":"REL","uid":"{uid}","role":"PROD","seq":1}}\n'.encode()
    with _wrapped(door, context) as sock:
        assert _answer_to(sock, line) == b""
    assert {facility.name: facility.states() for facility in world.facilities} == rows


def _answer_to(sock: ssl.SSLSocket, line: bytes) -> bytes:
    try:
        sock.sendall(line)
        return sock.recv(1)
    except (ssl.SSLError, ConnectionError):
        return b""


def _wrapped(door: Door, context: ssl.SSLContext) -> ssl.SSLSocket:
    return context.wrap_socket(socket.create_connection(door.address, timeout=20), server_hostname=door.address.host)

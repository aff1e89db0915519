"""Which servers the clients accept: appctrl with its pinned authority, s2uc, and an S2CS towards its gateways.

Each connects to a server of the test (`FalseServer`), which keeps everything that it can decrypt: no client may send
it anything. The control differs only in the fault.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from cryptography import x509
from false_server import FalseServer, Message
from harness import World, refused_request
from raw_peers import HOUR, SERVER, Chain, Signer

from scistream.pki.authority import fingerprint, init_authority
from scistream.protocol.join_string import Join, new_app_key
from scistream.protocol.messages import CONS, PROD, Role
from scistream.s2uc.history import RememberedStream
from support.facilities import HOST, Gateway
from support.programs import Program
from support.waiting import until

pytestmark = pytest.mark.usefixtures("nothing_left")

HERE = x509.IPAddress(ip_address(HOST))


# -- what a false server may show


def right(pki: Path) -> Chain:
    """Return the valid chain: from the facility's authority, for the right host, valid now."""
    return Signer.of(pki).sign([HERE], SERVER)


def beside_the_authority(pki: Path) -> Chain:
    other = Signer().sign([HERE], SERVER)
    return Chain((*other.certificates, Signer.of(pki).certificate), other.key)


def in_the_name_of_the_authority(pki: Path) -> Chain:
    return Signer(Signer.of(pki).certificate).sign([HERE], SERVER)


def of_another_authority_of_the_same_name(pki: Path) -> Chain:
    folder = pki / uuid4().hex
    init_authority(folder, "The lab")
    double, original = Signer.of(folder), Signer.of(pki)
    assert double.certificate.subject == original.certificate.subject
    return double.sign([HERE], SERVER)


def of_another_authority(_pki: Path) -> Chain:
    return Signer().sign([HERE], SERVER)


def of_another_host(pki: Path) -> Chain:
    return Signer.of(pki).sign([x509.DNSName("elsewhere.example")], SERVER)


def expired(pki: Path) -> Chain:
    return Signer.of(pki).sign([HERE], SERVER, begins=-2 * HOUR, ends=-timedelta(minutes=1))


NOT_LEADING = "does not lead to the pinned authority"
WRONG_HOST = f"The far end should be {HOST}, but its certificate is for elsewhere.example"


# -- appctrl and its pin


def welcome(heard: Message) -> list[Message]:
    """Answer a Hello as an S2CS whose other side is already there."""
    if heard["cmd"] != "Hello":
        return []
    uid = {"uid": heard["uid"]}
    answer = {"cmd": "RESP", **uid, "seq": heard["seq"], "state": "Ready", "msg": "welcome"}
    start = {"cmd": "StartConn", **uid, "role": CONS, "seq": 1, "listeners": [f"{HOST}:9"]}
    return [answer, start] if heard["role"] == CONS else [answer]


def pinned(world: World, server: FalseServer, role: Role) -> Join:
    authority = Signer.of(world.lab.pki).certificate
    return Join(str(uuid4()), new_app_key(), server.address, role, fingerprint(authority))


def hello(world: World, join: Join, command: list[str]) -> Program:
    return world.prod(str(join), [f"{HOST}:7"], command) if join.role == PROD else world.cons(str(join), command)


@pytest.mark.parametrize("role", [PROD, CONS])
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (beside_the_authority, NOT_LEADING),
        (in_the_name_of_the_authority, NOT_LEADING),
        (of_another_authority_of_the_same_name, "None of the 2 certificates"),
        (of_another_host, WRONG_HOST),
        (expired, "expired"),
    ],
)
def test_appctrl_sends_its_key_only_to_a_server_of_the_pinned_authority(
    world: World, tmp_path: Path, role: Role, make: Callable[[Path], Chain], words: str
) -> None:
    started = tmp_path / "started"
    with FalseServer(make(world.lab.pki), tmp_path, answer=welcome) as false:
        join = pinned(world, false, role)
        (line,) = hello(world, join, ["touch", str(started)]).end(status=1).stderr.splitlines()
        assert false.heard() == b""
    assert line.startswith(f"error: not-authenticated: the S2CS at {false.address}: ")
    assert words in line
    assert join.app_key not in line
    assert not started.exists()
    with FalseServer(right(world.lab.pki), tmp_path, answer=welcome) as true:
        join = pinned(world, true, role)
        hello(world, join, ["touch", str(started)]).end()
        assert join.app_key.encode() in true.heard()
    assert started.exists()


# -- s2uc


@dataclass(frozen=True)
class Wrong:
    """What is wrong with a server, and how the line of `s2uc` says so."""

    words: str
    make: Callable[[Path], Chain] = right
    alpn: tuple[str, ...] = ("scistream/1",)
    newest: ssl.TLSVersion = ssl.TLSVersion.MAXIMUM_SUPPORTED

    def server(self, pki: Path, folder: Path, **options: Any) -> FalseServer:
        return FalseServer(self.make(pki), folder, alpn=self.alpn, newest=self.newest, **options)


NOT_TRUSTED = "certificate is refused: "
NOT_OURS = "does not speak scistream/1"
WRONG = {
    "another authority": Wrong(NOT_TRUSTED, of_another_authority),
    "in the name of the authority": Wrong(NOT_TRUSTED, in_the_name_of_the_authority),
    "another host": Wrong(WRONG_HOST, of_another_host),
    "expired": Wrong("expired", expired),
    "TLS 1.2": Wrong("does not speak TLS 1.3", newest=ssl.TLSVersion.TLSv1_2),
    "no ALPN": Wrong(NOT_OURS, alpn=()),
    "another protocol": Wrong(NOT_OURS, alpn=("h2",)),
}
EACH_WRONG = pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG.keys())


def no_room(heard: Message) -> list[Message]:
    """Answer as an S2CS that has no free ports, and so nothing to release."""
    about = {"uid": heard["uid"], "seq": heard["seq"], "msg": "none for you"}
    if heard["cmd"] == "REL":
        return [{"cmd": "RESP", **about, "state": "Released"}]
    return [{"cmd": "ERROR", **about, "code": "no-ports"}]


@EACH_WRONG
def test_s2uc_asks_a_false_s2cs_for_nothing_and_releases_the_other_side(
    world: World, tmp_path: Path, wrong: Wrong
) -> None:
    with wrong.server(world.lab.pki, tmp_path, answer=no_room) as false:
        line = refused_request(world, "--rate", "100Mbit", prod=str(false.address))
        assert false.heard() == b""
    assert line.startswith("error: not-authenticated: ")
    assert str(false.address) in line
    assert wrong.words in line
    with FalseServer(right(world.lab.pki), tmp_path, answer=no_room) as true:
        line = refused_request(world, "--rate", "100Mbit", prod=str(true.address))
        assert b'"cmd":"REQ"' in true.heard()
    assert line == "error: no-ports: producer side: none for you"


@contextmanager
def remembered(world: World, prod: str) -> Iterator[str]:
    """Yield the uid of a stream that `s2uc` believes it has requested at `prod`."""
    uid = str(uuid4())
    known = RememberedStream(
        uid=uid, prod=prod, cons=world.centre.s2cs, num_conn=1, rate=1.0, asked_at=0.0, expires_at=9e9
    )
    assert world.remembered.add(known)
    yield uid
    world.remembered.remove(uid)


@EACH_WRONG
def test_s2uc_status_neither_asks_nor_believes_a_false_s2cs(world: World, tmp_path: Path, wrong: Wrong) -> None:
    with (
        wrong.server(world.lab.pki, tmp_path, answer=no_room) as false,
        remembered(world, str(false.address)) as uid,
    ):
        ended = world.start_s2uc("status", uid).end(status=1)
        assert false.heard() == b""
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"{uid}: not-authenticated: ")
    assert wrong.words in line
    with (
        FalseServer(right(world.lab.pki), tmp_path, answer=no_room) as true,
        remembered(world, str(true.address)) as uid,
    ):
        (line,) = world.start_s2uc("status", uid).end(status=1).stderr.splitlines()
        assert b'"cmd":"Status"' in true.heard()
    assert "none for you" in line


# -- an S2CS and its gateway


@contextmanager
def without(gateway: Gateway) -> Iterator[None]:
    gateway.stop()
    try:
        yield
    finally:
        gateway.start()
        gateway.wait_until_ready()


@pytest.mark.parametrize("wrong", [WRONG[each] for each in ("another authority", "another host", "no ALPN")])
def test_an_s2cs_reserves_nothing_at_a_false_gateway_and_logs_why(world: World, tmp_path: Path, wrong: Wrong) -> None:
    (gateway,) = world.lab.gateways
    before = len(world.lab.server.words())

    def logged() -> str:
        return world.lab.server.words()[before:]

    with without(gateway), wrong.server(world.lab.pki, tmp_path, port=gateway.address.port) as false:
        until(lambda: wrong.words in logged(), logged)
        line = refused_request(world, "--rate", "100Mbit")
        assert false.heard() == b""
        assert set(world.lab.states().values()) <= {"Released"}
    assert line == "error: gateway-failed: producer side: no gateway of this facility can be reached: tell its operator"
    assert f"gateway {gateway.name}: The " in logged()
    world.lab.wait_for_links()
    with world.request(1, "100Mbit") as requested:
        assert requested.state(PROD) == "Listening"

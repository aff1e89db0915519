"""The TLS of every listener, as `openssl s_client` sees it: a peer that shares no line of code with ours."""

from __future__ import annotations

import re
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from harness import World
from manual_stream import PROD, HandMade, nobody_waits

from scistream.pki.authority import Issued
from scistream.protocol.address import Address
from scistream.tls.stream_channels import server_name
from support.applications import address_of, listen
from support.facilities import CONTROLLER
from support.requirements import needs

pytestmark = pytest.mark.usefixtures("nothing_left")

PATIENCE = 20.0
STATUS = '{"cmd": "Status", "uid": null, "role": null, "seq": 1}\n'


@pytest.fixture(autouse=True, scope="module")
def openssl() -> None:
    needs("openssl")


@dataclass(frozen=True)
class Listener:
    """A listener, and what a good peer says to it.

    :param options: of s_client, but for the certificate `shown`.
    :param welcome: what comes back to a good peer and to no other.
    """

    address: Address
    options: list[str]
    shown: Issued
    say: str
    welcome: str
    application: socket.socket | None = field(default=None)

    def ask(self, *options: str, certificate: bool = True) -> str:
        """Return what s_client prints until it is welcome or refused, or the connection ends."""
        shown = ["-cert", str(self.shown.certificate), "-key", str(self.shown.key)] if certificate else []
        command = ["openssl", "s_client", "-connect", str(self.address), *self.options, *shown, *options]
        return _talk(command, self.say, (self.welcome, '"cmd":"ERROR"'))

    def welcomes(self, *options: str, certificate: bool = True) -> bool:
        return self.welcome in self.ask(*options, certificate=certificate)


def _talk(command: list[str], say: str, until: tuple[str, ...]) -> str:
    heard = ""
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        deadline = threading.Timer(PATIENCE, process.kill)
        deadline.start()
        try:
            with suppress(BrokenPipeError):
                process.stdin.write(say)
                process.stdin.flush()
            for line in process.stdout:
                heard += line
                if any(last in line for last in until):
                    break
        finally:
            deadline.cancel()
            process.kill()
            with suppress(BrokenPipeError):
                process.stdin.close()
    return heard


@pytest.fixture(params=["s2cs", "s2ds", "wan"])
def listener(request: pytest.FixtureRequest, world: World, tmp_path: Path, nothing_left: None) -> Iterator[Listener]:
    """Each listener of a facility."""
    if request.param == "wan":
        with wan(world, tmp_path) as one:
            yield one
        return
    users, pki = world.folder / "users", world.lab.pki
    own = ["-CAfile", str(world.lab.authority), "-verify_return_error", "-alpn", "scistream/1"]
    if request.param == "s2cs":
        ada = Issued(users / "ada.pem", users / "ada.key")
        yield Listener(world.lab.server.address, own, ada, STATUS, '"cmd":"RESP"')
    else:
        controller = Issued(pki / f"{CONTROLLER}.pem", pki / f"{CONTROLLER}.key")
        yield Listener(world.lab.gateways[0].address, own, controller, STATUS, '"cmd":"RESP"')


@contextmanager
def wan(world: World, folder: Path) -> Iterator[Listener]:
    """Yield the WAN listener of a stream whose application greets everyone that gets through."""
    with listen() as detector, HandMade(world, PROD, [address_of(detector)]) as stream:
        detector.settimeout(None)
        serving = threading.Thread(target=_welcome, args=(detector,), daemon=True)
        serving.start()
        shown = stream.of_other_side().write(folder)
        options = ["-servername", server_name(stream.uid, 0)]
        try:
            yield Listener(stream.address(), options, shown, "", "you are welcome", detector)
        finally:
            detector.shutdown(socket.SHUT_RDWR)
            serving.join(PATIENCE)


def _welcome(detector: socket.socket) -> None:
    with suppress(OSError):
        while True:
            sock, _ = detector.accept()
            with sock, suppress(OSError):
                sock.sendall(b"you are welcome\n")
                while sock.recv(4096):
                    pass


def test_a_good_peer_speaks_tls_1_3_without_compression_early_data_or_a_resumed_session(listener: Listener) -> None:
    said = listener.ask()
    assert listener.welcome in said
    assert re.search(
        r"New, TLSv1\.3, Cipher is TLS_(AES_128_GCM_SHA256|AES_256_GCM_SHA384|CHACHA20_POLY1305_SHA256)", said
    )
    assert "Compression: NONE" in said
    assert "Early data was not sent" in said
    assert "Reused" not in said
    assert re.search(r"Server Temp Key: (X25519|ECDH, prime256v1)", said)
    if listener.application is None:
        assert "ALPN protocol: scistream/1" in said
        assert "Verify return code: 0 (ok)" in said


def test_no_older_tls_is_spoken(listener: Listener) -> None:
    for version in ("-tls1", "-tls1_1", "-tls1_2"):
        said = listener.ask(version, "-cipher", "ALL:@SECLEVEL=0")
        assert listener.welcome not in said
        assert "Cipher is (NONE)" in said
    assert listener.welcomes("-tls1_3")


def test_the_ciphers_of_tls_1_3_are_the_strong_ones(listener: Listener) -> None:
    for weak in ("TLS_AES_128_CCM_8_SHA256", "TLS_AES_128_CCM_SHA256"):
        assert not listener.welcomes("-ciphersuites", weak)
    for strong in ("TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"):
        assert f"New, TLSv1.3, Cipher is {strong}" in listener.ask("-ciphersuites", strong)


def test_the_common_groups_are_spoken_and_a_weak_one_is_not(listener: Listener) -> None:
    for common in ("X25519", "P-256", "P-384"):
        assert listener.welcomes("-groups", common)
    assert not listener.welcomes("-groups", "secp224r1")


def test_a_session_is_never_resumed(listener: Listener, tmp_path: Path) -> None:
    session = tmp_path / "session.pem"
    assert listener.welcomes("-sess_out", str(session))
    assert "BEGIN SSL SESSION" in session.read_text(), "there is a ticket to try it with"
    again = listener.ask("-sess_in", str(session))
    assert listener.welcome in again
    assert "New, TLSv1.3" in again
    assert "Reused" not in again


def test_a_session_does_not_stand_in_for_a_certificate(listener: Listener, tmp_path: Path) -> None:
    session = tmp_path / "session.pem"
    assert listener.welcomes("-sess_out", str(session))
    for options in ([], ["-sess_in", str(session)]):
        said = listener.ask(*options, certificate=False)
        assert listener.welcome not in said
        assert "Reused" not in said


def test_early_data_is_not_taken(listener: Listener, tmp_path: Path) -> None:
    session, early = tmp_path / "session.pem", tmp_path / "early"
    early.write_text(STATUS)
    said = listener.ask("-sess_out", str(session))
    assert "Max Early Data: 0" in said or "Max Early Data" not in said
    again = listener.ask("-sess_in", str(session), "-early_data", str(early))
    assert "Early data was accepted" not in again


def test_nothing_is_renegotiated(listener: Listener) -> None:
    """TLS 1.3 has no renegotiation; s_client refuses to ask for one, and the server offers none."""
    assert "Secure Renegotiation IS NOT supported" in listener.ask()


def test_a_self_signed_peer_is_refused_and_the_application_sees_nothing(world: World, tmp_path: Path) -> None:
    key, certificate = tmp_path / "odd.key", tmp_path / "odd.pem"
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1"]
    subprocess.run(
        [*make, "-subj", "/CN=odd", "-keyout", str(key), "-out", str(certificate)],
        check=True,
        capture_output=True,
        timeout=60,
    )
    with listen() as detector, HandMade(world, PROD, [address_of(detector)]) as stream:
        options = ["-servername", server_name(stream.uid, 0)]
        odd = Listener(stream.address(), options, Issued(certificate, key), "", "you are welcome")
        assert not odd.welcomes()
        assert nobody_waits(detector)

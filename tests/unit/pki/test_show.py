"""`scistream pki show`: the description of a file and its problems, without private keys."""

from __future__ import annotations

import hashlib
import json
from datetime import timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from scistream.cli import main
from scistream.pki.authority import fingerprint, init_authority, issue
from scistream.pki.revocation import revoke
from scistream.tls import contexts, verify
from support.aged_certificates import age
from support.memory_tls import CLIENT, Authority, a_crl, store, written
from support.memory_tls import join as joined


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    init_authority(tmp_path / "pki", "Example Light Source")
    return tmp_path / "pki"


def show(*words: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["pki", "show", *map(str, words)])
    assert "PRIVATE KEY" not in result.output
    return result.exit_code, result.output


def test_a_user_is_shown_as_policies_know_her(directory: Path) -> None:
    ada = issue(directory, "user", "ada@lab.example")
    server = issue(directory, "server", "s2cs.lab.example")
    context = contexts.server_context(
        server.certificate, server.key, [directory / "ca.pem"], client_certificate="required"
    )
    ends = joined(context, contexts.client_context(ada.certificate, ada.key, [directory / "ca.pem"]))
    seen = verify.verify_client(ends.server)
    assert seen is not None
    status, said = show(ada.certificate)
    assert status == 0
    assert "good for: a user, at an S2CS" in said
    assert f"identity {seen.name}, issuer {seen.issuer}" in said
    assert fingerprint(ada.certificate.read_bytes()) in said
    assert "396 days left" in said
    assert "chain 1: CN=SciStream authority,O=Example Light Source" in said
    assert "PROBLEM" not in said


def test_a_server_and_a_controller_and_an_authority_are_told_apart(directory: Path) -> None:
    server = issue(directory, "server", "gw.lab.example", ["192.0.2.1"])
    controller = issue(directory, "controller", "s2cs")
    assert "good for: an S2CS or S2DS that clients reach as gw.lab.example, 192.0.2.1" in show(server.certificate)[1]
    assert 'controller = "scistream:controller:s2cs"' in show(controller.certificate)[1]
    status, said = show(directory / "ca.pem")
    assert status == 0
    assert "as an authority" in said


def test_a_certificate_without_its_chain_is_a_problem_until_its_authority_is_named(directory: Path) -> None:
    ada = issue(directory, "user", "ada")
    alone = written(directory / "alone.pem", x509.load_pem_x509_certificate(ada.certificate.read_bytes()))
    status, said = show(alone)
    assert status == 1
    assert "PROBLEM: its chain does not end" in said
    assert "not known without its authority" in said
    status, said = show(alone, "--ca", directory / "ca.pem")
    assert status == 0
    assert "issuer sha256:" in said


def test_what_expires_soon_or_has_expired_is_a_problem(directory: Path) -> None:
    authority = Authority.load(directory)
    for left, words in ((timedelta(days=5, hours=1), "expires in 5 days"), (timedelta(minutes=-1), "expired on")):
        leaf, key = authority.leaf(x509.RFC822Name("ada@lab.example"), usage=CLIENT)
        file, _ = store(directory, [leaf, authority.certificate], key)
        age(file, life=timedelta(days=90), left=left)
        status, said = show(file)
        assert status == 1
        assert f"PROBLEM: the certificate {words}" in said


def test_a_certificate_that_nobody_here_would_take_is_a_problem(directory: Path) -> None:
    authority = Authority.load(directory)
    for names, usage, words in (
        ([x509.DNSName("gw.example")], CLIENT, "cannot be used with SciStream"),
        ([x509.RFC822Name("a@b.example"), x509.RFC822Name("c@b.example")], CLIENT, "exactly one e-mail address"),
    ):
        leaf, key = authority.leaf(*names, usage=usage)
        file, _ = store(directory, [leaf, authority.certificate], key)
        status, said = show(file)
        assert status == 1
        assert words in said


def test_a_request_is_shown_with_the_names_that_it_asks_for(tmp_path: Path) -> None:
    words = ["pki", "request", "server", "gw.lab.example", "--san", "192.0.2.1", "--out", str(tmp_path)]
    assert CliRunner().invoke(main, words).exit_code == 0
    status, said = show(tmp_path / "gw.lab.example.csr")
    assert status == 0
    assert "request for: DNS:gw.lab.example, IP:192.0.2.1" in said


def test_a_crl_is_shown_with_what_it_revokes_and_when_it_ends(directory: Path) -> None:
    ada = issue(directory, "user", "ada")
    revoke(directory, "ada")
    status, said = show(directory / "crl.pem")
    assert status == 0
    assert "revoked: 1" in said
    assert f"serial {x509.load_pem_x509_certificate(ada.certificate.read_bytes()).serial_number:x}" in said
    soon = written(directory / "soon.pem", a_crl(Authority.load(directory), left=timedelta(hours=30)))
    assert "PROBLEM: it expires in 30 hours" in show(soon)[1]
    old = written(directory / "old.pem", a_crl(Authority.load(directory), left=timedelta(minutes=-1)))
    assert "PROBLEM: it has expired" in show(old)[1]


def test_what_is_shown_and_listed_is_to_be_had_in_json(directory: Path) -> None:
    ada = issue(directory, "user", "ada")
    _, said = show(ada.certificate)
    told = CliRunner().invoke(main, ["pki", "show", str(ada.certificate), "--json"])
    assert json.loads(told.output) == {"lines": said.splitlines(), "problems": []}
    assert CliRunner().invoke(main, ["pki", "show", str(directory / "none"), "--json"]).exit_code == 2
    revoke(directory, "ada")
    (listed,) = json.loads(CliRunner().invoke(main, ["pki", "list", str(directory), "--json"]).output)
    assert listed["names"] == ["URI:scistream:user:ada"]
    assert listed["serial"] == f"{x509.load_pem_x509_certificate(ada.certificate.read_bytes()).serial_number:x}"
    assert listed["state"].startswith("revoked on ")
    assert listed["revoked"] is not None


def test_a_key_is_never_shown_and_is_told_what_it_belongs_to(directory: Path) -> None:
    ada, bob = issue(directory, "user", "ada"), issue(directory, "user", "bob")
    status, said = show(ada.key)
    assert status == 0
    der = x509.load_pem_x509_certificate(ada.certificate.read_bytes()).public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )  # fmt: skip
    assert hashlib.sha256(der).hexdigest() in said
    assert f"belongs to: the certificate {ada.certificate}" in said
    for line in ada.key.read_text().splitlines()[1:-1]:
        assert line not in said
    pair = directory / "pair.pem"
    pair.write_bytes(ada.certificate.read_bytes() + ada.key.read_bytes())
    pair.chmod(0o600)
    assert "belongs to: the certificate in this file" in show(pair)[1]
    pair.chmod(0o644)
    status, said = show(pair)
    assert status == 1
    assert f"chmod 600 {pair}" in said
    ada.key.write_bytes(bob.key.read_bytes())
    assert "does not belong to the certificate" in show(ada.key)[1]


def test_a_weak_key_and_a_locked_one_are_problems(tmp_path: Path) -> None:
    key = rsa.generate_private_key(65537, 1024)
    file = tmp_path / "weak.key"
    plain = serialization.NoEncryption()
    file.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
    file.chmod(0o600)
    assert "PROBLEM: it is refused: RSA with 1024 bits" in show(file)[1]
    locked = serialization.BestAvailableEncryption(b"secret")
    file.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked))
    assert "encrypted with a passphrase" in show(file)[1]


@pytest.mark.parametrize(
    "content", [b"", b"nonsense", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_a_file_in_which_nothing_can_be_read_ends_with_status_2(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "bad.pem"
    file.write_bytes(content)
    status, said = show(file)
    assert status == 2
    assert str(file) in said
    assert show(tmp_path / "none.pem")[0] == 2

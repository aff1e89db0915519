"""All kinds of keys and signatures, in authorities, CRLs, and the certificates of both ends of a link."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa

from scistream.pki.authority import hash_for, init_authority, issue, make_authority, make_leaf
from scistream.pki.describe import describe
from scistream.pki.revocation import make_crl, revoke
from scistream.tls import contexts, files, verify
from scistream.tls.files import CertificateError, HeldCertificate, HeldCrl, LoadedCertificates, is_signed_by
from support.memory_tls import CLIENT, SERVER, common_name, join, written

HOST = "dtn1.lab.example"
KINDS: dict[str, Any] = {
    "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "RSA": lambda: rsa.generate_private_key(65537, 2048),
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
    "Ed448": ed448.Ed448PrivateKey.generate,
}
each_kind = pytest.mark.parametrize("kind", KINDS)
PSS = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.DIGEST_LENGTH)


def pair(folder: Path, name: str, certificate: x509.Certificate, key: Any) -> tuple[Path, Path]:
    files = written(folder / f"{name}.pem", certificate), folder / f"{name}.key"
    form = serialization.PrivateFormat.PKCS8
    files[1].touch(0o600)
    files[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    return files


def crl_of(authority: x509.Certificate, key: Any, *revoked: x509.Certificate, **how: Any) -> Any:
    now = datetime.now(UTC)
    builder = x509.CertificateRevocationListBuilder(authority.subject, now, now + timedelta(days=1))
    for each in revoked:
        one = x509.RevokedCertificateBuilder().serial_number(each.serial_number).revocation_date(now)
        builder = builder.add_revoked_certificate(one.build())
    return builder.sign(key, hash_for(key), **how)


def authority_of(kind: str) -> tuple[x509.Certificate, Any]:
    key = KINDS[kind]()
    return make_authority(common_name(f"an authority by {kind}"), key, datetime.now(UTC) + timedelta(days=1)), key


def leaf_of(authority: x509.Certificate, authority_key: Any, kind: str, name: x509.GeneralName, usage: Any) -> Any:
    key = KINDS[kind]()
    end = datetime.now(UTC) + timedelta(hours=1)
    return make_leaf("a leaf", [name], [usage], key.public_key(), authority, authority_key, end), key


@each_kind
def test_a_link_is_made_with_leaves_of_any_kind_and_the_crl_of_their_authority_is_checked(
    tmp_path: Path, kind: str
) -> None:
    authority, key = authority_of(kind)
    anchor = written(tmp_path / "ca.pem", authority)
    server = pair(tmp_path, "server", *leaf_of(authority, key, kind, x509.DNSName(HOST), SERVER))
    ada = leaf_of(authority, key, kind, x509.RFC822Name("ada@lab.example"), CLIENT)
    client = contexts.client_context(*pair(tmp_path, "client", *ada), [anchor])
    crl = written(tmp_path / "crl.pem", crl_of(authority, key))
    ends = join(
        contexts.server_context(*server, [anchor], client_certificate="required", crl=[crl]), client, HOST.encode()
    )
    assert ends.done
    verify.verify_server(ends.client, HOST)
    assert verify.verify_client(ends.server) is not None

    written(crl, crl_of(authority, key, ada[0]))
    ends = join(
        contexts.server_context(*server, [anchor], client_certificate="required", crl=[crl]), client, HOST.encode()
    )
    assert "it was revoked on" in str(ends.server_error)


@each_kind
def test_a_crl_that_another_key_of_that_kind_has_signed_is_a_problem(tmp_path: Path, kind: str) -> None:
    authority, _ = authority_of(kind)
    forged = written(tmp_path / "crl.pem", crl_of(authority, KINDS[kind]()))
    with pytest.raises(CertificateError, match="the signature is not that authority's"):
        files.read_material(None, None, [written(tmp_path / "ca.pem", authority)], [forged])


def test_a_crl_that_is_signed_by_rsa_pss_is_checked(tmp_path: Path) -> None:
    authority, key = authority_of("RSA")
    anchor = written(tmp_path / "ca.pem", authority)
    good = written(tmp_path / "good.pem", crl_of(authority, key, rsa_padding=PSS))
    assert len(files.read_material(None, None, [anchor], [good]).crls) == 1
    forged = written(tmp_path / "forged.pem", crl_of(authority, KINDS["RSA"](), rsa_padding=PSS))
    with pytest.raises(CertificateError, match="the signature is not that authority's"):
        files.read_material(None, None, [anchor], [forged])


class OfAnotherWorld:
    """A CRL with a signature algorithm that the library does not know."""

    def __init__(self, crl: x509.CertificateRevocationList) -> None:
        self._crl = crl

    def __getattr__(self, name: str) -> Any:
        return getattr(self._crl, name)

    def __iter__(self) -> Iterator[x509.RevokedCertificate]:
        return iter(self._crl)

    def is_signature_valid(self, _key: Any) -> bool:
        raise UnsupportedAlgorithm("no such signature")


def test_what_cannot_be_checked_is_neither_right_nor_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority, key = authority_of("P-256")
    ada, _ = leaf_of(authority, key, "P-256", x509.RFC822Name("ada@lab.example"), CLIENT)
    crl: Any = OfAnotherWorld(crl_of(authority, key, ada))
    assert is_signed_by(crl, authority) is None
    held = LoadedCertificates((), None, (HeldCertificate(tmp_path, authority),), (HeldCrl(tmp_path, crl),))
    assert held.revoked(ada, authority) is None, "it is believed by nobody"
    assert len(held.gaps(datetime.now(UTC))) == 1, "and counts as none"
    those = [written(tmp_path / "ca.pem", authority)], [written(tmp_path / "crl.pem", crl_of(authority, key))]
    monkeypatch.setattr(files.x509, "load_pem_x509_crl", lambda _: crl)
    with pytest.raises(CertificateError, match=r"its signature \(ecdsa-with-SHA256\) cannot be checked here"):
        files.read_material(None, None, *those)


@each_kind
def test_an_authority_of_any_kind_issues_revokes_and_is_explained(tmp_path: Path, kind: str) -> None:
    init_authority(tmp_path / "pki", "Example")
    authority, key = authority_of(kind)
    pair(tmp_path / "pki", "ca", authority, key)
    ada = issue(tmp_path / "pki", "user", "ada@lab.example")
    revoke(tmp_path / "pki", "ada@lab.example")
    make_crl(tmp_path / "pki")
    anchor, crl = tmp_path / "pki" / "ca.pem", tmp_path / "pki" / "crl.pem"
    read = files.read_material(ada.certificate, ada.key, [anchor], [crl])
    assert "it was revoked" in str(read.refusal([held.certificate for held in read.chain]))
    found = describe(ada.certificate, datetime.now(UTC))
    assert found.problems == []

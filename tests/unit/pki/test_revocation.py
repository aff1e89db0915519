"""Revocation and renewal: the register, the CRL, the commands, and the verdict of OpenSSL."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from scistream.cli import main
from scistream.pki.authority import init_authority, issue
from scistream.pki.enrolment import make_request, read_request, sign_request
from scistream.pki.register import FILE, PkiError, read_register
from scistream.pki.revocation import make_crl, renew, revoke
from support.memory_tls import ca_without_crl_sign
from support.requirements import needs


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    init_authority(tmp_path / "pki", "Example Light Source")
    return tmp_path / "pki"


def run(*words: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, ["pki", *map(str, words)])
    return result.exit_code, result.stdout, result.stderr


def leaf_of(file: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(file.read_bytes())


def crl_of(directory: Path) -> x509.CertificateRevocationList:
    return x509.load_pem_x509_crl((directory / "crl.pem").read_bytes())


def serials(directory: Path) -> set[int]:
    return {entry.serial_number for entry in crl_of(directory)}


def openssl(*words: str | Path, status: int = 0) -> str:
    """Return what the independent program prints."""
    needs("openssl")
    ended = subprocess.run(["openssl", *map(str, words)], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == status, ended
    return ended.stdout + ended.stderr


def test_what_is_revoked_is_in_the_crl_with_its_reason_and_what_is_not_is_not(directory: Path) -> None:
    ada, bob = issue(directory, "user", "ada"), issue(directory, "user", "bob")
    (entry,) = revoke(directory, "ada", "keyCompromise")
    assert (entry.name, entry.kind, entry.serial) == ("ada", "user", leaf_of(ada.certificate).serial_number)
    crl = crl_of(directory)
    assert serials(directory) == {entry.serial}
    assert crl[0].extensions.get_extension_for_class(x509.CRLReason).value.reason == x509.ReasonFlags.key_compromise
    assert crl.is_signature_valid(leaf_of(directory / "ca.pem").public_key())  # type: ignore[arg-type]
    now = datetime.now(UTC)
    assert crl.last_update_utc <= now - timedelta(minutes=59)
    assert crl.next_update_utc is not None
    assert abs(crl.next_update_utc - now - timedelta(days=90)) < timedelta(minutes=1)
    assert crl.get_revoked_certificate_by_serial_number(leaf_of(bob.certificate).serial_number) is None


def test_openssl_agrees_with_what_is_issued_signed_and_revoked(directory: Path, tmp_path: Path) -> None:
    ada, server = issue(directory, "user", "ada@lab.example"), issue(directory, "server", "gw.lab.example")
    _, csr = make_request(tmp_path / "bob", "user", "bob@lab.example")
    signed = sign_request(directory, read_request(csr), "user", "bob@lab.example")
    revoke(directory, "ada@lab.example")
    check = ("verify", "-x509_strict", "-CAfile", directory / "ca.pem", "-CRLfile", directory / "crl.pem", "-crl_check")
    assert "OK" in openssl(*check, "-purpose", "sslserver", server.certificate)
    assert "OK" in openssl(*check, "-purpose", "sslclient", signed.certificate)
    assert "certificate revoked" in openssl(*check, "-purpose", "sslclient", ada.certificate, status=2)
    assert "verify OK" in openssl("req", "-in", csr, "-noout", "-verify")
    assert "verify OK" in openssl("crl", "-in", directory / "crl.pem", "-noout", "-CAfile", directory / "ca.pem")


def test_a_certificate_whose_files_are_lost_is_revoked_by_its_serial_number(directory: Path) -> None:
    ada = issue(directory, "user", "ada")
    serial = leaf_of(ada.certificate).serial_number
    ada.certificate.unlink()
    ada.key.unlink()
    status, out, _ = run("list", directory)
    assert status == 0
    assert f"{serial:040x}  user        ada" in out
    status, out, _ = run("revoke", directory, f"{serial:040x}")
    assert status == 0
    assert f"revoked ada, serial {serial:x}" in out
    assert f'crl = ["{directory}/crl.pem"]' in out
    assert serials(directory) == {serial}
    assert "revoked on" in run("list", directory)[1]


def test_a_certificate_of_before_the_register_is_revoked_by_its_file_or_its_name(directory: Path) -> None:
    ada, bob = issue(directory, "user", "ada"), issue(directory, "user", "bob")
    (directory / FILE).unlink()
    revoke(directory, str(ada.certificate))
    revoke(directory, "bob")
    assert serials(directory) == {leaf_of(each.certificate).serial_number for each in (ada, bob)}


def test_a_name_revokes_each_of_its_certificates_and_a_file_only_that_one(directory: Path, tmp_path: Path) -> None:
    old = issue(directory, "user", "ada")
    kept = tmp_path / "old.pem"
    kept.write_bytes(old.certificate.read_bytes())
    renew(directory, "ada", 10)
    new = leaf_of(old.certificate).serial_number
    revoke(directory, str(kept))
    assert serials(directory) == {leaf_of(kept).serial_number}
    revoke(directory, "ada")
    assert serials(directory) == {leaf_of(kept).serial_number, new}
    with pytest.raises(PkiError, match=r"was already revoked on .*: nothing has changed"):
        revoke(directory, "ada")


def test_only_what_this_authority_has_issued_can_be_revoked(directory: Path, tmp_path: Path) -> None:
    init_authority(tmp_path / "other", "Another")
    stranger = issue(tmp_path / "other", "user", "eve")
    issue(directory, "user", "ada")
    for which, words in (
        (str(stranger.certificate), "not a certificate of this authority"),
        ("eve", "neither the name or serial number"),
        (str(directory / "ca.pem"), "the authority itself"),
        (str(directory / "ca.key"), "contains no certificate"),
    ):
        with pytest.raises(PkiError, match=words):
            revoke(directory, which)
    assert not (directory / "crl.pem").exists()
    revoke(directory, "ada")
    assert len(serials(directory)) == 1


def test_each_crl_has_a_higher_number_and_keeps_what_was_revoked(directory: Path) -> None:
    issue(directory, "user", "ada")
    revoke(directory, "ada")
    first = crl_of(directory)
    second = make_crl(directory, 7)
    numbers = [one.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number for one in (first, second)]
    assert numbers[1] > numbers[0]
    assert serials(directory) == {entry.serial_number for entry in first}
    assert "valid until" in run("crl", directory, "--crl-days", "30")[1]
    assert (directory / "crl.pem").stat().st_mode & 0o777 == 0o644


def test_a_register_with_a_broken_line_is_named_and_nothing_is_revoked(directory: Path) -> None:
    issue(directory, "user", "ada")
    with (directory / FILE).open("a") as file:
        file.write("nonsense\n")
    status, out, err = run("revoke", directory, "ada")
    assert (status, out) == (2, "")
    assert f"{directory / FILE}: line 2" in err
    assert not (directory / "crl.pem").exists()


def test_the_register_holds_no_secret_and_is_its_owners(directory: Path) -> None:
    issued = issue(directory, "user", "ada")
    text = (directory / FILE).read_bytes()
    assert (directory / FILE).stat().st_mode & 0o777 == 0o600
    for line in issued.key.read_bytes().splitlines()[1:-1]:
        assert line not in text


def test_a_renewal_has_the_same_names_and_a_new_key_and_replaces_both_files(directory: Path) -> None:
    files = issue(directory, "server", "gw.lab.example", ["192.0.2.1"], days=5)
    old, old_key = leaf_of(files.certificate), files.key.read_bytes()
    status, out, _ = run("renew", directory, "gw.lab.example", "--days", "100")
    assert status == 0
    assert "DNS:gw.lab.example, IP:192.0.2.1" in out
    new = leaf_of(files.certificate)
    san = x509.SubjectAlternativeName
    assert new.extensions.get_extension_for_class(san) == old.extensions.get_extension_for_class(san)
    assert new.not_valid_after_utc - old.not_valid_after_utc > timedelta(days=90)
    assert files.key.read_bytes() != old_key
    assert files.key.stat().st_mode & 0o777 == 0o600
    assert serialization.load_pem_private_key(files.key.read_bytes(), None).public_key() == new.public_key()
    assert len(x509.load_pem_x509_certificates(files.certificate.read_bytes())) == 2
    assert [entry.name for entry in read_register(directory)] == ["gw.lab.example"] * 2
    assert not list(directory.glob(".gw*")), "nothing half-written is left"


def test_a_renewal_of_a_key_that_never_was_here_needs_a_request(directory: Path, tmp_path: Path) -> None:
    key, csr = make_request(tmp_path / "ada", "user", "ada@lab.example")
    files = sign_request(directory, read_request(csr), "user", "ada@lab.example", days=5)
    before = files.certificate.read_bytes()
    status, _, err = run("renew", directory, "ada@lab.example")
    assert status == 2
    assert "--csr" in err
    assert files.certificate.read_bytes() == before
    assert run("renew", directory, "ada@lab.example", "--csr", csr)[0] == 0
    assert leaf_of(files.certificate).public_key() == leaf_of_key(key)
    assert not files.key.exists()


def leaf_of_key(file: Path) -> object:
    return serialization.load_pem_private_key(file.read_bytes(), None).public_key()


def test_a_renewal_by_request_gives_no_further_name_and_fits_the_key_that_is_there(
    directory: Path, tmp_path: Path
) -> None:
    issue(directory, "user", "ada@lab.example")
    _, other = make_request(tmp_path / "eve", "user", "eve@lab.example")
    _, same = make_request(tmp_path / "ada", "user", "ada@lab.example")
    before = (directory / "ada@lab.example.pem").read_bytes()
    with pytest.raises(PkiError, match=r"asks for email:eve@lab\.example"):
        renew(directory, "ada@lab.example", 10, read_request(other))
    with pytest.raises(PkiError, match="is not the key of the request"):
        renew(directory, "ada@lab.example", 10, read_request(same))
    assert (directory / "ada@lab.example.pem").read_bytes() == before


def test_what_is_revoked_or_unknown_is_not_renewed(directory: Path, tmp_path: Path) -> None:
    _, csr = make_request(tmp_path / "bob", "user", "bob")
    bob = sign_request(directory, read_request(csr), "user", "bob")
    issue(directory, "user", "ada")
    revoke(directory, "ada")
    revoke(directory, "bob")
    with pytest.raises(PkiError, match=r"was revoked on .* cannot be renewed"):
        renew(directory, "ada", 10)
    with pytest.raises(PkiError, match="was not issued here"):
        renew(directory, "carol", 10)
    bob.certificate.unlink()
    with pytest.raises(PkiError, match="have a request with a new key"):
        sign_request(directory, read_request(csr), "user", "bob")
    issue(directory, "user", "dora")
    renew(directory, "dora", 10)


@pytest.mark.parametrize(("option", "days"), [("--crl-days", "0"), ("--crl-days", "99999")])
def test_a_life_without_sense_is_refused(directory: Path, option: str, days: str) -> None:
    status, _, err = run("crl", directory, option, days)
    assert status == 2
    assert "days" in err
    assert not (directory / "crl.pem").exists()


def test_an_authority_that_may_not_sign_crls_says_so(directory: Path) -> None:
    ca_without_crl_sign(directory)
    with pytest.raises(PkiError, match="may not sign CRLs"):
        make_crl(directory)

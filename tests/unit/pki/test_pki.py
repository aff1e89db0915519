"""What a facility's authority issues and refuses, and the messages of the command line."""

from __future__ import annotations

import hashlib
import os
import stat
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID

from scistream import __version__
from scistream.cli import main
from scistream.pki import authority
from scistream.pki.authority import fingerprint, init_authority, issue
from scistream.pki.register import PkiError


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    init_authority(tmp_path / "pki", "Example Light Source")
    return tmp_path / "pki"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def chain(path: Path) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(path.read_bytes())


def names(certificate: x509.Certificate) -> list[x509.GeneralName]:
    return list(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)


def usages(certificate: x509.Certificate) -> list[x509.ObjectIdentifier]:
    return list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)


def run(*words: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, [str(word) for word in words])
    return result.exit_code, result.stdout, result.stderr


def test_an_authority_may_sign_leaf_certificates_and_nothing_else(directory: Path) -> None:
    (authority,) = chain(directory / "ca.pem")
    constraints = authority.extensions.get_extension_for_class(x509.BasicConstraints)
    usage = authority.extensions.get_extension_for_class(x509.KeyUsage)
    assert constraints.critical
    assert (constraints.value.ca, constraints.value.path_length) == (True, 0)
    assert usage.critical
    assert usage.value.key_cert_sign
    assert usage.value.crl_sign
    assert not usage.value.digital_signature
    authority.verify_directly_issued_by(authority)


def test_private_keys_belong_to_their_owner_alone_under_any_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        made = init_authority(tmp_path / "new" / "pki", "Open House")
        issued = issue(tmp_path / "new" / "pki", "user", "ada")
    finally:
        os.umask(before)
    assert (mode(made.key), mode(issued.key), mode(made.key.parent)) == (0o600, 0o600, 0o700)


def test_an_authority_is_not_overwritten(directory: Path) -> None:
    before = {path: path.read_bytes() for path in directory.iterdir()}
    with pytest.raises(PkiError, match=r"ca\.pem exists already"):
        init_authority(directory, "Another")
    (directory / "ca.pem").unlink()
    with pytest.raises(PkiError, match=r"ca\.key exists already"):
        init_authority(directory, "Another")
    assert (directory / "ca.key").read_bytes() == before[directory / "ca.key"]
    assert not (directory / "ca.pem").exists()


def test_a_server_has_its_host_names_and_addresses_and_its_whole_chain(directory: Path) -> None:
    files = issue(directory, "server", "s2cs.example.org", ["192.0.2.7", "2001:db8::7", "S2CS", "s2cs.example.org"])
    leaf, authority = chain(files.certificate)
    assert names(leaf) == [
        x509.DNSName("s2cs.example.org"),
        x509.IPAddress(ip_address("192.0.2.7")),
        x509.IPAddress(ip_address("2001:db8::7")),
        x509.DNSName("s2cs"),
    ]
    assert usages(leaf) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert [authority] == chain(directory / "ca.pem")
    leaf.verify_directly_issued_by(authority)
    key = serialization.load_pem_private_key(files.key.read_bytes(), None)
    assert key.public_key() == leaf.public_key()
    assert leaf.serial_number != authority.serial_number


def test_a_server_can_be_named_by_its_address(directory: Path) -> None:
    leaf, _ = chain(issue(directory, "server", "192.0.2.7").certificate)
    assert names(leaf) == [x509.IPAddress(ip_address("192.0.2.7"))]


def test_a_server_whose_name_is_no_host_name_needs_one(directory: Path) -> None:
    with pytest.raises(PkiError, match="--san"):
        issue(directory, "server", "my+gateway")
    leaf, _ = chain(issue(directory, "server", "my+gateway", ["gateway.example.org"]).certificate)
    assert names(leaf) == [x509.DNSName("gateway.example.org")]


@pytest.mark.parametrize("bad", ["with space", "300.1.2.3", "-x", "a..b", "", "ünï.example"])
def test_a_server_cannot_have_a_name_that_nobody_can_dial(directory: Path, bad: str) -> None:
    with pytest.raises(PkiError, match="neither a host name nor an IP address"):
        issue(directory, "server", "gateway", [bad])


@pytest.mark.parametrize(
    ("kind", "name", "expected"),
    [
        ("controller", "s2cs", x509.UniformResourceIdentifier("scistream:controller:s2cs")),
        ("controller", "s2cs@home", x509.UniformResourceIdentifier("scistream:controller:s2cs@home")),
        ("user", "ada", x509.UniformResourceIdentifier("scistream:user:ada")),
        ("user", "ada@example.org", x509.RFC822Name("ada@example.org")),
    ],
)
def test_controllers_and_users_have_the_one_name_of_their_kind(
    directory: Path, kind: str, name: str, expected: x509.GeneralName
) -> None:
    leaf, _ = chain(issue(directory, kind, name).certificate)  # type: ignore[arg-type]
    assert names(leaf) == [expected]
    assert usages(leaf) == [ExtendedKeyUsageOID.CLIENT_AUTH]


def test_users_and_controllers_take_no_further_names(directory: Path) -> None:
    for kind in ("user", "controller"):
        with pytest.raises(PkiError, match="has only one name"):
            issue(directory, kind, "ada", ["ada.example.org"])
    assert not (directory / "ada.key").exists()


@pytest.mark.parametrize("bad", ["", ".hidden", "-rf", "../up", "a/b", "a\nb", "a b", "x" * 65, "ca", "ada@", "a@b@c"])
def test_a_name_that_is_no_safe_file_name_or_address_is_refused(directory: Path, bad: str) -> None:
    before = sorted(directory.parent.rglob("*"))
    with pytest.raises(PkiError) as refused:
        issue(directory, "user", bad)
    assert str(refused.value).endswith(".")
    assert sorted(directory.parent.rglob("*")) == before


def test_a_certificate_is_not_overwritten(directory: Path) -> None:
    before = issue(directory, "user", "ada").key.read_bytes()
    with pytest.raises(PkiError, match=r"ada\.pem exists already"):
        issue(directory, "server", "ada")
    (directory / "ada.pem").unlink()
    with pytest.raises(PkiError, match=r"ada\.key exists already"):
        issue(directory, "user", "ada")
    assert (directory / "ada.key").read_bytes() == before


def test_a_file_that_appears_meanwhile_is_not_overwritten(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authority, "refuse_overwriting", lambda *_: None)
    (directory / "ada.key").write_text("precious")
    (directory / "bob.pem").write_text("precious")
    for name in ("ada", "bob"):
        with pytest.raises(PkiError, match="exists already"):
            issue(directory, "user", name)
    assert (directory / "ada.key").read_text() == (directory / "bob.pem").read_text() == "precious"
    assert not (directory / "bob.key").exists(), "half of a pair is of no use"


def test_a_dangling_link_is_not_written_through(directory: Path, tmp_path: Path) -> None:
    (directory / "ada.key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PkiError, match="exists already"):
        issue(directory, "user", "ada")
    assert not (tmp_path / "elsewhere").exists()


def test_certificates_are_valid_from_an_hour_ago_and_never_longer_than_their_authority(tmp_path: Path) -> None:
    init_authority(tmp_path, "Short", days=2)
    now = datetime.now(UTC)
    (authority,) = chain(tmp_path / "ca.pem")
    capped, _ = chain(issue(tmp_path, "user", "ada", days=30).certificate)
    short, _ = chain(issue(tmp_path, "user", "bob", days=1).certificate)
    assert capped.not_valid_after_utc == authority.not_valid_after_utc
    assert abs(short.not_valid_after_utc - now - timedelta(days=1)) < timedelta(minutes=1)
    for certificate in (authority, capped, short):
        assert abs(now - certificate.not_valid_before_utc - timedelta(hours=1)) < timedelta(minutes=1)


def test_a_directory_without_an_authority_or_with_half_of_one_is_named(tmp_path: Path, directory: Path) -> None:
    with pytest.raises(PkiError, match=r"ca\.pem does not exist.*scistream pki init"):
        issue(tmp_path, "user", "ada")
    init_authority(tmp_path / "other", "Other")
    (directory / "ca.key").write_bytes((tmp_path / "other" / "ca.key").read_bytes())
    with pytest.raises(PkiError, match="do not belong together"):
        issue(directory, "user", "ada")
    (directory / "ca.key").write_text("nonsense")
    with pytest.raises(PkiError, match="could not be read"):
        issue(directory, "user", "ada")


@pytest.mark.parametrize("days", [0, -1, 10**9])
def test_a_life_without_sense_is_refused(directory: Path, days: int) -> None:
    with pytest.raises(PkiError, match="days"):
        issue(directory, "user", "ada", days=days)
    with pytest.raises(PkiError, match="days"):
        init_authority(directory / "new", "New", days=days)


@pytest.mark.parametrize("facility", ["", "  ", "x" * 65, "two\nlines"])
def test_a_facility_needs_a_name_that_fits_a_certificate(tmp_path: Path, facility: str) -> None:
    with pytest.raises(PkiError, match="cannot be the name of a facility"):
        init_authority(tmp_path, facility)


def test_a_fingerprint_is_the_sha256_of_the_der_of_the_first_certificate(directory: Path) -> None:
    files = issue(directory, "user", "ada")
    leaf, _ = chain(files.certificate)
    expected = hashlib.sha256(leaf.public_bytes(serialization.Encoding.DER)).hexdigest()
    assert fingerprint(files.certificate.read_bytes()) == fingerprint(leaf) == expected
    with pytest.raises(PkiError, match="not a certificate"):
        fingerprint(b"nonsense")


def test_the_command_makes_an_authority_and_says_where_it_goes(tmp_path: Path) -> None:
    status, out, err = run("pki", "init", tmp_path / "pki", "--facility", "Example Light Source")
    assert (status, err) == (0, "")
    assert f'authorities = ["{tmp_path}/pki/ca.pem"]' in out
    assert fingerprint((tmp_path / "pki" / "ca.pem").read_bytes()) in out


def test_the_command_takes_names_repeated_and_separated_by_commas(directory: Path) -> None:
    status, out, _ = run(
        "pki", "issue", directory, "server", "gw.example.org", "--san", "gw, 192.0.2.1", "--san", "2001:db8::1"
    )
    assert status == 0
    assert "Names: gw.example.org, gw, 192.0.2.1, 2001:db8::1" in out
    for setting in (f'certificate = "{directory}/gw.example.org.pem"', f'key = "{directory}/gw.example.org.key"'):
        assert setting in out
    assert "s2cs.toml" in out
    assert "s2ds.toml" in out


def test_the_command_says_which_setting_names_a_controller_and_where_a_users_certificate_goes(directory: Path) -> None:
    _, out, _ = run("pki", "issue", directory, "controller", "s2cs")
    assert 'controller = "scistream:controller:s2cs"' in out
    _, out, _ = run("pki", "issue", directory, "user", "ada@example.org")
    assert "s2uc.toml" in out


def test_the_command_refuses_in_one_line_with_status_2(directory: Path) -> None:
    for words in (
        ("init", directory, "--facility", "Again"),
        ("issue", directory, "user", "ada", "--san", "x"),
        ("issue", directory.parent, "user", "ada"),
    ):
        status, out, err = run("pki", *words)
        assert status == 2
        assert out == ""
        assert err.startswith("Error: ")
        assert err.count("\n") == 1
    assert run("pki", "issue", directory, "wizard", "ada")[0] == 2


def test_the_command_shows_its_version_and_help() -> None:
    assert run("--version") == (0, f"scistream, version {__version__}\n", "")
    status, out, _ = run("--help")
    assert status == 0
    assert "pki" in out

"""Enrolment without copying a key: request, sign, install, and what each of them refuses."""

from __future__ import annotations

import json
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa

from scistream.cli import main
from scistream.pki.authority import fingerprint, init_authority, issue
from scistream.pki.register import key_digest, read_register
from scistream.tls.contexts import client_context, server_context
from scistream.tls.explain import explain
from scistream.tls.verify import verify_client
from support.memory_tls import CLIENT, Authority, Joined, a_root, an_intermediate, common_name, join, store, written
from support.requirements import needs

ADA = "ada@lab.example"


@pytest.fixture
def facility(tmp_path: Path) -> Path:
    init_authority(tmp_path / "facility", "Example Light Source")
    return tmp_path / "facility"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Return the user's own machine."""
    return tmp_path / "home"


def run(*words: str | Path, given: str = "") -> tuple[int, str, str]:
    result = CliRunner().invoke(main, ["pki", *map(str, words)], input=given)
    return result.exit_code, result.stdout, result.stderr


def refused(*words: str | Path, given: str = "") -> str:
    status, _, err = run(*words, given=given)
    assert status == 2
    assert err.startswith("Error: ")
    assert err.count("\n") == 1
    return err


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} if folder.exists() else {}


def names(file: Path) -> list[x509.GeneralName]:
    leaf = x509.load_pem_x509_certificate(file.read_bytes())
    return list(leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)


def requested(home: Path, kind: str = "user", name: str = ADA, *options: str) -> Path:
    assert run("request", kind, name, *options, "--out", home)[0] == 0
    return home / f"{name}.csr"


def odd_request(
    file: Path, key: Any, *san: x509.GeneralName,
    name: str = ADA,
) -> Path:  # fmt: skip
    builder = x509.CertificateSigningRequestBuilder().subject_name(common_name(name))
    if san:
        builder = builder.add_extension(x509.SubjectAlternativeName(san), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey) else hashes.SHA256()
    file.write_bytes(builder.sign(key, algorithm).public_bytes(serialization.Encoding.PEM))
    return file


# -- request


def test_a_request_leaves_the_key_here_and_tells_its_digest(home: Path) -> None:
    status, out, _ = run("request", "server", "gw.lab.example", "--san", "192.0.2.1,gw", "--out", home)
    assert status == 0
    key, csr = home / "gw.lab.example.key", home / "gw.lab.example.csr"
    assert key.stat().st_mode & 0o777 == 0o600
    assert home.stat().st_mode & 0o777 == 0o700
    made = x509.load_pem_x509_csr(csr.read_bytes())
    assert made.is_signature_valid
    assert key_digest(made) in out
    assert b"PRIVATE" not in csr.read_bytes()


def test_a_request_overwrites_nothing_and_takes_the_names_of_issue_only(home: Path) -> None:
    requested(home)
    before = files(home)
    assert "exists already" in refused("request", "user", ADA, "--out", home)
    assert "has only one name" in refused("request", "user", "bob", "--san", "x.example", "--out", home)
    assert "cannot be the name of a certificate" in refused("request", "user", "../up", "--out", home)
    assert files(home) == before


# -- sign


def test_what_is_signed_is_shown_and_waits_for_a_yes(facility: Path, home: Path) -> None:
    csr = requested(home)
    status, out, _ = run("sign", facility, csr, "--kind", "user", given="n\n")
    assert status == 130, "as after Ctrl-C"
    for part in (f"email:{ADA}", key_digest(x509.load_pem_x509_csr(csr.read_bytes())), "as a user"):
        assert part in out
    assert not (facility / f"{ADA}.pem").exists()
    assert run("sign", facility, csr, "--kind", "user", given="")[0] == 130, "an end of input is no yes"

    status, out, _ = run("sign", facility, csr, "--kind", "user", given="y\n")
    assert status == 0
    chain = x509.load_pem_x509_certificates((facility / f"{ADA}.pem").read_bytes())
    assert len(chain) == 2
    assert names(facility / f"{ADA}.pem") == [x509.RFC822Name(ADA)]
    assert fingerprint((facility / "ca.pem").read_bytes()) in out
    assert [(entry.name, entry.kind) for entry in read_register(facility)] == [(ADA, "user")]
    assert not (facility / f"{ADA}.key").exists()


def test_a_name_that_the_operator_says_needs_no_question(facility: Path, home: Path) -> None:
    csr = requested(home)
    assert run("sign", facility, csr, "--kind", "user", "--name", ADA, "--days", "5")[0] == 0
    leaf = x509.load_pem_x509_certificate((facility / f"{ADA}.pem").read_bytes())
    assert timedelta(days=4) < leaf.not_valid_after_utc - datetime.now(UTC) < timedelta(days=6)


def test_a_server_gets_the_names_that_it_asks_for_and_the_operator_allows(facility: Path, home: Path) -> None:
    csr = requested(home, "server", "gw.lab.example", "--san", "192.0.2.1")
    given = ("--kind", "server", "--name", "gw.lab.example")
    assert "asks for IP:192.0.2.1" in refused("sign", facility, csr, *given)
    assert run("sign", facility, csr, *given, "--san", "192.0.2.1,gw")[0] == 0
    assert [str(name.value) for name in names(facility / "gw.lab.example.pem")] == ["gw.lab.example", "192.0.2.1", "gw"]


def test_a_server_s_names_are_taken_from_the_request_when_they_are_confirmed(facility: Path, home: Path) -> None:
    csr = requested(home, "server", "gw.lab.example", "--san", "192.0.2.1")
    status, out, _ = run("sign", facility, csr, "--kind", "server", given="y\n")
    assert status == 0
    assert "IP:192.0.2.1" in out
    assert [str(name.value) for name in names(facility / "gw.lab.example.pem")] == ["gw.lab.example", "192.0.2.1"]


@pytest.mark.parametrize(
    ("kind", "name"), [("controller", ADA), ("user", "bob@lab.example"), ("user", "ada"), ("server", "gw.example")]
)
def test_a_request_for_other_names_than_the_operator_allows_is_refused(
    facility: Path, home: Path, kind: str, name: str
) -> None:
    csr, before = requested(home), files(facility)
    assert f"asks for email:{ADA}" in refused("sign", facility, csr, "--kind", kind, "--name", name)
    assert files(facility) == before
    assert run("sign", facility, csr, "--kind", "user", "--name", ADA)[0] == 0


def test_nothing_of_a_request_is_taken_over_but_its_key(facility: Path, tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    csr = odd_request(tmp_path / "odd.csr", key, name="I am the king")
    assert run("sign", facility, csr, "--kind", "user", "--name", ADA)[0] == 0
    leaf = x509.load_pem_x509_certificate((facility / f"{ADA}.pem").read_bytes())
    assert leaf.public_key() == key.public_key()
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert leaf.subject == common_name(ADA)


def test_weak_and_unknown_keys_are_refused_and_strong_ones_are_not(facility: Path, tmp_path: Path) -> None:
    weak = [
        (rsa.generate_private_key(65537, 1024), "RSA with 1024 bits"),
        (ec.generate_private_key(ec.SECP192R1()), "only P-256"),
        (rsa.generate_private_key(3, 2048), "RSA with the public exponent 3, but at least 65537 is required"),
        (
            dsa.generate_private_key(2048),
            "nor an RSA key",
        ),
    ]
    before = files(facility)
    for key, words in weak:
        csr = odd_request(tmp_path / "weak.csr", key)
        assert words in refused("sign", facility, csr, "--kind", "user", "--name", ADA)
    assert files(facility) == before
    strong = [rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP521R1())]
    for number, key in enumerate([*strong, ed25519.Ed25519PrivateKey.generate(), ed448.Ed448PrivateKey.generate()]):
        csr = odd_request(tmp_path / "strong.csr", key)
        assert run("sign", facility, csr, "--kind", "user", "--name", f"user{number}@lab.example")[0] == 0


def test_a_request_that_was_changed_on_its_way_is_refused(facility: Path, home: Path) -> None:
    csr = requested(home)
    der = bytearray(x509.load_pem_x509_csr(csr.read_bytes()).public_bytes(serialization.Encoding.DER))
    at = der.index(b"ada@lab.example")
    der[at : at + 3] = b"eve"
    changed = x509.load_der_x509_csr(bytes(der))
    bad = home / "changed.csr"
    bad.write_bytes(changed.public_bytes(serialization.Encoding.PEM))
    assert "not signed by its own key" in refused("sign", facility, bad, "--kind", "user", "--name", "eve@lab.example")
    for nonsense in (
        b"",
        b"nonsense",
        b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
    ):
        bad.write_bytes(nonsense)
        assert "not a valid certificate request" in refused("sign", facility, bad, "--kind", "user", "--name", ADA)
    assert "could not be read" in refused("sign", facility, home / "none.csr", "--kind", "user", "--name", ADA)


def test_the_authority_s_own_key_is_not_certified_again(facility: Path, tmp_path: Path) -> None:
    csr = odd_request(tmp_path / "own.csr", Authority.load(facility).key)
    assert "the key of the authority itself" in refused("sign", facility, csr, "--kind", "user", "--name", ADA)


def test_a_name_is_signed_once_and_then_renewed(facility: Path, home: Path) -> None:
    csr = requested(home)
    assert run("sign", facility, csr, "--kind", "user", "--name", ADA)[0] == 0
    assert "pki renew" in refused("sign", facility, csr, "--kind", "user", "--name", ADA)


# -- install


def enrolled(facility: Path, home: Path) -> Path:
    """Return what the facility has sent back."""
    csr = requested(home)
    assert run("sign", facility, csr, "--kind", "user", "--name", ADA)[0] == 0
    back = home / f"{ADA}.pem"
    back.write_bytes((facility / f"{ADA}.pem").read_bytes())
    return back


def test_what_is_installed_can_be_used_as_the_lines_for_the_configuration_say(
    facility: Path, home: Path, tmp_path: Path
) -> None:
    back, config = enrolled(facility, home), tmp_path / "config"
    status, out, _ = run("install", back, "--key", home / f"{ADA}.key", config)
    assert status == 0
    assert f'certificate = "{config}/{ADA}.pem"\n  key = "{config}/{ADA}.key"' in out
    assert f'authorities = ["{config}/ca.pem"]' in out
    assert "s2uc.toml" in out
    assert fingerprint((facility / "ca.pem").read_bytes()) in out
    assert "compare" in out
    assert (config / f"{ADA}.key").stat().st_mode & 0o777 == 0o600
    assert (config / "ca.pem").read_bytes() == (facility / "ca.pem").read_bytes()
    client_context(config / f"{ADA}.pem", config / f"{ADA}.key", [config / "ca.pem"])


def test_a_key_that_is_in_place_already_stays_as_it_is(facility: Path, home: Path) -> None:
    back = enrolled(facility, home)
    key = home / f"{ADA}.key"
    before = key.read_bytes(), key.stat().st_ino
    assert run("install", back, "--key", key, home)[0] == 0
    assert (key.read_bytes(), key.stat().st_ino) == before
    key.chmod(0o644)
    assert run("install", back, "--key", key, home)[0] == 0
    assert key.stat().st_mode & 0o777 == 0o600, "unless others may read it"


def test_a_renewal_replaces_both_and_asks_nothing_about_the_authority_that_is_there(
    facility: Path, home: Path, tmp_path: Path
) -> None:
    back, config = enrolled(facility, home), tmp_path / "config"
    assert run("install", back, "--key", home / f"{ADA}.key", config)[0] == 0
    old = files(config)
    csr = requested(tmp_path / "new")
    assert run("renew", facility, ADA, "--csr", csr)[0] == 0
    status, out, _ = run("install", facility / f"{ADA}.pem", "--key", tmp_path / "new" / f"{ADA}.key", config)
    assert status == 0
    assert "compare" not in out
    changed = {path.name for path, data in files(config).items() if old[path] != data}
    assert changed == {f"{ADA}.pem", f"{ADA}.key"}
    client_context(config / f"{ADA}.pem", config / f"{ADA}.key", [config / "ca.pem"])


def test_nothing_is_installed_that_does_not_fit(facility: Path, home: Path, tmp_path: Path) -> None:
    back, config = enrolled(facility, home), tmp_path / "config"
    key = home / f"{ADA}.key"
    init_authority(tmp_path / "other", "Another")
    other = issue(tmp_path / "other", "user", "eve")
    authority = Authority.load(facility)
    leaf, leaf_key = authority.leaf(x509.RFC822Name(ADA), usage=CLIENT, left=timedelta(minutes=-1))
    expired = store(tmp_path / "expired", [leaf, authority.certificate], leaf_key)
    alone = written(tmp_path / "alone.pem", x509.load_pem_x509_certificate(back.read_bytes()))
    for words, arguments in (
        ("is not for the key", (back, "--key", other.key)),
        ("contains no private key", (back, "--key", back)),
        ("contains no certificate", (key, "--key", key)),
        ("have a new one signed", (expired[0], "--key", expired[1])),
        ("does not contain its authority", (alone, "--key", key)),
        ("does not lead to the authority", (back, "--key", key, "--ca", tmp_path / "other" / "ca.pem")),
        ("contains no authority", (back, "--key", key, "--ca", other.certificate.parent / "alone.pem")),
    ):
        if words == "contains no authority":
            written(tmp_path / "other" / "alone.pem", x509.load_pem_x509_certificate(other.certificate.read_bytes()))
        assert words in refused("install", *arguments, config)
        assert files(config) == {}
    assert run("install", alone, "--key", key, "--ca", facility / "ca.pem", config)[0] == 0
    assert len(x509.load_pem_x509_certificates((config / "alone.pem").read_bytes())) == 2, "the whole chain"


def test_a_certificate_of_another_authority_than_the_one_in_place_is_not_slipped_in(
    facility: Path, home: Path, tmp_path: Path
) -> None:
    back, config = enrolled(facility, home), tmp_path / "config"
    assert run("install", back, "--key", home / f"{ADA}.key", config)[0] == 0
    init_authority(tmp_path / "other", "Another")
    other, before = issue(tmp_path / "other", "user", ADA), files(config)
    assert "from another authority" in refused("install", other.certificate, "--key", other.key, config)
    assert files(config) == before
    given = ("install", other.certificate, "--key", other.key, "--ca", tmp_path / "other" / "ca.pem")
    status, out, _ = run(*given, config)
    assert status == 0
    assert f'authorities = ["{tmp_path}/other/ca.pem"]' in out


def test_a_chain_of_an_ordinary_authority_with_an_intermediate_is_installed_whole(tmp_path: Path) -> None:
    root = a_root("an ordinary root")
    middle = an_intermediate(root, "an ordinary intermediate")
    leaf, key = middle.leaf(x509.DNSName("gw.uni.example"))
    certificate, key_file = store(tmp_path / "sent", [leaf, middle.certificate], key)
    anchor = written(tmp_path / "root.pem", root.certificate)
    status, out, _ = run("install", certificate, "--key", key_file, "--ca", anchor, tmp_path / "etc")
    assert status == 0
    assert "s2ds.toml" in out
    placed = tmp_path / "etc" / "odd.pem"
    assert x509.load_pem_x509_certificates(placed.read_bytes()) == [leaf, middle.certificate, root.certificate]
    server_context(placed, tmp_path / "etc" / "odd.key", [tmp_path / "etc" / "ca.pem"], client_certificate="optional")


def test_an_intermediate_can_be_the_authority_of_a_facility(tmp_path: Path) -> None:
    root = a_root("an ordinary root")
    middle = an_intermediate(root, "an ordinary intermediate")
    store(tmp_path / "pki", [middle.certificate, root.certificate], middle.key, "ca")
    assert run("issue", tmp_path / "pki", "server", "gw.uni.example")[0] == 0
    chain = x509.load_pem_x509_certificates((tmp_path / "pki" / "gw.uni.example.pem").read_bytes())
    assert chain[1:] == [middle.certificate, root.certificate]


def test_an_openssl_authority_with_an_intermediate_signs_our_requests_and_revokes_by_its_own_crl(
    tmp_path: Path, home: Path
) -> None:
    """The program openssl makes a root, an intermediate, a certificate for our request, and a CRL."""
    ca = tmp_path / "openssl"
    ca.mkdir()
    (ca / "index.txt").touch()
    (ca / "serial").write_text("1000\n")
    (ca / "crlnumber").write_text("01\n")
    (ca / "ca.cnf").write_text(
        f"[ca]\ndefault_ca = us\n[us]\ndir = {ca}\ndatabase = {ca}/index.txt\nserial = {ca}/serial\n"
        f"crlnumber = {ca}/crlnumber\nnew_certs_dir = {ca}\ncertificate = {ca}/middle.pem\n"
        f"private_key = {ca}/middle.key\n"
        "default_md = sha256\ndefault_days = 30\ndefault_crl_days = 30\npolicy = any\ncopy_extensions = copy\n"
        "x509_extensions = leaf\n[any]\ncommonName = supplied\n[leaf]\nbasicConstraints = critical, CA:FALSE\n"
        "extendedKeyUsage = clientAuth\n[req]\ndistinguished_name = dn\n[dn]\n"
        "[root]\nbasicConstraints = critical, CA:TRUE\nkeyUsage = critical, keyCertSign, cRLSign\n"
        "subjectKeyIdentifier = hash\n[middle]\nbasicConstraints = critical, CA:TRUE, pathlen:0\n"
        "keyUsage = critical, keyCertSign, cRLSign\nsubjectKeyIdentifier = hash\n"
    )
    conf = ("-config", ca / "ca.cnf")
    new = ("req", "-newkey", "rsa:2048", "-nodes", *conf)
    openssl(*new, "-x509", "-keyout", ca / "root.key", "-out", ca / "root.pem", "-subj", "/CN=Uni root", "-extensions",
            "root", "-days", "60")  # fmt: skip
    openssl(*new, "-keyout", ca / "middle.key", "-out", ca / "middle.csr", "-subj", "/CN=Uni users")
    signer = ("-CA", ca / "root.pem", "-CAkey", ca / "root.key", "-CAcreateserial", "-days", "50")
    extensions = ("-extfile", ca / "ca.cnf", "-extensions", "middle")
    openssl("x509", "-req", "-in", ca / "middle.csr", *signer, *extensions, "-out", ca / "middle.pem")
    csr = requested(home)
    openssl("ca", "-batch", "-notext", *conf, "-in", csr, "-out", ca / "leaf.pem")
    openssl("ca", "-gencrl", *conf, "-out", ca / "before.crl")

    back = home / f"{ADA}.pem"
    back.write_bytes((ca / "leaf.pem").read_bytes() + (ca / "middle.pem").read_bytes())
    status, _, err = run("install", back, "--key", home / f"{ADA}.key", "--ca", ca / "root.pem", tmp_path / "config")
    assert (status, err) == (0, "")
    init_authority(tmp_path / "facility", "Example Light Source")
    server = issue(tmp_path / "facility", "server", "s2cs.example")

    def handshake(crl: Path) -> Joined:
        context = server_context(
            server.certificate, server.key, [ca / "root.pem"], client_certificate="required", crl=[crl]
        )
        mine = tmp_path / "config" / f"{ADA}.pem", tmp_path / "config" / f"{ADA}.key"
        return join(context, client_context(*mine, [tmp_path / "facility" / "ca.pem"]))

    good = handshake(ca / "before.crl")
    assert good.done
    known = verify_client(good.server)
    assert known is not None
    assert known.name == ADA
    shown = CliRunner().invoke(main, ["pki", "show", str(tmp_path / "config" / f"{ADA}.pem")]).output
    assert f"identity {known.name}, issuer {known.issuer}" in shown
    openssl("ca", *conf, "-revoke", ca / "leaf.pem", "-crl_reason", "keyCompromise")
    openssl("ca", "-gencrl", *conf, "-out", ca / "after.crl")
    refused_now = handshake(ca / "after.crl")
    assert refused_now.server_error is not None
    assert "it was revoked on" in explain(refused_now.server_error)
    assert "(key compromise)" in explain(refused_now.server_error)


def openssl(*words: str | Path) -> None:
    needs("openssl")
    ended = subprocess.run(["openssl", *map(str, words)], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr


# -- for programs


def told(*words: str | Path) -> Any:
    """Return the only output of a command: one JSON object."""
    status, out, err = run(*words, "--json")
    assert (status, err) == (0, "")
    return json.loads(out)


def test_each_step_from_the_authority_to_the_list_of_the_revoked_is_told_in_json(tmp_path: Path, home: Path) -> None:
    directory = tmp_path / "pki"
    made = told("init", directory, "--facility", "Example Light Source")
    assert made["certificate"] == str(directory / "ca.pem")
    assert made["authority_sha256"] == fingerprint((directory / "ca.pem").read_bytes())
    server = told("issue", directory, "server", "s2cs.example", "--san", "192.0.2.7")
    assert server["names"] == ["DNS:s2cs.example", "IP:192.0.2.7"]
    asked = told("request", "user", ADA, "--out", home)
    signed = told("sign", directory, asked["request"], "--kind", "user", "--name", ADA)
    assert (signed["names"], signed["key"]) == ([f"email:{ADA}"], None)
    assert signed["key_sha256"] == asked["key_sha256"]
    placed = told("install", signed["certificate"], "--key", asked["key"], home / "config", "--ca", made["certificate"])
    assert (placed["serial"], placed["authority_was_given"]) == (signed["serial"], True)
    assert Path(placed["key"]).exists()
    anew = told("renew", directory, "s2cs.example")
    assert (anew["replaced"]["serial"], anew["new_key"]) == (server["serial"], True)
    assert anew["serial"] != server["serial"]
    revoked = told("revoke", directory, ADA)
    assert ([one["serial"] for one in revoked["revoked"]], revoked["count"]) == ([signed["serial"]], 1)
    assert told("crl", directory)["crl"] == revoked["crl"] == str(directory / "crl.pem")


def test_a_program_that_signs_names_the_subject_of_the_certificate(facility: Path, home: Path) -> None:
    csr = requested(home)
    status, out, err = run("sign", facility, csr, "--kind", "user", "--json")
    assert status == 2
    assert "--name" in err
    assert "--name" in json.loads(out)["error"]["msg"]

"""CRLs on control links: who is accepted, who is refused, and errors about the CRL itself."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from OpenSSL import SSL

from scistream.pki.authority import Issued, init_authority, issue
from scistream.pki.revocation import make_crl, revoke
from scistream.tls import contexts, explain, verify
from scistream.tls.files import CertificateError, CertificateFiles, LoadedCertificates, read_material
from scistream.tls.reloadable import ReloadableCredentials, client_credentials, server_credentials
from support.memory_tls import CLIENT, Authority, Joined, a_crl, a_root, an_intermediate, join, store, written

HOST = "s2cs.example.org"


class Lab:
    """A facility with two users, and a server that uses its CRL."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ca = init_authority(directory, "Example").certificate
        self.crl = directory / "crl.pem"
        self.server = issue(directory, "server", HOST)
        self.ada = issue(directory, "user", "ada@example.org")
        self.bob = issue(directory, "user", "bob@example.org")
        make_crl(directory)

    def trust(self, files: Issued, *crl: Path) -> CertificateFiles:
        return CertificateFiles(files.certificate, files.key, (self.ca,), crl)

    def server_credentials(self, *crl: Path) -> ReloadableCredentials:
        return server_credentials(self.trust(self.server, *(crl or (self.crl,))), "required")

    def client(self, files: Issued, *crl: Path) -> SSL.Context:
        return client_credentials(self.trust(files, *crl)).context


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path / "pki")


def refusal_at_server(ends: Joined) -> str:
    assert ends.server_error is not None
    return explain.explain(ends.server_error)


def test_a_revoked_client_is_refused_with_the_day_and_the_reason_and_another_is_not(lab: Lab) -> None:
    revoke(lab.directory, "ada@example.org", "keyCompromise")
    server = lab.server_credentials().context
    refused = join(server, lab.client(lab.ada))
    assert f"it was revoked on {datetime.now(UTC):%Y-%m-%d} (key compromise)" in refusal_at_server(refused)
    assert "CN=ada@example.org" in refusal_at_server(refused)
    assert refused.client_error is not None
    assert "revoked" in explain.explain(refused.client_error)
    assert join(server, lab.client(lab.bob)).done
    without = contexts.server_context(lab.server.certificate, lab.server.key, [lab.ca], client_certificate="required")
    assert join(without, lab.client(lab.ada)).done, "who names no CRL asks nobody"


def test_a_revoked_server_is_refused_by_its_clients(lab: Lab) -> None:
    server = lab.server_credentials().context
    assert join(server, lab.client(lab.bob, lab.crl)).done
    revoke(lab.directory, HOST)
    refused = join(server, lab.client(lab.bob, lab.crl))
    assert refused.client_error is not None
    assert "it was revoked on" in explain.explain(refused.client_error)


def test_under_a_crl_that_has_expired_nobody_gets_in_and_the_remedy_is_named(lab: Lab) -> None:
    authority = Authority.load(lab.directory)
    written(lab.crl, a_crl(authority, left=timedelta(minutes=-5)))
    credentials = lab.server_credentials()
    said = refusal_at_server(join(credentials.context, lab.client(lab.bob)))
    assert "the CRL of its authority has expired" in said
    assert "scistream pki crl" in said
    (gap,) = credentials.material.gaps(datetime.now(UTC))
    assert str(lab.crl) in gap
    assert " expired on " in gap
    make_crl(lab.directory)
    credentials.read()()
    assert credentials.material.gaps(datetime.now(UTC)) == []
    assert join(credentials.context, lab.client(lab.bob)).done


def test_an_authority_without_a_crl_among_others_with_one_is_named(lab: Lab, tmp_path: Path) -> None:
    other = Lab(tmp_path / "other")
    trust = CertificateFiles(lab.server.certificate, lab.server.key, (lab.ca, other.ca), (lab.crl,))
    credentials = server_credentials(trust, "required")
    said = refusal_at_server(join(credentials.context, foreign(other, lab)))
    assert "there is no CRL of its authority" in said
    (gap,) = credentials.material.gaps(datetime.now(UTC))
    assert str(other.ca) in gap
    assert join(credentials.context, lab.client(lab.ada)).done
    both = server_credentials(
        CertificateFiles(lab.server.certificate, lab.server.key, (lab.ca, other.ca), (lab.crl, other.crl)), "required"
    )
    assert join(both.context, foreign(other, lab)).done
    assert both.material.gaps(datetime.now(UTC)) == []


def foreign(home: Lab, host: Lab) -> SSL.Context:
    """Return a user of one facility who connects to the other."""
    return contexts.client_context(home.ada.certificate, home.ada.key, [host.ca])


def test_two_authorities_of_one_name_have_each_their_own_crl(lab: Lab, tmp_path: Path) -> None:
    """As in a rollover, `pki init` with the same facility makes an authority of the same name."""
    new = Lab(tmp_path / "new")
    revoke(lab.directory, "ada@example.org")
    revoke(new.directory, "bob@example.org")
    trust = CertificateFiles(lab.server.certificate, lab.server.key, (lab.ca, new.ca), (lab.crl, new.crl))
    server = server_credentials(trust, "required").context
    assert join(server, foreign(new, lab)).done
    assert join(server, lab.client(lab.bob)).done
    assert "revoked" in refusal_at_server(join(server, lab.client(lab.ada)))
    bob = contexts.client_context(new.bob.certificate, new.bob.key, [lab.ca])
    assert "revoked" in refusal_at_server(join(server, bob))
    retired = CertificateFiles(lab.server.certificate, lab.server.key, (new.ca,), (lab.crl, new.crl))
    assert join(server_credentials(retired, "required").context, foreign(new, lab)).done, "the old CRL is no hindrance"


def test_one_file_may_hold_the_crls_of_several_authorities(lab: Lab, tmp_path: Path) -> None:
    other = Lab(tmp_path / "other")
    revoke(other.directory, "ada@example.org")
    both = tmp_path / "both.pem"
    both.write_bytes(lab.crl.read_bytes() + other.crl.read_bytes())
    server = server_credentials(
        CertificateFiles(lab.server.certificate, lab.server.key, (lab.ca, other.ca), (both,)), "required"
    )
    assert "revoked" in refusal_at_server(join(server.context, foreign(other, lab)))
    assert join(server.context, lab.client(lab.ada)).done


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, r"does not exist: create it \(scistream pki crl\)"),
        (b"nonsense", "contains no CRL"),
        (b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n", "contains no CRL"),
    ],
)
def test_a_file_that_is_no_crl_is_a_problem_before_anything_listens(
    lab: Lab, tmp_path: Path, content: bytes | None, words: str
) -> None:
    file = tmp_path / "bad.pem"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(CertificateError, match=words):
        lab.server_credentials(file)
    lab.server_credentials(lab.crl)


def test_a_crl_that_somebody_else_has_signed_in_the_name_of_an_authority_is_a_problem(lab: Lab, tmp_path: Path) -> None:
    forger = Authority(Authority.load(lab.directory).certificate, Authority.make().key)
    file = written(tmp_path / "forged.pem", a_crl(forger))
    with pytest.raises(CertificateError, match="the signature is not that authority's"):
        lab.server_credentials(file)


# -- authorities of others


class Chain:
    """A root, an authority under it, and a user of that authority, none of them made by `pki`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.root = a_root("an ordinary root")
        self.middle = an_intermediate(self.root, "an ordinary intermediate")
        self.leaf, key = self.middle.leaf(x509.RFC822Name("grace@uni.example"), usage=CLIENT)
        self.files = store(folder, [self.leaf, self.middle.certificate], key)
        self.anchor = written(folder / "root.pem", self.root.certificate)
        self.folder = folder

    def server(self, lab: Lab, *crls: x509.CertificateRevocationList) -> SSL.Context:
        files = [written(self.folder / f"{number}.crl", crl) for number, crl in enumerate(crls)]
        return contexts.server_context(
            lab.server.certificate, lab.server.key, [self.anchor], client_certificate="required", crl=files
        )

    def client(self, lab: Lab) -> SSL.Context:
        return contexts.client_context(*self.files, [lab.ca])


def test_a_chain_with_an_intermediate_of_another_authority_works_and_is_known_by_its_root(
    lab: Lab, tmp_path: Path
) -> None:
    chain = Chain(tmp_path / "chain")
    ends = join(chain.server(lab), chain.client(lab))
    assert ends.done
    found = verify.verify_client(ends.server)
    assert found is not None
    assert found.name == "grace@uni.example"


def test_with_an_intermediate_the_crl_of_the_issuer_decides(lab: Lab, tmp_path: Path) -> None:
    chain = Chain(tmp_path / "chain")
    assert join(chain.server(lab, a_crl(chain.middle)), chain.client(lab)).done, "the root needs none"
    assert join(chain.server(lab, a_crl(chain.middle), a_crl(chain.root)), chain.client(lab)).done
    said = refusal_at_server(join(chain.server(lab, a_crl(chain.root)), chain.client(lab)))
    assert "there is no CRL of its authority" in said
    said = refusal_at_server(join(chain.server(lab, a_crl(chain.middle, chain.leaf)), chain.client(lab)))
    assert "CN=a leaf" in said
    assert "it was revoked on" in said


def test_an_intermediate_that_its_root_has_revoked_takes_all_of_its_users_along(lab: Lab, tmp_path: Path) -> None:
    chain = Chain(tmp_path / "chain")
    crls = a_crl(chain.middle), a_crl(chain.root, chain.middle.certificate)
    said = refusal_at_server(join(chain.server(lab, *crls), chain.client(lab)))
    assert "an ordinary intermediate" in said
    assert "it was revoked on" in said


# -- links that are there when the CRL comes


def material_of(lab: Lab, *crl: Path) -> LoadedCertificates:
    return read_material(lab.server.certificate, lab.server.key, [lab.ca], crl)


def test_a_verified_path_is_verified_again(lab: Lab, tmp_path: Path) -> None:
    def path(files: Issued) -> list[x509.Certificate]:
        return x509.load_pem_x509_certificates(files.certificate.read_bytes())

    assert material_of(lab).refusal(path(lab.ada)) is None
    assert material_of(lab, lab.crl).refusal(path(lab.ada)) is None
    revoke(lab.directory, "ada@example.org", "cessationOfOperation")
    assert "it was revoked on" in (material_of(lab, lab.crl).refusal(path(lab.ada)) or "")
    assert "(cessation of operation)" in (material_of(lab, lab.crl).refusal(path(lab.ada)) or "")
    assert material_of(lab, lab.crl).refusal(path(lab.bob)) is None
    elsewhere = Lab(tmp_path / "elsewhere")
    assert "not in `authorities`" in (material_of(elsewhere).refusal(path(lab.bob)) or "")


def test_a_path_below_an_intermediate_is_verified_again_too(lab: Lab, tmp_path: Path) -> None:
    chain = Chain(tmp_path / "chain")
    path = [chain.leaf, chain.middle.certificate, chain.root.certificate]

    def refusal(*crls: x509.CertificateRevocationList) -> str | None:
        files = [written(tmp_path / f"{number}.crl", crl) for number, crl in enumerate(crls)]
        material = read_material(lab.server.certificate, lab.server.key, [chain.anchor], files)
        return material.refusal(path)

    assert refusal(a_crl(chain.middle), a_crl(chain.root)) is None
    assert refusal(a_crl(chain.middle, chain.leaf)) is not None
    assert refusal(a_crl(chain.root, chain.middle.certificate)) is not None
    forger = Authority(chain.middle.certificate, Authority.make().key)
    assert refusal(a_crl(forger, chain.leaf)) is None, "a forged CRL revokes nobody"


def test_a_handshake_that_began_before_the_files_were_read_again_is_judged_by_the_new_ones(lab: Lab) -> None:
    credentials = lab.server_credentials()
    ada, bob = join(credentials.context, lab.client(lab.ada)), join(credentials.context, lab.client(lab.bob))
    revoke(lab.directory, "ada@example.org")
    credentials.check(ada.server)
    credentials.read()()
    credentials.check(bob.server)
    with pytest.raises(CertificateError, match="it was revoked on"):
        credentials.check(ada.server)


def test_files_that_are_broken_when_they_are_read_again_change_nothing(lab: Lab) -> None:
    credentials = lab.server_credentials()
    before = credentials.context, credentials.material
    good = lab.server.key.read_bytes()
    lab.server.key.write_bytes(lab.ada.key.read_bytes())
    with pytest.raises(CertificateError, match="does not belong"):
        credentials.read()
    assert (credentials.context, credentials.material) == before
    lab.server.key.write_bytes(good)
    put_in_force = credentials.read()
    assert credentials.context is before[0], "reading alone changes nothing"
    put_in_force()
    assert credentials.context is not before[0]

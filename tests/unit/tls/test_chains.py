"""The chain that a party shows, and certificates of the wrong kind, which are refused when the files are read."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from hypothesis import given
from hypothesis import strategies as st

from scistream.tls import contexts, verify
from scistream.tls.files import CertificateError, CertificateFiles, path_upwards
from scistream.tls.reloadable import (
    ReloadableCredentials,
    client_credentials,
    controller_credentials,
    server_credentials,
)
from support.memory_tls import CLIENT, SERVER, a_root, an_intermediate, join, store, written

HOST = "dtn1.lab.example"


class Chain:
    """A server certificate under an intermediate under a root, none of them made by `pki`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = a_root("a root")
        self.middle = an_intermediate(self.root, "an intermediate")
        self.leaf, self.key = self.middle.leaf(x509.DNSName(HOST), usage=SERVER)
        self.anchor = written(folder / "root.pem", self.root.certificate)
        self.stranger = written(folder / "stranger.pem", a_root("another root").certificate)
        self.pin = self.root.certificate.fingerprint(hashes.SHA256()).hex()

    def trust(self, *shown: x509.Certificate, authorities: Path | None = None) -> CertificateFiles:
        """Return a server whose file has these certificates."""
        return CertificateFiles(*store(self.folder, shown, self.key), (authorities or self.anchor,))

    def is_pinned_by(self, credentials: ReloadableCredentials) -> bool:
        """Return True if an application with only a join string accepts this server."""
        ends = join(credentials.context, contexts.pinned_client_context(), HOST.encode())
        try:
            verify.verify_pinned_server(ends.client, HOST, self.pin)
        except CertificateError:
            return False
        return True


@pytest.fixture
def chain(tmp_path: Path) -> Chain:
    return Chain(tmp_path)


def test_the_authority_of_a_server_is_sent_though_its_file_lacks_it(chain: Chain) -> None:
    whole = chain.trust(chain.leaf, chain.middle.certificate, chain.root.certificate)
    assert chain.is_pinned_by(server_credentials(whole, "optional")), "the control"
    assert chain.is_pinned_by(server_credentials(chain.trust(chain.leaf, chain.middle.certificate), "optional"))


def test_a_server_whose_authority_is_nowhere_is_a_problem_where_join_strings_name_it(chain: Chain) -> None:
    for shown in ([chain.leaf], [chain.leaf, chain.middle.certificate], [chain.leaf, chain.root.certificate]):
        with pytest.raises(CertificateError, match="does not lead to a self-signed authority"):
            server_credentials(chain.trust(*shown, authorities=chain.stranger), "optional")
    server_credentials(chain.trust(chain.leaf, authorities=chain.stranger), "required")  # its S2CS may have the others


def test_a_file_that_was_cut_is_not_taken_at_a_reload(chain: Chain) -> None:
    whole = chain.trust(chain.leaf, chain.middle.certificate, chain.root.certificate, authorities=chain.stranger)
    credentials = server_credentials(whole, "optional")
    before = credentials.context
    chain.trust(chain.leaf)
    with pytest.raises(CertificateError, match="does not lead to a self-signed authority"):
        credentials.read()
    assert credentials.context is before
    assert chain.is_pinned_by(credentials)


@given(chosen=st.lists(st.integers(0, 3), unique=True))
def test_a_path_leads_upwards_in_any_order_of_the_others(chosen: list[int]) -> None:
    others = [(*PATH[1:], *STRAYS)[number] for number in chosen]
    path, whole = path_upwards(PATH[0], others)
    assert path == PATH[: len(path)]
    assert len(path) == 1 + (0 in chosen) + (0 in chosen and 1 in chosen)
    assert whole == (len(path) == 3)


_TOP = a_root("the top")
_BELOW = an_intermediate(_TOP, "below it")
STRAYS = [a_root("a stray").certificate, a_root("the top").certificate]
PATH = [_BELOW.leaf(x509.DNSName(HOST), usage=SERVER)[0], _BELOW.certificate, _TOP.certificate]


def named(chain: Chain, *names: x509.GeneralName, usage: x509.ObjectIdentifier) -> CertificateFiles:
    leaf, key = chain.root.leaf(*names, usage=usage)
    return CertificateFiles(*store(chain.folder, [leaf], key, "named"), (chain.anchor,))


URI = x509.UniformResourceIdentifier


@pytest.mark.parametrize(
    ("name", "usage", "why"),
    [
        (URI("scistream:controller:s2cs"), CLIENT, r"not for servers \(it is for URI:scistream:controller:s2cs"),
        (x509.DNSName(HOST), CLIENT, "not for servers .* extended key usage clientAuth"),
        (x509.RFC822Name("ada@lab.example"), SERVER, "no host name or address"),
    ],
)
def test_a_certificate_that_is_no_server_s_is_a_problem_before_anybody_dials(
    chain: Chain, name: x509.GeneralName, usage: x509.ObjectIdentifier, why: str
) -> None:
    with pytest.raises(CertificateError, match=why):
        server_credentials(named(chain, name, usage=usage), "required")


@pytest.mark.parametrize(
    ("name", "usage", "why"),
    [
        (x509.DNSName(HOST), SERVER, r"not for controllers \(it is for DNS:dtn1.lab.example"),
        (URI("scistream:controller:s2cs"), SERVER, "extended key usage serverAuth"),
        (x509.DNSName(HOST), CLIENT, "has 0 controller names"),
        (URI("scistream:user:ada"), CLIENT, "is the certificate of a user"),
    ],
)
def test_a_certificate_that_is_no_controller_s_is_a_problem_before_it_dials(
    chain: Chain, name: x509.GeneralName, usage: x509.ObjectIdentifier, why: str
) -> None:
    trust = named(chain, name, usage=usage)
    with pytest.raises(CertificateError, match=why):
        controller_credentials(trust)
    client_credentials(trust)  # what a user shows is looked at by whom she dials


def test_an_authority_is_no_party(chain: Chain) -> None:
    trust = CertificateFiles(*store(chain.folder, [chain.root.certificate], chain.root.key, "own"), (chain.anchor,))
    with pytest.raises(CertificateError, match="begins with the certificate of an authority"):
        server_credentials(trust, "required")
    with pytest.raises(CertificateError, match="begins with the certificate of an authority"):
        controller_credentials(trust)


def test_all_that_is_wrong_with_a_certificate_is_told(chain: Chain) -> None:
    leaf, key = chain.middle.leaf(URI("scistream:controller:s2cs"), usage=CLIENT)
    trust = CertificateFiles(*store(chain.folder, [leaf], key, "named"), (chain.stranger,))
    with pytest.raises(CertificateError) as refused:
        server_credentials(trust, "optional")
    assert len(str(refused.value).splitlines()) == 2

"""Certificates of a party's control links that can be replaced while it runs.

`ReloadableCredentials` reads its files when it is created and again at each `read`, which does not apply them yet: a
server with several credentials reads all of them, and applies them only if all are valid. Established links keep their
context; `refusal` tells which of them would be refused now.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from cryptography import x509
from OpenSSL import SSL

from scistream.tls.contexts import ClientCertificate, client_context_of, http_context_of, server_context_of
from scistream.tls.files import CertificateError, CertificateFiles, LoadedCertificates, read_material
from scistream.tls.purpose import check_controller, check_server


class ReloadableCredentials:
    """The contents of `CertificateFiles`, and the TLS context made of them.

    :param make: makes the context.
    :raises CertificateError: if the files cannot be used.
    """

    def __init__(self, trust: CertificateFiles, make: Callable[[LoadedCertificates], SSL.Context]) -> None:
        self.trust = trust
        self._make = make
        self.material, self.context = self._read(trust)

    def read(self, trust: CertificateFiles | None = None) -> Callable[[], None]:
        """Read the files again, and return a function that applies them to all new links and cannot fail.

        :param trust: the files to use from now on; None: the same files as before.
        :raises CertificateError: if they cannot be used; nothing has changed then.
        """
        files = trust or self.trust
        material, context = self._read(files)

        def apply() -> None:
            self.trust, self.material, self.context = files, material, context

        return apply

    def _read(self, trust: CertificateFiles) -> tuple[LoadedCertificates, SSL.Context]:
        material = read_material(trust.certificate, trust.key, trust.authorities, trust.crl)
        return material, self._make(material)

    def check(self, connection: SSL.Connection) -> None:
        """Check a peer again after its handshake, which may have begun before the files were replaced.

        :raises CertificateError: if the peer would be refused now.
        """
        path = connection.get_verified_chain(as_cryptography=True)
        if path and connection.get_context() is not self.context:
            refusal = self.material.refusal(path)
            if refusal is not None:
                raise CertificateError(f"The far end's certificate is refused: {refusal}.")

    def refusal(self, link: Any) -> str | None:
        """Return why the peer of an established link would be refused now; see `LoadedCertificates.refusal`."""
        path = verified_path(link)
        return self.material.refusal(path) if path else None


def server_credentials(trust: CertificateFiles, client_certificate: ClientCertificate) -> ReloadableCredentials:
    """Return the credentials of a server; clients that come without a certificate pin its authority."""

    def make(material: LoadedCertificates) -> SSL.Context:
        check_server(material, pinned=client_certificate == "optional")
        return server_context_of(material, client_certificate)

    return ReloadableCredentials(trust, make)


def http_credentials(trust: CertificateFiles) -> ReloadableCredentials:
    """Return the credentials of an HTTPS server that requires a client certificate."""

    def make(material: LoadedCertificates) -> SSL.Context:
        check_server(material, pinned=False)
        return http_context_of(material)

    return ReloadableCredentials(trust, make)


def client_credentials(trust: CertificateFiles) -> ReloadableCredentials:
    """Return the credentials of a party that connects."""
    return ReloadableCredentials(trust, client_context_of)


def controller_credentials(trust: CertificateFiles) -> ReloadableCredentials:
    """Return the credentials of an S2CS that connects to its gateways."""

    def make(material: LoadedCertificates) -> SSL.Context:
        check_controller(material)
        return client_context_of(material)

    return ReloadableCredentials(trust, make)


def verified_path(link: Any) -> Sequence[x509.Certificate]:
    """Return the verified certificates of a link's peer, its own first; empty if it has shown none."""
    handle = link.transport.getHandle() if link is not None and link.transport is not None else None
    if not isinstance(handle, SSL.Connection):
        return []
    return handle.get_verified_chain(as_cryptography=True) or []

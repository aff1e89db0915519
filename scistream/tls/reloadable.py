"""What one party shows and believes on its control links, in force now, and read again when its operator says so.

`ReloadableCredentials` reads its files when it is made and again at each `read`, which changes nothing by itself: a
server that has several reads them all, and puts them in force only when every one is good. Links that are there go on
under the context that they were made with; `refusal` tells which of them would not be let in any more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from cryptography import x509
from OpenSSL import SSL

from scistream.tls.contexts import ClientCertificate, client_context_of, server_context_of
from scistream.tls.files import CertificateError, CertificateFiles, LoadedCertificates, read_material
from scistream.tls.purpose import check_controller, check_server


class ReloadableCredentials:
    """The files of a `CertificateFiles`, and the context made of them.

    :param make: makes the context.
    :raises CertificateError: if the files are not usable.
    """

    def __init__(self, trust: CertificateFiles, make: Callable[[LoadedCertificates], SSL.Context]) -> None:
        self.trust = trust
        self._make = make
        self.material, self.context = self._read(trust)

    def read(self, trust: CertificateFiles | None = None) -> Callable[[], None]:
        """Read the files again; what comes back puts them in force for all links made from then on, and cannot fail.

        :param trust: names the files from now on; None: they are the same files as before.
        :raises CertificateError: if they are not usable; nothing has changed.
        """
        files = trust or self.trust
        material, context = self._read(files)

        def put_in_force() -> None:
            self.trust, self.material, self.context = files, material, context

        return put_in_force

    def _read(self, trust: CertificateFiles) -> tuple[LoadedCertificates, SSL.Context]:
        material = read_material(trust.certificate, trust.key, trust.authorities, trust.crl)
        return material, self._make(material)

    def check(self, connection: SSL.Connection) -> None:
        """After a handshake that may have begun before the files were read again: is it still right?

        :raises CertificateError: if not.
        """
        path = connection.get_verified_chain(as_cryptography=True)
        if path and connection.get_context() is not self.context:
            refusal = self.material.refusal(path)
            if refusal is not None:
                raise CertificateError(f"The far end's certificate is refused: {refusal}.")

    def refusal(self, link: Any) -> str | None:
        """Why the peer of a link that is up would not be let in any more, or None; see `LoadedCertificates.refusal`."""
        path = verified_path(link)
        return self.material.refusal(path) if path else None


def server_credentials(trust: CertificateFiles, client_certificate: ClientCertificate) -> ReloadableCredentials:
    """Return the credentials of a server; clients that come without a certificate pin its authority."""

    def make(material: LoadedCertificates) -> SSL.Context:
        check_server(material, pinned=client_certificate == "optional")
        return server_context_of(material, client_certificate)

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
    """The certificates by which the peer of a link has proved who it is, its own first; empty if by none."""
    handle = link.transport.getHandle() if link is not None and link.transport is not None else None
    if not isinstance(handle, SSL.Connection):
        return []
    return handle.get_verified_chain(as_cryptography=True) or []

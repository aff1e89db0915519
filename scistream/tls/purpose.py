"""Check that a certificate is the right kind for a server or a controller.

Daemons check everything that can be checked without a peer when they start and when they reload. Whether clients use a
name in the server's certificate cannot be checked then, since name services and firewalls may map addresses.
"""

from __future__ import annotations

from collections.abc import Iterator

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from scistream.tls.certificate_names import names_of
from scistream.tls.files import CertificateError, LoadedCertificates, is_authority, printable

_ISSUE = "name one that `scistream pki issue DIR {kind} NAME` has made"


def usages(leaf: x509.Certificate) -> x509.ExtendedKeyUsage | None:
    """Return the extended key usages of a certificate; None if it has no such extension and may be used for all."""
    try:
        return leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return None


def check_server(material: LoadedCertificates, *, pinned: bool) -> None:
    """Check that clients can accept the certificates of a server.

    :param pinned: whether some clients know only the SHA-256 of its authority.
    :raises CertificateError: if not, with a line for each problem.
    """
    _raise_if_any(_server_problems(material, pinned))


def check_controller(material: LoadedCertificates) -> None:
    """Check that gateways can accept the controller certificate of an S2CS.

    :raises CertificateError: if not, with a line for each problem.
    """
    _raise_if_any(_controller_problems(material))


def _raise_if_any(problems: Iterator[str]) -> None:
    lines = list(problems)
    if lines:
        raise CertificateError("\n".join(lines))


def _server_problems(material: LoadedCertificates, pinned: bool) -> Iterator[str]:
    leaf, file = material.chain[0].certificate, material.chain[0].file
    remedy = _ISSUE.format(kind="server")
    try:
        texts = names_of(leaf)
        hosts = [text for text in texts if text.startswith(("DNS:", "IP:"))]
        if is_authority(leaf):
            yield f"{file} begins with the certificate of an authority, not of a server: {remedy}."
        elif not _may_serve(leaf):
            yield f"{file} is not for servers ({_words(leaf, texts)}): {remedy}."
        elif not hosts:
            yield f"{file} has no host name or address by which clients could reach the server: {remedy}."
    except (x509.DuplicateExtension, ValueError) as wrong:
        yield f"{file} has an extension that cannot be read ({printable(str(wrong))}): have a new one issued."
    if pinned and not material.is_whole:
        yield (
            f"{file} does not lead to a self-signed authority, in the file itself or in `authorities`: join strings "
            "name that authority, so every application would refuse this server. Append the missing certificates to "
            "the file, the root last (scistream pki install does this)."
        )


def _controller_problems(material: LoadedCertificates) -> Iterator[str]:
    leaf, file = material.chain[0].certificate, material.chain[0].file
    remedy = _ISSUE.format(kind="controller")
    try:
        texts = names_of(leaf)
        names = [text.partition(":")[2] for text in texts if text.startswith(("URI:", "email:"))]
        if is_authority(leaf):
            yield f"{file} begins with the certificate of an authority, not of a controller: {remedy}."
        elif not _has(leaf, ExtendedKeyUsageOID.CLIENT_AUTH):
            yield f"{file} is not for controllers ({_words(leaf, texts)}): {remedy}."
        elif len(names) != 1:
            yield f"{file} has {len(names)} controller names, but gateways need exactly one: {remedy}."
        elif names[0].startswith("scistream:user:"):
            yield f"{file} is the certificate of a user, {printable(names[0])}: {remedy}."
    except (x509.DuplicateExtension, ValueError) as wrong:
        yield f"{file} has an extension that cannot be read ({printable(str(wrong))}): have a new one issued."


def _may_serve(leaf: x509.Certificate) -> bool:
    try:
        usage = leaf.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return _has(leaf, ExtendedKeyUsageOID.SERVER_AUTH)
    return usage.digital_signature and _has(leaf, ExtendedKeyUsageOID.SERVER_AUTH)


def _has(leaf: x509.Certificate, usage: x509.ObjectIdentifier) -> bool:
    found = usages(leaf)
    return found is None or usage in found


def _words(leaf: x509.Certificate, texts: list[str]) -> str:
    """Describe the names and purposes of a certificate."""
    found = usages(leaf)
    purposes = ", ".join(_PURPOSES.get(each, each.dotted_string) for each in found or ())
    names = printable(", ".join(texts)) or "nobody"
    return f"it is for {names}" + (f", with the extended key usage {purposes}" if purposes else "")


_PURPOSES = {
    ExtendedKeyUsageOID.SERVER_AUTH: "serverAuth",
    ExtendedKeyUsageOID.CLIENT_AUTH: "clientAuth",
}

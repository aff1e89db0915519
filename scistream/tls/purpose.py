"""What a certificate may be used for, and whether it is the right one for a server or a controller to show.

What can be known without a far end is looked at when a daemon starts and when it reloads. Whether a server's names are
those by which it will be dialled cannot be known then: a firewall or a name service may stand in between.
"""

from __future__ import annotations

from collections.abc import Iterator

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from scistream.tls.certificate_names import names_of
from scistream.tls.files import CertificateError, LoadedCertificates, is_authority, printable

_ISSUE = "name one that `scistream pki issue DIR {kind} NAME` has made"


def usages(leaf: x509.Certificate) -> x509.ExtendedKeyUsage | None:
    """The extended key usages of a certificate; None if it has no such extension, and is good for all."""
    try:
        return leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return None


def check_server(material: LoadedCertificates, *, pinned: bool) -> None:
    """Whether what a server shows can be believed by those who dial it.

    :param pinned: whether some of them know the SHA-256 of its authority and nothing else.
    :raises CertificateError: with a line for each reason why not.
    """
    _raise_if_any(_server_problems(material, pinned))


def check_controller(material: LoadedCertificates) -> None:
    """Whether what an S2CS shows to its gateways can be believed by them.

    :raises CertificateError: with a line for each reason why not.
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
            yield f"{file} begins with an authority's certificate, not with a server's: {remedy}."
        elif not _may_serve(leaf):
            yield f"{file} is not for servers ({_words(leaf, texts)}): {remedy}."
        elif not hosts:
            yield f"{file} has no host name and no address by which a server could be dialled: {remedy}."
    except (x509.DuplicateExtension, ValueError) as wrong:
        yield f"{file} has an extension that cannot be read ({printable(str(wrong))}): have a new one issued."
    if pinned and not material.is_whole:
        yield (
            f"{file} does not lead to a self-signed authority, in the file itself or in `authorities`: join strings "
            "name that authority, and every application would refuse this server. Put the missing certificates behind "
            "the first one, the root last (scistream pki install does it)."
        )


def _controller_problems(material: LoadedCertificates) -> Iterator[str]:
    leaf, file = material.chain[0].certificate, material.chain[0].file
    remedy = _ISSUE.format(kind="controller")
    try:
        texts = names_of(leaf)
        names = [text.partition(":")[2] for text in texts if text.startswith(("URI:", "email:"))]
        if is_authority(leaf):
            yield f"{file} begins with an authority's certificate, not with a controller's: {remedy}."
        elif not _has(leaf, ExtendedKeyUsageOID.CLIENT_AUTH):
            yield f"{file} is not for controllers ({_words(leaf, texts)}): {remedy}."
        elif len(names) != 1:
            yield f"{file} has {len(names)} names of a controller, and gateways need exactly one: {remedy}."
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
    """What a certificate is for, and for whom."""
    found = usages(leaf)
    purposes = ", ".join(_PURPOSES.get(each, each.dotted_string) for each in found or ())
    names = printable(", ".join(texts)) or "nobody"
    return f"it is for {names}" + (f", with the extended key usage {purposes}" if purposes else "")


_PURPOSES = {
    ExtendedKeyUsageOID.SERVER_AUTH: "serverAuth",
    ExtendedKeyUsageOID.CLIENT_AUTH: "clientAuth",
}

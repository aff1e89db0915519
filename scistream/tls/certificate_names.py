"""The names in a certificate, as people read them."""

from __future__ import annotations

from typing import Literal

from cryptography import x509

# -- names and keys in words


_NameKind = Literal["DNS", "IP", "email", "URI"]


def name_texts(names: x509.SubjectAlternativeName | list[x509.GeneralName]) -> list[str]:
    """Each name as ``DNS:host``, ``IP:address``, ``email:address`` or ``URI:uri``; another kind by its class."""
    kinds: dict[type[x509.GeneralName], _NameKind] = {
        x509.DNSName: "DNS",
        x509.IPAddress: "IP",
        x509.RFC822Name: "email",
        x509.UniformResourceIdentifier: "URI",
    }
    return [f"{kinds.get(type(name), type(name).__name__)}:{name.value}" for name in names]


def names_of(holder: x509.Certificate | x509.CertificateSigningRequest) -> list[str]:
    """The subjectAltNames in that form; none if it has none."""
    try:
        return name_texts(holder.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound:
        return []

"""The names in a certificate as text."""

from __future__ import annotations

from typing import Literal

from cryptography import x509

_NameKind = Literal["DNS", "IP", "email", "URI"]


def name_texts(names: x509.SubjectAlternativeName | list[x509.GeneralName]) -> list[str]:
    """Format names as ``DNS:host``, ``IP:address``, ``email:address`` or ``URI:uri``; other kinds by their class."""
    kinds: dict[type[x509.GeneralName], _NameKind] = {
        x509.DNSName: "DNS",
        x509.IPAddress: "IP",
        x509.RFC822Name: "email",
        x509.UniformResourceIdentifier: "URI",
    }
    return [f"{kinds.get(type(name), type(name).__name__)}:{name.value}" for name in names]


def names_of(holder: x509.Certificate | x509.CertificateSigningRequest) -> list[str]:
    """Return the subjectAltNames of a certificate or request, formatted by `name_texts`."""
    try:
        return name_texts(holder.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound:
        return []

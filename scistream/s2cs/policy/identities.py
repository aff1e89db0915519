"""Identities in a policy: exact names, or all e-mail addresses of a domain, under one issuer. No I/O."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Generic, TypeVar

from scistream.tls.verify import Identity

T = TypeVar("T")

EVERYBODY = "*@"

_DOMAIN = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*"
_EMAIL = re.compile(rf"([A-Za-z0-9!#$%&'+/=?^_`{{|}}~.-]+)@({_DOMAIN})", re.ASCII)
_PATTERN = re.compile(rf"\*@({_DOMAIN})", re.ASCII)
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[^\s*]+", re.ASCII)


def canonical(name: str) -> str:
    """Return the form of a name that is compared: the domain of an e-mail address in lower case, the rest unchanged."""
    email = _EMAIL.fullmatch(name)
    return f"{email[1]}@{email[2].lower()}" if email else name


def domain_of(name: str) -> str | None:
    """Return the domain of a plain e-mail address in lower case, or None for a URI or an address with quotes."""
    email = _EMAIL.fullmatch(name)
    return email[2].lower() if email else None


class Index(Generic[T]):
    """Entries by identity, found with at most two dictionary lookups."""

    def __init__(self) -> None:
        self._exact: dict[Identity, list[T]] = {}
        self._domains: dict[Identity, list[T]] = {}

    def entries(self, issuer: str, text: str) -> list[T]:
        """Return the entries for `text`, as a list that the caller may extend.

        :param text: an exact identity, or ``*@domain``.
        :raises ValueError: naming `text`, if it is neither.
        """
        pattern = _PATTERN.fullmatch(text)
        if pattern:
            return self._domains.setdefault(Identity(issuer, pattern[1].lower()), [])
        if "*" in text:
            raise ValueError(f"{text!r}: a star can only stand for all addresses of one domain, as in *@example.org")
        if not _EMAIL.fullmatch(text) and not _URI.fullmatch(text):
            raise ValueError(
                f"{text!r} is neither an e-mail address nor a URI: write ada@example.org, scistream:user:ada or "
                "*@example.org"
            )
        return self._exact.setdefault(Identity(issuer, canonical(text)), [])

    def find(self, identity: Identity) -> Sequence[T]:
        """Return the entries for an identity: those for its exact name if there are any, otherwise its domain's."""
        exact = self._exact.get(Identity(identity.issuer, canonical(identity.name)))
        if exact is not None:
            return exact
        domain = domain_of(identity.name)
        return self._domains.get(Identity(identity.issuer, domain), ()) if domain is not None else ()

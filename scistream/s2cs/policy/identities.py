"""Whom a policy speaks of: identities under an issuer, exact or all of an e-mail domain, found in one step. No I/O."""

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
    """A name in the form by which it is compared: the domain of an e-mail address in lower case, all else as it is."""
    email = _EMAIL.fullmatch(name)
    return f"{email[1]}@{email[2].lower()}" if email else name


def domain_of(name: str) -> str | None:
    """The domain, in lower case, of a plain e-mail address; None of a URI, of a quoted or of any odder address."""
    email = _EMAIL.fullmatch(name)
    return email[2].lower() if email else None


class Index(Generic[T]):
    """What is said of identities; all of it is found with two look-ups, however much it is."""

    def __init__(self) -> None:
        self._exact: dict[Identity, list[T]] = {}
        self._domains: dict[Identity, list[T]] = {}

    def at(self, issuer: str, text: str) -> list[T]:
        """What is said of `text`, an exact identity or ``*@domain``: a list to look at and to add to.

        :raises ValueError: with a sentence, if `text` is neither.
        """
        pattern = _PATTERN.fullmatch(text)
        if pattern:
            return self._domains.setdefault(Identity(issuer, pattern[1].lower()), [])
        if "*" in text:
            raise ValueError(f"{text!r} has a star: it stands for all of one e-mail domain only, as in *@example.org")
        if not _EMAIL.fullmatch(text) and not _URI.fullmatch(text):
            raise ValueError(
                f"{text!r} is neither an e-mail address nor a URI: write ada@example.org, scistream:user:ada or "
                "*@example.org"
            )
        return self._exact.setdefault(Identity(issuer, canonical(text)), [])

    def find(self, identity: Identity) -> Sequence[T]:
        """What is said of an identity: by its exact name if anything is, or else of its domain."""
        exact = self._exact.get(Identity(identity.issuer, canonical(identity.name)))
        if exact is not None:
            return exact
        domain = domain_of(identity.name)
        return self._domains.get(Identity(identity.issuer, domain), ()) if domain is not None else ()

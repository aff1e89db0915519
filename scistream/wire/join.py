"""Join strings: all that an application controller needs to say Hello, in one line.

``scistream://<uid>:<app_key>@<host>:<port>/<role>?ca=<sha256 of the facility's CA certificate>``

S2UC writes them and application controllers read them. A join string is a secret.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass, field

from scistream.wire.address import Address
from scistream.wire.messages import CONS, PROD, Role

LONGEST = 4096
"""Bytes that are read where a join string is looked for."""

_FORM = re.compile(
    r"scistream://(?P<uid>[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}):(?P<key>[A-Za-z0-9_-]{43})"
    r"@(?P<address>[^/@?]+)/(?P<role>prod|cons)(?:\?ca=(?P<ca>[0-9a-f]{64}))?\Z"
)


def new_app_key() -> str:
    """256 random bits, as 43 characters of URL-safe base64."""
    return secrets.token_urlsafe(32)


def hash_app_key(app_key: str) -> str:
    """What a REQ carries in place of an `app_key`: its SHA-256, in hex."""
    return hashlib.sha256(app_key.encode()).hexdigest()


@dataclass(frozen=True)
class Join:
    """What a join string says. `ca` is None where the control link is plain TCP on loopback."""

    uid: str
    app_key: str = field(repr=False)
    server: Address
    role: Role
    ca: str | None

    def __str__(self) -> str:
        pin = f"?ca={self.ca}" if self.ca else ""
        return f"scistream://{self.uid}:{self.app_key}@{self.server}/{self.role.lower()}{pin}"

    @classmethod
    def parse(cls, text: str) -> Join:
        """Read a join string.

        :raises ValueError: with a sentence that does not repeat the string, since it is a secret.
        """
        match = _FORM.match(text.strip())
        if match is None:
            raise ValueError(
                "this is no join string: it looks like scistream://UID:KEY@HOST:PORT/prod?ca=SHA256, "
                "and `s2uc request` prints one for each side"
            )
        role = PROD if match["role"] == "prod" else CONS
        return cls(match["uid"], match["key"], Address.parse(match["address"]), role, match["ca"])

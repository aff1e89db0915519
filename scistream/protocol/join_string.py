"""Join strings: everything that an application controller needs to say Hello, in one line.

``scistream://<uid>:<app_key>@<host>:<port>/<role>?ca=<sha256 of the facility's CA certificate>``

S2UC writes them and application controllers parse them. A join string is a secret. Protocol section 4.4.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass, field

from scistream.protocol.address import Address
from scistream.protocol.messages import CONS, PROD, Role

LONGEST = 4096
"""Bytes read at most from a file or pipe that should contain a join string."""

_UID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_KEY = re.compile(r"[A-Za-z0-9_-]{43}")
_PIN_DIGITS = 64
_FORM = re.compile(
    rf"scistream://(?P<uid>{_UID.pattern}):(?P<key>{_KEY.pattern})"
    rf"@(?P<address>[^/@?]+)/(?P<role>prod|cons)(?:\?ca=(?P<ca>[0-9a-f]{{{_PIN_DIGITS}}}))?\Z"
)
_ASSIGNMENT = re.compile(r"(?:export\s+)?SCISTREAM_JOIN\s*=")
_QUOTES = "'\"`\u2018\u2019\u201c\u201d"
_SCHEME = "scistream://"
_BYTE_ORDER_MARK = "\ufeff"
"""Some editors write this at the start of a file."""
_USUAL = re.compile(r"[A-Za-z0-9_.:/@?=\[\]%-]*")
_FORM_IN_WORDS = "scistream://UID:KEY@HOST:PORT/prod?ca=SHA256"
_COPY_AGAIN = "copy the whole line again, from `scistream://` to its last character"


def new_app_key() -> str:
    """Generate a key: 256 random bits, as 43 characters of URL-safe base64."""
    return secrets.token_urlsafe(32)


def hash_app_key(app_key: str) -> str:
    """Return the SHA-256 of an `app_key` in hex, which a REQ carries in place of the key."""
    return hashlib.sha256(app_key.encode()).hexdigest()


@dataclass(frozen=True)
class Join:
    """A parsed join string. `ca` is None if the control link is plain TCP on loopback."""

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
        """Parse a join string.

        :raises ValueError: with a sentence that does not contain the string, since it is a secret.
        """
        text = text.removeprefix(_BYTE_ORDER_MARK).strip()
        match = _FORM.match(text)
        if match is None:
            raise ValueError(f"this is not a join string: {_what_is_wrong(text)}")
        server = Address.parse(match["address"])
        if match["ca"] is None and not server.is_on_loopback:
            raise ValueError(f"this is not a join string: its last part, ca=, is missing: {_COPY_AGAIN}")
        return cls(match["uid"], match["key"], server, PROD if match["role"] == "prod" else CONS, match["ca"])


def _what_is_wrong(text: str) -> str:
    """Describe what is wrong with a join string and the remedy, without repeating any of the string."""
    if not text:
        return "it is empty"
    if _ASSIGNMENT.match(text):
        return "it begins with a shell assignment: give only the part after the `=`, without its quotes"
    if text[0] in _QUOTES or text[-1] in _QUOTES:
        return "it is enclosed in quotes: remove them"
    if text.count(_SCHEME) > 1:
        return "there is more than one: give only the one for this side"
    if re.search(r"\s", text):
        return "it contains spaces or line breaks: put it on one line and remove them"
    if not _USUAL.fullmatch(text):
        return f"it has characters that a join string never contains: {_COPY_AGAIN}"
    if not text.startswith(_SCHEME):
        return (
            f"it does not begin with `{_SCHEME}`; `s2uc request` prints {_FORM_IN_WORDS} for each side: {_COPY_AGAIN}"
        )
    return _wrong_part(text.removeprefix(_SCHEME))


def _wrong_part(text: str) -> str:
    who, at, where = text.partition("@")
    uid, colon, key = who.partition(":")
    if not at:
        return f"it ends before its HOST:PORT: {_COPY_AGAIN}"
    if not _UID.fullmatch(uid) or not colon:
        return f"the uid of the stream in it is damaged: {_COPY_AGAIN}"
    if not _KEY.fullmatch(key):
        return f"its key has {len(key)} characters and not 43 letters, digits, `-` and `_`: {_COPY_AGAIN}"
    address, _, rest = where.partition("/")
    role, _, pin = rest.partition("?")
    if not rest:
        return f"it ends within its HOST:PORT or before the side: {_COPY_AGAIN}"
    if role not in ("prod", "cons"):
        return f"the side in it is neither `prod` nor `cons`: {_COPY_AGAIN}"
    if not address or "?" in address:
        return f"it has no HOST:PORT: {_COPY_AGAIN}"
    digits = pin.removeprefix("ca=")
    if len(digits) < _PIN_DIGITS:
        return f"its last part, ca=, is incomplete, since it needs {_PIN_DIGITS} digits: {_COPY_AGAIN}"
    return f"its last part, ca=, has more than {_PIN_DIGITS} digits or digits other than 0-9 and a-f: {_COPY_AGAIN}"

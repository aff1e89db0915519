"""Exceptions with an error code of the protocol.

Every party raises them. `links.link` turns them into ERROR messages, and the command lines into one line for the user.
"""

from __future__ import annotations

from typing import Literal, cast

ErrorCode = Literal[
    "bad-message",
    "unknown-uid",
    "uid-in-use",
    "not-authenticated",
    "not-authorized",
    "wrong-state",
    "no-ports",
    "no-capacity",
    "target-refused",
    "gateway-failed",
    "timeout",
    "expired",
    "released",
    "shutting-down",
]
"""All error codes that this version sends (protocol section 12). A peer of a later version may send others."""


def printable(text: str) -> str:
    """Replace unprintable characters by ``?``, so that text from a peer cannot forge log lines or move the cursor."""
    return text if text.isprintable() else "".join(letter if letter.isprintable() else "?" for letter in text)


class StreamError(Exception):
    """A refusal or failure, as the protocol reports it.

    :param code: one of `ErrorCode`.
    :param msg: a sentence for the user: what was asked, what is wrong, and what to do. It may come from a peer, so
        unprintable characters are replaced by question marks.
    """

    def __init__(self, code: ErrorCode, msg: str) -> None:
        msg = printable(msg)
        super().__init__(code, msg)
        self.code: ErrorCode = code
        self.msg = msg

    @classmethod
    def from_peer(cls, code: str, msg: str) -> StreamError:
        """Return the exception for an ERROR from a peer; its code may be one that this version does not know."""
        return cls(cast(ErrorCode, code), msg)

    def __str__(self) -> str:
        return f"{self.code}: {self.msg}"


class BadMessageError(StreamError):
    """A line that is not a valid message. `uid` and `seq` are those of the line, if they can be decoded."""

    def __init__(self, msg: str, uid: str | None = None, seq: int | None = None) -> None:
        super().__init__("bad-message", msg)
        self.uid = uid
        self.seq = seq

"""What can go wrong, as exceptions that carry a code of the protocol.

Every party raises these; `links.link` turns them into ERROR messages and the command lines
turn them into one line for a person. Nothing here does any I/O.
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
"""Every code that the parties of this version give (protocol section 12). A peer of a later version may know others."""


def printable(text: str) -> str:
    """Words of a far end as a terminal or a log may hold them: nothing in them forges a line or moves a cursor."""
    return text if text.isprintable() else "".join(letter if letter.isprintable() else "?" for letter in text)


class StreamError(Exception):
    """A refusal or a failure, in the words of the protocol.

    :param code: one of `ErrorCode`.
    :param msg: a sentence for a person: what was asked, what is there, what to do. It may come from a far end, so what
        is not printable in it becomes a question mark.
    """

    def __init__(self, code: ErrorCode, msg: str) -> None:
        msg = printable(msg)
        super().__init__(code, msg)
        self.code: ErrorCode = code
        self.msg = msg

    @classmethod
    def heard(cls, code: str, msg: str) -> StreamError:
        """The refusal or failure that an ERROR of a peer tells of; its code need not be known here."""
        return cls(cast(ErrorCode, code), msg)

    def __str__(self) -> str:
        return f"{self.code}: {self.msg}"


class BadMessageError(StreamError):
    """A line that is no valid message. `uid` and `seq` are those of the line, where they can be read."""

    def __init__(self, msg: str, uid: str | None = None, seq: int | None = None) -> None:
        super().__init__("bad-message", msg)
        self.uid = uid
        self.seq = seq

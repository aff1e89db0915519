"""Connect and its answer: the first line each way of a connection between two gateways (protocol section 10.1).

The consumer's gateway sends Connect, and application bytes right behind it; the producer's gateway answers with RESP or
ERROR before the first byte of ProdApp. The lines are checked like those of a control link.
"""

from __future__ import annotations

from typing import Annotated, Any, cast

import msgspec
from msgspec import Meta, Struct

from scistream.protocol.codec import decode_as
from scistream.protocol.errors import ErrorCode, printable
from scistream.protocol.messages import MAX_TEXT, Channel, Error, Resp, Uid

MAX_LINE = 4096
"""The most bytes of a line, with its LF."""
MOST_TICKET = 512
"""The longest ticket, in characters."""

Ticket = Annotated[str, Meta(max_length=MOST_TICKET, pattern="^[A-Za-z0-9+/]*={0,2}$")]


class Connect(Struct, frozen=True, kw_only=True, tag_field="cmd", omit_defaults=True):
    """Connect one connection of a consumer to ProdApp.

    :ivar number: its number among the connections of the channel, counted from 1, in whose order ProdApp is dialled; 0
        if the order does not matter.
    :ivar ticket: base64, with which the receiver may open further connections without certificates; empty for none.
    """

    uid: Uid
    channel: Channel
    number: Annotated[int, Meta(ge=0, le=2**53)] = 0
    ticket: Ticket = ""


class Connected(Resp, frozen=True, kw_only=True, tag="RESP"):
    """The answer that says that ProdApp is connected.

    :ivar ticket: as in Connect.
    """

    ticket: Ticket = ""


_connects = msgspec.json.Decoder(Connect)
_answers: msgspec.json.Decoder[Connected | Error] = msgspec.json.Decoder(cast(Any, Connected | Error))
_encode = msgspec.json.Encoder().encode


def encode_connect(connect: Connect) -> bytes:
    """Return Connect as a line, with its LF."""
    return _encode(connect) + b"\n"


def accepted(uid: str, ticket: str = "") -> bytes:
    """Return the answer that says that ProdApp is connected, as a line."""
    return _encode(Connected(uid=uid, seq=1, state="Forwarding", msg="", ticket=ticket)) + b"\n"


def refused(uid: str, code: ErrorCode, reason: str) -> bytes:
    """Return the answer that says why ProdApp is not connected, as a line of `MAX_LINE` bytes at most.

    :param reason: a sentence; a question mark stands for what cannot be printed, of which some cannot be encoded.
    """
    return _encode(Error(uid=uid, seq=1, code=code, msg=printable(reason[: MAX_TEXT // 4]))) + b"\n"


def read_connect(line: bytes) -> Connect:
    """Decode a Connect, given without its LF.

    :raises BadMessageError: naming the invalid field.
    """
    return decode_as(_connects, line)


def read_answer(line: bytes) -> Connected | Error:
    """Decode the answer to Connect, given without its LF.

    :raises BadMessageError: naming the invalid field.
    """
    return decode_as(_answers, line)

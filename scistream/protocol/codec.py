"""Encode a message as one JSON line, and decode a line into a message."""

from __future__ import annotations

import json
from typing import Any, Literal, cast

import msgspec

from scistream.protocol.errors import BadMessageError, StreamError
from scistream.protocol.messages import Message, Seq, Uid

MAX_LINE = 262_144
MAX_FIRST_LINE = 65_536

_decoder: msgspec.json.Decoder[Message] = msgspec.json.Decoder(cast(Any, Message))
_encoder = msgspec.json.Encoder()


class _Envelope(msgspec.Struct):
    """As much of a bad line as an answer to it needs; all else is skipped."""

    cmd: msgspec.Raw = msgspec.Raw(b"null")
    uid: msgspec.Raw = msgspec.Raw(b"null")
    seq: msgspec.Raw = msgspec.Raw(b"null")


_envelopes = msgspec.json.Decoder(_Envelope)


def encode(message: Message) -> bytes:
    """The line of a message, with its LF.

    :raises StreamError: `bad-message` if the line would be longer than a peer may accept.
    """
    line = _encoder.encode(message) + b"\n"
    if len(line) > MAX_LINE:
        raise StreamError("bad-message", f"a message of {len(line)} bytes is over the limit of {MAX_LINE}")
    return line


def decode(line: bytes) -> Message:
    """The message of a line, which is given without its LF.

    :raises BadMessageError: naming the field that is wrong, with the uid and seq of the line if it has them.
    """
    line = line.removesuffix(b"\r")
    try:
        message = _decoder.decode(line)
        _refuse_duplicate_keys(line)
        return message
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as wrong:
        envelope = _envelope(line)
        raise BadMessageError(_explain(wrong), _read(envelope.uid, Uid), _read(envelope.seq, Seq)) from None


def _refuse_duplicate_keys(line: bytes) -> None:
    """Refuse a line in which an object has a field twice: two readers might each believe another one.

    Fields that are unknown here are looked at, too, so no value is made of anything: it could be very large.
    """
    json.loads(line.decode(), object_pairs_hook=_without_duplicates, parse_int=_no_value, parse_float=_no_value)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> None:
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            raise _DuplicateKeysError(name)
        seen.add(name)


def _no_value(_text: str) -> None:
    """In place of a number that nobody asks for."""


class _DuplicateKeysError(ValueError):
    """An object of a line has this field twice."""


def is_answer(line: bytes) -> bool:
    """Whether a line, valid or not, calls itself an answer: those are never answered."""
    return _read(_envelope(line).cmd, Literal["RESP", "ERROR"]) is not None


def _envelope(line: bytes) -> _Envelope:
    try:
        return _envelopes.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError):
        return _Envelope()


def _read(value: msgspec.Raw, kind: Any) -> Any:
    """A value of a bad line, or None if it is not of that kind."""
    try:
        return msgspec.json.decode(value, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _explain(wrong: Exception) -> str:
    if isinstance(wrong, _DuplicateKeysError):
        return f"field {wrong}: it is there twice"[:500]
    if isinstance(wrong, RecursionError):
        return "the line is nested too deeply"
    if isinstance(wrong, msgspec.ValidationError):
        reason, _, path = str(wrong).rpartition(" - at ")
        if reason:
            return f"field {path.rpartition('$')[2].strip('`.') or 'message'}: {reason}"[:500]
        return str(wrong)[:500]
    if isinstance(wrong, UnicodeDecodeError):
        return "the line is not UTF-8"
    return f"the line is not JSON: {wrong}"[:500]

"""Encode a message as one JSON line, and decode a line into a message."""

from __future__ import annotations

import json
from typing import Any, Literal, TypeVar, cast

import msgspec

from scistream.protocol.errors import BadMessageError, StreamError
from scistream.protocol.messages import Message, Seq, Uid

MAX_LINE = 262_144
MAX_FIRST_LINE = 65_536

Kind = TypeVar("Kind")

_decoder: msgspec.json.Decoder[Message] = msgspec.json.Decoder(cast(Any, Message))
_encoder = msgspec.json.Encoder()


class _Envelope(msgspec.Struct):
    """The fields of an invalid line that the answer to it needs; all others are skipped."""

    cmd: msgspec.Raw = msgspec.Raw(b"null")
    uid: msgspec.Raw = msgspec.Raw(b"null")
    seq: msgspec.Raw = msgspec.Raw(b"null")


_envelopes = msgspec.json.Decoder(_Envelope)


def encode(message: Message) -> bytes:
    """Encode a message as one line of JSON, with its LF.

    :raises StreamError: `bad-message` if the line would be longer than a peer may accept.
    """
    line = _encoder.encode(message) + b"\n"
    if len(line) > MAX_LINE:
        raise StreamError("bad-message", f"the message has {len(line)} bytes: a line has at most {MAX_LINE}")
    return line


def decode(line: bytes) -> Message:
    """Decode and validate one line, given without its LF.

    :raises BadMessageError: naming the invalid field, with the uid and seq of the line if it has them.
    """
    return decode_as(_decoder, line)


def decode_as(decoder: msgspec.json.Decoder[Kind], line: bytes) -> Kind:
    """Decode and validate one line as `decode` does, as a message of other kinds."""
    line = line.removesuffix(b"\r")
    try:
        message = decoder.decode(line)
        _refuse_duplicate_keys(line)
        return message
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as wrong:
        envelope = _envelope(line)
        raise BadMessageError(_explain(wrong), _read(envelope.uid, Uid), _read(envelope.seq, Seq)) from None


def _refuse_duplicate_keys(line: bytes) -> None:
    """Refuse a line in which an object has the same field twice, since two parsers might use different values.

    This also covers fields that this version does not know, so no values are built: they could be very large.
    """
    json.loads(line.decode(), object_pairs_hook=_without_duplicates, parse_int=_no_value, parse_float=_no_value)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> None:
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            raise _DuplicateKeysError(name)
        seen.add(name)


def _no_value(_text: str) -> None:
    """Parse a number as None: only the field names matter here."""


class _DuplicateKeysError(ValueError):
    """The line has an object with this field twice."""


def is_answer(line: bytes) -> bool:
    """Return True if the `cmd` of a line, valid or not, is that of an answer, which must not be answered itself."""
    return _read(_envelope(line).cmd, Literal["RESP", "ERROR"]) is not None


def _envelope(line: bytes) -> _Envelope:
    try:
        return _envelopes.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError):
        return _Envelope()


def _read(value: msgspec.Raw, kind: Any) -> Any:
    """Decode one value of an invalid line; return None if it is not of type `kind`."""
    try:
        return msgspec.json.decode(value, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _explain(wrong: Exception) -> str:
    if isinstance(wrong, _DuplicateKeysError):
        return f"field {wrong}: it appears twice"[:500]
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

"""Connect and its answer: round trips, the bounds of every field, and lines that are never too long."""

from __future__ import annotations

import json
from base64 import b64encode
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scistream.protocol.connect import (
    MAX_LINE,
    MOST_TICKET,
    Connect,
    Connected,
    accepted,
    encode_connect,
    read_answer,
    read_connect,
    refused,
)
from scistream.protocol.errors import BadMessageError, printable
from scistream.protocol.messages import MAX_CHANNELS, Error
from support.message_strategies import BIG, UID, integers, text

CONNECTS = st.builds(
    Connect,
    uid=st.uuids().map(str),
    channel=integers(0, MAX_CHANNELS - 1),
    number=integers(0, BIG),
    ticket=st.binary(max_size=384).map(lambda ticket: b64encode(ticket).decode()),
)
LONG_REASONS = ["x", "\U0001f52c", "ü", "\x00", "\x1f", '"', "\\", "\n", "\u2028", "\ud800", "\udcff"]


def connect_line(**fields: Any) -> bytes:
    content = {"cmd": "Connect", "uid": UID, "channel": 0, "number": 1, **fields}
    return json.dumps({name: value for name, value in content.items() if value is not ...}).encode()


def one_line(line: bytes) -> bytes:
    """Return a line without its LF, after a check that it is one line, and not too long."""
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert len(line) <= MAX_LINE
    return line[:-1]


@given(CONNECTS)
def test_connect_is_read_as_it_was_sent(connect: Connect) -> None:
    assert read_connect(one_line(encode_connect(connect))) == connect


@pytest.mark.parametrize(
    "fields",
    [
        {"channel": 0},
        {"channel": MAX_CHANNELS - 1},
        {"number": 0},
        {"number": BIG},
        {"number": ...},
        {"ticket": "A" * MOST_TICKET},
        {"of a later version": {"x": [1]}},
    ],
    ids=str,
)
def test_connect_is_taken_up_to_the_bounds_of_its_fields(fields: dict[str, Any]) -> None:
    connect = read_connect(connect_line(**fields))
    assert connect.uid == UID
    assert connect.channel == fields.get("channel", 0)
    assert connect.number == (0 if fields.get("number") is ... else fields.get("number", 1))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("cmd", "REL"),
        ("cmd", 1),
        ("uid", ...),
        ("uid", None),
        ("uid", ""),
        ("uid", UID.upper().replace("0", "A")),
        ("uid", UID + "\n"),
        ("uid", UID + "0"),
        ("channel", ...),
        ("channel", -1),
        ("channel", MAX_CHANNELS),
        ("channel", 1.5),
        ("channel", "1"),
        ("channel", True),
        ("number", -1),
        ("number", BIG + 1),
        ("number", None),
        ("number", 0.5),
        ("ticket", None),
        ("ticket", "a word"),
        ("ticket", "A" * (MOST_TICKET + 1)),
    ],
)
def test_connect_beyond_the_bounds_of_a_field_is_refused_and_the_field_named(field: str, value: Any) -> None:
    with pytest.raises(BadMessageError, match=f"`?{field}`?"):
        read_connect(connect_line(**{field: value}))


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\x16\x03\x01\x02\x00",
        b"GET / HTTP/1.1",
        b"[]",
        b"null",
        b"\xff",
        connect_line()[:-1],
        connect_line() * 2,
        connect_line().replace(b'"channel": 0', b'"channel": 0, "channel": 1'),
        b'{"cmd":' * 500,
    ],
)
def test_what_is_no_connect_is_refused_with_a_sentence(line: bytes) -> None:
    for read in (read_connect, read_answer):
        with pytest.raises(BadMessageError) as bad:
            read(line)
        assert bad.value.msg


@given(st.uuids().map(str), st.sampled_from(["", "A" * MOST_TICKET]))
def test_an_accepted_connect_is_answered_by_resp(uid: str, ticket: str) -> None:
    line = one_line(accepted(uid, ticket))
    answer = read_answer(line)
    assert isinstance(answer, Connected)
    assert (answer.uid, answer.state, answer.ticket) == (uid, "Forwarding", ticket)
    assert (b"ticket" in line) == bool(ticket)


@settings(deadline=None)
@given(st.uuids().map(str), text(2000))
def test_a_refused_connect_is_answered_by_error_with_its_reason(uid: str, reason: str) -> None:
    answer = read_answer(one_line(refused(uid, "target-refused", reason)))
    assert isinstance(answer, Error)
    assert (answer.uid, answer.code) == (uid, "target-refused")
    assert answer.msg == printable(reason)[:500]


@pytest.mark.parametrize("character", LONG_REASONS, ids=ascii)
def test_the_longest_reason_of_any_characters_fits_into_a_line(character: str) -> None:
    answer = read_answer(one_line(refused(UID, "target-refused", character * 2000)))
    assert isinstance(answer, Error)
    assert answer.msg == printable(character) * 500


@pytest.mark.parametrize("cmd", ["Connect", "REQ", "Status", "Hello"])
def test_an_answer_of_another_kind_is_refused(cmd: str) -> None:
    with pytest.raises(BadMessageError):
        read_answer(connect_line(cmd=cmd))

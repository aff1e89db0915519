"""Valid lines, invalid lines, and malicious lines."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from scistream.protocol.codec import MAX_LINE, decode, encode, is_answer
from scistream.protocol.errors import BadMessageError, ErrorCode, StreamError
from scistream.protocol.messages import MAX_CHANNELS, Error, Message, Rel, Resp
from support.message_strategies import EXAMPLES, LONGEST_HOST, UID, fields_of, line, messages, without_lf

KINDS = get_args(Message)


def read(bad_line: bytes) -> Message | BadMessageError:
    """Return the message in a line, or the error of a bad one; any other exception fails the test."""
    is_answer(bad_line)
    try:
        said: Message | BadMessageError = decode(bad_line)
    except BadMessageError as bad:
        said = bad
    if isinstance(said, BadMessageError):
        assert said.msg
        answer = Error(uid=said.uid, seq=said.seq, code=said.code, msg=said.msg)
        assert decode(without_lf(answer)) == answer, "what is wrong can be said in an answer"
    else:
        assert isinstance(said, KINDS)
    return said


# -- whatever comes in


@settings(deadline=None, max_examples=300)
@given(noise=st.binary(max_size=400))
@example(b"")
@example(b"\r")
@example(b"\x00")
@example(b"\xef\xbb\xbf{}")
@example(b"null")
@example(b"NaN")
@example(b"\xff\xfe")
def test_any_bytes_are_a_message_or_a_bad_message(noise: bytes) -> None:
    read(noise)


@st.composite
def mutated_lines(draw: st.DrawFn) -> bytes:
    spoilt = bytearray(without_lf(draw(messages))[:3000])
    for _ in range(draw(st.integers(1, 5))):
        at = draw(st.integers(0, len(spoilt)))
        match draw(st.sampled_from(["flip", "insert", "delete", "double", "cut"])):
            case "flip" if at < len(spoilt):
                spoilt[at] ^= 1 << draw(st.integers(0, 7))
            case "insert":
                spoilt[at:at] = draw(
                    st.binary(min_size=1, max_size=4) | st.sampled_from([b'"', b"{", b"]", b",", b"\\u"])
                )
            case "delete":
                del spoilt[at : at + draw(st.integers(1, 20))]
            case "double":
                spoilt[at:at] = spoilt[at : at + draw(st.integers(1, 60))]
            case "cut":
                del spoilt[at:]
    return bytes(spoilt)


@settings(deadline=None, max_examples=200)
@given(spoilt=mutated_lines())
def test_a_valid_line_with_faults_is_a_message_or_a_bad_message(spoilt: bytes) -> None:
    read(spoilt)


FIELD_NAMES = sorted({"cmd"} | {name for kind in KINDS for name in fields_of(kind)})
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from([UID, "PROD", *EXAMPLES, 10**400, -(10**400), 2**63, 1e308, "127.0.0.1:1", "\ud800"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)


@settings(deadline=None, max_examples=200)
@given(
    cmd=st.sampled_from(sorted(EXAMPLES)),
    changes=st.dictionaries(st.sampled_from(FIELD_NAMES), VALUES | st.just(...), min_size=1, max_size=3),
)
def test_a_line_with_odd_values_is_a_message_or_a_bad_message(cmd: str, changes: dict[str, Any]) -> None:
    content = {"cmd": cmd, **EXAMPLES[cmd], **changes}
    read(json.dumps({name: value for name, value in content.items() if value is not ...}).encode())


DEEP = 100_000
HOSTILE = {
    "lists in lists": b"[" * DEEP,
    "closed lists in lists": b"[" * DEEP + b"]" * DEEP,
    "objects in objects": b'{"cmd":' * DEEP,
    "a deep uid": b'{"cmd":"REL","uid":' + b"[" * DEEP + b"]" * DEEP + b"}",
    "a deep unknown field": b'{"cmd":"REL","x":' + b'{"x":' * DEEP + b"1" + b"}" * (DEEP + 1),
    "a deep list before the cmd": b'{"x":' + b"[" * DEEP + b"]" * DEEP + b',"cmd":"RESP"}',
    "a huge number": line("REL").replace(b'"seq": 1', b'"seq": ' + b"9" * 100_000),
    "a huge negative number": line("REL").replace(b'"seq": 1', b'"seq": -' + b"9" * 100_000),
    "a huge exponent": line("REL").replace(b'"seq": 1', b'"seq": 1e999999999'),
    "a huge rate": line("REQ").replace(b"100.0", b"1" * 400),
    "NaN": line("REQ").replace(b"100.0", b"NaN"),
    "Infinity": line("REQ").replace(b"100.0", b"Infinity"),
    "a lone surrogate": line("REQ", label="\ud83d"),
    "a lone low surrogate in the uid": line("REL", uid="\udc00"),
    "half an escape": line("REQ", label="X").replace(b"X", b"\\u12"),
    "not UTF-8 in a text": line("REQ", label="X").replace(b"X", b"\xed\xa0\x80"),
    "an overlong encoding": line("REQ", label="X").replace(b"X", b"\xc0\x80"),
    "a control character": line("REQ", label="X").replace(b"X", b"\x01"),
    "UTF-16": line("REL").decode().encode("utf-16"),
    "a byte order mark": b"\xef\xbb\xbf" + line("REL"),
    "two messages": line("REL") + line("REL"),
    "two equal fields": line("REL").replace(b'"seq"', b'"seq": 9, "seq"'),
    "two cmds": line("REL").replace(b'"uid"', b'"cmd": "RESP", "uid"'),
    "a huge number in an unknown field": line("REL", x="X").replace(b'"X"', b"9" * 100_000),
    "very long": line("REQ", label="x" * 4_000_000),
    "very many fields": json.dumps({"cmd": "REL", **{f"x{n}": n for n in range(100_000)}}).encode(),
    "very many streams": line("RESP", streams=[{}] * 100_000),
    "very many listeners": line("ProdLstn", listeners=["127.0.0.1:1"] * 100_000),
    "a very long host": line("ProdLstn", listeners=["a." * 100_000 + ":1"]),
    "a very long cmd": line("REL", cmd="x" * 1_000_000),
}


@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_line_is_a_message_or_a_bad_message(hostile: bytes) -> None:
    said = read(hostile)
    assert isinstance(said, BadMessageError | Rel)


# -- what is said about it


@pytest.mark.parametrize(
    ("bad_line", "complaint"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"REL", "not JSON"),
        (b'{"cmd":"REL","uid":"\xff"}', "not UTF-8"),
        (b"[]", "object"),
        (line("REQ", label="\ud800"), "not JSON"),
        (HOSTILE["a deep list before the cmd"], "nested too deeply"),
        (line("UpdateTargets", connection_map={"x": "y"}), "field connection_map: Expected"),
        (line("ReqListeners", channels=[0, 2000]), "field channels[1]: Expected"),
        (HOSTILE["two equal fields"], "field seq: it appears twice"),
        (line("REL", x="X").replace(b'"X"', b"NaN"), "not JSON"),
        (line("REL", x="X").replace(b"X", b"\xed\xa0\x80"), "not UTF-8"),
    ],
)
def test_a_bad_message_says_what_is_wrong_and_where(bad_line: bytes, complaint: str) -> None:
    with pytest.raises(BadMessageError) as refused:
        decode(bad_line)
    assert complaint in refused.value.msg


@pytest.mark.parametrize(
    ("bad_line", "uid", "seq"),
    [
        (line("REL", role=7), UID, 1),
        (line("REL", seq="1"), UID, None),
        (line("REL", seq=0), UID, None),
        (line("REL", seq=True), UID, None),
        (HOSTILE["a huge number"], UID, None),
        (HOSTILE["a huge exponent"], UID, None),
        (line("REL", uid="me"), None, 1),
        (line("REL", uid=None), None, 1),
        (line("REL", uid=[UID]), None, 1),
        (HOSTILE["a lone low surrogate in the uid"], None, None),
        (line("REL")[:-1], None, None),
        (b"[1]", None, None),
    ],
)
def test_uid_and_number_of_a_bad_line_are_told_where_they_can_be_read(
    bad_line: bytes, uid: str | None, seq: int | None
) -> None:
    with pytest.raises(BadMessageError) as refused:
        decode(bad_line)
    assert (refused.value.uid, refused.value.seq) == (uid, seq)


@pytest.mark.parametrize(
    ("some_line", "answer"),
    [
        (line("RESP"), True),
        (line("ERROR"), True),
        (line("RESP", seq="x", uid=7), True),
        (line("ERROR", code="OOPS"), True),
        (line("RESP").replace(b'"seq": 1', b'"seq": 1e999'), True),
        (line("REL"), False),
        (line("REL", cmd="Resp"), False),
        (line("REL", label="RESP"), False),
        (b'["RESP"]', False),
        (b"RESP", False),
    ],
)
def test_a_line_that_calls_itself_an_answer_is_known_for_one(some_line: bytes, answer: bool) -> None:
    assert is_answer(some_line) is answer


def test_a_carriage_return_before_the_end_is_ignored() -> None:
    assert decode(line("REL") + b"\r") == decode(line("REL"))


def test_a_message_that_would_be_longer_than_a_peer_accepts_is_not_encoded() -> None:
    longest = [f"{LONGEST_HOST}:65535"] * MAX_CHANNELS
    with pytest.raises(StreamError, match=f"a line has at most {MAX_LINE}"):
        encode(Resp(uid=UID, seq=1, state="Listening", msg="", listeners=longest))


def test_every_error_code_can_be_said() -> None:
    for code in get_args(ErrorCode):
        error = Error(uid=UID, seq=1, code=code, msg="why")
        assert decode(without_lf(error)) == error
        assert str(StreamError(code, "why")) == f"{code}: why"

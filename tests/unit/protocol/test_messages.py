"""The ranges of all fields of all messages, tested at their limits."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scistream.links.outbox import command_name
from scistream.protocol.codec import MAX_LINE, decode, encode
from scistream.protocol.errors import BadMessageError
from scistream.protocol.messages import (
    CONS,
    MAX_LIFE,
    MAX_PROBE_SECONDS,
    MAX_RATE,
    MIN_RATE,
    PROBE_LIFE,
    PROD,
    Command,
    Hello,
    Message,
    Req,
    ReqListeners,
    Status,
)
from support.message_strategies import BIG, EXAMPLES, STRATEGIES, UID, fields_of, line, messages, without_lf

KINDS = get_args(Message)


def reason(bad_line: bytes) -> BadMessageError:
    with pytest.raises(BadMessageError) as refused:
        decode(bad_line)
    return refused.value


def test_every_message_of_the_union_is_generated_by_these_tests() -> None:
    assert set(STRATEGIES) == set(KINDS)
    assert set(EXAMPLES) == {kind.__struct_config__.tag for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: str(kind.__name__))
def test_examples_give_every_field_so_that_each_is_tried(kind: type[Any]) -> None:
    assert set(EXAMPLES[kind.__struct_config__.tag]) == set(fields_of(kind))
    assert command_name(decode(line(kind.__struct_config__.tag))) == kind.__struct_config__.tag


@settings(deadline=None, max_examples=120)
@given(message=messages)
def test_any_valid_message_survives_encoding_and_decoding(message: Message) -> None:
    assert decode(without_lf(message)) == message


@settings(deadline=None, max_examples=60)
@given(message=messages)
def test_a_message_is_one_line_within_the_limit(message: Message) -> None:
    encoded = encode(message)
    assert encoded.endswith(b"\n")
    assert encoded.count(b"\n") == 1
    assert len(encoded) <= MAX_LINE


def test_every_command_has_a_number_and_a_role() -> None:
    for kind in get_args(Command):
        assert {"uid", "role", "seq"} <= set(fields_of(kind))


# -- values at the edges, and just beyond them


INSIDE: list[tuple[str, str, list[Any]]] = [
    ("REQ", "seq", [1, BIG]),
    ("REQ", "num_conn", [1, 1024]),
    ("REQ", "rate", [MIN_RATE, 1, MAX_RATE]),
    ("REQ", "expires", [5e-324, 1, PROBE_LIFE]),
    ("REQ", "probe_seconds", [5e-324, MAX_PROBE_SECONDS]),
    ("REQ", "hello_timeout", [5e-324, MAX_LIFE, None]),
    ("REQ", "app_from", [[], ["10.1.2.3/8"], ["::/0"] * 64, None]),
    ("REQ", "label", ["", "x" * 200, None]),
    ("REQ", "listen_ports", [[1, 65535], [5076, 5075], None]),
    ("ReqListeners", "listen_ports", [[1, 65535], None]),
    ("ReqListeners", "channels", [[0], [1023], list(range(1024))]),
    ("StartLstn", "channel", [0, 1023]),
    ("Hello", "listeners", [["0.0.0.0:1"], ["[::]:65535"], ["127.0.0.1:7"] * 1024]),
    ("Hello", "other_addresses", [{}, {"127.0.0.1:7000": []}, {"127.0.0.1:7000": ["[::1]:7000"] * 16}, None]),
    ("UpdateTargets", "other_addresses", [{}, {"127.0.0.1:7000": ["[::1]:7000"] * 16}, None]),
    ("ProdLstn", "listeners", [["a:1"], ["127.0.0.1:7"] * 1024]),
    ("UpdateTargets", "generation", [1, BIG]),
    ("UpdateTargets", "connection_map", [{"a:1": "b:1"}, {f"a:{n}": "b:1" for n in range(1, 1025)}]),
    ("UpdateTargets", "data_conn_key", ["", "x" * 131072]),
    ("UpdateTargets", "expires", [5e-324, MAX_LIFE, None]),
    ("RESP", "expires", [5e-324, MAX_LIFE, None]),
    ("Status", "uid", [None]),
    ("Status", "role", [None]),
    ("Status", "limit", [1, 100]),
    ("Status", "after", ["x" * 64, None]),
    ("Drain", "action", ["start"]),
    ("Drain", "gateway", ["d", "x" * 255, None]),
    ("Drain", "within", [0, MAX_LIFE, None]),
    ("RESP", "uid", [None]),
    ("RESP", "msg", ["x" * 2000]),
    ("RESP", "state", ["x" * 32]),
    ("ERROR", "uid", [None]),
    ("ERROR", "seq", [None, 1, BIG]),
    ("ERROR", "code", ["no-ports", "a-code-of-a-later-version", "x" * 32]),
]

BEYOND: list[tuple[str, str, list[Any]]] = [
    ("REQ", "uid", ["", UID.upper(), UID + "\n", UID[:-1], UID.replace("-", ""), None, 7, [UID]]),
    ("REQ", "role", ["", "prod", "BOTH", None, 0]),
    ("REQ", "seq", [0, -1, BIG + 1, 10**400, 1.5, "1", None, True]),
    ("REQ", "num_conn", [0, -1, 1025, 2.5, "2", None]),
    ("REQ", "rate", [0, 0.0, -1, MAX_RATE * 1.001, 1e308, "100", None]),
    ("REQ", "app_key_hash", ["0" * 63, "0" * 65, "0" * 64 + "\n", "G" * 64, "A" * 64, None]),
    ("REQ", "expires", [0, -1, MAX_LIFE * 1.001, "1h", PROBE_LIFE * 1.001, None, ...]),
    ("REQ", "hello_timeout", [0, -0.0, MAX_LIFE * 1.001]),
    ("REQ", "wan_security", ["none", "", None]),
    ("REQ", "protocol", ["udp", None, "tcp", ...]),
    ("REQ", "probe_seconds", [0, -1, MAX_PROBE_SECONDS * 1.001, None, ...]),
    ("REQ", "app_from", ["127.0.0.0/8", ["x"], ["127.0.0.0/33"], [1], ["::/0"] * 65, ["1" * 65]]),
    ("REQ", "label", ["x" * 201, 7]),
    ("REQ", "listen_ports", [[], [5075], [5075, 5076, 5077], [5075, 5075], [0, 1], [1, 65536], ["5075", 1], 5075]),
    ("ReqListeners", "listen_ports", [[], [5075], [5075, 5076, 5077], [5075, 5075], [0, 1], [1, 65536]]),
    ("ReqListeners", "channels", [[], [-1], [1024], [0, 0], list(range(1025)), None, {}]),
    ("ReqListeners", "rate", [0, MAX_RATE + 1]),
    ("ReqListeners", "expires", [0, None, MAX_LIFE + 1]),
    ("UpdateTargets", "expires", [0, -1, MAX_LIFE + 1, "1h"]),
    ("RESP", "expires", [0, -1, MAX_LIFE + 1, "1h"]),
    ("ReqListeners", "wan_security", ["none"]),
    ("ReqListeners", "app_from", [["nowhere"]]),
    ("ReqListeners", "protocol", ["udp", "tcp"]),
    ("ReqListeners", "probe_seconds", [0, MAX_PROBE_SECONDS * 1.001, None]),
    ("StartLstn", "channel", [-1, 1024, "0", None]),
    ("Hello", "app_key", ["", "k" * 42, "k" * 44, "k" * 42 + "+", "k" * 42 + "\n", "k" * 43 + "\n", None]),
    ("Hello", "listeners", [[], None, ["detector:7000"], ["127.0.0.1"], ["127.0.0.1:0"], ["127.0.0.1:65536"],
                            ["::1:80"], ["127.0.0.1:7"] * 1025, [7], "127.0.0.1:7000"]),
    *((cmd, "other_addresses", [{"127.0.0.1:7001": []}, {"127.0.0.1:7000": ["localhost:7000"]}, ["[::1]:7000"],
                                {"127.0.0.1:7000": ["[::1]:7000"] * 17}, {"127.0.0.1:7000": ["x"]}])
      for cmd in ("Hello", "UpdateTargets")),
    ("ProdLstn", "listeners", [[], None, ["x"], ["127.0.0.1:70000"], ["127.0.0.1:7"] * 1025]),
    ("UpdateTargets", "generation", [0, -1, BIG + 1, "1", None]),
    ("UpdateTargets", "connection_map", [{}, [], None, {"x": "127.0.0.1:1"}, {"127.0.0.1:1": "x"},
                                         {"127.0.0.1:1": None}, {"nope": "127.0.0.1:1"},
                                         {"127.0.0.1:1": "nope"}, {f"a:{n}": "b:1" for n in range(1, 1026)}]),
    ("UpdateTargets", "data_conn_key", [None, 1, "x" * 131073]),
    ("StartConn", "listeners", [[], None, ["127.0.0.1"], ["a" * 300 + ":1"]]),
    ("REL", "seq", [0]),
    *((cmd, "store", ["0" * 31, "g" * 32, 1]) for cmd in ("ReqListeners", "UpdateTargets", "REL")),
    ("Status", "limit", [0, 101, None]),
    ("Drain", "action", ["undo", "show", "stop", "", None, ...]),
    ("Drain", "gateway", ["", "x" * 256, 1]),
    ("Drain", "within", [-1, MAX_LIFE + 1, "2h"]),
    ("RESP", "draining", [{}, [{"gateway": ""}], [{"streams": -1}], [{}] * 1025]),
    ("Status", "after", ["x" * 65]),
    ("RESP", "seq", [None, 0]),
    ("RESP", "state", [None, "x" * 33]),
    ("RESP", "msg", [None, "x" * 2001]),
    ("RESP", "app_networks", ["127.0.0.0/8", ["x"], [1], ["::/0"] * 65]),
    ("RESP", "boot", ["0" * 31, "0" * 33, "g" * 32]),
    ("RESP", "streams", [{}, [1], [{}], [{"uid": UID, "role": "PROD", "state": "x", "figures": [{"channel": -1}]}]]),
    ("RESP", "resets", [{}, [1], [{}], [{"channel": 0, "cause": "Wan", "reason": "x", "count": 1}]]),
    ("RESP", "paths", [{}, [1], [{"local": "192.0.2.20"}], [{"local": "x" * 65, "remote": ""}]]),
    ("RESP", "figures", [{}, [1], [{}], [{"channel": 1024}], [{"channel": 0, "bytes_to_consumer": "1"}]]),
    ("RESP", "room", [{}, {"ports": 1}, {"ports": 1, "rate": "1"}]),
    ("ERROR", "code", ["", "Oops", "no ports", "x" * 33, "no-ports\n", "-", 7, None]),
    ("ERROR", "msg", ["x" * 2001]),
]  # fmt: skip


def cases(table: list[tuple[str, str, list[Any]]]) -> list[Any]:
    return [
        pytest.param(cmd, field, value, id=f"{cmd}-{field}-{repr(value)[:40]}")
        for cmd, field, values in table
        for value in values
    ]


@pytest.mark.parametrize(("cmd", "field", "value"), cases(INSIDE))
def test_a_value_at_the_edge_of_its_range_is_read(cmd: str, field: str, value: Any) -> None:
    fitting = {"listen_ports": None} if field in ("num_conn", "channels") else {}
    if field in ("listeners", "connection_map"):
        fitting = {"other_addresses": None} if cmd in ("Hello", "UpdateTargets") else {}
    message = decode(line(cmd, **{field: value, **fitting}))
    assert getattr(message, field) == value
    assert decode(without_lf(message)) == message


@pytest.mark.parametrize(("cmd", "field", "value"), cases(BEYOND))
def test_a_value_beyond_its_range_is_refused_and_the_field_is_named(cmd: str, field: str, value: Any) -> None:
    bad = reason(line(cmd, **{field: value}))
    assert bad.code == "bad-message"
    assert field in bad.msg or (field, "probe_seconds" in bad.msg) == ("protocol", True)
    assert bad.uid == (None if field == "uid" else UID)
    assert bad.seq == (None if field == "seq" or cmd == "ProdLstn" else 1)


# -- what a later version may add, and what no version may

NEWS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=20)
    | st.sampled_from([10**400, "REQ", "RESP", UID]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
NEW_NAMES = st.from_regex(r"new_[a-z]{1,10}", fullmatch=True)


def structs_of(said: dict[str, Any]) -> list[dict[str, Any]]:
    """Return every object with fields in a message, including itself, but not maps of addresses."""
    found = [said]
    for name, value in said.items():
        if isinstance(value, dict) and name not in ("connection_map", "wan_targets"):
            found += structs_of(value)
        elif isinstance(value, list):
            found += [struct for one in value if isinstance(one, dict) for struct in structs_of(one)]
    return found


def objects_of(said: Any) -> list[dict[str, Any]]:
    """Return every object in a decoded line."""
    inner = said.values() if isinstance(said, dict) else said if isinstance(said, list) else ()
    return [
        *([said] if isinstance(said, dict) and said else []),
        *(one for value in inner for one in objects_of(value)),
    ]


@settings(deadline=None, max_examples=120)
@given(message=messages, data=st.data())
def test_fields_of_a_later_version_change_nothing_in_any_message(message: Message, data: st.DataObject) -> None:
    said = json.loads(without_lf(message))
    for struct in data.draw(st.lists(st.sampled_from(structs_of(said)), min_size=1, max_size=3)):
        struct.update(data.draw(st.dictionaries(NEW_NAMES, NEWS, min_size=1, max_size=3)))
    assert decode(json.dumps(said).encode()) == message


@pytest.mark.parametrize("cmd", EXAMPLES)
def test_a_field_of_a_later_version_changes_nothing(cmd: str) -> None:
    assert decode(line(cmd, surprise=1)) == decode(line(cmd))


class Twice(dict[str, Any]):
    """An object that is encoded with one of its fields twice."""

    def items(self) -> Any:
        name, value = next(iter(super().items()))
        return [*super().items(), (name, value)]


def says_twice(said: Any, at: dict[str, Any]) -> Any:
    """Return a copy in which the object `at` contains a field twice."""
    if isinstance(said, list):
        return [says_twice(one, at) for one in said]
    if not isinstance(said, dict):
        return said
    return (Twice if said is at else dict)({name: says_twice(value, at) for name, value in said.items()})


@settings(deadline=None, max_examples=120)
@given(message=messages, data=st.data())
def test_a_field_that_is_there_twice_in_any_object_is_refused(message: Message, data: st.DataObject) -> None:
    said = {**json.loads(without_lf(message)), "new_field": {"x": [{"y": 10**400}]}}
    at = data.draw(st.sampled_from(objects_of(said)))
    bad = reason(json.dumps(says_twice(said, at)).encode())
    assert "twice" in bad.msg
    assert (bad.uid, bad.seq) == (message.uid, getattr(message, "seq", None))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: str(kind.__name__))
def test_a_missing_field_that_has_no_default_is_refused_and_named(kind: type[Any]) -> None:
    cmd = kind.__struct_config__.tag
    for name, field in fields_of(kind).items():
        if field.required:
            assert f"`{name}`" in reason(line(cmd, **{name: ...})).msg


@pytest.mark.parametrize("cmd", ["Connect", "req", "", "REQ ", None, 1, ["REQ"]])
def test_an_unknown_cmd_is_refused_and_the_field_named(cmd: Any) -> None:
    bad = reason(line("REL", cmd=cmd))
    assert "cmd" in bad.msg
    assert (bad.uid, bad.seq) == (UID, 1)
    assert "cmd" in reason(line("REL", cmd=...)).msg


@pytest.mark.parametrize(("cmd", "expires"), [("REQ", [5e-324, MAX_LIFE, None]), ("ReqListeners", [5e-324, MAX_LIFE])])
def test_a_stream_for_applications_may_live_longer_than_a_probe(cmd: str, expires: list[float | None]) -> None:
    for life in expires:
        message = decode(line(cmd, expires=life, protocol=..., probe_seconds=...))
        assert isinstance(message, Req | ReqListeners)
        assert (message.expires, message.protocol, message.probe_seconds) == (life, "tcp", None)
    too_long = reason(line(cmd, expires=MAX_LIFE * 1.001, protocol=..., probe_seconds=...))
    assert "field expires" in too_long.msg


def test_a_consumer_s_hello_has_no_listeners_and_a_producer_s_has_some() -> None:
    assert decode(line("Hello", role=CONS, listeners=..., other_addresses=...)) == Hello(
        uid=UID, role=CONS, seq=1, app_key="k" * 43
    )
    for wrong in (["127.0.0.1:7000"], []):
        assert "listeners" in reason(line("Hello", role=CONS, listeners=wrong)).msg
    assert "listeners" in reason(line("Hello", role=PROD, listeners=...)).msg


def test_a_message_cannot_be_changed() -> None:
    status = Status(uid=None, role=None, seq=1)
    with pytest.raises(AttributeError):
        status.seq = 2  # type: ignore[misc]

"""Hypothesis strategies for every message of the protocol, with the edges of every range among the examples."""

from __future__ import annotations

import json
from typing import Any, get_args

import msgspec
from hypothesis import strategies as st

from scistream.protocol.codec import encode
from scistream.protocol.errors import ErrorCode
from scistream.protocol.messages import (
    CONS,
    MAX_CHANNELS,
    MAX_EVENT,
    MAX_LIFE,
    MAX_NOTICE,
    MAX_PROBE_SECONDS,
    MAX_RATE,
    MAX_REASON,
    MAX_TEXT,
    MIN_RATE,
    PROBE_LIFE,
    PROD,
    BrokenChannel,
    Cause,
    ChannelFigures,
    Drain,
    DrainProgress,
    Error,
    Extend,
    GatewayCapacity,
    Hello,
    LastError,
    Message,
    PathFigures,
    ProbeResult,
    ProdLstn,
    Rel,
    Req,
    ReqListeners,
    ResetReason,
    Resp,
    StartConn,
    StartLstn,
    Status,
    StreamEvent,
    StreamStatus,
    UpdateTargets,
)

BIG = 2**53
INT64 = 2**63 - 1


def integers(low: int, high: int) -> st.SearchStrategy[int]:
    return st.sampled_from([low, high]) | st.integers(low, high)


def text(longest: int) -> st.SearchStrategy[str]:
    """Any text that UTF-8 can carry, the longest too."""
    short = st.text(st.characters(codec="utf-8"), max_size=min(longest, 20))
    return short | st.sampled_from(["", "x" * longest, "\U0001f52c" * longest])


def above_zero(high: float) -> st.SearchStrategy[float]:
    return st.sampled_from([5e-324, 1e-3, 1.0, high]) | st.floats(0, high, exclude_min=True)


finite = st.floats(allow_nan=False, allow_infinity=False)
uids = st.uuids(version=4).map(str) | st.sampled_from(["0" * 8 + "-0000" * 3 + "-" + "0" * 12])
roles = st.sampled_from([PROD, CONS])
seqs = integers(1, BIG)
channels = integers(0, MAX_CHANNELS - 1)
app_keys = st.text("ABCXYZabcxyz0189_-", min_size=43, max_size=43)
digests = st.text("0123456789abcdef", min_size=64, max_size=64)
boots = st.text("0123456789abcdef", min_size=32, max_size=32)
pems = text(4000) | st.just("-" * 131072)

ports = integers(1, 65535)
hosts_v4 = st.ip_addresses(v=4).map(str)
hosts_v6 = st.ip_addresses(v=6).map(lambda host: f"[{host}]")
labels = st.from_regex(r"[a-z]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)
LONGEST_HOST = ".".join([*["a" * 63] * 3, "b" * 61])
names = st.lists(labels, min_size=1, max_size=4).map(".".join) | st.just(LONGEST_HOST)
numeric_addresses = st.builds("{}:{}".format, hosts_v4 | hosts_v6, ports)
addresses = st.builds("{}:{}".format, hosts_v4 | hosts_v6 | names, ports)
networks = (
    st.builds("{}/{}".format, hosts_v4, integers(0, 32))
    | st.builds("{}/{}".format, st.ip_addresses(v=6), integers(0, 128))
    | hosts_v4
)
network_lists = st.none() | st.lists(networks, max_size=3) | st.just(["10.0.0.0/8"] * 64)
listeners = st.lists(addresses, max_size=4) | st.just(["127.0.0.1:65535"] * MAX_CHANNELS)
some_listeners = st.lists(addresses, min_size=1, max_size=4) | st.just(["127.0.0.1:65535"] * MAX_CHANNELS)
maps = st.dictionaries(addresses, addresses, min_size=1, max_size=4) | st.just(
    {f"[2001:db8::1]:{port}": f"10.0.0.1:{port}" for port in range(1, MAX_CHANNELS + 1)}
)
states = text(32)
codes = st.sampled_from([*get_args(ErrorCode), "a-code-of-a-later-version"])
messages_to_people = text(MAX_TEXT)

names_of_gateways = st.sampled_from(["d", "x" * 255]) | labels

abilities = st.lists(st.sampled_from(["accept", "dial", "an-ability-of-a-later-version"]), max_size=8)

figures = st.builds(
    ChannelFigures,
    channel=channels,
    bytes_to_consumer=integers(0, INT64),
    bytes_to_producer=integers(0, INT64),
    connections=integers(0, INT64),
    accepted=integers(0, INT64),
    reset=integers(0, INT64),
)
resets = st.builds(
    ResetReason,
    channel=channels,
    cause=st.sampled_from([*get_args(Cause), "a-cause-of-a-later-version"]),
    reason=text(MAX_REASON),
    count=integers(0, INT64),
    seconds_ago=st.floats(0, 1e9),
)
probes = st.builds(
    ProbeResult,
    state=st.sampled_from(["running", "done", "failed"]),
    reason=messages_to_people,
    connect_ms=finite,
    rtt_ms=finite,
    mbit_to_consumer=finite,
    mbit_to_producer=finite,
    bytes=integers(0, INT64),
    bytes_right=st.booleans(),
)
paths = st.builds(
    PathFigures,
    local=text(64),
    remote=text(64),
    up=st.booleans(),
    connections=integers(0, INT64),
    rtt_ms=st.floats(0, 1e9),
    bytes_to_consumer=integers(0, INT64),
    bytes_to_producer=integers(0, INT64),
    retransmits=integers(0, INT64),
    failures=integers(0, INT64),
    seconds=st.floats(0, 1e9),
)
statuses = st.builds(
    StreamStatus,
    uid=uids,
    role=roles,
    state=states,
    owner=text(200),
    label=st.none() | text(200),
    rate=finite,
    channels=st.lists(channels, max_size=4),
    listeners=listeners,
    csr=text(100),
    app_listeners=listeners,
    generation=integers(0, BIG),
    connection_map=st.dictionaries(addresses, addresses, max_size=3),
    figures=st.lists(figures, max_size=3),
    gateways=st.lists(text(30), max_size=3),
    seconds_left=finite,
    last_error=st.none() | st.builds(LastError, code=codes, msg=messages_to_people),
    probe=st.none() | probes,
    resets=st.lists(resets, max_size=3),
    events=st.lists(
        st.builds(
            StreamEvent,
            kind=codes,
            seconds_ago=st.floats(0, 1e9),
            state=states,
            text=text(MAX_EVENT),
            count=integers(0, INT64),
        ),
        max_size=3,
    ),
    events_dropped=integers(0, INT64),
    broken=st.lists(
        st.builds(BrokenChannel, channel=channels, reason=text(MAX_REASON), seconds=st.floats(0, 1e9)), max_size=3
    ),
    notices=st.lists(text(MAX_NOTICE), max_size=3),
    paths=st.lists(paths, max_size=3),
)


def for_applications_or_a_probe(
    kind: type[Any], expires: st.SearchStrategy[Any], **fields: st.SearchStrategy[Any]
) -> st.SearchStrategy[Any]:
    """Generate requests of both protocols: one for a probe has a duration and a short lifetime."""
    probe = {"protocol": st.just("probe"), "probe_seconds": above_zero(MAX_PROBE_SECONDS)}
    short = above_zero(PROBE_LIFE)
    return st.builds(kind, expires=expires, **fields) | st.builds(kind, expires=short, **probe, **fields)


def _hello(uid: str, role: Any, seq: int, app_key: str, numeric: list[str]) -> Hello:
    return Hello(uid=uid, role=role, seq=seq, app_key=app_key, listeners=numeric if role == PROD else None)


def _update(role: Any, wan_dialer: Any, wan_targets: dict[str, str], **fields: Any) -> UpdateTargets:
    targets = wan_targets if role == wan_dialer == PROD else None
    return UpdateTargets(role=role, wan_dialer=wan_dialer, wan_targets=targets, **fields)


STRATEGIES: dict[type[Any], st.SearchStrategy[Any]] = {
    Req: for_applications_or_a_probe(
        Req,
        st.none() | above_zero(MAX_LIFE),
        uid=uids,
        role=roles,
        seq=seqs,
        num_conn=integers(1, MAX_CHANNELS),
        rate=st.sampled_from([MIN_RATE, MAX_RATE]) | st.floats(MIN_RATE, MAX_RATE),
        app_key_hash=digests,
        hello_timeout=st.none() | above_zero(MAX_LIFE),
        app_from=network_lists,
        label=st.none() | text(200),
        wan_dialer=st.none() | roles,
    ),
    ReqListeners: for_applications_or_a_probe(
        ReqListeners,
        above_zero(MAX_LIFE),
        uid=uids,
        role=roles,
        seq=seqs,
        channels=st.lists(channels, min_size=1, max_size=5, unique=True) | st.just(list(range(MAX_CHANNELS))),
        rate=above_zero(MAX_RATE),
        wan_security=st.just("encrypt"),
        app_from=network_lists,
        store=st.none() | boots,
    ),
    StartLstn: st.builds(StartLstn, uid=uids, role=roles, seq=seqs, channel=channels),
    Hello: st.builds(_hello, uids, roles, seqs, app_keys, st.lists(numeric_addresses, min_size=1, max_size=4)),
    ProdLstn: st.builds(ProdLstn, uid=uids, role=roles, listeners=some_listeners),
    UpdateTargets: st.builds(
        _update,
        uid=uids,
        role=roles,
        seq=seqs,
        generation=integers(1, BIG),
        connection_map=maps,
        data_conn_key=pems,
        expires=st.none() | above_zero(MAX_LIFE),
        store=st.none() | boots,
        wan_dialer=roles,
        wan_targets=maps,
    ),
    Extend: st.builds(Extend, uid=uids, role=roles, seq=seqs, expires=above_zero(MAX_LIFE), store=st.none() | boots),
    StartConn: st.builds(StartConn, uid=uids, role=roles, seq=seqs, listeners=some_listeners),
    Rel: st.builds(Rel, uid=uids, role=roles, seq=seqs, store=st.none() | boots),
    Drain: st.builds(
        Drain,
        uid=st.none() | uids,
        role=st.none() | roles,
        seq=seqs,
        action=st.just("start"),
        gateway=st.none() | names_of_gateways,
        within=st.none() | st.floats(0, MAX_LIFE),
    )
    | st.builds(Drain, seq=seqs, action=st.sampled_from(["undo", "show"]), gateway=st.none() | names_of_gateways),
    Status: st.builds(
        Status,
        uid=st.none() | uids,
        role=st.none() | roles,
        seq=seqs,
        after=st.none() | text(64),
        limit=integers(1, 100),
    ),
    Resp: st.builds(
        Resp,
        uid=st.none() | uids,
        seq=seqs,
        state=states,
        msg=messages_to_people,
        listeners=st.none() | listeners,
        csr=st.none() | pems,
        expires=st.none() | above_zero(MAX_LIFE),
        boot=st.none() | boots,
        streams=st.none() | st.lists(statuses, max_size=2),
        more=st.none() | text(100),
        room=st.none()
        | st.builds(
            GatewayCapacity,
            ports=integers(0, 65535),
            rate=finite,
            hosts=st.none() | st.lists(text(255), max_size=16),
            first_port=st.none() | integers(1, 65535),
            wan=st.none() | abilities,
            draining=st.none() | st.floats(0, 1e9),
            elements=st.none() | integers(0, 2**63 - 1),
            elements_ready=st.none() | integers(0, 2**63 - 1),
        ),
        app_networks=network_lists,
        warnings=st.none() | st.lists(messages_to_people, max_size=3),
        figures=st.none() | st.lists(figures, max_size=3),
        resets=st.none() | st.lists(resets, max_size=3),
        wan=st.none() | abilities,
        wan_listeners=st.none() | listeners,
        draining=st.none()
        | st.lists(
            st.builds(
                DrainProgress,
                gateway=st.none() | names_of_gateways,
                by=text(100),
                streams=integers(0, 2**63 - 1),
                seconds_left=st.none() | st.floats(0, 1e9),
            ),
            max_size=3,
        ),
    ),
    Error: st.builds(
        Error,
        uid=st.none() | uids,
        code=codes,
        msg=messages_to_people,
        seq=st.none() | seqs,
        role=st.none() | roles,
    ),
}

messages: st.SearchStrategy[Message] = st.one_of(*STRATEGIES.values())

UID = "12345678-1234-4234-8234-123456789abc"

EXAMPLES: dict[str, dict[str, Any]] = {
    "REQ": {
        "uid": UID,
        "role": "PROD",
        "seq": 1,
        "num_conn": 2,
        "rate": 100.0,
        "app_key_hash": "0" * 64,
        "expires": 60.0,
        "hello_timeout": 30.0,
        "wan_security": "encrypt",
        "app_from": ["127.0.0.0/8"],
        "protocol": "probe",
        "probe_seconds": 5.0,
        "label": "scan 7",
        "listen_ports": [5075, 5076],
        "wan_dialer": "PROD",
    },
    "ReqListeners": {
        "uid": UID,
        "role": "PROD",
        "seq": 1,
        "channels": [0, 1],
        "rate": 100.0,
        "expires": 60.0,
        "wan_security": "encrypt",
        "app_from": ["127.0.0.0/8"],
        "protocol": "probe",
        "probe_seconds": 5.0,
        "owner": "0" * 32,
        "store": "0" * 32,
        "listen_ports": [5075, 5076],
    },
    "StartLstn": {"uid": UID, "role": "CONS", "seq": 1, "channel": 0},
    "Hello": {
        "uid": UID,
        "role": "PROD",
        "seq": 1,
        "app_key": "k" * 43,
        "listeners": ["127.0.0.1:7000"],
        "other_addresses": {"127.0.0.1:7000": ["[::1]:7000"]},
    },
    "ProdLstn": {"uid": UID, "role": "PROD", "listeners": ["127.0.0.1:7000"]},
    "UpdateTargets": {
        "uid": UID,
        "role": "PROD",
        "seq": 1,
        "generation": 1,
        "connection_map": {"127.0.0.1:5100": "127.0.0.1:7000"},
        "data_conn_key": "",
        "expires": 60.0,
        "store": "0" * 32,
        "other_addresses": {"127.0.0.1:7000": ["[::1]:7000"]},
        "wan_dialer": "PROD",
        "wan_targets": {"127.0.0.1:5100": "127.0.0.1:5200"},
    },
    "StartConn": {"uid": UID, "role": "CONS", "seq": 1, "listeners": ["127.0.0.1:5100"]},
    "Extend": {"uid": UID, "role": "PROD", "seq": 1, "expires": 3600.0, "store": "0" * 32},
    "REL": {"uid": UID, "role": "PROD", "seq": 1, "store": "0" * 32},
    "Status": {"uid": UID, "role": "PROD", "seq": 1, "after": "", "limit": 20, "events": True},
    "Drain": {"uid": UID, "role": "PROD", "seq": 1, "action": "start", "gateway": "dtn1", "within": 60.0},
    "RESP": {
        "uid": UID,
        "seq": 1,
        "state": "Listening",
        "msg": "",
        "listeners": ["127.0.0.1:5100"],
        "csr": "",
        "expires": 60.0,
        "boot": "0" * 32,
        "streams": [{"uid": UID, "role": "PROD", "state": "Streaming", "figures": [{"channel": 0}]}],
        "more": "",
        "room": {"ports": 8, "rate": 1.0, "hosts": ["127.0.0.1"], "first_port": 5100},
        "app_networks": ["127.0.0.0/8"],
        "warnings": ["the server certificate expires in 6 days"],
        "figures": [{"channel": 0, "bytes_to_consumer": 5}],
        "resets": [{"channel": 0, "cause": "wan", "reason": "it broke", "count": 5}],
        "wan": ["accept", "dial"],
        "wan_listeners": ["127.0.0.1:5200"],
        "paths": [{"local": "192.0.2.20", "remote": "203.0.113.9", "up": True, "failures": 1}],
        "draining": [{"gateway": "dtn1", "by": "ada", "streams": 3, "seconds_left": 60.0}],
        "version": "0.1.0",
    },
    "ERROR": {"uid": UID, "code": "no-ports", "msg": "", "seq": 1, "role": "PROD"},
}
"""A valid line of each `cmd`, every field given."""


def line(cmd: str, /, **fields: Any) -> bytes:
    """Return the line of an example with some fields changed; `...` leaves a field out."""
    content = {"cmd": cmd, **EXAMPLES[cmd], **fields}
    return json.dumps({name: value for name, value in content.items() if value is not ...}).encode()


def without_lf(message: Message) -> bytes:
    return encode(message).removesuffix(b"\n")


def fields_of(kind: type[Any]) -> dict[str, msgspec.structs.FieldInfo]:
    return {field.name: field for field in msgspec.structs.fields(kind)}

"""What the JSON API answers: by the description that is served with it, complete, in pages, and without a secret."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from scistream.http.settings import HttpSettings
from scistream.protocol.messages import CONS, PROD, BrokenChannel, ChannelFigures, LastError, Req, Role, StreamStatus
from scistream.s2cs.record import Record
from scistream.s2cs.web import api_types, openapi
from scistream.s2cs.web.monitor import Monitor, key_of
from scistream.s2cs.web.views import problems, waits_for
from support.memory_facilities import World

UID = "00000000-0000-4000-8000-000000000000"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    for facility in (world.prod, world.cons):
        config = facility.control.config
        facility.control.config = msgspec.structs.replace(config, http=HttpSettings(listen="127.0.0.1:8080"))
    yield world
    world.close()


@pytest.fixture
def monitor(world: World) -> Monitor:
    return world.prod.control.monitor


def test_the_description_in_the_package_is_the_one_that_the_types_make() -> None:
    assert openapi.FILE.read_text() == openapi.text(), "run python -m scistream.s2cs.web.openapi"


def test_the_description_is_valid_openapi() -> None:
    assert [str(error) for error in OpenAPIV31SpecValidator(openapi.document()).iter_errors()] == []


def test_the_description_has_a_schema_for_each_type_and_each_field_is_there() -> None:
    schemas = openapi.document()["components"]["schemas"]
    kinds = [one for one in vars(api_types).values() if isinstance(one, type) and one.__module__ == api_types.__name__]
    assert len(kinds) > 12
    for kind in kinds:
        assert set(schemas[kind.__name__]["properties"]) == {field.name for field in msgspec.structs.fields(kind)}


def check(answer: Any) -> Any:
    """Check an answer against its schema, as strictly as a reader could, and return it as JSON."""
    document = openapi.document()
    for schema in document["components"]["schemas"].values():
        schema["additionalProperties"] = False
    root = {"$ref": f"#/components/schemas/{type(answer).__name__}", "components": document["components"]}
    body = json.loads(msgspec.json.encode(answer))
    Draft202012Validator(root).validate(body)
    return body


def test_a_wrong_answer_does_not_match_the_description() -> None:
    with pytest.raises(Exception, match="'many' is not of type 'integer'"):
        check(api_types.StreamList(time=1.0, change=0, total="many", streams=[], more=None))  # type: ignore[arg-type]


def test_every_answer_matches_the_description(world: World, monitor: Monitor) -> None:
    stream = world.stream(num_conn=3, label="scan 7 <b>")
    world.network.run(40.0)
    (one,) = check(monitor.streams("", 10, None, None))["streams"]
    assert (one["uid"], one["role"], one["state"], one["label"]) == (stream.uid, PROD, "Streaming", "scan 7 <b>")
    assert (one["channels"], one["reserved_mbit"], one["problems"], one["waits_for"]) == (3, 100.0, [], "")
    assert one["requested_at"] <= one["state_since"] <= monitor.now
    sides = check(world.result(monitor.sides(stream.uid)))["sides"]
    assert [channel["channel"] for channel in sides[0]["channels"]] == [0, 1, 2]
    assert {channel["target"] for channel in sides[0]["channels"]} == {"127.0.0.1:7000"}
    assert sides[0]["application_linked"] is True
    (history,) = check(monitor.histories([(stream.uid, PROD), (UID, CONS)]))["histories"]
    assert history["mbit_to_consumer"] == [0.0] * len(history["times"])
    assert len(history["times"]) >= 2
    (gateway,) = check(monitor.gateway_list())["gateways"]
    assert (gateway["state"], gateway["streams"], gateway["mbit_used"], gateway["mbit_total"]) == (
        "linked",
        1,
        100,
        1000,
    )
    assert (gateway["ports_used"], gateway["ports_total"]) == (3, 8)
    server = check(monitor.server())
    assert (server["streams"], server["gateways_linked"], server["gateways"]) == ({"Streaming": 1}, 1, 1)
    world.refusal(world.ask(rate=1e6))
    world.result(stream.release().deferred)
    recent = check(monitor.recent())
    (end,) = recent["ends"]
    assert (end["uid"], end["code"], end["label"]) == (stream.uid, "released", "scan 7 <b>")
    refused = recent["refusals"][-1]
    assert (refused["what"], refused["code"]) == ("REQ", "no-capacity")
    numbers = [one["number"] for one in recent["refusals"] + recent["ends"]]
    assert len(set(numbers)) == len(numbers)
    assert check(monitor.streams("", 10, None, None))["streams"] == []
    sides = check(world.result(monitor.sides(stream.uid)))["sides"]
    assert sides[0]["stream"]["state"] == "Released"


def test_no_secret_is_in_an_answer(world: World, monitor: Monitor) -> None:
    stream = world.stream()
    world.network.run(20.0)
    answers = [
        monitor.streams("", 10, None, None),
        world.result(monitor.sides(stream.uid)),
        monitor.gateway_list(),
        monitor.recent(),
        monitor.server(),
    ]
    text = b"\n".join(map(msgspec.json.encode, answers)).decode()
    record = world.prod.control.streams[stream.uid, PROD].record
    assert record.request is not None
    assert record.listeners[0] in text
    secrets = [record.request.app_key_hash, *record.csr.values(), *(str(join) for join in stream.join.values())]
    for secret in secrets:
        assert secret not in text
    assert not re.search(r"BEGIN |app_key|csr|data_conn_key", text)


def test_streams_come_in_pages_and_by_owner_and_state(world: World, monitor: Monitor) -> None:
    uids = sorted(world.request(num_conn=1, rate=10.0).uid for _ in range(5))
    seen, after = [], ""
    while True:
        page = monitor.streams(after, 2, None, None)
        assert len(page.streams) <= 2
        assert page.total == 5
        seen += [one.uid for one in page.streams]
        if page.more is None:
            break
        after = page.more
    assert seen == uids
    owner = page.streams[0].owner
    assert len(monitor.streams("", 10, owner, "Listening").streams) == 5
    assert monitor.streams("", 10, owner[:-1], None).streams == []
    assert monitor.streams("", 10, None, "Streaming").streams == []


def test_a_gateway_that_is_gone_shows_and_so_does_its_stream(world: World, monitor: Monitor) -> None:
    stream = world.stream()
    world.network.run(20.0)
    world.result(world.prod.gateways[0].stopService())
    world.network.run(30.0)
    (gateway,) = monitor.gateways()
    assert gateway.state == "down"
    assert gateway.since is not None
    assert 20.0 < monitor.now - gateway.since < 60.0
    assert gateway.mbit_total == 1000.0
    one = monitor.stream((stream.uid, PROD))
    assert one is not None
    assert one.waits_for == f"gateway {gateway.name} to answer"
    assert one.problems[0].startswith(f"gateway {gateway.name} has not answered for ")


def test_a_state_keeps_its_time_when_the_server_restarts(world: World, monitor: Monitor) -> None:
    stream = world.stream()
    before = monitor.stream((stream.uid, PROD))
    assert before is not None
    world.network.run(100.0)
    world.result(world.prod.control.stopService())
    world.prod.control = world.prod.start_control()
    world.network.run(5.0)
    after = world.prod.control.monitor.stream((stream.uid, PROD))
    assert after is not None
    assert after.state_since == before.state_since


@pytest.mark.parametrize(
    ("state", "role", "pending", "silent", "greeted", "expected"),
    [
        ("Reserving", PROD, ["b", "a"], {}, False, "gateways a, b to reserve ports"),
        ("Listening", PROD, [], {}, False, "the producer's program"),
        ("Listening", CONS, [], {}, False, "the consumer's program"),
        ("Listening", CONS, [], {"a": 3.0}, False, "gateway a to answer"),
        ("Ready", PROD, [], {}, True, "the user's client to connect both sides"),
        ("Ready", CONS, [], {}, True, "the producer's program, at the other side"),
        ("Updating", CONS, ["a"], {}, True, "gateway a to set targets"),
        ("Streaming", CONS, [], {}, False, "the consumer's program"),
        ("Streaming", CONS, [], {}, True, ""),
        ("Streaming", PROD, [], {"a": 3.0}, True, "gateway a to answer"),
        ("Releasing", PROD, ["a"], {}, True, "gateway a to confirm the release"),
        ("Released", PROD, [], {}, True, ""),
    ],
)
def test_a_stream_says_who_is_waited_for(
    state: str, role: Role, pending: list[str], silent: dict[str, float], greeted: bool, expected: str
) -> None:
    request = Req(uid=UID, role=role, seq=1, num_conn=1, rate=1.0, app_key_hash="0" * 64)
    record = Record(uid=UID, role=role, owner="ada", state=state, request=request, greeted=greeted)
    assert waits_for(record, pending, silent) == expected


def test_problems_are_told_the_most_important_first() -> None:
    status = StreamStatus(
        uid=UID,
        role=PROD,
        state="Streaming",
        silent={"dtn1": 61.4},
        broken=[BrokenChannel(channel=2, reason="the connection was refused", seconds=40.0)],
        last_error=LastError(code="target-refused", msg="it is outside"),
        notices=["gateway dtn2, the socket buffers are too small"],
        figures=[ChannelFigures(channel=2)],
    )
    assert problems(status) == [
        "gateway dtn1 has not answered for 61 s",
        "channel 2 is broken: the connection was refused",
        "target-refused: it is outside",
        "gateway dtn2, the socket buffers are too small",
    ]


@pytest.mark.parametrize("text", ["", UID, f"{UID}/", f"{UID}/BOTH", f"{UID}/PROD/"])
def test_what_is_no_key_of_a_stream_is_told_from_one(text: str) -> None:
    assert key_of(text) is None
    assert key_of(f"{UID}/CONS") == (UID, CONS)

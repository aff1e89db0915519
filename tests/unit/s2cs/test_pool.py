"""How the channels of a stream are spread over the gateways of a pool."""

import pytest

from scistream.s2cs.machine import Record
from scistream.s2cs.pool import Member, member, spread
from scistream.wire.errors import StreamError
from scistream.wire.messages import PROD, Req, Room


def sizes(plan: dict[str, list[int]]) -> dict[str, int]:
    return {name: len(channels) for name, channels in plan.items()}


def record(num_conn: int, rate: float, plan: dict[str, list[int]], state: str = "Streaming") -> Record:
    uid = "00000000-0000-4000-8000-000000000000"
    request = Req(uid=uid, role=PROD, seq=1, num_conn=num_conn, rate=rate, app_key_hash="0" * 64)
    return Record(uid=uid, role=PROD, owner="ada", state=state, request=request, plan=plan)


def refusal(members: list[Member], num_conn: int, rate: float) -> StreamError:
    with pytest.raises(StreamError) as refused:
        spread(members, num_conn, rate)
    return refused.value


def test_channels_are_spread_evenly_and_each_is_given_once() -> None:
    plan = spread([Member("a", 10, 1000.0), Member("b", 10, 1000.0), Member("c", 10, 1000.0)], 8, 800.0)
    assert sorted(sizes(plan).values()) == [2, 3, 3]
    assert sorted(channel for channels in plan.values() for channel in channels) == list(range(8))


def test_one_channel_goes_to_the_gateway_with_most_room() -> None:
    pool = [Member("a", 3, 1000.0), Member("b", 9, 1000.0), Member("c", 5, 1000.0)]
    assert spread(pool, 1, 1.0) == {"b": [0]}


def test_a_gateway_gets_no_more_than_it_has_ports() -> None:
    assert sizes(spread([Member("a", 1, 1000.0), Member("b", 8, 1000.0)], 6, 600.0)) == {"a": 1, "b": 5}


def test_a_gateway_gets_no_more_than_its_rate_allows() -> None:
    assert sizes(spread([Member("a", 8, 250.0), Member("b", 8, 1000.0)], 6, 600.0)) == {"a": 2, "b": 4}


def test_a_gateway_without_room_gets_nothing_and_is_not_named() -> None:
    pool = [Member("full", 0, 1000.0), Member("slow", 8, 1.0), Member("b", 8, 1000.0)]
    assert spread(pool, 2, 200.0) == {"b": [0, 1]}


def test_all_ports_and_all_the_rate_can_be_used() -> None:
    thirds = [Member(name, 1, 1000.0 / 3) for name in "abc"]
    assert sizes(spread(thirds, 3, 1000.0)) == {"a": 1, "b": 1, "c": 1}
    assert sizes(spread([Member("a", 1024, 10000.0)], 1024, 10000.0)) == {"a": 1024}


def test_the_same_request_to_the_same_pool_is_spread_the_same_way() -> None:
    pool = [Member("b", 4, 1000.0), Member("a", 4, 1000.0)]
    assert spread(pool, 5, 100.0) == spread(list(reversed(pool)), 5, 100.0)


def test_too_few_ports_are_refused_with_both_numbers() -> None:
    error = refusal([Member("a", 2, 1000.0), Member("b", 1, 1000.0)], 4, 4.0)
    assert error.code == "no-ports"
    assert "asked for 4 channels" in error.msg
    assert "3 ports are free" in error.msg


def test_too_little_rate_is_refused_with_what_each_gateway_has() -> None:
    error = refusal([Member("a", 8, 100.0), Member("b", 8, 150.0)], 2, 600.0)
    assert error.code == "no-capacity"
    assert "2 x 300 = 600 Mbit/s" in error.msg
    assert "100 + 150 Mbit/s are free" in error.msg


def test_a_channel_is_never_split_over_gateways() -> None:
    pool = [Member("a", 8, 200.0), Member("b", 8, 200.0)]
    assert sizes(spread(pool, 2, 300.0)) == {"a": 1, "b": 1}
    error = refusal(pool, 1, 300.0)
    assert error.code == "no-capacity"
    assert "a channel is on one gateway" in error.msg


def test_a_pool_of_which_no_gateway_can_be_reached_is_a_failure_of_gateways() -> None:
    assert refusal([], 1, 1.0).code == "gateway-failed"


def test_an_overbooked_gateway_counts_as_full_not_as_owing_to_others() -> None:
    pool = [Member("a", -3, -500.0), Member("b", 2, 200.0)]
    assert sizes(spread(pool, 2, 200.0)) == {"b": 2}
    assert "2 ports are free" in refusal(pool, 3, 3.0).msg


def test_what_live_streams_hold_is_taken_from_a_gateway_s_room() -> None:
    held = [record(4, 400.0, {"a": [0, 1, 2], "b": [3]}), record(1, 50.0, {"b": [0]})]
    room = Room(ports=8, rate=1000.0)
    assert member("a", room, held) == Member("a", 5, 700.0)
    assert member("b", room, held) == Member("b", 6, 850.0)
    assert member("c", room, held) == Member("c", 8, 1000.0)


def test_a_stream_that_is_being_released_still_holds_and_one_that_is_released_does_not() -> None:
    room = Room(ports=8, rate=1000.0)
    assert member("a", room, [record(2, 100.0, {"a": [0, 1]}, "Releasing")]) == Member("a", 6, 900.0)
    assert member("a", room, [record(2, 100.0, {"a": [0, 1]}, "Released")]) == Member("a", 8, 1000.0)

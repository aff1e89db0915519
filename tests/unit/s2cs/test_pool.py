"""How the channels of a stream are spread over the gateways of a pool."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scistream.protocol.errors import StreamError
from scistream.protocol.messages import CONS, PROD, GatewayCapacity, Req, Role
from scistream.s2cs.in_use import GatewayUse, StreamUse, is_counted, stream_use
from scistream.s2cs.placement import GatewayState, gateway_state, place_channels, place_stream, spares
from scistream.s2cs.record import Record


def sizes(plan: dict[str, list[int]]) -> dict[str, int]:
    return {name: len(channels) for name, channels in plan.items()}


def record(num_conn: int, rate: float, plan: dict[str, list[int]], state: str = "Streaming") -> Record:
    uid = "00000000-0000-4000-8000-000000000000"
    request = Req(uid=uid, role=PROD, seq=1, num_conn=num_conn, rate=rate, app_key_hash="0" * 64)
    return Record(uid=uid, role=PROD, owner="ada", state=state, request=request, plan=plan)


def refusal(members: list[GatewayState], num_conn: int, rate: float) -> StreamError:
    with pytest.raises(StreamError) as refused:
        place_channels(members, num_conn, rate)
    return refused.value


def test_channels_are_spread_evenly_and_each_is_given_once() -> None:
    plan = place_channels(
        [GatewayState("a", 10, 1000.0), GatewayState("b", 10, 1000.0), GatewayState("c", 10, 1000.0)], 8, 800.0
    )
    assert sorted(sizes(plan).values()) == [2, 3, 3]
    assert sorted(channel for channels in plan.values() for channel in channels) == list(range(8))


def test_one_channel_goes_to_the_gateway_with_most_room() -> None:
    pool = [GatewayState("a", 3, 1000.0), GatewayState("b", 9, 1000.0), GatewayState("c", 5, 1000.0)]
    assert place_channels(pool, 1, 1.0) == {"b": [0]}


def test_a_gateway_gets_no_more_than_it_has_ports() -> None:
    assert sizes(place_channels([GatewayState("a", 1, 1000.0), GatewayState("b", 8, 1000.0)], 6, 600.0)) == {
        "a": 1,
        "b": 5,
    }


def test_a_gateway_gets_no_more_than_its_rate_allows() -> None:
    assert sizes(place_channels([GatewayState("a", 8, 250.0), GatewayState("b", 8, 1000.0)], 6, 600.0)) == {
        "a": 2,
        "b": 4,
    }


def test_a_gateway_without_room_gets_nothing_and_is_not_named() -> None:
    pool = [GatewayState("full", 0, 1000.0), GatewayState("slow", 8, 1.0), GatewayState("b", 8, 1000.0)]
    assert place_channels(pool, 2, 200.0) == {"b": [0, 1]}


def test_all_ports_and_all_the_rate_can_be_used() -> None:
    thirds = [GatewayState(name, 1, 1000.0 / 3) for name in "abc"]
    assert sizes(place_channels(thirds, 3, 1000.0)) == {"a": 1, "b": 1, "c": 1}
    assert sizes(place_channels([GatewayState("a", 1024, 10000.0)], 1024, 10000.0)) == {"a": 1024}


def test_the_same_request_to_the_same_pool_is_spread_the_same_way() -> None:
    pool = [GatewayState("b", 4, 1000.0), GatewayState("a", 4, 1000.0)]
    assert place_channels(pool, 5, 100.0) == place_channels(list(reversed(pool)), 5, 100.0)


def test_too_few_ports_are_refused_with_both_numbers() -> None:
    error = refusal([GatewayState("a", 2, 1000.0), GatewayState("b", 1, 1000.0)], 4, 4.0)
    assert error.code == "no-ports"
    assert "4 channels were requested" in error.msg
    assert "3 ports are free" in error.msg


def test_too_little_rate_is_refused_with_what_each_gateway_has() -> None:
    error = refusal([GatewayState("a", 8, 100.0), GatewayState("b", 8, 150.0)], 2, 600.0)
    assert error.code == "no-capacity"
    assert "2 x 300 = 600 Mbit/s" in error.msg
    assert "100 + 150 Mbit/s are free" in error.msg


def test_a_channel_is_never_split_over_gateways() -> None:
    pool = [GatewayState("a", 8, 200.0), GatewayState("b", 8, 200.0)]
    assert sizes(place_channels(pool, 2, 300.0)) == {"a": 1, "b": 1}
    error = refusal(pool, 1, 300.0)
    assert error.code == "no-capacity"
    assert "a channel cannot be split over gateways" in error.msg


def test_a_pool_of_which_no_gateway_can_be_reached_is_a_failure_of_gateways() -> None:
    assert refusal([], 1, 1.0).code == "gateway-failed"


def test_an_overbooked_gateway_counts_as_full_not_as_owing_to_others() -> None:
    pool = [GatewayState("a", -3, -500.0), GatewayState("b", 2, 200.0)]
    assert sizes(place_channels(pool, 2, 200.0)) == {"b": 2}
    assert "2 ports are free" in refusal(pool, 3, 3.0).msg


def use_of(name: str, held: list[Record]) -> GatewayUse:
    """Return what these streams use on a gateway."""
    use = GatewayUse()
    for number, one in enumerate(held):
        if is_counted(one) and name in one.plan:
            use.put(number, stream_use(one, name))
    return use


def use_of_strangers(*taken: StreamUse) -> GatewayUse:
    use = GatewayUse()
    for number, one in enumerate(taken):
        use.put(number, one)
    return use


def left(name: str, room: GatewayCapacity, held: list[Record]) -> tuple[str, int, float]:
    found = gateway_state(name, room, use_of(name, held))
    return found.name, found.ports, found.rate


def test_what_live_streams_hold_is_taken_from_a_gateway_s_room() -> None:
    held = [record(4, 400.0, {"a": [0, 1, 2], "b": [3]}), record(1, 50.0, {"b": [0]})]
    room = GatewayCapacity(ports=8, rate=1000.0)
    assert left("a", room, held) == ("a", 5, 700.0)
    assert left("b", room, held) == ("b", 6, 850.0)
    assert left("c", room, held) == ("c", 8, 1000.0)


def test_a_stream_that_is_being_released_still_holds_and_one_that_is_released_does_not() -> None:
    room = GatewayCapacity(ports=8, rate=1000.0)
    assert left("a", room, [record(2, 100.0, {"a": [0, 1]}, "Releasing")]) == ("a", 6, 900.0)
    assert left("a", room, [record(2, 100.0, {"a": [0, 1]}, "Released")]) == ("a", 8, 1000.0)


# -- ports that are asked for by number


def test_a_port_goes_to_a_gateway_that_lets_it_be_chosen_and_has_it_free() -> None:
    pool = [
        GatewayState("old", 8, 1000.0),
        GatewayState("narrow", 8, 1000.0, [(5100, 5200)]),
        GatewayState("busy", 8, 1000.0, [(5075, 5076)], {5075}),
        GatewayState("b", 8, 900.0, [(5075, 5076)]),
    ]
    assert place_channels(pool, 1, 1.0, [5075]) == {"b": [0]}
    assert place_channels(pool, 2, 2.0, [5100, 5075]) == {"b": [1], "narrow": [0]}
    with pytest.raises(StreamError) as refused:
        place_channels(pool[:3], 1, 1.0, [5075])
    assert refused.value.code == "no-ports"
    for part in ("gateway old: port 5075", "gateway narrow: port 5075", "choose 5100-5200 only",
                 "gateway busy: port 5075 was requested, but another stream has it"):  # fmt: skip
        assert part in refused.value.msg


def test_a_long_pool_is_not_named_whole() -> None:
    pool = [GatewayState(f"gateway-{number}", 8, 1000.0, []) for number in range(100)]
    with pytest.raises(StreamError, match=r"gateway-3: .*; and 96 more\Z"):
        place_channels(pool, 1, 1.0, [5075])


def test_chosen_ports_outside_the_range_take_none_of_it() -> None:
    pool = [GatewayState("a", 0, 1000.0, [(5075, 5076)])]
    assert place_channels(pool, 2, 2.0, [5076, 5075]) == {"a": [0, 1]}
    room = GatewayCapacity(ports=8, rate=1000.0, first_port=5100, chosen_ports=[(5075, 5076), (5100, 5107)])
    asked = record(2, 100.0, {"a": [0, 1]})
    assert asked.request is not None
    asked.request = msgspec.structs.replace(asked.request, listen_ports=[5075, 5100])
    found = gateway_state("a", room, use_of("a", [asked]))
    assert (found.ports, found.rate, found.chosen) == (7, 900.0, room.chosen_ports)
    assert set(found.lent) == {5075, 5100}
    granted = record(2, 100.0, {"a": [0, 1]})
    granted.listeners = {0: "192.0.2.1:5103", 1: "192.0.2.1:5104"}
    found = gateway_state("a", room, use_of("a", [granted]), use_of_strangers(StreamUse(1, 1.0, (5076,))))
    assert set(found.lent) == {5103, 5104, 5076}
    assert found.ports == 6


choices = st.lists(st.sampled_from([5075, 5076, 5077, 5078]), unique=True, max_size=4)
members = st.lists(
    st.builds(
        lambda rate, chosen, lent: (rate, [(port, port) for port in chosen], frozenset(lent)),
        st.integers(0, 4),
        choices,
        choices,
    ),
    min_size=1,
    max_size=4,
).map(
    lambda found: [GatewayState(f"g{n}", 0, float(rate), chosen, lent) for n, (rate, chosen, lent) in enumerate(found)]
)


@given(pool=members, ports=choices.filter(bool))
def test_whatever_is_planned_can_be_granted_and_what_replaces_a_gateway_can_too(
    pool: list[GatewayState], ports: list[int]
) -> None:
    by_name = {one.name: one for one in pool}
    try:
        plan = place_channels(pool, len(ports), float(len(ports)), ports)
    except StreamError:
        return
    assert sorted(channel for channels in plan.values() for channel in channels) == list(range(len(ports)))
    for name, channels in plan.items():
        assert channels == sorted(channels)
        assert len(channels) <= by_name[name].rate
        assert all(by_name[name].refusal(ports[channel]) is None for channel in channels)
    for name, others in spares(pool, plan, ports, float(len(ports))).items():
        for other in others:
            assert other not in plan
            assert len(plan[name]) <= by_name[other].rate
            assert all(by_name[other].refusal(ports[channel]) is None for channel in plan[name])


# -- who dials


def asking(role: Role, wan_dialer: Role | None = None, num_conn: int = 2) -> Req:
    uid = "00000000-0000-4000-8000-000000000000"
    return Req(uid=uid, role=role, seq=1, num_conn=num_conn, rate=2.0, app_key_hash="0" * 64, wan_dialer=wan_dialer)


def gateway(name: str, *wan: str, old: bool = False, ports: int = 8) -> GatewayState:
    return GatewayState(name, ports, 1000.0, wan=None if old else wan)


@pytest.mark.parametrize(
    ("role", "wan_dialer", "names"),
    [
        (CONS, None, {"dials", "old"}),
        (CONS, PROD, {"accepts"}),
        (PROD, None, {"accepts", "old"}),
        (PROD, PROD, {"dials"}),
    ],
)
def test_gateways_that_can_do_what_is_needed_are_preferred(
    role: Role, wan_dialer: Role | None, names: set[str]
) -> None:
    pool = [gateway("dials", "dial"), gateway("accepts", "accept"), gateway("old", old=True)]
    members, plan = place_stream(pool, asking(role, wan_dialer))
    assert {one.name for one in members} == names
    assert plan.keys() <= names


def test_gateways_that_let_the_producer_dial_come_before_a_mixture_that_can_do_nothing() -> None:
    pool = [gateway("dials", "dial", ports=1), gateway("accepts", "accept")]
    assert place_stream(pool, asking(CONS))[1] == {"accepts": [0, 1]}
    assert place_stream(pool, asking(CONS, num_conn=9))[1].keys() == {"dials", "accepts"}


def test_wan_listeners_use_ports_until_the_stream_is_released() -> None:
    held = record(2, 100.0, {"a": [0, 1]})
    held.listeners = {0: "a:5100", 1: "a:5101"}
    held.wan_listeners = {0: "a:5102", 1: "a:5103"}
    assert stream_use(held, "a") == StreamUse(4, 100.0, (5100, 5101, 5102, 5103))

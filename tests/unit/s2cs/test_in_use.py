"""The usage of gateways and owners: the running sums always equal a sum over all streams."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from scistream.protocol.messages import CONS, PROD, GatewayCapacity, Role, StreamKey
from scistream.s2cs.in_use import GatewayUse, OwnerUse, StreamUse

rates = st.floats(0.0, 1e7)
streams = st.integers(0, 5)
taken = st.builds(StreamUse, st.integers(1, 3), rates, st.lists(st.integers(5000, 5010), max_size=3).map(tuple))
rooms = st.builds(
    lambda first, ports: GatewayCapacity(ports=ports, rate=1e6, first_port=first),
    st.none() | st.integers(4998, 5008),
    st.integers(0, 8),
)


@given(st.lists(st.tuples(streams, st.none() | taken, rooms)))
def test_what_a_gateway_has_given_out_is_the_sum_over_its_streams(
    steps: list[tuple[int, StreamUse | None, GatewayCapacity]],
) -> None:
    use = GatewayUse()
    held: dict[int, StreamUse] = {}
    for stream, what, room in steps:
        if what is None:
            held.pop(stream, None)
            use.drop(stream)
        else:
            held[stream] = what
            use.put(stream, what)
        lent = [port for one in held.values() for port in one.lent]
        first = room.first_port
        outside = [port for port in lent if first is not None and not first <= port < first + room.ports]
        assert use.ports_of(room) == sum(one.ports for one in held.values()) - len(outside)
        assert use.rate == math.fsum(one.rate for one in held.values())
        assert set(use.lent) == set(lent)
    for stream in held:
        use.drop(stream)
    assert (use.ports_of(GatewayCapacity(ports=8, rate=1.0)), use.rate, dict(use.lent)) == (0, 0.0, {})


keys = st.tuples(st.sampled_from("abc"), st.sampled_from([PROD, CONS]))
roles = st.sampled_from([(PROD,), (CONS,), (PROD, CONS), ()])


@given(st.lists(st.tuples(keys, st.none() | rates)), keys, roles)
def test_what_an_owner_has_beside_a_stream_is_the_sum_over_the_others(
    steps: list[tuple[StreamKey, float | None]], key: StreamKey, wanted: tuple[Role, ...]
) -> None:
    use = OwnerUse()
    held: dict[StreamKey, float] = {}
    for one, rate in steps:
        if rate is None:
            held.pop(one, None)
            use.drop(one)
        else:
            held[one] = rate
            use.put(one, rate)
    others = {one: rate for one, rate in held.items() if one != key and one[1] in wanted}
    streams = {uid for uid, _ in others} - {key[0]}
    assert use.excluding(key, wanted) == (len(streams), math.fsum(others.values()))

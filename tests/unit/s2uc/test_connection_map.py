"""The connection map: which listener leads to which target."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scistream.protocol.messages import CONS, PROD
from scistream.s2uc.connection_map import connection_map, unused


def addresses(host: str, count: int) -> list[str]:
    return [f"{host}:{5100 + number}" for number in range(count)]


def test_a_consumer_s_channel_leads_to_the_producer_s_channel_of_its_number_and_that_to_prod_app() -> None:
    maps = connection_map(["wan:1", "wan:2"], ["lan:1", "lan:2"], ["app:1", "app:2"])
    assert maps == {
        CONS: {"lan:1": "wan:1", "lan:2": "wan:2"},
        PROD: {"wan:1": "app:1", "wan:2": "app:2"},
    }


def test_listeners_of_prod_app_are_used_in_turn_if_there_are_fewer_than_channels() -> None:
    maps = connection_map(addresses("wan", 5), addresses("lan", 5), ["app:1", "app:2"])
    assert list(maps[PROD].values()) == ["app:1", "app:2", "app:1", "app:2", "app:1"]
    assert unused(["app:1", "app:2"], 5) == []


def test_listeners_of_prod_app_beyond_the_channels_are_left_unused_and_can_be_named() -> None:
    maps = connection_map(addresses("wan", 1), addresses("lan", 1), ["app:1", "app:2", "app:3"])
    assert list(maps[PROD].values()) == ["app:1"]
    assert unused(["app:1", "app:2", "app:3"], 1) == ["app:2", "app:3"]


@given(channels=st.integers(1, 1024), apps=st.integers(1, 1024))
def test_every_channel_leads_to_prod_app_and_each_of_its_listeners_gets_a_fair_share(channels: int, apps: int) -> None:
    app = [f"app:{number}" for number in range(apps)]
    maps = connection_map(addresses("wan", channels), addresses("lan", channels), app)
    ends = [maps[PROD][maps[CONS][listener]] for listener in addresses("lan", channels)]
    shares = [ends.count(one) for one in app[:channels]]
    assert max(shares) - min(shares) <= 1
    assert set(ends) | set(unused(app, channels)) == set(app)
    assert not set(ends) & set(unused(app, channels))


@pytest.mark.parametrize(("prod", "cons"), [(2, 3), (3, 2)])
def test_sides_with_different_numbers_of_listeners_cannot_be_joined(prod: int, cons: int) -> None:
    with pytest.raises(ValueError, match="each channel needs one at each side"):
        connection_map(addresses("wan", prod), addresses("lan", cons), ["app:1"])


@pytest.mark.parametrize("side", ["producer", "consumer"])
def test_a_listener_that_is_named_twice_cannot_be_joined(side: str) -> None:
    twice, both = ["wan:1", "wan:1"], ["lan:1", "lan:2"]
    with pytest.raises(ValueError, match=f"the {side}'s facility names a listener twice"):
        connection_map(*((twice, both) if side == "producer" else (both, twice)), ["app:1"])

"""A reload of a gateway: streams go on as they are, and later ones get the new settings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from scistream.config import ConfigError
from scistream.protocol.address import Address
from scistream.protocol.messages import CONS, PROD
from scistream.s2ds.service import NEEDS_RESTART, DataServer
from scistream.s2ds.settings import LegSettings, WanSettings
from support.memory_facilities import World


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    world.network.run(2)
    yield world
    world.close()


def ports_of(listeners: list[str]) -> list[int]:
    return [Address.parse(listener).port for listener in listeners]


def reload(gateway: DataServer, **settings: Any) -> tuple[list[str], list[str]]:
    change = gateway.reload(replace(gateway.config, **settings))
    return sorted(change.changed), sorted(change.needs_restart)


def test_other_ports_are_for_new_streams_and_the_old_ones_come_back_to_nobody(world: World) -> None:
    (gateway,) = world.prod.gateways
    before = world.stream()
    assert reload(gateway, ports="61100-61103") == (["ports"], [])
    world.network.run(20)
    assert world.state("s2cs", PROD, before.uid) == "streaming"
    after = world.request(rate=1.0)
    assert ports_of(after.listeners[PROD]) == [61100]
    assert world.prod.control.gateways["dtn5001"].room is not None
    refused = world.refusal(world.ask(rate=1.0, num_conn=4))
    assert refused.code == "no-ports"
    world.result(before.release().deferred)
    assert gateway.ports.free == 3
    reload(gateway, ports="50010-50017")
    world.result(after.release().deferred)
    assert gateway.ports.free == 8


def test_settings_of_connections_reach_the_elements_and_those_that_take_a_restart_do_not(world: World) -> None:
    (gateway,) = world.prod.gateways
    world.stream()
    wan = replace(gateway.config.wan, congestion="reno", ready=7, paths=["127.0.0.1"], multipath="no", accept=False)
    changed, needs_restart = reload(
        gateway,
        wan=wan,
        lan=LegSettings(congestion="reno"),
        wan_timeout="30s",
        wan_cipher="chacha20",
        order=False,
        elements=3,
    )
    assert needs_restart == ["elements", "order", "wan.multipath", "wan.paths"]
    assert set(needs_restart) <= set(NEEDS_RESTART)
    assert changed == ["lan.congestion", "wan.accept", "wan.congestion", "wan.ready", "wan_cipher", "wan_timeout"]
    settings = gateway.elements.settings
    assert (settings.wan_congestion, settings.lan_congestion, settings.ready) == ("reno", "reno", 7)
    assert (settings.wan_timeout, settings.wan_cipher, settings.multipath) == (30.0, "chacha20", False)
    assert gateway.config.wan.paths == []
    assert gateway._gateway_capacity().wan == ["dial"]
    element = gateway.elements._members[0]._element  # type: ignore[union-attr]
    assert element._settings == settings
    assert (element._context.wan_timeout, element._context.wan_congestion) == (30.0, "reno")


def test_nothing_changes_if_this_machine_lacks_what_one_setting_names(world: World) -> None:
    (gateway,) = world.prod.gateways
    before, settings = gateway.config, gateway.elements.settings
    lan = LegSettings(bind="192.0.2.77")
    with pytest.raises(ConfigError, match=r"lan\.bind: '192\.0\.2\.77' cannot be listened on"):
        reload(gateway, lan=lan, app_networks=["192.0.2.0/24"], capacity="2Gbit", ports="61100-61103")
    with pytest.raises(ConfigError, match=r"wan\.congestion: 'nosuch'"):
        reload(gateway, wan=WanSettings(congestion="nosuch"), capacity="2Gbit", ports="61100-61103")
    assert gateway.config == before
    assert gateway.elements.settings == settings
    assert (gateway.capacity.total, gateway.ports.first) == (1000.0, 50010)
    assert world.request().state == "Reserved"
    assert CONS in world.request(rate=1.0).listeners

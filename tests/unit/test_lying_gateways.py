"""A gateway that lies about what streams have carried, and a store that cannot be read: everybody is still answered."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from policy_lab import ADA, BOB, UIDS, Lab, a_req, everything, rule

from scistream.links.tls_links import dialer
from scistream.protocol.address import Address
from scistream.protocol.messages import PROD, UNSENT, ChannelFigures, ReqListeners
from support.memory_facilities import PROD_PORT
from support.memory_network import HOST

HUGE = 2**62


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path)
    lab.has(rule("*@lab.example", bytes_per_day="1T"))
    yield lab
    lab.world.crashes.clear()
    lab.world.close()


def tells(lab: Lab, to_consumer: int) -> None:
    """From now on the producer's gateway tells this of all its streams."""
    (gateway,) = lab.world.prod.gateways
    told = [ChannelFigures(channel=0, bytes_to_consumer=to_consumer, accepted=1)]
    gateway.elements.figures = lambda *_: told


def lines(folder: Path, event: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "prod" / "s2cs.audit.jsonl").read_text().splitlines()]
    return [line for line in found if line["event"] == event]


def test_rates_beyond_all_bounds_that_a_gateway_tells_of_others_only_leave_it_without_room(lab: Lab) -> None:
    link = dialer(lab.world.network, Address(HOST, PROD_PORT + 1), "the gateway", None)
    link.startService()
    for uid in UIDS[:3]:
        request = ReqListeners(
            uid=uid,
            role=PROD,
            seq=UNSENT,
            channels=[0],
            rate=1.0,
            expires=3600.0,
            wan_security="encrypt",
            store="f" * 32,
        )
        lab.world.result(link.ask(request, 30.0))
    (gateway,) = lab.world.prod.gateways
    for holding in gateway._streams.values():
        holding._rate = 1.7e308
    lab.world.network.run(20.0)
    assert len(lab.control.gateways["dtn5001"].unknown_streams) == 3
    assert lab.refused(ADA, a_req(UIDS[5])).code == "no-capacity"
    assert lab.world.crashes == []


def test_figures_beyond_what_the_rate_allows_are_not_counted_and_said_once(lab: Lab, tmp_path: Path) -> None:
    for uid in UIDS[:6]:
        lab.say(ADA, a_req(uid))
    tells(lab, HUGE)
    lab.world.network.run(40.0)
    assert lab.world.crashes == []
    assert lab.control.ledger.usage_today(lab.control.streams[UIDS[0], PROD].record.owner) == 0
    assert [one.figures for one in lab.say(ADA, everything()).streams or []] == [[]] * 6
    told = lines(tmp_path, "implausible-figures")
    assert sorted(line["uid"] for line in told) == UIDS[:6]
    assert {(line["bytes_to_consumer"], line["gateway"]) for line in told} == {(2**60, "dtn5001")}, "no sum goes beyond"
    assert all(2**30 <= line["most_bytes"] < 2**31 for line in told)
    assert lab.say(BOB, a_req(UIDS[7])).state == "Listening"


def test_what_the_rate_allows_is_counted(lab: Lab) -> None:
    lab.say(ADA, a_req(UIDS[0], rate=100.0))
    lab.world.network.run(600.0)
    tells(lab, 600 * 12_500_000)
    lab.world.network.run(16.0)
    assert lab.control.ledger.usage_today(lab.control.streams[UIDS[0], PROD].record.owner) == 600 * 12_500_000


def test_an_s2cs_whose_books_cannot_be_read_answers_all_the_same_and_after_a_restart_too(lab: Lab) -> None:
    lab.say(ADA, a_req(UIDS[0]))
    lab.control.store._db.execute("ALTER TABLE usage RENAME TO gone")
    lab.world.network.run(40.0)
    assert all(gateway.settled for gateway in lab.control.gateways.values())
    refused = lab.refused(BOB, a_req(UIDS[1]))
    assert refused.code == "no-capacity"
    assert "cannot be read" in refused.msg
    assert [one.uid for one in lab.say(ADA, everything()).streams or []] == [UIDS[0]]
    lab.control.store._db.execute("ALTER TABLE gone RENAME TO usage")
    assert lab.say(BOB, a_req(UIDS[1])).state == "Listening"


def test_a_fault_while_a_gateway_is_heard_is_logged_and_the_gateway_settles(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = lab.world
    monkeypatch.setattr(type(lab.control._reports), "compare_streams", lambda *_: 1 // 0)
    world.result(world.prod.control.stopService())
    world.prod.control = lab.control = world.prod.start_control()
    world.network.run(5.0)
    assert any("ZeroDivisionError" in crash for crash in world.crashes)
    assert all(gateway.settled for gateway in lab.control.gateways.values())


def test_a_command_that_fails_by_a_fault_is_answered_and_logged(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab.control, "_new_stream", lambda *_, **__: 1 // 0)
    refused = lab.refused(ADA, a_req(UIDS[0]))
    assert (refused.code, "internal error" in refused.msg) == ("no-capacity", True)
    assert any("ZeroDivisionError" in crash for crash in lab.world.crashes)

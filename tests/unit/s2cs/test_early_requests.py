"""Requests that arrive before an S2CS knows its gateways: a limited number waits for a limited time."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from scistream import timing
from scistream.protocol.errors import StreamError
from scistream.protocol.messages import CONS, Req
from scistream.s2cs.early_requests import MOST_EARLY, MOST_EARLY_OF_OWNER, EarlyRequests
from support.memory_facilities import World


def restart_without_gateway(world: World) -> Any:
    """Restart the S2CS of the producer while its gateway cannot be reached. Return the listener of the gateway."""
    facility = world.prod
    facility.control.stopService()
    (port,) = facility.gateway_ports
    listener = world.network.close_listener(port)
    world.network.sever(port)
    world.network.run(1.0)
    facility.control = facility.start_control()
    world.network.run(0.01)  # it has been refused once
    return listener


def test_a_request_waits_for_a_gateway_that_listens_a_moment_after_the_s2cs(world: World) -> None:
    listener = restart_without_gateway(world)
    asked = world.ask()
    world.network.run(1.0)
    assert not asked.called
    world.network.listeners[world.prod.gateway_ports[0]] = listener
    stream = world.result(asked, within=timing.EARLY_REQUEST)
    assert world.story("s2cs", "PROD")[-1] == "listening"
    world.result(stream.release().deferred)
    assert len(world.prod.control._early) == 0


def test_a_request_does_not_wait_long_for_a_gateway_that_does_not_come(world: World) -> None:
    restart_without_gateway(world)
    refused = world.refusal(world.ask(), within=timing.EARLY_REQUEST + 2.0)
    assert (refused.code, "no gateway of this facility can be reached" in refused.msg) == ("gateway-failed", True)
    world.network.until(world.both_are_empty)
    world.network.run(2 * timing.EARLY_REQUEST)
    before = world.network.seconds()
    world.refusal(world.ask())
    assert world.network.seconds() - before < 1.0, "a gateway that is known to be away is waited for no more"


class FakeLink:
    """The attributes of a link that `EarlyRequests` uses."""

    is_up = True


def request(seq: int = 1, uid: str | None = None, rate: float = 1.0) -> Req:
    return Req(uid=uid or str(uuid.uuid4()), role=CONS, seq=seq, num_conn=1, rate=rate, app_key_hash="0" * 64)


def test_there_is_a_bound_on_requests_that_wait_of_each_owner_and_of_all(world: World) -> None:
    heard: list[str] = []
    early = EarlyRequests(world.network, lambda _link, request: heard.append(request.uid))
    link: Any = FakeLink()
    for number in range(MOST_EARLY_OF_OWNER):
        early.add("ada", link, request(number))
    with pytest.raises(StreamError, match="100 of them yours: try again"):
        early.add("ada", link, request(999))
    for number in range(MOST_EARLY - MOST_EARLY_OF_OWNER):
        early.add(f"user {number // 50}", link, request(number))
    with pytest.raises(StreamError, match="so are 1000 requests"):
        early.add("eve", link, request())
    assert len(early) == MOST_EARLY
    world.network.run(timing.EARLY_REQUEST + 0.1)
    assert (len(heard), len(early)) == (MOST_EARLY, 0)


def test_a_command_whose_place_another_takes_is_given_back_and_a_repetition_is_not(world: World) -> None:
    early = EarlyRequests(world.network, lambda *_: None)
    link: Any = FakeLink()
    one = request(1)
    assert early.add("ada", link, one) is None
    repeated = request(2, one.uid)
    assert early.add("ada", link, repeated) is None
    assert early.add("ada", link, request(3, one.uid, 2.0)) == (link, repeated)
    assert early.add("eve", link, request(1, one.uid)) is None
    assert len(early) == 2
    early.stop()

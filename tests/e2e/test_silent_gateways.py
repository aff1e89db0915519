"""Gateways that are not there yet, or no longer: requests wait a moment for them, and Status reports them."""

from __future__ import annotations

import json
import re
import time
import tomllib

import tomli_w
from harness import World

from scistream.protocol.messages import CONS, PROD
from scistream.s2uc.stream import SIDE
from support.waiting import until


def test_a_request_right_after_the_start_of_a_facility_waits_for_its_gateway(world: World) -> None:
    lab, (gateway,) = world.lab, world.lab.gateways
    lab.server.stop()
    gateway.stop()
    lab.server.start()
    time.sleep(0.5)
    gateway.start()
    lab.server.wait_until_ready()
    with world.request(1, "100Mbit") as stream:
        assert stream.state(PROD) == "Listening"
    gateway.wait_until_ready()


def test_a_gateway_whose_name_is_unknown_at_the_start_is_named_and_the_others_serve(world: World) -> None:
    server = world.lab.server
    before = server.file.read_text()
    settings = tomllib.loads(before)
    settings["gateways"].insert(0, {"name": "lost", "address": "no-such-host.invalid:5001"})
    server.stop()
    server.file.write_text(tomli_w.dumps(settings))
    try:
        server.start()
        server.wait_until_ready()
        with world.request(1, "100Mbit") as stream:
            assert stream.state(PROD) == "Listening"
        until(lambda: "no link to lost: The host name could not be resolved" in server.words(), server.words)
        assert "gateway lost is connected" not in server.words()
    finally:
        server.stop()
        server.file.write_text(before)
        server.start()
        server.wait_until_ready()


def test_status_says_since_when_a_gateway_that_was_killed_is_not_heard(world: World) -> None:
    (gateway,) = world.lab.gateways
    sentence = re.compile(rf"^{SIDE[PROD]}, gateway {gateway.name}: has not answered its S2CS for \d+ s", re.MULTILINE)
    stream = world.request(1, "100Mbit")
    assert not sentence.search(world.s2uc("status", stream.uid).stdout)
    gateway.kill()
    until(lambda: sentence.search(world.s2uc("status", stream.uid).stdout), world.lab.server.words)
    (told,) = json.loads(world.s2uc("status", "--json", stream.uid).stdout)["streams"].values()
    assert list(told[PROD]["silent"]) == [gateway.name]
    assert "silent" not in told[CONS]
    gateway.start()
    gateway.wait_until_ready()
    assert "gateway-failed" in str(stream.program.end(status=None).stderr)

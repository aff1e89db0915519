"""One side of a stream is released without the user's client: the other side does not stay for a day."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

from harness import World

from scistream.protocol.messages import CONS, PROD
from support.applications import address_of, listen
from support.waiting import until

BETWEEN_ATTEMPTS = 0.5
SHORT = {"CHANNEL_BROKEN": 2.0, "POLL": 1.0}


def test_the_side_that_is_left_says_that_it_is_broken_and_is_released_in_time(
    fresh_world: Callable[..., World],
) -> None:
    world = fresh_world(centre={"settings": {"release_broken_after": "10s"}}, timing=SHORT)
    with listen() as detector, world.stream([address_of(detector)], rate="100Mbit") as stream:
        world.s2uc("release", "--at", world.lab.s2cs, stream.uid)
        assert stream.requested.state(PROD) == "Released"
        said = []

        def status_after_an_attempt() -> str:
            time.sleep(BETWEEN_ATTEMPTS)
            with suppress(OSError), stream.connect() as analysis:
                analysis.recv(1)
            said.append(world.s2uc("status", stream.uid).stdout)
            return said[-1]

        until(lambda: "consumer, channel 0: broken for " in status_after_an_attempt(), lambda: said[-1], 60.0)
        assert stream.requested.state(CONS) == "Streaming"
        until(lambda: "Streaming" not in status_after_an_attempt(), lambda: said[-1], 60.0)
        assert "timeout: channel 0 was broken and the stream carried no bytes for " in " ".join(said[-1].split())
        assert stream.requested.state(CONS) == "Released"

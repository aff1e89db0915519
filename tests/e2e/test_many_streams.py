"""One user requests and releases streams thousands of times, and another user notices nothing."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import pytest
from harness import World
from test_refusals import a_request, ada, to_s2cs

from scistream.pki.authority import issue
from scistream.protocol.messages import PROD
from support.applications import MIB

MOST_TIMES_AS_LONG = 3
MOST_MEMORY = 40 * MIB
"""Bytes that the processes of the facility may have grown by, over what the first streams took."""


@pytest.mark.long
@pytest.mark.parametrize("count", [6000])
def test_six_thousand_streams_of_one_user_slow_nobody_down_and_take_no_memory_without_end(
    fresh_world: Callable[..., World], count: int
) -> None:
    world = fresh_world(lab={"settings": {"limits": {"requests_per_minute": 100_000}}})
    eve = issue(world.folder / "users", "user", "eve-who-asks@lab.example")
    with to_s2cs(world, ada(world)) as mine, to_s2cs(world, eve) as hers:
        kept = a_request()
        assert mine.ask("REQ", **kept)["state"] == "Listening"

        def median_of_status() -> float:
            took = []
            for seq in range(2, 42):
                began = time.monotonic()
                assert mine.ask("Status", uid=kept["uid"], role=PROD, seq=seq)["state"] == "Listening"
                took.append(time.monotonic() - began)
            return statistics.median(took)

        def ask_and_release(times: int) -> None:
            for _ in range(times):
                request = a_request()
                answer = hers.ask("REQ", **request)
                assert answer.get("state") == "Listening", answer
                assert hers.ask("REL", uid=request["uid"], role=PROD, seq=2)["state"] == "Released"

        ask_and_release(count // 4)
        before, memory = median_of_status(), world.footprint().memory
        ask_and_release(count - count // 4)
        assert median_of_status() < MOST_TIMES_AS_LONG * before
        grown = {name: now - memory[name] for name, now in world.footprint().memory.items()}
        assert max(grown.values()) < MOST_MEMORY, grown
        assert mine.ask("REL", uid=kept["uid"], role=PROD, seq=50)["state"] == "Released"

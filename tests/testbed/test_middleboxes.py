"""Middleboxes that forget or reset idle connections: a new connection works after any time without one."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest
from counting_server import CountingServer, answer_with_digest, is_answered
from testbed import Testbed
from testbed_facilities import Facilities

from scistream.protocol.address import Address
from support.waiting import until

KINDS = ("forget_idle", "reset_idle")
SHORT = {"READY_SILENCE": 2.0}
"""Limits of gateways that probe ready connections after a second."""
AT_ONCE = 0.5
"""Seconds in which a connection is answered at a round trip of 200 ms, if it need not be dialled: 2 round trips and
some time for the processors."""


@contextmanager
def behind(testbed: Testbed, facilities: Facilities, **middlebox: str) -> Iterator[tuple[CountingServer, Address]]:
    """Request a stream over a WAN with such a middlebox; yield the server and where consumers connect."""
    with CountingServer(testbed, answer_with_digest) as server, facilities.stream([server.address]) as stream:
        testbed.wan(("pgw", "cgw"), delay="100ms", **middlebox)
        yield server, stream.listeners[0]
        testbed.wan(clear=True)
    assert server.problems == []


def answered_in(testbed: Testbed, listener: Address, seed: int) -> float:
    """Open a connection whose data is answered; return the seconds that this takes."""
    began = time.monotonic()
    with closing(testbed.connect("clan", listener.host, listener.port)) as consumer:
        assert is_answered(consumer, 5000, seed)
    return time.monotonic() - began


@pytest.fixture(scope="module")
def quick(testbed: Testbed) -> Iterator[Facilities]:
    """Facilities that probe ready connections early."""
    with Facilities(testbed, port=6000, timing=SHORT) as facilities:
        yield facilities


@pytest.fixture(scope="module")
def usual(testbed: Testbed) -> Iterator[Facilities]:
    """Facilities with the usual limits."""
    with Facilities(testbed, port=7000) as facilities:
        yield facilities


@pytest.mark.parametrize("kind", KINDS)
def test_probes_keep_ready_connections_in_the_memory_of_a_middlebox(wan: Testbed, quick: Facilities, kind: str) -> None:
    with behind(wan, quick, **{kind: "1.8s"}) as (server, listener):
        before = wan.counters()
        times = []
        for number in range(1, 4):
            time.sleep(4.0)  # more than twice what the middlebox remembers
            times.append(answered_in(wan, listener, number))
            assert server.accepted == number
        assert min(times) < AT_ONCE  # one that is being probed at that moment is not trusted, and another one dialled
        seen = (wan.counters() - before).between("pgw", "cgw")
        assert (seen.dropped_forgotten, seen.resets) == (0, 0)


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_a_new_connection_works_at_once_behind_a_middlebox_of_10_s(wan: Testbed, usual: Facilities, kind: str) -> None:
    times = []
    with behind(wan, usual, **{kind: "10s"}) as (server, listener):
        for number in range(1, 4):
            time.sleep(25.0)
            times.append(answered_in(wan, listener, number))
            assert server.accepted == number
        assert statistics.median(times) < AT_ONCE


@pytest.mark.parametrize(("kind", "counted"), [("forget_idle", "dropped_forgotten"), ("reset_idle", "resets")])
def test_ready_connections_that_a_middlebox_takes_too_early_are_replaced(
    wan: Testbed, quick: Facilities, kind: str, counted: str
) -> None:
    with behind(wan, quick, **{kind: "0.5s"}) as (server, listener):
        before = wan.counters()

        def taken() -> int:
            return int(getattr((wan.counters() - before).between("pgw", "cgw"), counted))

        until(lambda: taken() >= 4, lambda: f"{wan.counters() - before}")
        wan.wan(**{kind: "0"})
        until(lambda: not any(way.held_bytes for way in wan.wan()), lambda: "resets are still under way")
        times: list[float] = []

        def is_at_once() -> bool:
            times.append(answered_in(wan, listener, len(times)))
            return times[-1] < AT_ONCE

        until(is_at_once, lambda: f"answered in {times}")
        assert server.accepted == len(times)

"""What a gateway keeps, tells and logs of connections that were reset: enough to act on, and never without bound."""

from __future__ import annotations

import errno
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from log_lines import logged
from twisted.internet.task import Clock

from scistream import timing
from scistream.logs import MOST_COUNTED, Tally
from scistream.protocol.address import Address
from scistream.protocol.messages import MAX_REASON, MAX_RESETS, PROD
from scistream.s2ds.relay.leg import ConnectionBrokenError, ShortageError, broken_by
from scistream.s2ds.relay.plain import dial
from scistream.s2ds.relay.poller import Poller
from scistream.s2ds.resets import MOST_KEPT, Outages, ResetLog

UID = "12345678-1234-4234-8234-123456789abc"
REFUSED = "ProdApp at 10.0.0.5:7000 refused the connection"


def test_ten_thousand_resets_are_a_few_lines_that_say_how_many() -> None:
    clock = Clock()
    resets = ResetLog(clock, (UID, PROD))
    with logged() as lines:
        for _ in range(10_000):
            resets.add(0, "application", "ConsApp reset the connection")
            clock.advance(0.002)
        resets.stop()
    assert [line.partition("so far: ")[2].split()[0] for line in lines] == ["1", "10", "100", "1000", "10000"]
    assert all(UID in line and "ConsApp reset the connection" in line for line in lines)
    assert clock.getDelayedCalls() == []


steps = st.lists(
    st.tuples(st.integers(0, 100), st.integers(1, 10_000), st.sampled_from([0.0, 0.1, 5.0, 61.0])), max_size=60
)


@given(steps)
def test_lines_are_few_and_none_is_forgotten_under_any_events(steps: list[tuple[int, int, float]]) -> None:
    clock = Clock()
    told: list[tuple[int, int]] = []
    tally: Tally[int] = Tally(clock, lambda key, count, _last: told.append((key, count)), -1)
    seen: dict[int, int] = {}
    for key, number, pause in steps:
        tally.add(key, number)
        seen[key] = seen.get(key, 0) + number
        clock.advance(pause)
    minutes = clock.seconds() / timing.TALLY + 1
    tally.stop()
    for key in {key for key, _ in told}:
        counts = [count for one, count in told if one == key]
        assert len(counts) <= 6 * minutes + 6, "five for the powers of ten, and one for the minute"
    assert len({key for key, _ in told}) <= MOST_COUNTED + 1
    if len(seen) <= MOST_COUNTED:
        assert {key for key, _ in told} == set(seen)
        if clock.seconds() < timing.TALLY:
            assert {key: max(count for one, count in told if one == key) for key in seen} == seen
    assert clock.getDelayedCalls() == []


def test_events_since_the_last_line_are_counted_after_a_minute_and_then_the_count_restarts() -> None:
    clock = Clock()
    told: list[tuple[str, int, str]] = []
    tally: Tally[str] = Tally(clock, lambda *words: told.append(words), "others")
    for peer in ("a", "b", "c"):
        tally.add("x", last=peer)
    assert told == [("x", 1, "a")]
    clock.advance(timing.TALLY)
    assert told[1:] == [("x", 3, "c")]
    clock.advance(timing.TALLY)
    assert clock.getDelayedCalls() == [], "nothing is counted any more"
    tally.add("x", last="d")
    assert told[2:] == [("x", 1, "d")]


def test_the_last_reasons_are_told_with_count_and_time_the_newest_first() -> None:
    clock = Clock()
    resets = ResetLog(clock, (UID, PROD))
    resets.add(0, "application", REFUSED, 11)
    clock.advance(5)
    resets.add(1, "wan", "nothing was received over the WAN for 60 s")
    clock.advance(2)
    resets.add(0, "application", REFUSED)
    clock.advance(3)
    told = [(one.channel, one.cause, one.reason, one.count, one.seconds_ago) for one in resets.latest()]
    assert told == [
        (0, "application", REFUSED, 12, 3.0),
        (1, "wan", "nothing was received over the WAN for 60 s", 1, 5.0),
    ]
    resets.stop()


@given(st.lists(st.tuples(st.integers(0, 1023), st.text(max_size=3 * MAX_REASON)), max_size=3 * MOST_KEPT))
def test_strangers_hide_nothing_and_no_text_or_number_of_reasons_is_without_bound(
    strangers: list[tuple[int, str]],
) -> None:
    resets = ResetLog(Clock(), (UID, PROD))
    resets.add(0, "application", REFUSED)
    for channel, reason in strangers:
        resets.add(channel, "stranger", reason)
    told = resets.latest()
    assert told[0].reason == REFUSED
    assert len(told) <= MAX_RESETS
    assert len(resets._kept) <= MOST_KEPT
    assert all(len(one.reason) <= MAX_REASON for one in told)
    resets.stop()


@pytest.mark.parametrize(
    ("code", "wan", "cause"),
    [
        (errno.ECONNRESET, False, "application"),
        (errno.ECONNRESET, True, "far-side"),
        (errno.ETIMEDOUT, False, "application"),
        (errno.ETIMEDOUT, True, "wan"),
        (errno.EHOSTUNREACH, True, "wan"),
        (errno.ENOBUFS, True, "gateway"),
        (errno.ENOMEM, False, "gateway"),
    ],
)
def test_a_reset_of_an_application_and_a_break_of_the_wan_have_different_causes(
    code: int, wan: bool, cause: str
) -> None:
    leg = SimpleNamespace(peer_name="the other gateway", wan=wan)
    assert broken_by(code, leg).cause == cause  # type: ignore[arg-type]


def test_a_gateway_that_is_out_of_descriptors_says_so_and_tries_again() -> None:
    failed: list[ConnectionBrokenError] = []
    with socket.create_server(("127.0.0.1", 0)) as listener, no_descriptors():
        dialling = dial(
            Clock(),
            cast(Poller, None),
            Address(*listener.getsockname()[:2]),
            "ProdApp at 10.0.0.5:7000",
            10.0,
            60.0,
            wan=False,
        )
        dialling.addErrback(lambda failure: failed.append(failure.value))
    (problem,) = failed
    assert isinstance(problem, ShortageError)
    assert problem.cause == "gateway"
    assert str(problem) == "this gateway cannot connect to ProdApp at 10.0.0.5:7000: Too many open files"


@contextmanager
def no_descriptors() -> Iterator[None]:
    """As long as this lasts no descriptor can be opened."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket() as last:
        lowest = last.fileno()
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_channel_whose_wan_fails_for_long_is_broken_until_a_connection_comes_about() -> None:
    clock, joined = Clock(), 5
    outages = Outages(clock)
    outages.failed(3, "the other gateway at dtn2:5100 was not reached", joined)
    assert outages.current(lambda _: joined) == []
    clock.advance(timing.CHANNEL_BROKEN + 1)
    assert outages.current(lambda _: joined) == [], "one failure is no outage, however long ago it was"
    outages.failed(3, "nothing was received over the WAN for 60 s", joined)
    clock.advance(4)
    (told,) = outages.current(lambda _: joined)
    assert (told.channel, told.reason) == (3, "nothing was received over the WAN for 60 s")
    assert told.seconds == timing.CHANNEL_BROKEN + 5
    assert outages.current(lambda _: joined + 1) == [], "a connection has come about"
    outages.failed(3, "again", joined + 1)
    assert outages.current(lambda _: joined + 1) == [], "this is another outage, and has just begun"


def test_a_channel_that_fails_now_and_then_between_connections_is_not_broken() -> None:
    clock = Clock()
    outages = Outages(clock)
    for number in range(100):
        outages.failed(0, "it failed", number)
        clock.advance(1.0)
    assert outages.current(lambda _: 99) == []


def test_failures_that_are_far_apart_are_no_outage() -> None:
    clock = Clock()
    outages = Outages(clock)
    for _ in range(3):
        outages.failed(0, "it failed", 5)
        assert outages.current(lambda _: 5) == []
        clock.advance(timing.OUTAGE_FORGOTTEN + 1)


def test_an_outage_is_over_when_nothing_tries_the_channel_for_long() -> None:
    clock = Clock()
    outages = Outages(clock)
    outages.failed(0, "it failed", 5)
    clock.advance(timing.CHANNEL_BROKEN)
    outages.failed(0, "it failed", 5)
    clock.advance(timing.OUTAGE_FORGOTTEN)
    assert [one.seconds for one in outages.current(lambda _: 5)] == [timing.CHANNEL_BROKEN + timing.OUTAGE_FORGOTTEN]
    clock.advance(1.0)
    assert outages.current(lambda _: 5) == []
    outages.failed(0, "it failed", 5)
    assert outages.current(lambda _: 5) == [], "this is another outage, and has just begun"

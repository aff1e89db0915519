"""The figures of each path of a stream over the WAN, and the news that a path has come or gone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.logger import LogLevel, capturedLogs, formatEvent

from scistream import timing
from scistream.protocol.messages import CONS, MAX_NOTICES, MAX_PATHS, PROD, Role
from scistream.s2ds.elements.commands import PathSample, PathsReport
from scistream.s2ds.elements.path_sampler import MOST_PATHS_SAMPLED, PathSampler
from scistream.s2ds.path_figures import PathFiguresLog
from scistream.s2ds.relay.tcp_info import PathInfo, TcpInfo

UID = "6857809e-18e6-4c61-81a4-3d698c907be6"
ONE, OTHER = ("192.0.2.20", "203.0.113.9"), ("198.51.100.20", "203.0.113.9")


def path(pair: tuple[str, str], sent: int = 0, received: int = 0, *, up: bool = True, port: int = 7) -> PathInfo:
    info = TcpInfo(0, 0, 0.0, 0.05, 0.05, sent // 1000, 0, received, sent)
    return PathInfo(*pair, (port, 5100), up, info)


def report(*paths: PathSample, settled: int = 1, channel: int = 0, element: int = 0) -> PathsReport:
    return PathsReport(uid=UID, role=PROD, channel=channel, element=element, settled=settled, paths=list(paths))


def use(pair: tuple[str, str], up: int = 1, **counts: Any) -> PathSample:
    return PathSample(local=pair[0], remote=pair[1], up=up, **counts)


@pytest.fixture
def sampler() -> PathSampler:
    return PathSampler((UID, PROD), 3, 1)


def told(sampler: PathSampler) -> PathsReport:
    found = sampler.report()
    assert found is not None
    return found


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log(clock: Clock) -> Iterator[PathFiguresLog]:
    log = PathFiguresLog(clock, (UID, PROD))
    yield log
    log.stop()
    assert clock.getDelayedCalls() == []


# -- what an element counts


def test_a_sample_tells_what_each_path_carried_since_the_last_one(sampler: PathSampler) -> None:
    sampler.look("a", [path(ONE, 5000, 10), path(OTHER, 2000, 0)])
    first = told(sampler)
    assert (first.uid, first.role, first.channel, first.element, first.settled) == (UID, PROD, 3, 1, 0)
    assert first.paths == [
        use(ONE, rtt=0.05, sent=5000, received=10, retransmits=5),
        use(OTHER, rtt=0.05, sent=2000, retransmits=2),
    ]
    sampler.look("a", [path(ONE, 7000, 10), path(OTHER, 2000, 5)])
    sampler.look("b", [path(ONE, 100, 0, port=8)])
    second = told(sampler)
    assert second.settled == 1  # the new connection may open further paths yet
    assert second.paths == [use(ONE, 2, rtt=0.05, sent=2100, retransmits=2), use(OTHER, rtt=0.05, received=5)]


def test_a_path_that_is_down_is_no_path_of_the_sample_but_its_bytes_count(sampler: PathSampler) -> None:
    sampler.look("a", [path(ONE, 5000), path(OTHER, 2000, up=False)])
    assert told(sampler).paths[1] == use(OTHER, 0, sent=2000, retransmits=2)


def test_a_path_that_was_opened_again_between_the_same_addresses_counts_from_zero(sampler: PathSampler) -> None:
    sampler.look("a", [path(ONE, 5000, port=7)])
    told(sampler)
    sampler.look("a", [path(ONE, 300, port=8)])
    assert [one.sent for one in told(sampler).paths] == [300]


def test_what_a_connection_carried_after_its_last_sample_is_told_at_its_end(sampler: PathSampler) -> None:
    sampler.ended("never sampled", [path(ONE, 900)])
    sampler.look("a", [path(ONE, 1000)])
    sampler.ended("a", [path(ONE, 1500)])
    assert sum(one.sent for one in told(sampler).paths) == 2400


def test_the_end_of_all_connections_is_told_once_and_plain_tcp_never(sampler: PathSampler) -> None:
    sampler.look("plain", [])
    assert sampler.report() is None
    sampler.look("a", [path(ONE, 1000)])
    told(sampler)
    sampler.ended("a", [])
    assert (told(sampler).settled, sampler.report()) == (0, None)


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 10**9)), max_size=60))
def test_no_number_of_addresses_makes_a_report_long_or_loses_a_byte(subflows: list[tuple[int, int]]) -> None:
    sampler = PathSampler((UID, PROD), 0, 0)
    for number, (last, sent) in enumerate(subflows):
        sampler.look(number, [path(("192.0.2.1", f"203.0.113.{last}"), sent)])
    found = sampler.report()
    paths = found.paths if found is not None else []
    assert len(paths) <= MOST_PATHS_SAMPLED + 1
    assert sum(one.sent for one in paths) == sum(sent for _, sent in subflows)


# -- what the gateway makes of it


@pytest.mark.parametrize("role", [PROD, CONS])
def test_the_figures_of_all_elements_and_channels_are_summed_by_path(clock: Clock, role: Role) -> None:
    log = PathFiguresLog(clock, (UID, role))
    log.hear(report(use(ONE, 2, rtt=0.010, sent=100, received=7, retransmits=1)))
    log.hear(report(use(ONE, 1, rtt=0.040, sent=50), use(OTHER, 1, rtt=0.1, sent=1), element=1))
    log.hear(report(use(ONE, 1, rtt=0.020, sent=50), channel=1))
    clock.advance(1.5)
    one, other = log.latest()
    assert (one.local, one.remote, one.up, one.connections, one.rtt_ms) == (*ONE, True, 4, 20.0)
    carried = (one.bytes_to_consumer, one.bytes_to_producer)
    assert carried == ((200, 7) if role == PROD else (7, 200))
    assert (one.retransmits, one.failures, one.seconds) == (1, 0, 1.5)
    assert (other.local, other.connections, other.rtt_ms) == (OTHER[0], 1, 100.0)
    log.stop()


def test_a_path_that_comes_or_goes_is_logged_and_told_and_a_notice_says_what_it_means(
    clock: Clock, log: PathFiguresLog
) -> None:
    with capturedLogs() as logs:
        log.hear(report(use(ONE), use(OTHER)))
        assert log.notices == []
        clock.advance(2)
        log.hear(report(use(ONE), use(OTHER, 0)))
    one, other = log.latest()
    assert (one.up, one.failures, other.up, other.connections, other.failures) == (True, 0, False, 0, 1)
    assert log.notices == [
        "the path of the WAN 198.51.100.20 - 203.0.113.9 is down: its connections go on over the others"
    ]
    assert [(event["log_level"], formatEvent(event)) for event in logs] == [
        (LogLevel.info, f"uid={UID} role=PROD the path of the WAN {' - '.join(ONE)} is used; times so far: 1"),
        (LogLevel.info, f"uid={UID} role=PROD the path of the WAN {' - '.join(OTHER)} is used; times so far: 1"),
        (LogLevel.warn, f"uid={UID} role=PROD the path of the WAN {' - '.join(OTHER)} is down; times so far: 1"),
    ]
    log.hear(report(use(OTHER)))
    assert log.notices == [
        "the path of the WAN 192.0.2.20 - 203.0.113.9 is down: its connections go on over the others"
    ]
    log.hear(report(use(OTHER, 0)))
    assert all(notice.endswith("is down: no other path is left") for notice in log.notices)


def test_a_path_is_not_down_because_connections_end_or_are_new_or_go_elsewhere(
    clock: Clock, log: PathFiguresLog
) -> None:
    log.hear(report(use(ONE), use(OTHER)))
    log.hear(report(use(ONE), settled=0))  # a new connection, which has not opened the other path yet
    log.hear(report(use(("192.0.2.20", "203.0.113.77")), channel=1))  # to another gateway
    log.hear(report(settled=0))  # no connection is left on the channel
    assert [(one.up, one.failures) for one in log.latest()] == [(True, 0)] * 3
    assert [one.connections for one in log.latest()] == [0, 0, 1]


def test_the_connections_of_an_element_that_has_died_are_forgotten(clock: Clock, log: PathFiguresLog) -> None:
    log.hear(report(use(ONE, 5, sent=10), element=1))
    log.hear(report(use(ONE, 1, sent=20)))
    clock.advance(timing.PATHS_STALE * 0.6)
    log.hear(report(use(ONE, 1, sent=20)))
    clock.advance(timing.PATHS_STALE * 0.6)
    (one,) = log.latest()
    assert (one.up, one.connections, one.bytes_to_consumer) == (True, 1, 50)


def test_a_path_that_comes_and_goes_a_thousand_times_fills_no_log(clock: Clock, log: PathFiguresLog) -> None:
    log.hear(report(use(ONE), use(OTHER)))
    with capturedLogs() as logs:
        for _ in range(1000):
            log.hear(report(use(ONE), use(OTHER, 0)))
            log.hear(report(use(ONE), use(OTHER)))
    assert log.latest()[1].failures == 1000
    assert len(logs) < 10


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 1), st.integers(0, 10**6)), max_size=100))
def test_a_peer_with_many_addresses_hides_no_byte_and_fills_no_memory(reports: list[tuple[int, int, int]]) -> None:
    log = PathFiguresLog(Clock(), (UID, PROD))
    log.hear(report(use(ONE, sent=5), channel=7))
    for last, up, sent in reports:
        log.hear(report(use(("192.0.2.20", f"203.0.113.{last}"), up, sent=sent)))
    found = log.latest()
    assert len(found) <= MAX_PATHS
    assert len(log.notices) <= MAX_NOTICES
    assert sum(one.bytes_to_consumer for one in found) == 5 + sum(sent for _, _, sent in reports)
    assert found[0].remote == ONE[1]
    log.stop()


def test_a_report_that_comes_after_the_end_is_ignored(clock: Clock, log: PathFiguresLog) -> None:
    log.stop()
    log.hear(report(use(ONE)))
    assert log.latest() == []

"""`Client.probe` in virtual time: its report, and the time that it takes at most if a party is silent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_whole_protocol import RELEASED, SET_UP_AT_S2CS

from scistream.protocol.errors import StreamError
from scistream.protocol.messages import CONS, PROD, ProbeResult
from scistream.s2ds.stream import GatewayStream
from scistream.s2uc.probe import Report
from scistream.s2uc.probe_side import Check
from support.memory_facilities import CONS_PORT, CONS_S2CS, PROD_PORT, PROD_S2CS, World

DONE = ProbeResult(
    state="done", connect_ms=21.0, rtt_ms=20.0, mbit_to_consumer=95.0, mbit_to_producer=96.0, bytes=120_000_000
)


class NoProbe:
    """Takes the place of the measurement with sockets, and gives its result after a second."""

    def __init__(self, reactor: Any, uid: str, carry: Any, targets: Any, seconds: float, proxy: Any) -> None:
        self.result = ProbeResult(state="running")
        self._reactor = reactor
        self._seconds = seconds

    def start(self) -> None:
        self._reactor.callLater(2 * self._seconds, self._done)

    def _done(self) -> None:
        self.result = DONE

    def stop(self) -> None:
        """Do nothing, since nothing runs."""


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr("scistream.s2ds.stream.Probe", NoProbe)
    world = World(tmp_path)
    yield world
    world.close()


def probing(world: World, told: list[Check] | None = None, **wishes: Any) -> Any:
    tell = told.append if told is not None else None
    return world.client.probe(prod=PROD_S2CS, cons=CONS_S2CS, **{"rate": 100.0, **wishes}, tell=tell).deferred


def verdicts(report: Report) -> list[tuple[str, bool | None]]:
    return [(check.name, check.ok) for check in report.checks]


ALL_OK = [("reach", True), ("reach", True), ("grant", True), ("grant", True), ("wan", True), ("release", True)]


def test_a_probe_is_a_stream_of_a_minute_without_applications_that_is_released(world: World) -> None:
    told: list[Check] = []
    asking = probing(world, told, num_conn=3)
    world.network.until(lambda: world.both_are("streaming"))
    held: list[GatewayStream] = [*world.prod.gateways[0]._streams.values(), *world.cons.gateways[0]._streams.values()]
    for holding in held:
        status = holding.status()
        assert 58.0 < status.seconds_left <= 60.0
        assert status.rate == 100.0
    report = world.result(asking, within=15.0)
    assert verdicts(report) == ALL_OK
    assert told == report.checks
    assert report.ok
    assert report.probe == DONE
    assert world.both_are("released")
    assert world.both_are_empty()
    assert world.story("s2cs", PROD) == [*SET_UP_AT_S2CS, *RELEASED]


def test_the_producers_gateway_listens_for_nobody_else_and_no_more_after_the_probe(world: World) -> None:
    listeners = set(world.network.listeners)
    asking = probing(world)
    world.network.until(lambda: world.both_are("streaming"))
    assert len(set(world.network.listeners) - listeners) == 1
    world.result(asking, within=15.0)
    assert set(world.network.listeners) == listeners


def test_much_less_than_the_rate_asked_for_is_said_and_no_failure(world: World) -> None:
    report = world.result(probing(world, rate=1000.0), within=15.0)
    assert report.ok
    assert "10% of the requested rate" in report.checks[4].text


@pytest.mark.parametrize("port", [PROD_PORT, CONS_PORT])
def test_an_s2cs_that_says_nothing_is_given_up_after_10_seconds(world: World, port: int) -> None:
    world.network.mute(port)
    report = world.result(probing(world), within=11.0)
    silent = 0 if port == PROD_PORT else 1
    assert [ok for name, ok in verdicts(report) if name == "reach"] == [silent == 1, silent == 0]
    assert "did not carry out Status within 10 s" in report.checks[silent].text
    assert [ok for name, ok in verdicts(report) if name == "grant"] == [None if silent == n else True for n in (0, 1)]
    assert verdicts(report)[-2:] == [("wan", None), ("release", True)]
    assert world.both_are_empty()


def test_an_s2cs_that_falls_silent_during_the_probe_is_named_within_two_minutes(world: World) -> None:
    asking = probing(world)
    world.network.until(lambda: world.state("s2cs", CONS) == "listening")
    world.network.mute(CONS_PORT)
    report = world.result(asking, within=120.0)
    assert not report.ok
    assert verdicts(report)[-1] == ("release", False)
    assert "consumer side" in report.checks[-1].text
    assert "expires 60 s after its request" in report.checks[-1].text
    world.network.run(60.0)
    assert world.both_are_empty()


@pytest.mark.parametrize("port", [PROD_PORT, CONS_PORT])
def test_a_gateway_that_says_nothing_is_named_and_waited_for_no_longer_than_a_minute(world: World, port: int) -> None:
    world.network.run(1.0)
    world.network.mute(port + 1)
    report = world.result(probing(world), within=60.0)
    side = 0 if port == PROD_PORT else 1
    assert [ok for name, ok in verdicts(report) if name == "grant"] == [side == 1, side == 0]
    assert f"gateway dtn{port + 1}" in report.checks[2 + side].text
    assert "did not answer ReqListeners in 20 s" in report.checks[2 + side].text
    assert verdicts(report)[-1] == ("release", False)
    world.network.unmute(port + 1)
    world.network.run(60.0)
    assert world.both_are_empty()


def test_a_measurement_that_never_ends_is_given_up_with_the_stream(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NoProbe, "start", lambda self: None)
    report = world.result(probing(world, seconds=20.0), within=70.0)
    assert verdicts(report)[-2:] == [("wan", False), ("release", True)]
    assert "the time of this stream is over" in report.checks[-2].text
    assert world.both_are_empty()


def test_a_link_that_breaks_during_the_probe_does_no_harm(world: World) -> None:
    asking = probing(world)
    for port in (CONS_PORT, PROD_PORT, CONS_PORT + 1, PROD_PORT + 1):
        world.network.run(0.5)
        world.network.sever(port)
    assert world.result(asking, within=20.0).ok
    assert world.both_are_empty()


def test_a_gateway_that_restarts_in_the_middle_fails_the_probe_with_its_name(world: World) -> None:
    asking = probing(world)
    world.network.until(lambda: world.both_are("streaming"))
    world.cons.gateways[0].stopService()
    world.network.sever(CONS_PORT + 1)
    world.cons.gateways[0] = world.cons._gateway(CONS_PORT + 1, (CONS_PORT + 1) * 10)
    report = world.result(asking, within=30.0)
    assert verdicts(report)[-2:] == [("wan", False), ("release", True)]
    assert f"gateway dtn{CONS_PORT + 1}: it has restarted" in report.checks[-2].text
    assert world.both_are_empty()


@pytest.mark.parametrize("wrong", [{"num_conn": 0}, {"seconds": 21.0}, {"seconds": 0.0}, {"rate": -1.0}])
def test_wrong_wishes_are_refused_at_once(world: World, wrong: dict[str, Any]) -> None:
    with pytest.raises(StreamError) as refused:
        probing(world, **wrong)
    assert refused.value.code == "bad-message"


def test_a_probe_that_is_cancelled_releases(world: World) -> None:
    asking = probing(world)
    asking.addErrback(lambda _: None)
    world.network.until(lambda: world.both_are("streaming"))
    asking.cancel()
    world.network.run(1.0)
    assert world.both_are("released")
    assert world.both_are_empty()

"""Both ends of a probe on real sockets, with a pipe of the test's own in place of the two gateways between them."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest
import pytest_twisted
from twisted.internet import reactor as installed
from twisted.internet.protocol import ClientFactory, Factory, Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from scistream import timing
from scistream.protocol.address import Address
from scistream.protocol.messages import ProbeResult
from scistream.s2ds.probe.measure import Probe, tcp_pair
from scistream.s2ds.probe.responder import Responder
from support.waiting import until_in_reactor

reactor: Any = installed
MIB = 1024 * 1024
PATIENCE = 20.0
Change = Callable[["Pipe", bytes, bool], bytes]


def as_it_is(_pipe: Pipe, data: bytes, _to_producer: bool) -> bytes:
    return data


class Pipe:
    """What lies between the two ends on one channel: bytes in order, as `change` leaves them."""

    def __init__(self, sock: socket.socket, target: Address, change: Change) -> None:
        self.passed = {True: 0, False: 0}
        self._change = change
        self.consumer = _PipeEnd(self, to_producer=True)
        self.producer = _PipeEnd(self, to_producer=False)
        with sock:
            factory = Factory.forProtocol(lambda: self.consumer)
            reactor.adoptStreamConnection(sock.fileno(), socket.AF_INET, factory)
        dialled = ClientFactory()
        dialled.noisy = False
        dialled.buildProtocol = lambda _address: self.producer  # type: ignore[method-assign]
        reactor.connectTCP(target.host, target.port, dialled)

    def pass_on(self, data: bytes, to_producer: bool) -> None:
        changed = self._change(self, data, to_producer)
        self.passed[to_producer] += len(data)
        end = self.producer if to_producer else self.consumer
        if changed:
            end.send(changed)

    def cut(self) -> None:
        for end in (self.consumer, self.producer):
            if end.transport is not None:
                end.transport.abortConnection()


class _PipeEnd(Protocol):
    transport: Any

    def __init__(self, pipe: Pipe, *, to_producer: bool) -> None:
        self._pipe = pipe
        self._to_producer = to_producer
        self._early = b""
        self._other_is_done = False

    def connectionMade(self) -> None:
        self.send(b"")
        other = self._pipe.producer if self._to_producer else self._pipe.consumer
        if other.transport is not None:
            self.transport.registerProducer(other.transport, True)
            other.transport.registerProducer(self.transport, True)

    def dataReceived(self, data: bytes) -> None:
        self._pipe.pass_on(data, self._to_producer)

    def send(self, data: bytes) -> None:
        self._early += data
        if self.transport is not None:
            self.transport.write(self._early)
            self._early = b""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        other = self._pipe.producer if self._to_producer else self._pipe.consumer
        if other.transport is not None:
            other.transport.unregisterProducer()
            other.transport.loseConnection()


class Bench:
    """A responder and a probe of so many channels."""

    def __init__(self, channels: int = 1, seconds: float = 0.5, change: Change = as_it_is) -> None:
        self.uid = str(uuid4())
        self.responder = Responder(reactor, self.uid)
        self.pipes: list[Pipe] = []
        self.change = change
        targets = dict.fromkeys(range(channels), self.responder.address)
        self.probe = Probe(reactor, self.uid, self.carry, targets, seconds)

    def carry(self, _channel: int, sock: socket.socket) -> None:
        self.pipes.append(Pipe(sock, self.responder.address, self.change))

    async def result(self) -> ProbeResult:
        self.probe.start()
        await until_in_reactor(reactor, lambda: self.probe.result.state != "running", lambda: "the probe still runs")
        return self.probe.result

    def stop(self) -> None:
        self.probe.stop()
        self.responder.stop()
        for pipe in self.pipes:
            pipe.cut()


def held() -> tuple[int, int]:
    return len(os.listdir("/proc/self/fd")), len(reactor.getDelayedCalls())


@pytest.fixture
def bench() -> Iterator[Callable[..., Bench]]:
    """Return a function that makes benches; take them down at the end."""
    made: list[Bench] = []

    def make(*args: Any, **kwargs: Any) -> Bench:
        made.append(Bench(*args, **kwargs))
        return made[-1]

    yield make
    for one in made:
        one.stop()


def damaged(after: int, *, to_producer: bool, how: Callable[[bytes], bytes]) -> Change:
    """Return a change that damages the bytes of one direction once, after `after` bytes."""

    def change(pipe: Pipe, data: bytes, this_way: bool) -> bytes:
        if this_way is to_producer and pipe.passed[this_way] <= after < pipe.passed[this_way] + len(data):
            return how(data)
        return data

    return change


@pytest_twisted.ensureDeferred
async def test_all_channels_are_measured_together_in_both_directions(bench: Callable[..., Bench]) -> None:
    found = await bench(channels=3).result()
    assert (found.state, found.reason, found.bytes_right) == ("done", "", True)
    assert found.connect_ms > 0
    assert found.rtt_ms > 0
    assert found.mbit_to_consumer > 10
    assert found.mbit_to_producer > 10
    assert found.bytes > 3 * MIB


@pytest.mark.parametrize("to_producer", [False, True])
@pytest.mark.parametrize(
    "how",
    [
        pytest.param(lambda data: bytes([data[0] ^ 1]) + data[1:], id="a bit is changed"),
        pytest.param(lambda data: data[1:], id="a byte is lost"),
        pytest.param(lambda data: data[:100] + data, id="some bytes come twice"),
        pytest.param(lambda data: data[len(data) // 2 :] + data[: len(data) // 2], id="out of order"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_bytes_that_are_not_those_that_were_sent_fail_the_probe(
    bench: Callable[..., Bench], to_producer: bool, how: Callable[[bytes], bytes]
) -> None:
    found = await bench(change=damaged(MIB, to_producer=to_producer, how=how)).result()
    assert (found.state, found.bytes_right) == ("failed", False)
    assert "are not those that were sent, on channel 0" in found.reason


@pytest_twisted.ensureDeferred
async def test_a_connection_that_breaks_in_the_middle_fails_the_probe(bench: Callable[..., Bench]) -> None:
    def change(pipe: Pipe, data: bytes, to_producer: bool) -> bytes:
        if pipe.passed[False] > MIB:
            pipe.cut()
        return data

    found = await bench(channels=2, seconds=5.0, change=change).result()
    assert (found.state, found.bytes_right) == ("failed", True)
    assert "broke" in found.reason
    assert "see the logs of both gateways" in found.reason


@pytest_twisted.ensureDeferred
async def test_a_channel_that_stays_silent_is_given_up(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing, "PROBE_CONNECT", 0.3)
    monkeypatch.setattr(timing, "DIAGNOSIS_WAIT", 0.1)
    found = await bench(channels=2, change=lambda _pipe, _data, _to_producer: b"").result()
    assert found.state == "failed"
    assert "2 of 2 channels (0, 1) have no connection" in found.reason
    assert "no gateway could be reached" in found.reason


@pytest_twisted.ensureDeferred
async def test_a_small_message_that_does_not_come_back_fails_the_probe(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing, "PROBE_PING", 0.2)
    found = await bench(change=lambda _pipe, data, _to_producer: data if len(data) < 64 else b"").result()
    assert found.state == "failed"
    assert found.reason == "a small message was not answered within 0.2 s"


@pytest_twisted.ensureDeferred
async def test_test_data_that_does_not_arrive_fails_the_probe(bench: Callable[..., Bench]) -> None:
    def change(pipe: Pipe, data: bytes, to_producer: bool) -> bytes:
        return data if to_producer or len(data) <= 64 else b""

    found = await bench(change=change).result()
    assert found.state == "failed"
    assert "no test data to the consumer arrived within 0.5 s" in found.reason


@pytest_twisted.ensureDeferred
async def test_another_version_at_the_other_end_is_told(bench: Callable[..., Bench]) -> None:
    found = await bench(change=lambda _pipe, data, to_producer: data if to_producer else b"?" * len(data)).result()
    assert found.state == "failed"
    assert "another version of SciStream" in found.reason


@pytest_twisted.ensureDeferred
async def test_a_probe_that_is_stopped_in_the_middle_leaves_nothing() -> None:
    await reactor.listenTCP(
        0, Factory(), interface="127.0.0.1"
    ).stopListening()  # the first one opens a spare descriptor
    before = held()
    for pause in (0.0, 0.02, 0.3):
        one = Bench(channels=3, seconds=5.0)
        one.probe.start()
        await deferLater(reactor, pause)
        one.stop()
        one.probe.stop()
        assert one.probe.result.state == "running"
        await until_in_reactor(reactor, lambda: held() == before, lambda: f"held before: {before}, now: {held()}")


def test_a_pair_of_sockets_is_joined() -> None:
    ours, other = tcp_pair()
    with ours, other:
        assert ours.getpeername() == other.getsockname()
        other.setblocking(True)
        ours.send(b"to and fro")
        assert other.recv(100) == b"to and fro"

"""The rate of a stream: how much arrives, and when, through two installed gateways with two elements each."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass

import pytest
from harness import Streaming, World, together

from bench import arrivals
from support.applications import accept, address_of, listen, receive_exactly, send_and_end
from support.waiting import PATIENCE

pytestmark = pytest.mark.usefixtures("nothing_left")

NEAR = 0.05
"""How far a rate may be off, as a part of it."""
LATE = 0.004
"""Seconds by which the kernel may be late with a packet."""
ATTEMPTS = 5


@pytest.fixture(scope="module")
def world(linux: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Each gateway has two elements, whatever the machine has."""
    settings = {"gateway": {"elements": 2}, "ports": 10}
    with World(tmp_path_factory.mktemp("rates"), lab=settings, centre=settings) as made:
        yield made


@dataclass(frozen=True)
class Measured:
    """What has arrived.

    :ivar digests: of each connection.
    :ivar rate: Mbit/s, from the first byte to the last one, without the bytes that may come at once.
    :ivar burst: by how much any window of time is above the rate of the stream, in seconds of it.
    :ivar late: for how long the receiver had no processor, in seconds.
    """

    digests: list[str]
    rate: float
    burst: float
    late: float


class Receiver:
    """A process that receives on some sockets, so that nothing in this one delays it."""

    def __init__(self, sinks: Sequence[socket.socket], rate: float) -> None:
        descriptors = [sink.fileno() for sink in sinks]
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", arrivals.__file__, str(rate), *map(str, descriptors)],
            stdout=subprocess.PIPE,
            pass_fds=descriptors,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"

    def result(self, timeout: float) -> Measured:
        """Wait until all connections have ended."""
        try:
            said, _ = self._process.communicate(timeout=timeout)
        finally:
            self._process.kill()
            self._process.wait(PATIENCE)
        assert self._process.returncode == 0
        return Measured(**json.loads(said))


class Connections:
    """Connections of a stream, closed at the end: ConsApp's and ProdApp's sockets."""

    def __init__(self, stream: Streaming, detector: socket.socket, channels: Sequence[int]) -> None:
        self._opened = ExitStack()
        self.consumers: list[socket.socket] = []
        self.producers: list[socket.socket] = []
        for channel in channels:
            for sock, ends in ((stream.connect(channel), self.consumers), (accept(detector), self.producers)):
                ends.append(self._opened.enter_context(sock))

    def __enter__(self) -> Connections:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def move(self, rate: float, seconds: float, *, both_ways: bool) -> list[Measured]:
        """Send what the rate allows in this time, in equal parts over all connections, and compare the digests."""
        ways = [(self.producers, self.consumers)] + [(self.consumers, self.producers)] * both_ways
        each = int(rate * arrivals.BYTES_PER_MBIT * seconds / len(self.producers))

        def talk(source: socket.socket) -> str:
            source.settimeout(seconds + PATIENCE)
            return send_and_end(source, each)

        receivers = [Receiver(sinks, rate) for _, sinks in ways]
        sent = together(*(lambda source=source: talk(source) for sources, _ in ways for source in sources))
        measured = [receiver.result(seconds + PATIENCE) for receiver in receivers]
        assert [digest for one in measured for digest in one.digests] == sent
        return measured


@contextmanager
def connected(world: World, rate: float, channels: Sequence[int], num_conn: int = 1) -> Iterator[Connections]:
    """Request a stream of this rate, and open a connection in each of these channels."""
    with (
        closing(listen()) as detector,
        world.stream([address_of(detector)], num_conn, f"{rate:g}Mbit") as stream,
        Connections(stream, detector, channels) as connections,
    ):
        yield connections


def wrong_with(measured: Sequence[Measured], rate: float) -> str:
    """Return what a slow machine can be the reason for, or nothing; fail for what it cannot."""
    for one in measured:
        assert one.rate <= rate * (1 + NEAR), f"{one.rate:.3f} of {rate:g} Mbit/s"
        if one.rate < rate * (1 - NEAR):
            return f"only {one.rate:.3f} of {rate:g} Mbit/s came"
        if one.burst > arrivals.AT_ONCE + LATE + one.late:
            at_once = f"{one.burst * 1000:.1f} ms of {rate:g} Mbit/s came at once"
            return f"{at_once}, and the receiver had no processor for {one.late * 1000:.1f} ms at most"
    return ""


def check(world: World, rate: float, count: int, seconds: float, *, both_ways: bool) -> None:
    """Check the rate of a stream over so many connections; a machine that is busy has several attempts."""
    for _ in range(ATTEMPTS):
        with connected(world, rate, [0] * count) as connections:
            wrong = wrong_with(connections.move(rate, seconds, both_ways=both_ways), rate)
        if not wrong:
            return
    raise AssertionError(wrong)


@pytest.mark.parametrize(("rate", "count"), [(1.0, 8), (50.0, 1), (100.0, 8)])
def test_a_rate_is_kept_in_both_directions_at_once(world: World, rate: float, count: int) -> None:
    check(world, rate, count, 1.5, both_ways=True)


@pytest.mark.long
@pytest.mark.parametrize("count", [1, 8])
@pytest.mark.parametrize("rate", [1.0, 50.0, 500.0])
def test_a_rate_is_kept_for_ten_seconds(world: World, rate: float, count: int) -> None:
    check(world, rate, count, 10.0, both_ways=True)


@pytest.mark.long
@pytest.mark.parametrize("count", [1, 8])
def test_two_gigabits_are_kept_for_ten_seconds(world: World, count: int) -> None:
    rate, without_limit = 2000.0, 50_000.0
    with connected(world, without_limit, [0] * count) as connections:
        (free,) = connections.move(2 * rate, 1.0, both_ways=False)
    if free.rate < 1.5 * rate:
        pytest.skip(f"this machine moves {free.rate:.0f} Mbit/s without a limit, too little for {rate:g} Mbit/s")
    check(world, rate, count, 10.0, both_ways=False)


def test_one_busy_channel_of_four_has_the_whole_rate(world: World) -> None:
    rate = 40.0
    for _ in range(ATTEMPTS):
        with connected(world, rate, range(4), num_conn=4) as connections:
            idle = [*connections.consumers[:3], *connections.producers[:3]]
            for consumer, producer in zip(connections.consumers[:3], connections.producers[:3], strict=True):
                producer.sendall(b"!")
                assert receive_exactly(consumer, 1) == b"!"
            connections.consumers, connections.producers = connections.consumers[3:], connections.producers[3:]
            measured = connections.move(rate, 1.5, both_ways=False)
            assert all(sock.fileno() != -1 for sock in idle)
        wrong = wrong_with(measured, rate)
        if not wrong:
            return
    raise AssertionError(wrong)


def test_two_streams_at_once_have_rates_of_their_own(world: World) -> None:
    for _ in range(ATTEMPTS):
        with connected(world, 20.0, [0, 0]) as first, connected(world, 100.0, [0]) as second:
            slow, fast = together(
                lambda: first.move(20.0, 1.5, both_ways=False), lambda: second.move(100.0, 1.5, both_ways=False)
            )
        wrong = wrong_with(slow, 20.0) or wrong_with(fast, 100.0)
        if not wrong:
            return
    raise AssertionError(wrong)


def test_a_connection_that_rested_gets_no_more_than_fifty_milliseconds_at_once(world: World) -> None:
    rate = 20.0
    for _ in range(ATTEMPTS):
        with connected(world, rate, [0]) as connections:
            (source,), (sink,) = connections.producers, connections.consumers
            source.sendall(b"!")
            assert receive_exactly(sink, 1) == b"!"
            time.sleep(0.3)  # tokens that are saved up are what is looked at here
            (measured,) = connections.move(rate, 1.5, both_ways=False)
        if not wrong_with([measured], rate) and measured.burst > 0.5 * arrivals.AT_ONCE:
            return
    raise AssertionError(f"{measured.burst * 1000:.1f} ms of the rate came at once, {measured.rate:.3f} of {rate:g}")

"""Each path of bytes through a relay: spliced or copied, plain or TLS, in the gateway's process or an element's.

Tests also cover refusals of the system, and applications that stop, close or reset in the middle.
"""

from __future__ import annotations

import errno
import hashlib
import math
import os
import socket
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import pytest_twisted
from gateways import PATIENCE, Make, Stream, both, fill, sleep, streams
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.internet.defer import gatherResults
from twisted.internet.threads import deferToThread

from scistream import timing
from scistream.s2ds.elements import shared_figures
from scistream.s2ds.relay import pump
from support.applications import MIB, NOISE, how_it_ends, push, receive_digest, receive_exactly, reset, send
from support.requirements import needs_root

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="gateways run on Linux")

WANS = pytest.mark.parametrize("wan", ["plain", "tls"])
PLACES = pytest.mark.parametrize("elements", [0, 1])
BIG = 16 * MIB


def say(sock: socket.socket, count: int) -> str:
    """Send that many bytes and end; their SHA-256."""
    digest = send(sock, count)
    sock.shutdown(socket.SHUT_WR)
    return digest


async def exchange(stream: Stream, count: int = BIG, connections: int = 1) -> None:
    """Over new connections, so many bytes each way at once, and ends of both; all connections at the same time."""
    pairs = [await stream.pair() for _ in range(connections)]

    def run() -> None:
        with ThreadPoolExecutor(4 * connections) as pool:
            said = [[pool.submit(say, end, count) for end in pair] for pair in pairs]
            got = [[pool.submit(receive_digest, end) for end in pair] for pair in pairs]
        for (up, down), (down_there, up_there) in zip(said, got, strict=True):
            assert up_there.result(PATIENCE) == (count, up.result(PATIENCE))
            assert down_there.result(PATIENCE) == (count, down.result(PATIENCE))

    await deferToThread(run)


async def gone(stream: Stream) -> None:
    """Wait until no gateway has a connection."""
    await stream.until(lambda: not any(side.figures().connections for side in (stream.prod, stream.cons)))


# All bytes, in order


@WANS
@PLACES
@pytest_twisted.ensureDeferred
async def test_both_directions_at_once(make: Make, wan: str, elements: int) -> None:
    stream = make(wan=wan, elements=elements)
    await exchange(stream, 4 * BIG)
    await gone(stream)
    for side in (stream.prod, stream.cons):
        figures = side.figures()
        assert (figures.bytes_to_producer, figures.bytes_to_consumer) == (4 * BIG, 4 * BIG)
        assert (figures.accepted, figures.reset) == (1, 0)


@WANS
@PLACES
@pytest_twisted.ensureDeferred
async def test_64_connections_at_once(make: Make, wan: str, elements: int) -> None:
    stream = make(wan=wan, elements=elements)
    await exchange(stream, MIB + 1, 64)
    await gone(stream)
    assert stream.cons.figures().reset == stream.prod.figures().reset == 0


@WANS
@pytest.mark.parametrize(("size", "times"), [(1, 5000), (16 * 1024 + 1, 500), (MIB, 16)])
@pytest_twisted.ensureDeferred
async def test_writers_of_any_size(make: Make, wan: str, size: int, times: int) -> None:
    stream = make(wan=wan)
    consumer, producer = await stream.pair()
    for end in (consumer, producer):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def write(sock: socket.socket) -> str:
        digest = hashlib.sha256()
        for number in range(times):
            chunk = NOISE[number % 256 :][:size] or NOISE[:size]
            sock.sendall(chunk)
            digest.update(chunk)
        sock.shutdown(socket.SHUT_WR)
        return digest.hexdigest()

    up, down, got_up, got_down = await both(
        lambda: write(consumer),
        lambda: write(producer),
        lambda: receive_digest(producer),
        lambda: receive_digest(consumer),
    )
    assert (got_up[1], got_down[1]) == (up, down)


@WANS
@pytest_twisted.ensureDeferred
async def test_little_messages_and_much_at_once_take_turns(make: Make, wan: str) -> None:
    stream = make(wan=wan)
    consumer, producer = await stream.pair()
    for size in (1, 100, 65536, 70_000, 5 * MIB, 3, 16384, 16385, 2 * MIB, 64, 65535, 65537, 1):
        for sender, receiver in ((consumer, producer), (producer, consumer)):
            digest, data = await both(
                lambda sock=sender, count=size: send(sock, count),
                lambda sock=receiver, count=size: receive_exactly(sock, count),
            )
            assert hashlib.sha256(data).hexdigest() == digest


@WANS
@pytest_twisted.ensureDeferred
async def test_a_turn_that_is_over_goes_on_after_the_others(
    make: Make, wan: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pump, "TURN_BYTES", 1)
    stream = make(wan=wan)
    await exchange(stream, MIB, 8)


# What the system refuses


@pytest.mark.parametrize("way", ["in", "out", "out, later"])
@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOSYS])
@pytest_twisted.ensureDeferred
async def test_where_the_system_does_not_splice_bytes_are_copied(
    make: Make, monkeypatch: pytest.MonkeyPatch, way: str, code: int
) -> None:
    splice, refused, done = os.splice, [0], [0]

    def refuse(source: int, sink: int, count: int, **more: Any) -> int:
        inwards = _is_socket(source)
        if inwards == (way == "in") and (way != "out, later" or done[0] > 20):
            refused[0] += 1
            raise OSError(code, os.strerror(code))
        done[0] += not inwards
        return splice(source, sink, count, **more)

    monkeypatch.setattr(os, "splice", refuse)
    stream = make(wan="plain")
    await exchange(stream)
    assert 1 <= refused[0] <= 4, "each direction of each relay asks once"
    await gone(stream)


def _is_socket(fd: int) -> bool:
    return os.readlink(f"/proc/self/fd/{fd}").startswith("socket:")


@pytest_twisted.ensureDeferred
async def test_where_there_are_no_pipes_bytes_are_copied(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    stream, asked = make(wan="plain"), [0]

    def refuse(_flags: int) -> tuple[int, int]:
        asked[0] += 1
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "pipe2", refuse)
    await exchange(stream)
    assert asked[0]
    monkeypatch.undo()
    await exchange(stream)
    assert stream.cons.figures().reset == stream.prod.figures().reset == 0


@pytest_twisted.ensureDeferred
async def test_connections_beyond_the_limit_of_pipes_do_without(make: Make) -> None:
    needs_root("the kernel gives an unprivileged user few pipes for all that runs, and other tests use them, too")
    stream = make(wan="plain")
    stalled = [await stream.pair() for _ in range(4)]
    written = await both(*[lambda sock=producer: fill(sock, threading.Event()) for _, producer in stalled])
    for side in (stream.prod, stream.cons):
        pipes = side.relays()[0]._context.pipes
        assert pipes._lent
        pipes._most = pipes._lent
    await exchange(stream)
    for (consumer, producer), count in zip(stalled, written, strict=True):
        producer.close()
        got, _ = await deferToThread(receive_digest, consumer)
        assert got == count
        consumer.close()
    await gone(stream)


@pytest.mark.parametrize("state", ["idle", "carrying"])
@pytest_twisted.ensureDeferred
async def test_a_gateway_that_stops_leaves_no_pipe_open(linux: None, state: str) -> None:
    needs_root("the kernel gives an unprivileged user few pipes for all that runs, and other tests use them, too")
    before = pipes_open()
    async with streams() as make:
        stream = make(wan="plain")
        if state == "idle":
            await exchange(stream)
        else:
            _, producer = await stream.pair()
            await deferToThread(fill, producer, threading.Event())
        assert pipes_open() - before
    assert pipes_open() == before


def pipes_open() -> set[str]:
    """Return the pipes of this process."""
    descriptors = [f"/proc/self/fd/{one}" for one in os.listdir("/proc/self/fd")]
    return {seen for one in descriptors if os.path.islink(one) and (seen := os.readlink(one)).startswith("pipe:")}


# Stops and ends


@WANS
@pytest_twisted.ensureDeferred
async def test_a_stopped_reader_holds_its_writer_and_nobody_else(make: Make, wan: str) -> None:
    stream = make(wan=wan)
    stalled = [await stream.pair() for _ in range(8)]
    written = await both(*[lambda sock=producer: fill(sock, threading.Event()) for _, producer in stalled])
    held = [[moving.held() for one in side.relays() for moving in one._pumps] for side in (stream.prod, stream.cons)]
    assert any(map(sum, held))
    most = 262144 if wan == "tls" else 4 * 262144  # a pipe holds more than a buffer
    assert max(map(max, held)) <= most
    await exchange(stream)
    after = [[moving.held() for one in side.relays() for moving in one._pumps] for side in (stream.prod, stream.cons)]
    assert max(map(max, after)) <= most
    for (consumer, producer), count in zip(stalled, written, strict=True):
        producer.close()
        got, _ = await deferToThread(receive_digest, consumer)
        assert got == count
        consumer.close()
    await gone(stream)
    assert stream.cons.figures().reset == stream.prod.figures().reset == 0


async def _idle(consumer: socket.socket, producer: socket.socket) -> None:
    del consumer, producer


async def _after_a_message(consumer: socket.socket, producer: socket.socket) -> None:
    await both(lambda: send(consumer, 10), lambda: receive_exactly(producer, 10))


async def _after_much(consumer: socket.socket, producer: socket.socket) -> None:
    await both(lambda: send(consumer, BIG), lambda: receive_exactly(producer, BIG))


async def _stalled(consumer: socket.socket, producer: socket.socket) -> None:
    await both(
        lambda: fill(consumer, threading.Event()),
        lambda: fill(producer, threading.Event()),
    )


async def _half_closed(consumer: socket.socket, producer: socket.socket) -> None:
    consumer.shutdown(socket.SHUT_WR)
    assert await deferToThread(producer.recv, 1) == b""


async def _other_half_closed(consumer: socket.socket, producer: socket.socket) -> None:
    await _half_closed(producer, consumer)


STATES: list[Callable[[socket.socket, socket.socket], Any]] = [
    _idle,
    _after_a_message,
    _after_much,
    _stalled,
    _half_closed,
    _other_half_closed,
]


@WANS
@pytest.mark.parametrize("who", ["consumer", "producer"])
@pytest.mark.parametrize("state", STATES, ids=lambda state: state.__name__.strip("_"))
@pytest_twisted.ensureDeferred
async def test_a_reset_in_any_state_is_passed_on(
    make: Make, wan: str, who: str, state: Callable[[socket.socket, socket.socket], Any]
) -> None:
    stream = make(wan=wan)
    consumer, producer = await stream.pair()
    await state(consumer, producer)
    first, other = (consumer, producer) if who == "consumer" else (producer, consumer)
    reset(first)
    await stream.until(lambda: stream.cons.figures().reset == stream.prod.figures().reset == 1)
    await gone(stream)
    if state not in (_half_closed, _other_half_closed):  # of whom one has had its end already
        assert await deferToThread(how_it_ends, other) == "reset"
    await exchange(stream, MIB)
    for side in (stream.prod, stream.cons):
        assert side.figures().reset == 1


@WANS
@PLACES
@pytest_twisted.ensureDeferred
async def test_a_reset_while_bytes_flow_both_ways_is_passed_on(make: Make, wan: str, elements: int) -> None:
    stream = make(wan=wan, elements=elements)
    consumer, producer = await stream.pair()
    pushed, end = deferToThread(push, producer), deferToThread(how_it_ends, producer)

    def talk() -> None:
        for _ in range(32):
            consumer.sendall(NOISE[:262144])
            receive_exactly(consumer, 262144)
        reset(consumer)

    await deferToThread(talk)
    assert "reset" in {await pushed, await end}, "the kernel says it once: to the one or to the other"
    await gone(stream)
    assert stream.cons.figures().reset == stream.prod.figures().reset == 1


# Any sequence, beside a model


class Model:
    """What a TCP connection is: two streams of bytes, each with an end."""

    def __init__(self, consumer: socket.socket, producer: socket.socket) -> None:
        self.socks = (consumer, producer)
        for sock in self.socks:
            sock.setblocking(False)
        self.sent = [0, 0]
        self.got = [0, 0]
        self.ended = [False, False]

    def write(self, end: int, count: int) -> None:
        """As much of it as goes in at once."""
        if self.ended[end]:
            return
        at = self.sent[end] % MIB
        try:
            self.sent[end] += self.socks[end].send((NOISE[at:] + NOISE)[:count])
        except BlockingIOError:
            return

    def read(self, end: int, count: int) -> None:
        """As much of it as is there."""
        try:
            data = self.socks[end].recv(count)
        except BlockingIOError:
            return
        self.check(end, data)

    def check(self, end: int, data: bytes) -> None:
        """Check that `data` is what the other end sent next; empty data is the end."""
        at = self.got[end] % MIB
        assert data == (NOISE[at:] + NOISE)[: len(data)]
        self.got[end] += len(data)
        assert self.got[end] <= self.sent[1 - end]
        if not data:
            assert self.ended[1 - end]
            assert self.got[end] == self.sent[1 - end]

    def finish(self, end: int) -> None:
        """No more from this end."""
        if not self.ended[end]:
            self.ended[end] = True
            self.socks[end].shutdown(socket.SHUT_WR)

    def settle(self) -> None:
        """Both end, and everything has come."""
        for end in (0, 1):
            self.finish(end)
        for end in (0, 1):
            self.socks[end].settimeout(PATIENCE)
            while data := self.socks[end].recv(MIB):
                self.check(end, data)
            self.check(end, b"")


ENDS = st.integers(0, 1)
SIZES = st.one_of(st.integers(1, 300), st.sampled_from([16384, 16385, 65536, 65537, 262144, MIB]))
STEPS = st.one_of(
    st.tuples(st.just("write"), ENDS, SIZES),
    st.tuples(st.just("write"), ENDS, SIZES),
    st.tuples(st.just("read"), ENDS, SIZES),
    st.tuples(st.just("finish"), ENDS),
)


@WANS
@PLACES
@pytest_twisted.ensureDeferred
async def test_any_sequence_of_writes_reads_stalls_and_closes_is_a_stream_of_bytes(
    make: Make, wan: str, elements: int
) -> None:
    stream = make(wan=wan, elements=elements)

    @settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(STEPS, max_size=30), st.sampled_from([None, None, 0, 1]))
    def run(steps: list[tuple[Any, ...]], who_resets: int | None) -> None:
        with stream.connect() as consumer, stream.accept() as producer:
            model = Model(consumer, producer)
            for name, *arguments in steps:
                getattr(model, name)(*arguments)
            if who_resets is None:
                model.settle()
            else:
                reset(model.socks[who_resets])
                model.socks[1 - who_resets].settimeout(PATIENCE)
                ends = how_it_ends(model.socks[1 - who_resets])
                assert ends == "reset" or model.ended[who_resets]

    await stream.ready()
    await deferToThread(run)
    await gone(stream)


# -- this machine lacks what a connection needs


class NoAddresses:
    """Lets this machine run out of ports for outgoing connections, for some tries of gateways to connect."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, times: float) -> None:
        self.tries = 0
        here = self

        class Socket(socket.socket):
            def connect_ex(self, address: Any) -> int:
                here.tries += 1
                return errno.EADDRNOTAVAIL if here.tries <= times else super().connect_ex(address)

        monkeypatch.setattr("scistream.s2ds.relay.plain.socket.socket", Socket)


@pytest_twisted.ensureDeferred
async def test_a_gateway_without_a_port_to_dial_from_tries_again_until_it_has_one(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = make(ready=0)
    short = NoAddresses(monkeypatch, 2)
    consumer, producer = await stream.pair()
    assert short.tries == 4, "three from one gateway to the other, and one to ProdApp"
    said, heard = await both(lambda: say(consumer, MIB), lambda: receive_digest(producer))
    assert heard == (MIB, said)
    assert stream.cons.reasons == stream.prod.reasons == []


@pytest_twisted.ensureDeferred
async def test_a_gateway_that_never_gets_a_port_to_dial_from_tells_why(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = make(dial_timeout=0.5, ready=0)
    short = NoAddresses(monkeypatch, math.inf)
    assert (await both(stream.attempt))[0] == "reset"
    assert short.tries > 1, "it was tried again"
    await stream.until(lambda: stream.cons.reasons != [])
    assert stream.cons.reasons == [
        f"this gateway cannot connect to the other gateway at {stream.prod.address()}: Cannot assign requested address"
    ]


# -- which element gets a connection


def spread(stream: Stream, word: int) -> list[int]:
    """Return a figure of the stream's first channel at each element of the consumer's gateway."""
    figures = stream.cons.elements._figures
    return [figures.words[figures.row(0, element) + word] for element in range(2)]


@pytest_twisted.ensureDeferred
async def test_connections_that_are_idle_for_long_are_no_load_for_those_that_are_busy(make: Make) -> None:
    stream = make(elements=2)
    await stream.ready()
    _, other = stream.cons.elements._members
    other.ready = False
    for _ in range(8):
        await both(stream.connect, stream.accept)
    other.ready = True
    await stream.until(
        lambda: spread(stream, shared_figures.OPEN) == [8, 0] and spread(stream, shared_figures.ACTIVE) == [0, 0]
    )
    over = threading.Event()
    talks = []
    for _ in range(4):
        pair = await both(stream.connect, stream.accept)
        talks.append(deferToThread(talk, *pair, over))
        await sleep(1.5 * timing.SAMPLE_INTERVAL)
    try:
        assert spread(stream, shared_figures.OPEN) == [10, 2]
    finally:
        over.set()
        await gatherResults(talks)


def talk(consumer: socket.socket, producer: socket.socket, over: threading.Event) -> None:
    """Small messages, until it is over."""
    while not over.wait(0.05):
        consumer.sendall(b"ping")
        assert receive_exactly(producer, 4) == b"ping"

"""A network between the gateways that cuts bytes into pieces, ends connections anywhere, or is silent for long."""

from __future__ import annotations

import contextlib
import errno
import random
import socket
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from hashlib import sha256

import pytest
import pytest_twisted
from gateways import PATIENCE, Make, Side, Stream, both, carry_both_ways, sleep
from harness import open_descriptors
from twisted.internet.threads import deferToThread

from scistream.protocol.address import Address
from scistream.protocol.messages import CONS
from support.applications import MIB, NOISE, how_it_ends, receive_digest, receive_exactly, reset, send

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="gateways run on Linux")


class Toxic:
    """A relay on the way from the consumer's gateway to the producer's.

    :param part: the most bytes that it passes on at once.
    :param fatal: after so many bytes from one of the gateways it ends the connection both ways.
    :param source: whose bytes these are: those of the gateway of the "producer" or of the "consumer".
    :param how: "FIN" or "RST".
    :param hold: seconds for which it holds back the end of each direction: TCP's, after TLS's own has passed.
    """

    def __init__(
        self,
        target: Address,
        *,
        part: int = MIB,
        fatal: int | None = None,
        source: str = "producer",
        how: str = "FIN",
        hold: float = 0.0,
    ) -> None:
        self.passed = 0
        self.delay = self.jitter = 0.0
        """Seconds that it waits before it passes a part on, and at most more; may be changed at any time."""
        self._source = source
        self._hold = hold
        self._target = target
        self._part = part
        self._fatal = fatal
        self._how = how
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(PATIENCE)
        self.address = Address(*self._listener.getsockname())
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Wait for the end of its connection."""
        self._thread.join(2 * PATIENCE)
        assert not self._thread.is_alive(), "a connection between the gateways does not end"

    def _run(self) -> None:
        with self._listener, contextlib.suppress(OSError):
            near, _ = self._listener.accept()
            far = socket.create_connection(self._target, timeout=PATIENCE)
            for sock in (near, far):
                sock.settimeout(PATIENCE)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            of_consumer, of_producer = (
                self._fatal if self._source == one else None for one in ("consumer", "producer")
            )
            there = threading.Thread(target=self._pass_on, args=(near, far, of_consumer), daemon=True)
            there.start()
            self._pass_on(far, near, of_producer)
            there.join(PATIENCE)
            near.close()
            far.close()

    def _pass_on(self, source: socket.socket, sink: socket.socket, fatal: int | None) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while part := source.recv(self._part if fatal is None else min(self._part, fatal - passed)):
                if self.delay or self.jitter:
                    time.sleep(self.delay + random.uniform(0, self.jitter))
                sink.sendall(part)
                passed += len(part)
                if passed == fatal:
                    self.passed = passed
                    return self._end(source, sink)
            time.sleep(self._hold)
            sink.shutdown(socket.SHUT_WR)
        return None

    def _end(self, *socks: socket.socket) -> None:
        for sock in socks:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RD if self._how == "RST" else socket.SHUT_RDWR)
            if self._how == "RST":
                reset(sock)


@contextlib.contextmanager
def toxic(stream: Stream, **how: object) -> Iterator[Toxic]:
    """Set up a stream whose gateways connect through such a relay."""
    between = Toxic(stream.prod.address(), **how)  # type: ignore[arg-type]
    stream.cons.arm(stream.bundles[CONS], [between.address])
    yield between
    between.close()


def until_the_end(sock: socket.socket) -> tuple[bytes, str]:
    """Return the data until the end of the connection, and how it ended."""
    data = b""
    try:
        while part := sock.recv(MIB):
            data += part
    except ConnectionResetError:
        return data, "reset"
    return data, "end"


@pytest.mark.parametrize("part", [1, 7])
@pytest_twisted.ensureDeferred
async def test_segments_of_a_few_bytes_make_no_difference(make: Make, part: int) -> None:
    stream = make(handshake_timeout=PATIENCE, ready=0)
    with toxic(stream, part=part):
        consumer, producer = await stream.pair()
        await carry_both_ways(consumer, producer, 40_000)
        for sock in (consumer, producer):
            sock.close()


@pytest.mark.parametrize("source", ["producer", "consumer"])
@pytest.mark.parametrize("how", ["FIN", "RST"])
@pytest.mark.parametrize("fatal", [1, 5, 200, 600])
@pytest_twisted.ensureDeferred
async def test_an_end_within_the_handshake_is_a_reset_and_no_end(make: Make, how: str, fatal: int, source: str) -> None:
    stream = make(handshake_timeout=2.0, ready=0)
    with toxic(stream, fatal=fatal, source=source, how=how) as between:
        assert (await both(stream.attempt))[0] == "reset"
        assert between.passed == fatal, "the control: it was within the handshake"
    assert stream.prod.figures().bytes_to_producer == 0, "nobody was let in"


@pytest.mark.parametrize("source", ["producer", "consumer"])
@pytest.mark.parametrize("how", ["FIN", "RST"])
@pytest.mark.parametrize("fatal", [4_000, 10_000, MIB, 3 * MIB + 1])
@pytest_twisted.ensureDeferred
async def test_an_end_within_the_data_is_a_reset_after_right_bytes(
    make: Make, how: str, fatal: int, source: str
) -> None:
    stream = make(ready=0)
    with toxic(stream, fatal=fatal, source=source, how=how) as between:
        consumer, producer = await stream.pair()
        speaker, listener = (producer, consumer) if source == "producer" else (consumer, producer)

        def speak() -> str:
            try:
                for _ in range(8):
                    speaker.sendall(NOISE)
                speaker.shutdown(socket.SHUT_WR)
            except OSError as problem:
                if problem.errno not in (errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN):  # shutdown() gives the last
                    raise
                return "reset"  # the system reports it only once
            return until_the_end(speaker)[1]

        said, (got, end) = await both(speak, lambda: until_the_end(listener))
        assert between.passed == fatal
        assert end == "reset", f"an end in order after {len(got)} of {8 * MIB} bytes"
        assert len(got) < fatal
        assert sha256(got).digest() == sha256((NOISE * 8)[: len(got)]).digest()
        assert said == "reset"


@pytest_twisted.ensureDeferred
async def test_delay_and_jitter_that_change_in_the_middle_of_a_transfer_make_no_difference(make: Make) -> None:
    stream = make(ready=0)
    with toxic(stream, part=32 * 1024) as between:
        consumer, producer = await stream.pair()
        over = threading.Event()
        changes = 0

        def change() -> None:
            nonlocal changes
            while not over.is_set():
                for between.delay, between.jitter in ((0.01, 0.0), (0.0, 0.05), (0.05, 0.01), (0.0, 0.0)):
                    changes += 1
                    over.wait(0.1)

        def talk(sock: socket.socket) -> str:
            digest = ""
            for _ in range(8):
                digest += send(sock, MIB // 2)
                time.sleep(0.1)  # so that no calm lasts for the whole of it
            sock.shutdown(socket.SHUT_WR)
            return digest

        def hear(sock: socket.socket) -> str:
            digest = "".join(sha256(receive_exactly(sock, MIB // 2)).hexdigest() for _ in range(8))
            assert receive_digest(sock)[0] == 0, "the end, and not one byte more"
            return digest

        changing = deferToThread(change)
        try:
            said, answered, heard, got = await both(
                lambda: talk(consumer), lambda: talk(producer), lambda: hear(producer), lambda: hear(consumer)
            )
        finally:
            over.set()
            await changing
        assert (heard, got) == (said, answered)
        assert changes >= 8, "the control"
        for sock in (consumer, producer):
            sock.close()
    assert stream.cons.figures().reset == stream.prod.figures().reset == 0


@pytest.mark.parametrize("first", ["consumer", "producer"])
@pytest_twisted.ensureDeferred
async def test_an_end_of_tcp_that_is_held_back_for_seconds_changes_nothing_for_the_applications(
    make: Make, first: str
) -> None:
    hold = 4.0
    stream = make(wan_timeout=2.0, ready=0)
    with toxic(stream, hold=hold):
        consumer, producer = await stream.pair()
        early, late = (consumer, producer) if first == "consumer" else (producer, consumer)
        said = send(early, MIB // 2)
        early.shutdown(socket.SHUT_WR)
        late.sendall(b"meanwhile")
        late.shutdown(socket.SHUT_WR)
        began = time.monotonic()
        heard, answer = await both(lambda: receive_digest(late), lambda: until_the_end(early))
        assert heard == (MIB // 2, said)
        assert answer == (b"meanwhile", "end")
        for sock in (consumer, producer):
            sock.close()
        await stream.until(lambda: stream.cons.figures().connections == stream.prod.figures().connections == 0)
    assert time.monotonic() - began > hold / 2, "the control: it was held back"
    assert stream.cons.figures().reset == stream.prod.figures().reset == 0


def descriptors(side: Side) -> list[int]:
    """How many descriptors each element process of a gateway has open."""
    return [open_descriptors(member._process.pid) for member in side.elements._members]


@pytest_twisted.ensureDeferred
async def test_churn_of_ends_and_resets_over_two_elements_leaves_nothing_behind(make: Make) -> None:
    stream = make(elements=2, ready=0)
    await stream.ready()
    before = descriptors(stream.cons), descriptors(stream.prod)
    rounds, at_once, size = 25, 4, 40_000

    def consume(number: int) -> None:
        sock = stream.connect()
        sock.sendall(bytes([number % 4]) + NOISE[:size])
        if number % 4 == 2:
            reset(sock)
        elif number % 4 == 3:
            assert how_it_ends(sock) == "reset"
        else:
            sock.shutdown(socket.SHUT_WR)
            assert until_the_end(sock) == (NOISE[:size], "end")
            sock.close()

    def produce() -> None:
        sock = stream.accept()
        (kind,) = receive_exactly(sock, 1)
        if kind == 2:
            assert how_it_ends(sock) == "reset"
        elif kind == 3:
            reset(sock)
        else:
            sock.sendall(until_the_end(sock)[0])
        sock.close()

    for number in range(rounds):
        jobs = [partial(consume, at_once * number + one) for one in range(at_once)]
        await both(*jobs, *at_once * [produce])
    for side in (stream.cons, stream.prod):
        await stream.until(lambda side=side: side.figures().connections == 0)
        assert side.figures().accepted == rounds * at_once
        assert side.figures().reset == rounds * at_once // 2
    await stream.until(lambda: (descriptors(stream.cons), descriptors(stream.prod)) == before)


@pytest.mark.parametrize("first", ["consumer", "producer"])
@pytest_twisted.ensureDeferred
async def test_a_half_close_that_lasts_longer_than_a_break_of_the_wan_may_loses_nothing(make: Make, first: str) -> None:
    stream = make(wan_timeout=2.0, ready=0)
    consumer, producer = await stream.pair()
    early, late = (consumer, producer) if first == "consumer" else (producer, consumer)
    said = send(early, MIB)
    early.shutdown(socket.SHUT_WR)
    assert (await both(lambda: receive_digest(late)))[0] == (MIB, said)
    await sleep(6.0)

    def answer() -> str:
        digest = send(late, 3 * MIB)
        late.close()
        return digest

    answered, got = await both(answer, lambda: receive_digest(early))
    assert got == (3 * MIB, answered)
    assert stream.cons.figures().reset == stream.prod.figures().reset == 0


@pytest_twisted.ensureDeferred
async def test_applications_that_say_and_read_nothing_for_long_lose_nothing_and_others_go_on(make: Make) -> None:
    stream = make(wan_timeout=2.0, ready=0)
    silent_consumer, silent_producer = await stream.pair()
    silent_producer.sendall(NOISE[:100_000])
    for _ in range(5):
        consumer, producer = await stream.pair()
        producer.sendall(b"go on")
        assert (await both(lambda sock=consumer: receive_exactly(sock, 5)))[0] == b"go on"
        await sleep(1.0)
    silent_producer.close()
    assert (await both(lambda: until_the_end(silent_consumer)))[0] == (NOISE[:100_000], "end")
    assert stream.cons.figures().reset == stream.prod.figures().reset == 0

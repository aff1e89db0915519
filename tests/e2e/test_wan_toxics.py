"""A network between the gateways that cuts bytes into pieces, ends connections anywhere, or is silent for long."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
from collections.abc import Iterator
from hashlib import sha256

import pytest
import pytest_twisted
from gateways import MIB, NOISE, PATIENCE, Make, Stream, both, receive, receive_exactly, reset, send, sleep

from scistream.wire.address import Address
from scistream.wire.messages import CONS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="gateways run on Linux")


class Toxic:
    """A relay on the way from the consumer's gateway to the producer's.

    :param part: the most bytes that it passes on at once.
    :param fatal: after so many bytes from the producer's gateway it ends the connection both ways.
    :param how: "FIN" or "RST".
    """

    def __init__(self, target: Address, *, part: int = MIB, fatal: int | None = None, how: str = "FIN") -> None:
        self.passed = 0
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
            there = threading.Thread(target=self._pass_on, args=(near, far, None), daemon=True)
            there.start()
            self._pass_on(far, near, self._fatal)
            there.join(PATIENCE)
            near.close()
            far.close()

    def _pass_on(self, source: socket.socket, sink: socket.socket, fatal: int | None) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while part := source.recv(self._part if fatal is None else min(self._part, fatal - passed)):
                sink.sendall(part)
                passed += len(part)
                if passed == fatal:
                    self.passed = passed
                    return self._end(source, sink)
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
    """A stream whose gateways meet over such a relay."""
    between = Toxic(stream.prod.address(), **how)  # type: ignore[arg-type]
    stream.cons.arm(stream.bundles[CONS], [between.address])
    yield between
    between.close()


def until_the_end(sock: socket.socket) -> tuple[bytes, str]:
    """What comes, and how it ends."""
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
    stream = make(handshake_timeout=PATIENCE)
    with toxic(stream, part=part):
        consumer, producer = await stream.pair()

        def talk(sock: socket.socket) -> str:
            digest = send(sock, 40_000)
            sock.shutdown(socket.SHUT_WR)
            return digest

        said, answered, heard, got = await both(
            lambda: talk(consumer), lambda: talk(producer), lambda: receive(producer), lambda: receive(consumer)
        )
        assert heard == (40_000, said)
        assert got == (40_000, answered)
        for sock in (consumer, producer):
            sock.close()


@pytest.mark.parametrize("how", ["FIN", "RST"])
@pytest.mark.parametrize("fatal", [1, 5, 200, 600])
@pytest_twisted.ensureDeferred
async def test_an_end_within_the_handshake_is_a_reset_and_no_end(make: Make, how: str, fatal: int) -> None:
    stream = make(handshake_timeout=2.0)
    with toxic(stream, fatal=fatal, how=how) as between:
        assert (await both(stream.attempt))[0] == "reset"
        assert between.passed == fatal, "the control: it was within the handshake"
    assert stream.prod.figures().bytes_to_producer == 0, "nobody was let in"


@pytest.mark.parametrize("how", ["FIN", "RST"])
@pytest.mark.parametrize("fatal", [4_000, 10_000, MIB, 3 * MIB + 1])
@pytest_twisted.ensureDeferred
async def test_an_end_within_the_data_is_a_reset_after_right_bytes(make: Make, how: str, fatal: int) -> None:
    stream = make()
    with toxic(stream, fatal=fatal, how=how) as between:
        consumer, producer = await stream.pair()

        def speak() -> str:
            try:
                for _ in range(8):
                    producer.sendall(NOISE)
                producer.shutdown(socket.SHUT_WR)
            except (ConnectionResetError, BrokenPipeError):
                return "reset"  # which the system tells only once
            return until_the_end(producer)[1]

        said, (got, end) = await both(speak, lambda: until_the_end(consumer))
        assert between.passed == fatal
        assert end == "reset", f"an end in order after {len(got)} of {8 * MIB} bytes"
        assert len(got) < fatal
        assert sha256(got).digest() == sha256((NOISE * 8)[: len(got)]).digest()
        assert said == "reset"


@pytest.mark.parametrize("first", ["consumer", "producer"])
@pytest_twisted.ensureDeferred
async def test_a_half_close_that_lasts_longer_than_a_break_of_the_wan_may_loses_nothing(make: Make, first: str) -> None:
    stream = make(wan_timeout=2.0)
    consumer, producer = await stream.pair()
    early, late = (consumer, producer) if first == "consumer" else (producer, consumer)
    said = send(early, MIB)
    early.shutdown(socket.SHUT_WR)
    assert (await both(lambda: receive(late)))[0] == (MIB, said)
    await sleep(6.0)

    def answer() -> str:
        digest = send(late, 3 * MIB)
        late.close()
        return digest

    answered, got = await both(answer, lambda: receive(early))
    assert got == (3 * MIB, answered)
    assert stream.cons.figures().reset == stream.prod.figures().reset == 0


@pytest_twisted.ensureDeferred
async def test_applications_that_say_and_read_nothing_for_long_lose_nothing_and_others_go_on(make: Make) -> None:
    stream = make(wan_timeout=2.0)
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

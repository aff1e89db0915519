"""Data sent before a reset arrives, and urgent data is forwarded as ordinary data."""

from __future__ import annotations

import contextlib
import socket
import sys

import pytest
import pytest_twisted
from gateways import Make, Stream, both

from support.applications import MIB, NOISE, receive_exactly, reset

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="gateways run on Linux")

WANS = pytest.mark.parametrize("wan", ["plain", "tls"])
TIMES = 20


def all_that_comes(sock: socket.socket) -> bytes:
    """Receive until a reset, which must come; return what arrived before."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while part := sock.recv(MIB):
            data += part
        raise AssertionError(f"a clean end after {len(data)} bytes")
    return data


def ends(stream_pair: tuple[socket.socket, socket.socket], sender: str) -> tuple[socket.socket, socket.socket]:
    consumer, producer = stream_pair
    return (consumer, producer) if sender == "consumer" else (producer, consumer)


@WANS
@pytest.mark.parametrize("sender", ["consumer", "producer"])
@pytest.mark.parametrize("size", [100, 100_000])
@pytest_twisted.ensureDeferred
async def test_what_came_before_a_reset_arrives_each_time(make: Make, wan: str, sender: str, size: int) -> None:
    stream = make(wan=wan)
    for _ in range(TIMES):
        near, far = ends(await stream.pair(), sender)

        def send(near: socket.socket = near, far: socket.socket = far) -> None:
            far.sendall(b"never read")
            assert near.recv(1, socket.MSG_PEEK) == b"n"
            near.sendall(NOISE[:size])
            near.close()  # with something unread, so that the kernel resets

        _, got = await both(send, lambda far=far: all_that_comes(far))
        assert got == NOISE[:size]


@WANS
@pytest_twisted.ensureDeferred
async def test_what_a_consumer_sent_and_reset_before_the_gateways_met_arrives(make: Make, wan: str) -> None:
    stream = make(wan=wan)
    await stream.ready()
    for _ in range(TIMES):

        def send() -> None:
            consumer = stream.connect()
            consumer.sendall(NOISE[:1000])
            reset(consumer)

        _, got = await both(send, lambda: all_that_comes(stream.accept()))
        assert got == NOISE[:1000]


async def much_then_urgent(stream: Stream, sender: str, before: int) -> None:
    near, far = ends(await stream.pair(), sender)

    def send() -> None:
        near.sendall((NOISE * (before // MIB + 1))[:before])
        near.send(b"X", socket.MSG_OOB)
        near.sendall(b"def")
        near.shutdown(socket.SHUT_WR)

    def get() -> bytes:
        data = receive_exactly(far, before + 4)
        assert far.recv(1) == b""
        return data

    _, got = await both(send, get)
    assert got == (NOISE * (before // MIB + 1))[:before] + b"Xdef"


@WANS
@pytest.mark.parametrize("sender", ["consumer", "producer"])
@pytest.mark.parametrize("before", [3, 40 * MIB])
@pytest_twisted.ensureDeferred
async def test_an_urgent_byte_is_one_of_the_stream(make: Make, wan: str, sender: str, before: int) -> None:
    await much_then_urgent(make(wan=wan), sender, before)


@WANS
@pytest_twisted.ensureDeferred
async def test_urgent_bytes_in_between_leave_every_byte_in_its_place(make: Make, wan: str) -> None:
    consumer, producer = await make(wan=wan).pair()
    expected = b"".join(b"abc%d" % number + b"X" for number in range(500))

    def send() -> None:
        for number in range(500):
            consumer.sendall(b"abc%d" % number)
            consumer.send(b"X", socket.MSG_OOB)

    _, got = await both(send, lambda: receive_exactly(producer, len(expected)))
    assert got == expected

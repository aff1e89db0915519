"""A far gateway with the right credentials that sends much of nothing: it is bounded, and disturbs no other stream."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable

import pytest
import pytest_twisted
from gateways import Make, Stream, both, how_it_ends, receive_exactly, until
from tls_records import APPLICATION_DATA, RecordClient
from twisted.internet.threads import deferToThread

from scistream.s2ds.relay.tls import EMPTY_BURST
from scistream.security.stream import server_name
from scistream.wire.messages import CONS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="gateways run on Linux")

SLOW = 0.5
"""Seconds that a small message of another stream may take at most: a machine may be busy with other things."""


async def hostile(stream: Stream) -> tuple[RecordClient, socket.socket]:
    """A connection to the producer's gateway under the credentials of its stream, and ProdApp's end of it."""
    context = stream.cons.secret.credentials(stream.bundles[CONS], stream.uid, CONS).context()

    def dial() -> RecordClient:
        sock = socket.create_connection(stream.prod.address(), timeout=20)
        stream._keep(sock)
        return RecordClient(sock, context, server_name(stream.uid, 0))

    client, producer = await both(dial, stream.accept)
    return client, producer


@pytest_twisted.ensureDeferred
async def test_some_key_updates_are_followed_and_every_byte_arrives(make: Make) -> None:
    client, producer = await hostile(make())
    data = os.urandom(100_000)
    sent = b""
    for start in range(0, len(data), 10_000):
        sent += client.key_update() + client.seal(APPLICATION_DATA, data[start : start + 10_000])
    await deferToThread(client.sock.sendall, sent)
    assert await deferToThread(receive_exactly, producer, len(data)) == data


@pytest_twisted.ensureDeferred
async def test_key_updates_after_data_in_one_go_leave_the_data_whole(make: Make) -> None:
    client, producer = await hostile(make())
    sent = b"".join(client.seal(APPLICATION_DATA, b"x" * 100) + client.key_update() for _ in range(EMPTY_BURST))
    await deferToThread(client.sock.sendall, sent + client.seal(APPLICATION_DATA, b"end"))
    assert await deferToThread(receive_exactly, producer, EMPTY_BURST * 100 + 3) == b"x" * 100 * EMPTY_BURST + b"end"


class Talk:
    """Small messages that are answered in turn; how long the slowest took, in seconds."""

    def __init__(self, consumer: socket.socket, producer: socket.socket) -> None:
        self._ends = consumer, producer
        self.over = threading.Event()
        self.longest = 0.0

    def go_on(self) -> None:
        consumer, producer = self._ends
        while not self.over.is_set():
            begun = time.monotonic()
            consumer.sendall(b"ping")
            assert receive_exactly(producer, 4) == b"ping"
            self.longest = max(self.longest, time.monotonic() - begun)

    def until_done(self, job: Callable[[], object]) -> Callable[[], object]:
        """The same job, at whose end the talk is over."""

        def run() -> object:
            try:
                return job()
            finally:
                self.over.set()

        return run


def push(sock: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):
        sock.sendall(data)


@pytest_twisted.ensureDeferred
async def test_a_flood_of_key_updates_is_reset_and_another_stream_goes_on(make: Make) -> None:
    attacked, other = make(), make()
    client, producer = await hostile(attacked)
    talk = Talk(*await other.pair())
    flood = b"".join(client.key_update() for _ in range(200_000))
    await both(talk.until_done(lambda: push(client.sock, flood)), talk.go_on)
    assert await deferToThread(how_it_ends, producer) == "reset"
    await until(lambda: attacked.prod.figures().reset == 1)
    await until(lambda: attacked.prod.reasons != [])
    assert "TLS records without data" in attacked.prod.reasons[0]
    assert talk.longest < SLOW


@pytest_twisted.ensureDeferred
async def test_records_of_one_byte_arrive_and_leave_another_stream_its_turns(make: Make) -> None:
    attacked, other = make(), make()
    client, producer = await hostile(attacked)
    talk = Talk(*await other.pair())
    count = 100_000
    flood = b"".join(client.seal(APPLICATION_DATA, b"1") for _ in range(count))
    _, got, _ = await both(
        lambda: push(client.sock, flood), talk.until_done(lambda: receive_exactly(producer, count)), talk.go_on
    )
    assert got == b"1" * count
    assert talk.longest < SLOW


@pytest_twisted.ensureDeferred
async def test_empty_records_between_bytes_leave_another_stream_its_turns(make: Make) -> None:
    attacked, other = make(), make()
    client, producer = await hostile(attacked)
    talk = Talk(*await other.pair())
    flood = b"".join(client.seal(APPLICATION_DATA, b"1" if number % 31 == 0 else b"") for number in range(31 * 3000))
    _, got, _ = await both(
        lambda: push(client.sock, flood), talk.until_done(lambda: receive_exactly(producer, 3000)), talk.go_on
    )
    assert got == b"1" * 3000
    assert talk.longest < SLOW

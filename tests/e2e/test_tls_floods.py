"""A far gateway with the right credentials that sends many empty records is bounded, and disturbs no other stream."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable

import pytest
import pytest_twisted
from gateways import Make, Stream, both
from OpenSSL import SSL
from tls_records import (
    APPLICATION_DATA,
    HANDSHAKE,
    KEY_UPDATE_OF_BOTH,
    NEW_SESSION_TICKET,
    RecordClient,
    RecordServer,
)
from twisted.internet.threads import deferToThread

from scistream.protocol.address import Address
from scistream.protocol.connect import Connect, accepted, encode_connect
from scistream.protocol.messages import CONS, PROD
from scistream.s2ds.relay import openssl
from scistream.s2ds.relay.handshake import MOST_BYTES
from scistream.s2ds.relay.tls import EMPTY_BURST
from scistream.tls.stream_channels import server_name
from support.applications import how_it_ends, receive_exactly

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="gateways run on Linux")

SLOW = 0.5
PAUSE = 0.001
"""Seconds that a small message of another stream may take at most: a machine may be busy with other things."""


async def hostile(stream: Stream) -> tuple[RecordClient, socket.socket]:
    """Open a connection to the producer's gateway with the credentials of its stream; return it and ProdApp's end."""
    context = stream.cons.secret.credentials(stream.bundles[CONS], stream.uid, CONS).context()

    def dial() -> RecordClient:
        sock = socket.create_connection(stream.prod.address(), timeout=20)
        stream._keep(sock)
        client = RecordClient(sock, context, server_name(stream.uid, 0))
        sock.sendall(client.seal(APPLICATION_DATA, encode_connect(Connect(uid=stream.uid, channel=0))))
        return client

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
    """Small messages that are answered in turn.

    :ivar longest: seconds that the slowest of them took.
    :ivar idle: seconds by which the machine at most prolonged a pause between two of them: it has other work, too.
    """

    def __init__(self, consumer: socket.socket, producer: socket.socket) -> None:
        self._ends = consumer, producer
        self.over = threading.Event()
        self.longest = 0.0
        self.idle = 0.0

    def is_fluent(self) -> bool:
        """Return whether no message was delayed by more than the machine explains."""
        return self.longest < SLOW + 2 * self.idle

    def go_on(self) -> None:
        consumer, producer = self._ends
        while not self.over.is_set():
            begun = time.monotonic()
            consumer.sendall(b"ping")
            assert receive_exactly(producer, 4) == b"ping"
            answered = time.monotonic()
            self.longest = max(self.longest, answered - begun)
            time.sleep(PAUSE)
            self.idle = max(self.idle, time.monotonic() - answered - PAUSE)

    def until_done(self, job: Callable[[], object]) -> Callable[[], object]:
        """Return a job that runs `job`, and then ends the talk."""

        def run() -> object:
            try:
                return job()
            finally:
                self.over.set()

        return run


def hello_of(stream: Stream, size: int) -> bytes:
    """Return the first handshake message of a consumer's gateway, with `size` bytes of extensions, at most 65,535."""
    context = stream.cons.secret.credentials(stream.bundles[CONS], stream.uid, CONS).context()
    connection = SSL.Connection(context, None)
    connection.set_tlsext_host_name(server_name(stream.uid, 0).encode())
    connection.set_connect_state()
    with contextlib.suppress(SSL.WantReadError):
        connection.do_handshake()
    hello = connection.bio_read(65536)[5 + 4 :]  # after the headers of the record and of the message
    at = 2 + 32  # version and random; then the session, the ciphers and the compressions, each after its length
    at += 1 + hello[at]
    at += 2 + int.from_bytes(hello[at : at + 2])
    at += 1 + hello[at]
    extensions = hello[at + 2 :]
    padding = size - 4 - len(extensions)
    extensions = struct.pack("!HH", 21, padding) + bytes(padding) + extensions
    whole = hello[:at] + struct.pack("!H", len(extensions)) + extensions
    return b"\x01" + len(whole).to_bytes(3) + whole


def cut(message: bytes, size: int) -> bytes:
    """Return a handshake message in records of `size` bytes."""
    parts = [message[at : at + size] for at in range(0, len(message), size)]
    return b"".join(struct.pack("!BHH", HANDSHAKE, 0x0301, len(part)) + part for part in parts)


@pytest_twisted.ensureDeferred
async def test_a_handshake_in_records_of_one_byte_is_refused_at_once_and_another_stream_goes_on(make: Make) -> None:
    attacked, other = make(), make()
    talk = Talk(*await other.pair())
    flood = cut(hello_of(attacked, 10_000), 1)

    def attack() -> None:
        for _ in range(5):
            with socket.create_connection(attacked.prod.address(), timeout=20) as sock:
                push(sock, flood)
                assert how_it_ends(sock) == "reset"

    await both(talk.until_done(attack), talk.go_on)
    assert talk.is_fluent(), f"{talk.longest} s, and the machine {talk.idle} s"
    await attacked.until(lambda: attacked.prod.reasons != [])
    assert "sent too many TLS records in its handshake" in attacked.prod.reasons[0]
    assert attacked.prod.figures().reset == 5


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("size", [16384, 512])
async def test_a_long_handshake_in_records_of_a_usual_size_is_answered(make: Make, size: int) -> None:
    stream = make()

    def answer() -> bytes:
        with socket.create_connection(stream.prod.address(), timeout=20) as sock:
            sock.sendall(cut(hello_of(stream, 16_000), size))
            return receive_exactly(sock, 6)

    (answered,) = await both(answer)
    assert (answered[0], answered[5]) == (HANDSHAKE, 2), "a ServerHello"


@pytest_twisted.ensureDeferred
async def test_a_handshake_of_too_many_bytes_is_refused_and_openssl_gets_no_more_of_them(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [0]

    def give_input(connection: SSL.Connection, data: bytes) -> None:
        given[0] += len(data)
        pass_on(connection, data)

    pass_on = openssl.give_input
    monkeypatch.setattr(openssl, "give_input", give_input)
    stream = make(ready=0)

    def attack() -> None:
        with socket.create_connection(stream.prod.address(), timeout=20) as sock:
            push(sock, cut(hello_of(stream, 65535), 16384))
            assert how_it_ends(sock) == "reset"

    await both(attack)
    await stream.until(lambda: stream.prod.reasons != [])
    assert "sent more than 16384 bytes in its handshake" in stream.prod.reasons[0]
    assert given[0] == MOST_BYTES


@pytest_twisted.ensureDeferred
async def test_what_follows_a_handshake_at_once_arrives_whole_in_pieces_of_any_size(make: Make) -> None:
    stream = make()
    context = stream.cons.secret.credentials(stream.bundles[CONS], stream.uid, CONS).context()
    data = os.urandom(200_000)

    def talk(piece: int) -> None:
        with socket.create_connection(stream.prod.address(), timeout=20) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = SSL.Connection(context, None)
            connection.set_tlsext_host_name(server_name(stream.uid, 0).encode())
            connection.set_connect_state()
            is_agreed = False
            while not is_agreed:
                try:
                    connection.do_handshake()
                    is_agreed = True
                except SSL.WantReadError:
                    pass
                if is_agreed:
                    connection.send(encode_connect(Connect(uid=stream.uid, channel=0)) + data[:16000])
                with contextlib.suppress(SSL.WantReadError):
                    while sealed := connection.bio_read(2**20):
                        for at in range(0, len(sealed), piece):
                            sock.sendall(sealed[at : at + piece])
                if not is_agreed:
                    connection.bio_write(sock.recv(65536))
            assert arrived.wait(20), "not all of it has come to the producer"

    for piece in (1, 7, 4096, 2**20):
        arrived = threading.Event()
        job = deferToThread(talk, piece)
        producer = await deferToThread(stream.accept)
        assert await deferToThread(receive_exactly, producer, 16000) == data[:16000]
        arrived.set()
        await job


def push(sock: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):
        sock.sendall(data)


@pytest_twisted.ensureDeferred
async def test_a_flood_of_key_updates_is_reset_and_another_stream_goes_on(make: Make) -> None:
    attacked, other = make(), make()
    client, producer = await hostile(attacked)
    # In a thread, since the reactor of this process must do the handshakes of the other stream in time.
    flood = await deferToThread(lambda: b"".join(client.key_update() for _ in range(200_000)))
    talk = Talk(*await other.pair())
    await both(talk.until_done(lambda: push(client.sock, flood)), talk.go_on)
    assert await deferToThread(how_it_ends, producer) == "reset"
    await attacked.until(lambda: attacked.prod.figures().reset == 1)
    await attacked.until(lambda: attacked.prod.reasons != [])
    assert "TLS records without data" in attacked.prod.reasons[0]
    assert talk.is_fluent(), f"{talk.longest} s, and the machine {talk.idle} s"


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
    assert talk.is_fluent(), f"{talk.longest} s, and the machine {talk.idle} s"


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
    assert talk.is_fluent(), f"{talk.longest} s, and the machine {talk.idle} s"


# -- a far gateway of the producer, at which a consumer's gateway is the client


async def hostile_producer(stream: Stream) -> tuple[RecordServer, socket.socket]:
    """Run a false producer's gateway with a stream's credentials; return it and ConsApp's end of the connection."""
    await stream.ready()
    context = stream.prod.secret.credentials(stream.bundles[PROD], stream.uid, PROD).context()
    listener = stream._keep(socket.create_server(("127.0.0.1", 0)))
    stream.cons.arm(stream.bundles[CONS], [Address(*listener.getsockname())])

    def serve() -> RecordServer:
        server = RecordServer(stream._keep(listener.accept()[0]), context)
        server.sock.sendall(server.seal(APPLICATION_DATA, accepted(stream.uid)))
        return server

    server, consumer = await both(serve, stream.connect)
    return server, consumer


MANY = 50_000
TICKETS_IN_A_RECORD = 16000 // len(NEW_SESSION_TICKET)
FLOODS: dict[str, Callable[[RecordServer], bytes]] = {
    "tickets": lambda far: b"".join(far.seal(HANDSHAKE, NEW_SESSION_TICKET) for _ in range(MANY)),
    "tickets, many in a record": lambda far: b"".join(
        far.seal(HANDSHAKE, NEW_SESSION_TICKET * TICKETS_IN_A_RECORD) for _ in range(MANY // 100)
    ),
    "key updates": lambda far: b"".join(far.key_update() for _ in range(MANY)),
    "key updates of both ends": lambda far: b"".join(far.key_update(KEY_UPDATE_OF_BOTH) for _ in range(MANY)),
    "records of no bytes": lambda far: b"".join(far.seal(APPLICATION_DATA, b"") for _ in range(MANY)),
}


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("kind", FLOODS)
async def test_a_flood_from_a_producer_s_gateway_is_reset_and_another_stream_goes_on(make: Make, kind: str) -> None:
    attacked, other = make(ready=0), make()
    server, consumer = await hostile_producer(attacked)
    flood = await deferToThread(FLOODS[kind], server)
    talk = Talk(*await other.pair())
    await both(talk.until_done(lambda: push(server.sock, flood)), talk.go_on)
    assert await deferToThread(how_it_ends, consumer) == "reset"
    await attacked.until(lambda: attacked.cons.figures().reset == 1)
    await attacked.until(lambda: attacked.cons.reasons != [])
    by_openssl = kind == "records of no bytes"  # of which it takes no more than 32 in a row by itself
    assert ("record too small" if by_openssl else "TLS records without data") in attacked.cons.reasons[0]
    assert talk.is_fluent(), f"{talk.longest} s, and the machine {talk.idle} s"


@pytest_twisted.ensureDeferred
async def test_some_tickets_and_key_updates_of_a_producer_s_gateway_leave_every_byte_whole(make: Make) -> None:
    server, consumer = await hostile_producer(make(ready=0))
    data = os.urandom(100_000)
    sent = b""
    for start in range(0, len(data), 10_000):
        sent += server.seal(HANDSHAKE, NEW_SESSION_TICKET) + server.key_update(KEY_UPDATE_OF_BOTH)
        sent += server.seal(APPLICATION_DATA, data[start : start + 10_000])
    await deferToThread(server.sock.sendall, sent)
    assert await deferToThread(receive_exactly, consumer, len(data)) == data

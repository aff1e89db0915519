"""Networks of other gateways that are taken away: what is ready or being opened to them ends, relays go on."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
import pytest_twisted
from gateways import PATIENCE, Make, both, set_networks
from twisted.internet.threads import deferToThread

from scistream.protocol.address import Address
from scistream.protocol.messages import CONS
from scistream.s2ds.relay.wan import OUTSIDE
from support.applications import MIB, how_it_ends, receive_digest, receive_exactly, send

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="gateways run on Linux")

ELSEWHERE = ["192.0.2.0/24"]
LONG = 600.0


@contextmanager
def silent_gateway() -> Iterator[tuple[Address, socket.socket]]:
    """Listen as a gateway that never answers; yield its address and its socket."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE)
        yield Address(*listener.getsockname()), listener


def end_of_handshake(listener: socket.socket) -> str:
    """Return how the next connection ends after the first bytes of its handshake."""
    with listener.accept()[0] as sock:
        sock.settimeout(PATIENCE)
        return how_it_ends(sock)


@pytest_twisted.ensureDeferred
async def test_handshakes_of_connections_that_were_to_be_ready_end(make: Make) -> None:
    stream = make(ready=2, handshake_timeout=LONG)
    with silent_gateway() as (address, listener):
        stream.cons.arm(stream.bundles[CONS], [address])
        ends = [deferToThread(end_of_handshake, listener) for _ in range(2)]
        channel = stream.cons.channel()
        await stream.until(lambda: len([wan for wan in channel._opening if wan._leg is not None]) == 2)
        set_networks(stream.cons.elements, ELSEWHERE)
        assert [await end for end in ends] == ["reset", "reset"]
        assert not channel._opening


@pytest_twisted.ensureDeferred
async def test_a_consumer_whose_connection_is_being_opened_is_reset_and_told(make: Make) -> None:
    stream = make(ready=0, handshake_timeout=LONG)
    with silent_gateway() as (address, listener):
        stream.cons.arm(stream.bundles[CONS], [address])
        consumer = await deferToThread(stream.connect)
        far_end = deferToThread(end_of_handshake, listener)
        await stream.until(lambda: any(relay._dialling and relay._dialling._leg for relay in stream.cons.relays()))
        set_networks(stream.cons.elements, ELSEWHERE)
        assert await far_end == "reset"
        assert await deferToThread(how_it_ends, consumer) == "reset"
    await stream.until(lambda: OUTSIDE in stream.cons.reasons)


@pytest_twisted.ensureDeferred
async def test_connections_that_arrive_and_are_not_verified_are_reset_and_told(make: Make) -> None:
    stream = make(ready=0, handshake_timeout=LONG)
    stranger = socket.create_connection(stream.prod.address(), timeout=PATIENCE)
    await stream.until(lambda: stream.prod.figures().connections == 1)
    set_networks(stream.prod.elements, ELSEWHERE)
    assert await deferToThread(how_it_ends, stranger) == "reset"
    stranger.close()
    await stream.until(lambda: stream.prod.figures().connections == 0)
    await stream.until(lambda: OUTSIDE in stream.prod.reasons)


@pytest_twisted.ensureDeferred
async def test_connections_that_carry_bytes_go_on(make: Make) -> None:
    stream = make(ready=1)
    consumer, producer = await stream.pair()
    for side in (stream.cons, stream.prod):
        set_networks(side.elements, ELSEWHERE)
    await stream.until(lambda: not stream.cons.figures().ready and not stream.prod.figures().ready)

    def talk() -> str:
        digest = send(consumer, 4 * MIB)
        consumer.shutdown(socket.SHUT_WR)
        return digest

    sent, received = await both(talk, lambda: receive_digest(producer))
    assert received == (4 * MIB, sent)


def copy(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        for sock in (source, sink):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)  # also for the thread that reads there


@contextmanager
def proxy() -> Iterator[Address]:
    """Run an HTTP proxy to which every address is this machine; yield its address."""
    opened: list[socket.socket] = []

    def serve(near: socket.socket) -> None:
        request = b""
        while not request.endswith(b"\r\n\r\n"):
            request += near.recv(1)
        target = Address.parse(request.split()[1].decode())
        far = socket.create_connection(("127.0.0.1", target.port), timeout=PATIENCE)
        opened.append(far)
        near.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        threading.Thread(target=copy, args=(near, far), daemon=True).start()
        copy(far, near)

    def run(listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            opened.append(near)
            threading.Thread(target=serve, args=(near,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=run, args=(listener,), daemon=True).start()
        try:
            yield Address(*listener.getsockname())
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            for sock in opened:
                sock.close()


@pytest_twisted.ensureDeferred
async def test_behind_a_proxy_the_address_of_the_gateway_counts_and_not_that_of_the_proxy(make: Make) -> None:
    with proxy() as address:
        stream = make(ready=2, proxy=str(address))
        await stream.until(lambda: stream.prod.figures().ready == stream.cons.figures().ready == 2)
        set_networks(stream.cons.elements, ["127.0.0.0/16"])
        consumer, producer = await stream.pair()  # the gateway is inside
        producer.sendall(b"hello")
        assert await deferToThread(receive_exactly, consumer, 5) == b"hello"
        set_networks(stream.cons.elements, ["127.0.0.0/8"])
        stream.cons.arm(stream.bundles[CONS], [Address("127.9.9.9", stream.prod.address().port)])
        await stream.until(lambda: stream.prod.figures().ready == stream.cons.figures().ready == 2)
        set_networks(stream.cons.elements, ["127.0.0.0/16"])
        await stream.until(lambda: not stream.prod.figures().ready and not stream.cons.figures().ready)
        assert await deferToThread(stream.attempt) == "reset"

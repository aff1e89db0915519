"""Ready connections over a WAN of 100 ms: applications notice nothing of them but the time that they save."""

from __future__ import annotations

import hashlib
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager

import pytest
from counting_server import CountingServer, Serve, answer_with_digest, digest_of, echo, is_answered
from testbed import Testbed
from testbed_facilities import Facilities

from scistream.protocol.address import Address
from support.applications import how_it_ends, noise, receive, receive_exactly, sha256
from support.waiting import PATIENCE, until

ROUND_TRIP = 0.1
LOSSES = ("0", "0.5%")
DATA = noise(300_000)


@contextmanager
def far_apart(
    testbed: Testbed, facilities: Facilities, serve: Serve, loss: str = "0"
) -> Iterator[tuple[CountingServer, Address]]:
    """Request a stream to a server, both over a WAN of 100 ms; yield the server and where consumers connect."""
    with CountingServer(testbed, serve) as server, facilities.stream([server.address]) as stream:
        testbed.wan(("pgw", "cgw"), delay=f"{ROUND_TRIP / 2}s", loss=loss)
        yield server, stream.listeners[0]
        testbed.wan(clear=True)
    assert server.problems == []


def connect(testbed: Testbed, listener: Address) -> socket.socket:
    return testbed.connect("clan", listener.host, listener.port)


def seconds_to_first_byte(testbed: Testbed, listener: Address) -> float:
    """Open a connection and send a byte; return the time until a byte comes back."""
    began = time.monotonic()
    with closing(connect(testbed, listener)) as consumer:
        consumer.sendall(b"?")
        receive_exactly(consumer, 1)
        return time.monotonic() - began


def digest_of_bytes(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


# One connection


@pytest.mark.parametrize(
    "count", [5, pytest.param(100, marks=pytest.mark.long)], ids=["a few", "100 opened one a second"]
)
def test_the_first_byte_of_a_new_connection_is_back_after_one_round_trip(
    wan: Testbed, facilities: Facilities, count: int
) -> None:
    with far_apart(wan, facilities, echo) as (server, listener):
        taken = []
        for _ in range(count):
            time.sleep(1.0)  # as people do; it is not waited for anything
            taken.append(seconds_to_first_byte(wan, listener))
        assert server.accepted == count
    assert ROUND_TRIP <= statistics.median(taken) < 0.115


@pytest.mark.parametrize("loss", LOSSES)
def test_a_server_speaks_first(wan: Testbed, facilities: Facilities, loss: str) -> None:
    heard: list[bytes] = []

    def greet(sock: socket.socket) -> None:
        sock.sendall(DATA)
        heard.append(digest_of(sock))

    with far_apart(wan, facilities, greet, loss) as (server, listener):
        with closing(connect(wan, listener)) as consumer:
            assert sha256(receive_exactly(consumer, len(DATA))) == sha256(DATA)
            consumer.sendall(b"thanks")
            consumer.shutdown(socket.SHUT_WR)
            assert consumer.recv(1) == b""
        assert heard == [digest_of_bytes(b"thanks")]
        assert server.accepted == 1


@pytest.mark.parametrize("loss", LOSSES)
def test_either_side_ends_its_direction_and_the_other_one_goes_on(
    wan: Testbed, facilities: Facilities, loss: str
) -> None:
    heard: list[bytes] = []

    def end_first(sock: socket.socket) -> None:
        sock.sendall(DATA)
        sock.shutdown(socket.SHUT_WR)
        heard.append(digest_of(sock))

    with far_apart(wan, facilities, end_first, loss) as (server, listener):
        with closing(connect(wan, listener)) as consumer:
            assert sha256(receive(consumer)) == sha256(DATA)
            consumer.sendall(DATA[::-1])  # ProdApp has ended its direction
            consumer.shutdown(socket.SHUT_WR)
            until(lambda: heard, lambda: "ProdApp has not seen the end")
        assert heard == [digest_of_bytes(DATA[::-1])]
        assert server.accepted == 1
    with far_apart(wan, facilities, answer_with_digest, loss) as (server, listener):
        with closing(connect(wan, listener)) as consumer:
            assert is_answered(consumer, 300_000, 1)
        assert server.accepted == 1


def test_a_connection_without_a_byte_reaches_the_producer_and_ends(wan: Testbed, facilities: Facilities) -> None:
    heard: list[bytes] = []
    with far_apart(wan, facilities, lambda sock: heard.append(digest_of(sock))) as (server, listener):
        with closing(connect(wan, listener)) as consumer:
            consumer.shutdown(socket.SHUT_WR)
            assert consumer.recv(1) == b""
        assert heard == [digest_of_bytes(b"")]
        connect(wan, listener).close()  # at once
        until(lambda: len(heard) == 2, lambda: f"ProdApp has seen {len(heard)} connections end")
        assert heard == [digest_of_bytes(b"")] * 2
        assert server.accepted == 2


# Many


def test_300_connections_at_one_moment_reach_the_producer_once_each(wan: Testbed, facilities: Facilities) -> None:
    count = 300
    begin = threading.Barrier(count)

    def one(number: int) -> bool:
        begin.wait(PATIENCE)
        with closing(connect(wan, listener)) as consumer:
            return is_answered(consumer, 2000 + number, number)

    with (
        far_apart(wan, facilities, answer_with_digest, "0.05%") as (server, listener),
        ThreadPoolExecutor(count) as pool,
    ):
        assert all(pool.map(one, range(count)))
        assert server.accepted == count


@pytest.mark.parametrize("count", [1000, pytest.param(10_000, marks=pytest.mark.long)])
def test_of_many_short_connections_the_producer_sees_each_once_and_no_other(
    wan: Testbed, facilities: Facilities, count: int
) -> None:
    def one(number: int) -> bool:
        with closing(connect(wan, listener)) as consumer:
            return is_answered(consumer, number % 100, number)

    with (
        far_apart(wan, facilities, answer_with_digest, "0.05%") as (server, listener),
        ThreadPoolExecutor(32) as pool,
    ):
        assert all(pool.map(one, range(count)))
        assert server.accepted == count


# A producer that comes and goes


def test_while_the_program_is_away_consumers_are_reset_and_when_it_is_back_they_are_served(
    wan: Testbed, facilities: Facilities
) -> None:
    with far_apart(wan, facilities, answer_with_digest) as (server, listener):
        with closing(connect(wan, listener)) as consumer:
            assert is_answered(consumer, 5000, 1)
        server.stop()
        for _ in range(3):
            with closing(connect(wan, listener)) as consumer:
                assert how_it_ends(consumer) == "reset"
        with CountingServer(wan, answer_with_digest, server.address.port) as back:
            with closing(connect(wan, listener)) as consumer:
                assert is_answered(consumer, 5000, 2)
            assert back.accepted == 1
        assert server.accepted == 1

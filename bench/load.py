"""The applications at both ends of a path, except for iperf3.

``python -m bench.load ROLE ARGUMENT ...``: servers run until they are killed, clients print one JSON object. They use
plain blocking sockets, so that the path is measured and not the application. Nothing of SciStream is imported.
"""

from __future__ import annotations

import json
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import Any

from bench.arrivals import BYTES_PER_MBIT, Receiver, burst_of

HOST = "127.0.0.1"
TRIP = bytes(range(64))
WARM_UP = 300
"""Round trips before those that are measured."""
HELD = bytes(16384)
"""The data that each held connection passes in each direction: one full TLS record."""
SMALL = 65536
"""The socket buffers of the applications in bytes, for connections that nobody reads."""
OPENERS = 16
"""Connections that are opened concurrently."""
AT_START = 0.5
"""Seconds from the first byte that do not count for a rate: what came at once is in them."""
PATIENCE = 60.0
"""Seconds without an answer after which a path counts as broken."""


def serve_trips(port: int) -> None:
    """Echo, one connection at a time, without epoll."""
    with _listening(port) as listener:
        while True:
            connection, _ = listener.accept()
            with connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                try:
                    while data := connection.recv(65536):
                        connection.sendall(data)
                except ConnectionError:
                    continue


def serve_many(port: int, host: str = HOST) -> None:
    """Echo, for thousands of connections at the same time."""
    _raise_descriptor_limit()
    open_ones: dict[int, socket.socket] = {}
    with _listening(port, host) as listener, select.epoll() as poll:
        listener.setblocking(False)
        poll.register(listener, select.EPOLLIN)
        while True:
            for fd, _ in poll.poll():
                if fd == listener.fileno():
                    _accept_all(listener, poll, open_ones)
                elif not _echo(open_ones[fd]):
                    open_ones.pop(fd).close()


def _accept_all(listener: socket.socket, poll: select.epoll, open_ones: dict[int, socket.socket]) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            return
        connection.setblocking(True)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        open_ones[connection.fileno()] = connection
        poll.register(connection, select.EPOLLIN)


def _echo(connection: socket.socket) -> bool:
    """Send back the data that has arrived; return False at the end of the connection."""
    try:
        data = connection.recv(65536)
        connection.sendall(data)
    except ConnectionError:
        return False
    return bool(data)


def serve_flood(port: int) -> None:
    """Send to each connection as long as it takes data."""
    _raise_descriptor_limit()
    open_ones: dict[int, socket.socket] = {}
    chunk = bytes(SMALL)
    with _listening(port) as listener, select.epoll() as poll:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)  # inherited by accepted connections
        listener.setblocking(False)
        poll.register(listener, select.EPOLLIN)
        while True:
            for fd, _ in poll.poll():
                if fd == listener.fileno():
                    with suppress(BlockingIOError):
                        connection, _ = listener.accept()
                        connection.setblocking(False)
                        open_ones[connection.fileno()] = connection
                        poll.register(connection, select.EPOLLOUT)
                    continue
                try:
                    open_ones[fd].send(chunk)
                except BlockingIOError:
                    pass
                except ConnectionError:
                    open_ones.pop(fd).close()


def trips(port: int, count: int) -> dict[str, float]:
    """Measure round trips of 64 bytes over one connection: the median and the 99th percentile, in microseconds."""
    with _connected(port) as connection:
        for _ in range(WARM_UP):
            _one_trip(connection)
        return _percentiles([_one_trip(connection) for _ in range(count)])


def trips_for(port: int, seconds: float) -> dict[str, float]:
    """Measure round trips as long as `seconds`, after a quarter of that time in which they are not counted."""
    with _connected(port) as connection:
        _trips_until(connection, time.monotonic() + seconds / 4)
        return _percentiles(_trips_until(connection, time.monotonic() + seconds))


def _trips_until(connection: socket.socket, end: float) -> list[int]:
    taken = [_one_trip(connection)]
    while time.monotonic() < end:
        taken.append(_one_trip(connection))
    return taken


def _percentiles(taken: list[int]) -> dict[str, float]:
    ordered, count = sorted(taken), len(taken)
    return {"p50_us": ordered[count // 2] / 1000, "p99_us": ordered[count * 99 // 100] / 1000, "count": count}


def _one_trip(connection: socket.socket) -> int:
    began = time.perf_counter_ns()
    connection.sendall(TRIP)
    _receive(connection, len(TRIP))
    return time.perf_counter_ns() - began


def connects(port: int, seconds: float, workers: int) -> dict[str, float]:
    """Measure how many connections per second `workers` threads make, each with a byte in both directions."""
    until = time.monotonic() + seconds

    def work(_number: int) -> int:
        count = 0
        while True:
            with _connected(port) as connection:
                connection.sendall(b"?")
                _receive(connection, 1)
            if time.monotonic() > until:
                return count
            count += 1

    with ThreadPoolExecutor(workers) as pool:
        count = sum(pool.map(work, range(workers)))
    return {"per_second": count / seconds, "count": count}


def first_bytes(count: int, interval: float, *addresses: str) -> dict[str, list[float]]:
    """Open `count` connections to each address, one every `interval` seconds, the addresses in turn.

    :returns: for each address, the milliseconds from the start of each connection to the first byte that comes back.
    """
    began = time.monotonic()

    def work(number: int) -> list[float]:
        taken = []
        for turn in range(count):
            time.sleep(max(0.0, began + interval * (turn + number / len(addresses)) - time.monotonic()))
            taken.append(_first_byte(addresses[number]))
        return taken

    with ThreadPoolExecutor(len(addresses)) as pool:
        return dict(zip(addresses, pool.map(work, range(len(addresses))), strict=True))


def _first_byte(address: str) -> float:
    host, _, port = address.rpartition(":")
    began = time.perf_counter()
    with _connected(int(port), host) as connection:
        connection.sendall(b"?")
        _receive(connection, 1)
        return 1000 * (time.perf_counter() - began)


def arrivals(port: int, count: int, rate: float, seconds: float) -> dict[str, float]:
    """Receive over `count` connections for some seconds.

    :param rate: of the stream, in Mbit/s.
    :returns: the rate after the first half second, and how far any window of time is above `rate`.
    """
    with ExitStack() as opened:
        receiver = Receiver([opened.enter_context(_connected(port)) for _ in range(count)])
        receiver.run(seconds)
    found = sorted(receiver.arrivals)
    begin, end = found[0][0] + AT_START, found[0][0] + seconds
    total = sum(size for when, size in found if begin < when <= end)
    return {
        "rate": total / BYTES_PER_MBIT / (seconds - AT_START),
        "burst_ms": 1000 * burst_of(found, rate),
    }


def hold(port: int, count: int) -> dict[str, float]:
    """Open `count` connections, print "held", and keep them until SIGUSR1; each passes data before and after."""
    _raise_descriptor_limit()
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    with ThreadPoolExecutor(OPENERS) as pool:
        held = list(pool.map(lambda _: _pass_data(_connected(port)), range(count)))
        print(json.dumps({"held": count}), flush=True)
        signal.sigwait([signal.SIGUSR1])
        list(pool.map(_pass_data, held))
    for connection in held:
        connection.close()
    return {"passed_data": count}


def stall(port: int, count: int, read: int) -> dict[str, float]:
    """Open `count` connections, read `read` bytes from each, print "held", and close them on SIGUSR1."""
    _raise_descriptor_limit()
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])

    def begin(_number: int) -> socket.socket:
        connection = socket.socket()
        connection.settimeout(PATIENCE)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
        connection.connect((HOST, port))
        _receive(connection, read)
        return connection

    with ThreadPoolExecutor(OPENERS) as pool:
        held = list(pool.map(begin, range(count)))
    print(json.dumps({"held": count}), flush=True)
    signal.sigwait([signal.SIGUSR1])
    for connection in held:
        connection.close()
    return {"ended": count}


def _pass_data(connection: socket.socket) -> socket.socket:
    connection.sendall(HELD)
    _receive(connection, len(HELD))
    return connection


def _connected(port: int, host: str = HOST) -> socket.socket:
    connection = socket.create_connection((host, port), timeout=PATIENCE)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _receive(connection: socket.socket, count: int) -> None:
    while count:
        data = connection.recv(count)
        if not data:
            raise ConnectionError("the connection ended before the answer")
        count -= len(data)


def _listening(port: int, host: str = HOST) -> socket.socket:
    return socket.create_server((host, port), backlog=4096)


def _raise_descriptor_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


ROLES: dict[str, tuple[Callable[..., Any], tuple[Callable[[str], Any], ...]]] = {
    "serve-trips": (serve_trips, (int,)),
    "serve-many": (serve_many, (int,)),
    "serve-many-at": (serve_many, (int, str)),
    "serve-flood": (serve_flood, (int,)),
    "trips": (trips, (int, int)),
    "trips-for": (trips_for, (int, float)),
    "connects": (connects, (int, float, int)),
    "arrivals": (arrivals, (int, int, float, float)),
    "hold": (hold, (int, int)),
    "stall": (stall, (int, int, int)),
}


def main(arguments: list[str]) -> None:
    """Play the role that the first argument names."""
    if arguments[0] == "first-bytes":
        count, interval, *addresses = arguments[1:]
        result = first_bytes(int(count), float(interval), *addresses)
    else:
        play, kinds = ROLES[arguments[0]]
        result = play(*(kind(text) for kind, text in zip(kinds, arguments[1:], strict=True)))
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1:])

"""A ProdApp in the test's own process that counts the connections it gets, and does with each what a test says."""

from __future__ import annotations

import hashlib
import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress

from testbed import Testbed

from scistream.protocol.address import Address
from support.applications import MIB, noise
from support.waiting import PATIENCE

Serve = Callable[[socket.socket], None]
"""Serves one connection, in a thread of its own. It is closed afterwards."""


def digest_of(sock: socket.socket) -> bytes:
    """Return the SHA-256 of everything that comes until the other side ends its direction."""
    digest = hashlib.sha256()
    while part := sock.recv(MIB):
        digest.update(part)
    return digest.digest()


def answer_with_digest(sock: socket.socket) -> None:
    """Send the SHA-256 of everything that has come, once the other side has ended its direction."""
    sock.sendall(digest_of(sock))


def echo(sock: socket.socket) -> None:
    """Send back what comes."""
    while part := sock.recv(MIB):
        sock.sendall(part)


def is_answered(sock: socket.socket, count: int, seed: int) -> bool:
    """Send `count` bytes, end the direction, and return True if their SHA-256 comes back and then the end."""
    data = noise(count, seed)
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)
    answer = b""
    while part := sock.recv(MIB):
        answer += part
    return answer == hashlib.sha256(data).digest()


BACKLOG = 512


class CountingServer:
    """A server on the producer's LAN. As a context manager: it listens while that lasts.

    :param port: 0 for a free one.
    :ivar accepted: how many connections it has accepted.
    :ivar problems: what has gone wrong while it served them.
    """

    def __init__(self, testbed: Testbed, serve: Serve, port: int = 0) -> None:
        self.accepted = 0
        self.problems: list[Exception] = []
        self._serve = serve
        self._listener = testbed.listen("plan", testbed.v4.plan, port, BACKLOG)
        self._listener.settimeout(None)
        self.address = Address(*self._listener.getsockname()[:2])
        self._threads: list[threading.Thread] = []
        self._acceptor = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> CountingServer:
        self._acceptor.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Listen no more, and wait until every connection has been served. Idempotent."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # which ends accept()
        self._acceptor.join(PATIENCE)
        self._listener.close()
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive(), "a connection has not ended"

    def _accept(self) -> None:
        with suppress(OSError):  # it is closed
            while True:
                sock, _ = self._listener.accept()
                self.accepted += 1
                self._threads = [thread for thread in self._threads if thread.is_alive()]
                thread = threading.Thread(target=self._one, args=(sock,), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _one(self, sock: socket.socket) -> None:
        with ExitStack() as closing:
            closing.enter_context(sock)
            sock.settimeout(PATIENCE)
            try:
                self._serve(sock)
            except Exception as problem:
                self.problems.append(problem)

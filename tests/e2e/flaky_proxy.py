"""A relay for control links that cuts them at random, like an unreliable network."""

from __future__ import annotations

import random
import selectors
import socket
import threading
import time
from contextlib import suppress
from types import TracebackType

from scistream.protocol.address import Address
from support.applications import address_of
from support.facilities import HOST
from support.waiting import PATIENCE

_PART = 64 * 1024


class Cutter:
    """A relay at `address` to a server, which cuts all open connections at random instants.

    Use it as a context manager.

    :param server: the address to which it relays.
    :param between: the shortest and the longest time between two cuts, in seconds.
    """

    def __init__(self, server: Address, between: tuple[float, float], chance: random.Random) -> None:
        self._server = server
        self._between = between
        self._chance = chance
        self._listener = socket.create_server((HOST, 0))
        self._listener.setblocking(False)
        self.address = address_of(self._listener)
        self._cuts = 0
        self._partner: dict[socket.socket, socket.socket] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Cutter:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join(PATIENCE)

    def has_cut(self) -> bool:
        """Return True if any connection has been cut so far."""
        return self._cuts > 0

    # In the thread

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            next_cut = self._next_cut()
            while not self._over.is_set():
                for key, _ in selector.select(max(0.0, min(0.05, next_cut - time.monotonic()))):
                    if key.fileobj is self._listener:
                        self._accept(selector)
                    elif key.fileobj in self._partner:
                        self._relay(selector, key.fileobj)
                if time.monotonic() >= next_cut:
                    self._cut(selector)
                    next_cut = self._next_cut()
            self._cut(selector)
        self._listener.close()

    def _next_cut(self) -> float:
        return time.monotonic() + self._chance.uniform(*self._between)

    def _accept(self, selector: selectors.BaseSelector) -> None:
        with suppress(OSError):
            near, _ = self._listener.accept()
            try:
                far = socket.create_connection((self._server.host, self._server.port), timeout=PATIENCE)
            except OSError:
                near.close()
                return
            self._partner[near], self._partner[far] = far, near
            selector.register(near, selectors.EVENT_READ)
            selector.register(far, selectors.EVENT_READ)

    def _relay(self, selector: selectors.BaseSelector, sock: socket.socket) -> None:
        part = b""
        with suppress(OSError):
            part = sock.recv(_PART)
            self._partner[sock].sendall(part)
        if not part:
            self._close(selector, sock)

    def _cut(self, selector: selectors.BaseSelector) -> None:
        self._cuts += bool(self._partner)
        while self._partner:
            self._close(selector, next(iter(self._partner)))

    def _close(self, selector: selectors.BaseSelector, sock: socket.socket) -> None:
        for one in (sock, self._partner[sock]):
            selector.unregister(one)
            del self._partner[one]
            one.close()

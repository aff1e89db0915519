"""A service manager for tests: it receives the notifications of a daemon, as systemd does."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from support.waiting import PATIENCE


class Notifications:
    """What one daemon has notified."""

    def __init__(self, sock: socket.socket, address: str) -> None:
        self._sock = sock
        self.address = address

    def next(self, timeout: float = PATIENCE) -> dict[str, str]:
        """Return the fields of the next notification."""
        self._sock.settimeout(timeout)
        lines = self._sock.recv(65536).decode().splitlines()
        return dict(line.split("=", 1) for line in lines)

    def until(self, wanted: str) -> dict[str, str]:
        """Return the next notification with a field, and drop those before it."""
        return self.first(lambda fields: wanted in fields)

    def first(self, wanted: Callable[[dict[str, str]], bool]) -> dict[str, str]:
        """Return the next notification that is wanted, and drop those before it."""
        while True:
            fields = self.next()
            if wanted(fields):
                return fields

    def is_silent(self) -> bool:
        """Return True if no notification is waiting."""
        self._sock.setblocking(False)
        try:
            self._sock.recv(65536)
        except BlockingIOError:
            return True
        return False


@contextmanager
def listening(address: str | Path) -> Iterator[Notifications]:
    """Receive notifications.

    :param address: a path, or the name of an abstract socket that begins with ``@``, as in NOTIFY_SOCKET.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        text = str(address)
        sock.bind(f"\0{text[1:]}" if text.startswith("@") else text)
        yield Notifications(sock, text)

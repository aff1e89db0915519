"""Sockets that systemd has opened for this process: socket activation, as sd_listen_fds(3) describes."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path

from scistream.protocol.address import Address

_FIRST = 3
"""The first descriptor that systemd passes."""


def first_environment() -> dict[str, str]:
    """Return the environment with which this process was started, before any module has changed it.

    Twisted takes the variables of systemd out of `os.environ` for endpoints of its own when they are imported.
    Call this before `keep_secrets`, which hides that environment. If it is hidden, return the current one.
    """
    try:
        entries = Path("/proc/self/environ").read_bytes().split(b"\0")
    except OSError:
        return dict(os.environ)
    return dict(os.fsdecode(entry).split("=", 1) for entry in entries if b"=" in entry)


class InheritedSockets:
    """The listening TCP sockets that this process has inherited. They stay open as long as the process.

    :param sockets: listening TCP sockets.
    """

    def __init__(self, sockets: Iterable[socket.socket] = ()) -> None:
        self._sockets = {_key(Address(*sock.getsockname()[:2])): sock for sock in sockets}

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> InheritedSockets:
        """Take the sockets that ``LISTEN_FDS`` announces, if ``LISTEN_PID`` is this process.

        Programs that this process starts do not get them.

        :raises ValueError: naming the socket, if one of them is not a listening TCP socket.
        """
        count = environ.get("LISTEN_FDS", "")
        if environ.get("LISTEN_PID") != str(os.getpid()) or not count.isdecimal():
            return cls()
        names = dict(enumerate(environ.get("LISTEN_FDNAMES", "").split(":")))  # systemd-socket-activate gives none
        return cls([_listening(_FIRST + number, names.get(number) or "unknown") for number in range(int(count))])

    def find(self, address: Address) -> socket.socket | None:
        """Return the socket that listens on an address, or None. It is not closed by its user."""
        return self._sockets.get(_key(address))

    def others(self, used: Iterable[str]) -> list[Address]:
        """Return the addresses of the sockets that none of these settings names.

        :param used: addresses as text; an invalid or empty one names nothing.
        """
        known = set()
        for text in used:
            try:
                known.add(_key(Address.parse(text)))
            except ValueError:
                continue
        return [Address(*sock.getsockname()[:2]) for key, sock in self._sockets.items() if key not in known]


def _listening(descriptor: int, name: str) -> socket.socket:
    where = f"the socket {name!r}, which systemd has passed,"
    try:
        os.set_inheritable(descriptor, False)
        sock = socket.socket(fileno=descriptor)
    except OSError as problem:
        raise ValueError(f"{where} cannot be used: {problem.strerror}") from None
    if sock.family not in (socket.AF_INET, socket.AF_INET6) or sock.type != socket.SOCK_STREAM:
        raise ValueError(f"{where} is not a TCP socket: write ListenStream=ADDRESS:PORT in its unit")
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise ValueError(f"{where} does not listen: write Accept=no in its unit")
    sock.setblocking(False)
    return sock


def _key(address: Address) -> tuple[object, int]:
    """Return a value that is equal for two ways to write the same address."""
    host = "127.0.0.1" if address.host == "localhost" else address.host
    return Address(host, 1).numeric or host, address.port

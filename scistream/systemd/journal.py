"""The native protocol of the systemd journal: entries of named fields, sent as datagrams."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import select
import socket
import struct
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

JOURNAL = Path("/run/systemd/journal/socket")

_RESTARTED = frozenset({errno.ECONNREFUSED, errno.ECONNRESET, errno.ENOTCONN, errno.ENOENT})
_TOO_LARGE = frozenset({errno.EMSGSIZE, errno.ENOBUFS})
_LONGEST_NAME = 64


class JournalSocket:
    """A connection to the journal of this machine.

    :param patience: the seconds for which `send` may wait if the journal's queue is full. If it is still full then, the
        next ones do not wait until one has succeeded.
    :raises OSError: if there is no journal.
    """

    def __init__(self, address: Path = JOURNAL, patience: float = 0.0) -> None:
        self._address = address
        self._patience = patience
        self._is_stuck = False
        self._socket = self._connected()

    def send(self, fields: Mapping[str, str]) -> None:
        """Send an entry: as a datagram, or as a sealed memory file if it is too large for one.

        :raises OSError: if the journal does not take it now.
        """
        entry = encoded(fields)
        try:
            self._send(entry)
        except OSError as problem:
            if problem.errno not in _RESTARTED:
                raise
            self.reopen()
            self._send(entry)

    def reopen(self) -> None:
        """Connect again.

        :raises OSError: if there is no journal.
        """
        opened = self._connected()
        self.close()
        self._socket = opened

    def close(self) -> None:
        """Close the socket."""
        with suppress(OSError):
            self._socket.close()

    def _connected(self) -> socket.socket:
        opened = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        opened.setblocking(False)
        try:
            opened.connect(str(self._address))
        except OSError:
            opened.close()
            raise
        return opened

    def _send(self, entry: bytes) -> None:
        try:
            self._socket.send(entry)
        except BlockingIOError:
            if not self._has_room():
                raise
            self._socket.send(entry)
        except OSError as problem:
            if problem.errno not in _TOO_LARGE:
                raise
            self._send_file(entry)
        self._is_stuck = False

    def _has_room(self) -> bool:
        """Wait until the journal's queue has room; return False if it has none in time."""
        if self._is_stuck or not self._patience:
            return False
        room = select.poll()
        room.register(self._socket, select.POLLOUT)
        self._is_stuck = not room.poll(self._patience * 1000)
        return not self._is_stuck

    def _send_file(self, entry: bytes) -> None:
        file = os.memfd_create("scistream-log", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.write(file, entry)
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
            fcntl.fcntl(file, fcntl.F_ADD_SEALS, seals)
            socket.send_fds(self._socket, [b""], [file])
        finally:
            os.close(file)


def field_name(name: str) -> str:
    """Return a name as the journal allows it: capital letters, digits and underscores, beginning with a letter."""
    allowed = re.sub(r"[^A-Z0-9_]", "_", name.upper()).lstrip("_0123456789")
    return allowed[:_LONGEST_NAME] or "FIELD"


def encoded(fields: Mapping[str, str]) -> bytes:
    """Return an entry in the native protocol; a value of several lines is preceded by its length.

    :param fields: values by their names in the form of `field_name`.
    """
    parts = []
    for name, value in fields.items():
        data = value.encode("utf-8", "replace")
        if b"\n" in data:
            parts.append(name.encode("ascii") + b"\n" + struct.pack("<Q", len(data)) + data + b"\n")
        else:
            parts.append(name.encode("ascii") + b"=" + data + b"\n")
    return b"".join(parts)

"""Where the lines of the audit trail go: a file of their own, or the journal of systemd."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from scistream.config import ConfigError
from scistream.shared_settings import resolve_path

JOURNAL = Path("/run/systemd/journal/socket")
_NOTICE = 5


class Sink(Protocol):
    """Takes whole lines, in order."""

    @property
    def name(self) -> str:
        """How messages to people call it."""

    def write(self, line: str) -> None:
        """Keep a line, given without its end.

        :raises OSError: if it cannot be kept; then nothing of it is.
        """

    def reopen(self) -> None:
        """What it writes to may be another one now.

        :raises OSError: if that cannot be opened.
        """

    def close(self) -> None:
        """No line comes after this."""


class FileSink:
    """A file that only grows. Moved away by logrotate it is made anew at the next line, with mode 0600.

    :raises ConfigError: if it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = -1
        try:
            self.reopen()
        except OSError as problem:
            raise ConfigError(f"audit: {path} cannot be opened: {problem.strerror}") from None

    @property
    def name(self) -> str:
        """The file's name."""
        return str(self._path)

    def write(self, line: str) -> None:
        """Append a line: all of it, or nothing."""
        if self._was_moved():
            self.reopen()
        data = line.encode("ascii") + b"\n"
        before = os.fstat(self._file).st_size
        if before and os.pread(self._file, 1, before - 1) != b"\n":
            data = b"\n" + data  # whoever wrote last did not come to the end
        written = os.write(self._file, data)
        if written < len(data):
            os.ftruncate(self._file, before)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def reopen(self) -> None:
        """Open what has this name now."""
        opened = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.close()
        self._file = opened

    def close(self) -> None:
        """Let go of it."""
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)

    def _was_moved(self) -> bool:
        try:
            return self._file < 0 or not os.path.samestat(os.stat(self._path), os.fstat(self._file))
        except FileNotFoundError:
            return True


class JournalSink:
    """The journal of this machine, in its native protocol; `journalctl -t scistream-audit -o cat` shows the lines.

    :raises ConfigError: if there is no journal.
    """

    def __init__(self, address: Path = JOURNAL) -> None:
        self._address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)
        try:
            self._socket.connect(str(address))
        except OSError as problem:
            self._socket.close()
            raise ConfigError(
                f"audit: there is no journal at {address} ({problem.strerror}): name a file in place of 'journal'"
            ) from None

    @property
    def name(self) -> str:
        """The journal."""
        return "the journal"

    def write(self, line: str) -> None:
        """Send an entry; one that is too large for a datagram goes as a sealed file in memory."""
        entry = f"MESSAGE={line}\nPRIORITY={_NOTICE}\nSYSLOG_IDENTIFIER=scistream-audit\n".encode("ascii")
        try:
            self._send(entry)
        except OSError as problem:
            if problem.errno not in (errno.ECONNREFUSED, errno.ECONNRESET, errno.ENOTCONN, errno.ENOENT):
                raise
            self.reopen()  # the journal was restarted
            self._send(entry)

    def _send(self, entry: bytes) -> None:
        try:
            self._socket.send(entry)
        except OSError as problem:
            if problem.errno not in (errno.EMSGSIZE, errno.ENOBUFS):
                raise
            self._send_file(entry)

    def _send_file(self, entry: bytes) -> None:
        file = os.memfd_create("scistream-audit", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.write(file, entry)
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
            fcntl.fcntl(file, fcntl.F_ADD_SEALS, seals)
            socket.send_fds(self._socket, [b""], [file])
        finally:
            os.close(file)

    def reopen(self) -> None:
        """Find the journal that is there now."""
        again = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        again.setblocking(False)
        try:
            again.connect(str(self._address))
        except OSError:
            again.close()
            raise
        self.close()
        self._socket = again

    def close(self) -> None:
        """Let go of it."""
        with suppress(OSError):
            self._socket.close()


def audit_file(setting: str, config_file: Path, store: Path) -> Path | None:
    """Return the file of the audit trail; None if the trail goes to the journal, or is not kept.

    :param setting: `auto`, `journal`, `none`, or a file.
    :param store: the file of the store, beside which `auto` lies.
    """
    if setting in ("journal", "none"):
        return None
    return store.with_suffix(".audit.jsonl") if setting == "auto" else resolve_path(config_file, setting)


def open_sink(setting: str, file: Path | None) -> Sink | None:
    """Open the audit trail that the setting `audit` in s2cs.toml names; None if no trail is kept.

    :param file: the result of `audit_file` for this setting.
    :raises ConfigError: if it cannot be opened.
    """
    if file is not None:
        return FileSink(file)
    return JournalSink() if setting == "journal" else None

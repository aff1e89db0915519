"""The destinations of the audit trail: a file, or the journal of systemd."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Protocol

from scistream.config import ConfigError
from scistream.shared_settings import resolve_path
from scistream.systemd.journal import JOURNAL, JournalSocket

_NOTICE = "5"


class Sink(Protocol):
    """A destination of lines, which it writes whole and in order."""

    @property
    def name(self) -> str:
        """The name of the destination in log messages."""

    def write(self, line: str) -> None:
        """Write a line, given without a newline: all of it or nothing.

        :raises OSError: if the line cannot be written.
        """

    def reopen(self) -> None:
        """Open the destination again, because it may have been replaced.

        :raises OSError: if it cannot be opened.
        """

    def close(self) -> None:
        """Close the destination."""


class FileSink:
    """A file that is only appended to. If it is moved away, the next line creates a new one with mode 0600.

    :raises ConfigError: if the file cannot be opened.
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
        """The path of the file."""
        return str(self._path)

    def write(self, line: str) -> None:
        """Append a line: all of it, or nothing."""
        if self._was_moved():
            self.reopen()
        data = line.encode("ascii") + b"\n"
        before = os.fstat(self._file).st_size
        if before and os.pread(self._file, 1, before - 1) != b"\n":
            data = b"\n" + data  # the last line is incomplete: its writer was interrupted
        written = os.write(self._file, data)
        if written < len(data):
            os.ftruncate(self._file, before)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def reopen(self) -> None:
        """Open the file that has this path now."""
        opened = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.close()
        self._file = opened

    def close(self) -> None:
        """Close the file."""
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)

    def _was_moved(self) -> bool:
        try:
            return self._file < 0 or not os.path.samestat(os.stat(self._path), os.fstat(self._file))
        except FileNotFoundError:
            return True


class JournalSink:
    """The systemd journal of this machine; `journalctl -t scistream-audit -o cat` shows the lines.

    :raises ConfigError: if there is no journal.
    """

    def __init__(self, address: Path = JOURNAL) -> None:
        try:
            self._journal = JournalSocket(address)
        except OSError as problem:
            raise ConfigError(
                f"audit: there is no journal at {address} ({problem.strerror}): name a file in place of 'journal'"
            ) from None

    @property
    def name(self) -> str:
        """The name of the journal in log messages."""
        return "the journal"

    def write(self, line: str) -> None:
        """Send a line to the journal."""
        self._journal.send({"MESSAGE": line, "PRIORITY": _NOTICE, "SYSLOG_IDENTIFIER": "scistream-audit"})

    def reopen(self) -> None:
        """Connect to the journal again."""
        self._journal.reopen()

    def close(self) -> None:
        """Close the socket."""
        self._journal.close()


def audit_file(setting: str, config_file: Path, store: Path) -> Path | None:
    """Return the file of the audit trail; None if the trail goes to the journal or is not kept.

    :param setting: `auto`, `journal`, `none`, or a file.
    :param store: the file of the store; with `auto` the trail is beside it.
    """
    if setting in ("journal", "none"):
        return None
    return store.with_suffix(".audit.jsonl") if setting == "auto" else resolve_path(config_file, setting)


def open_sink(setting: str, file: Path | None) -> Sink | None:
    """Open the destination that the setting `audit` in s2cs.toml names. Return None if no trail is kept.

    :param file: the result of `audit_file` for this setting.
    :raises ConfigError: if the destination cannot be opened.
    """
    if file is not None:
        return FileSink(file)
    return JournalSink() if setting == "journal" else None

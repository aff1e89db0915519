"""The list of streams that a user has requested and not released: a file of mode 0600 for each stream.

The files are in the user's state folder. They hold what a later command needs to find a stream by its uid; join
strings are not stored.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
from msgspec import Struct

from scistream import timing
from scistream.config import ConfigError
from scistream.file_lock import NotLockedError, locked_file
from scistream.protocol.messages import MAX_LIFE
from scistream.s2uc.user_files import default_folder


class RememberedStream(Struct, frozen=True, kw_only=True):
    """One stream of the list. Times are seconds since the epoch.

    If the facilities choose when the stream ends, `expires_at` is None until they have answered.
    """

    uid: str
    prod: str
    cons: str
    num_conn: int
    rate: float
    asked_at: float
    expires_at: float | None
    label: str | None = None
    released_at: float | None = None
    join_files: list[str] = []
    """The files that its join strings were written to. They are removed when the stream is over."""

    def was_live_at(self, when: float) -> bool:
        """Return True if the stream was neither released nor expired at that time."""
        expires_at = self.asked_at + MAX_LIFE if self.expires_at is None else self.expires_at
        return expires_at > when and (self.released_at is None or self.released_at > when)


SHORTEST_UID = 4
"""The fewest characters of a uid that a command accepts if it changes the stream."""

WHOLE_UID = 36
"""The characters of a uid that is not shortened."""

SUFFIX = ".json"


def checked_beginning(uid: str, *, changes: bool) -> str:
    """Return a whole or shortened uid in lower case, as the files of the list spell it.

    :param changes: whether the command changes the stream, for which very short uids are refused.
    :raises ConfigError: if the uid is empty or too short.
    """
    if not uid.strip():
        raise ConfigError("the uid is empty: write the uid of a stream, or its beginning (is a variable not set?)")
    if changes and len(uid) < SHORTEST_UID:
        raise ConfigError(
            f"the uid {uid!r} is too short: write at least its first {SHORTEST_UID} characters (`s2uc list` shows it)"
        )
    return uid.lower()


class StreamHistory:
    """A folder with a file for each stream, so that a change takes the same time however many streams there are.

    Changes are locked against other commands, and each one replaces a whole file.

    :param folder: made on first use; by default `default_folder`.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or default_folder()
        self._cleared_at = -timing.BETWEEN_CLEARINGS

    def add(self, stream: RememberedStream) -> bool:
        """Add a stream. Return False, and change nothing, if its uid is in the list and not released.

        :raises ConfigError: if the file cannot be read or written.
        """
        with self._locked():
            if time.monotonic() - self._cleared_at >= timing.BETWEEN_CLEARINGS:
                self._clear()
            earlier = self._get(stream.uid)
            if earlier is not None and earlier.released_at is None:
                return False
            self._write(stream)
            return True

    def note_end(self, uid: str, expires_at: float) -> None:
        """Store the time at which the facilities will end a stream."""
        self._change(uid, expires_at=expires_at)

    def note_join_files(self, uid: str, files: Iterable[Path]) -> None:
        """Store, before they are written, which files will hold the join strings of a stream."""
        self._change(uid, join_files=[str(file.resolve()) for file in files])

    def remove_join_files(self, uid: str) -> None:
        """Remove the join files of a stream that is over."""
        stream = self._get(uid)
        if stream is not None:
            _remove_join_files(stream)

    def remove(self, uid: str) -> None:
        """Remove a stream and its join files. A stream that is not in the list is no error."""
        with self._locked():
            stream = self._get(uid)
            if stream is not None:
                _remove_join_files(stream)
                self._file(uid).unlink()

    def note_release(self, uid: str) -> None:
        """Mark a stream as released. `was_released` still finds it for a day."""
        self.remove_join_files(uid)
        self._change(uid, released_at=time.time(), join_files=[])

    def was_released(self, uid: str) -> str | None:
        """Return the whole uid of a released stream; None if the stream was not released.

        :param uid: may be shortened. None is also returned if more than one stream fits, or none.
        """
        beginning = checked_beginning(uid, changes=True)
        fitting = self._streams(beginning)
        return fitting[0].uid if len(fitting) == 1 and fitting[0].released_at is not None else None

    def all(self) -> list[RememberedStream]:
        """Return the streams that have neither expired nor been released, the oldest first."""
        now = time.time()
        return [stream for stream in self._unreleased() if stream.was_live_at(now)]

    def _unreleased(self, beginning: str = "") -> list[RememberedStream]:
        """Return the streams that were not released, the oldest first.

        Those that have expired within the last day are among them: their facilities can still tell how they ended.
        """
        unreleased = (stream for stream in self._streams(beginning) if stream.released_at is None)
        return sorted(unreleased, key=lambda stream: stream.asked_at)

    def find(self, uid: str, *, changes: bool = False) -> RememberedStream:
        """Return the stream with this uid.

        :param uid: may be shortened to its beginning.
        :param changes: whether the command changes the stream, for which very short uids are refused.
        :raises ConfigError: if no stream fits, more than one does, or the uid is too short.
        """
        beginning = checked_beginning(uid, changes=changes)
        fitting = self._unreleased(beginning)
        if len(fitting) == 1:
            return fitting[0]
        which = "no stream" if not fitting else f"{len(fitting)} streams"
        fits = f"the uid {uid}" if len(beginning) == WHOLE_UID else f"a uid that begins with {uid!r}"
        raise ConfigError(f"{which} with {fits} in {self._folder}: `s2uc list` shows what is remembered")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            for folder in (self._folder.parent, self._folder):
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with locked_file(self._folder / ".lock"):
                yield
        except NotLockedError as problem:
            raise ConfigError(
                f"{problem}. If it has no locks, set XDG_STATE_HOME to a folder on a local disk"
            ) from None
        except OSError as problem:
            raise ConfigError(f"{problem.filename or self._folder}: cannot be written: {problem.strerror}") from None

    def _change(self, uid: str, **changes: Any) -> None:
        with self._locked():
            stream = self._get(uid)
            if stream is not None:
                self._write(msgspec.structs.replace(stream, **changes))

    def _file(self, uid: str) -> Path:
        return self._folder / (quote(uid, safe="") + SUFFIX)

    def _streams(self, beginning: str) -> list[RememberedStream]:
        """Return the streams of all files whose uid begins with `beginning`, in any order."""
        try:
            names = [name for name in os.listdir(self._folder) if name.endswith(SUFFIX) and name.startswith(beginning)]
        except FileNotFoundError:
            return []
        except OSError as problem:
            raise ConfigError(f"{self._folder}: cannot be read: {problem.strerror}") from None
        return [stream for name in names if (stream := self._read(self._folder / name)) is not None]

    def _get(self, uid: str) -> RememberedStream | None:
        return self._read(self._file(uid))

    def _read(self, file: Path) -> RememberedStream | None:
        """Return the stream of a file; None if there is no such file, or the stream ended more than a day ago."""
        try:
            stream = msgspec.json.decode(file.read_bytes(), type=RememberedStream)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as problem:
            raise ConfigError(f"{file}: cannot be read: {problem}; remove the file to continue without it") from None
        now = time.time()
        if stream.join_files and not stream.was_live_at(now):
            _remove_join_files(stream)
        return stream if stream.was_live_at(now - timing.REMEMBER_OVER) else None

    def _write(self, stream: RememberedStream) -> None:
        file = self._file(stream.uid)
        fresh = file.with_suffix(".new")
        with open(fresh, "wb", opener=_private) as written:
            written.write(msgspec.json.encode(stream) + b"\n")
            written.flush()
            os.fsync(written.fileno())
        fresh.replace(file)

    def _clear(self) -> None:
        """Remove the files of streams that ended more than a day ago, and half-written files of killed commands."""
        for file in self._folder.iterdir():
            with suppress(ConfigError):  # a file that cannot be read is reported by the command that needs it
                if file.suffix == ".new" or (file.suffix == SUFFIX and self._read(file) is None):
                    file.unlink()
        self._cleared_at = time.monotonic()


def _remove_join_files(stream: RememberedStream) -> None:
    for name in stream.join_files:
        file = Path(name)
        if file.stem == stream.uid:  # the name of every join file: no other file is ever removed
            with suppress(OSError):
                file.unlink()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)

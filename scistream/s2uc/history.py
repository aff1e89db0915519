"""The streams that a user has asked for and not released: a file of mode 0600 for each in the user's state folder.

It holds what a later command needs to find a stream by its uid. Join strings are not in it.
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
from scistream.shared_settings import user_folder


class RememberedStream(Struct, frozen=True, kw_only=True):
    """One stream; `asked_at` and `expires_at` are seconds since the epoch. A stream whose user left its life to the
    facilities has no `expires_at` until they have answered."""

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
    """Where its join strings were written to; they are removed when the stream is over."""

    def is_known_since(self, when: float) -> bool:
        """Whether it was neither released nor expired at that time."""
        expires_at = self.asked_at + MAX_LIFE if self.expires_at is None else self.expires_at
        return expires_at > when and (self.released_at is None or self.released_at > when)


SHORTEST_UID = 4
"""Characters that a uid may be shortened to where something is done to its stream."""

WHOLE_UID = 36


SUFFIX = ".json"


def checked_beginning(uid: str, *, changes: bool) -> str:
    """The beginning of a uid, as uids are written.

    :param changes: whether something will be done to the stream.
    :raises ConfigError: if it is empty, or too short for that.
    """
    if not uid.strip():
        raise ConfigError("the uid is empty: write the uid of a stream, or its beginning (is a variable not set?)")
    if changes and len(uid) < SHORTEST_UID:
        raise ConfigError(
            f"the uid {uid!r} is too short: write at least its first {SHORTEST_UID} characters (`s2uc list` shows it)"
        )
    return uid.lower()


def default_folder() -> Path:
    """``$XDG_STATE_HOME/scistream/streams``, or the like below ``~/.local/state``.

    :raises ConfigError: if there is no such folder.
    """
    return user_folder("XDG_STATE_HOME", "~/.local/state") / "scistream" / "streams"


class StreamHistory:
    """A folder with a file for each stream, so that a change costs the same however many streams there are. Changes
    are locked against other commands, and each replaces its file whole.

    :param folder: made on first use.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or default_folder()
        self._cleared_at = -timing.BETWEEN_CLEARINGS

    def add(self, stream: RememberedStream) -> bool:
        """Remember a stream; False, and nothing changes, if one of its uid is remembered and not released.

        :raises ConfigError: if its file cannot be read or written.
        """
        with self._locked():
            if time.monotonic() - self._cleared_at >= timing.BETWEEN_CLEARINGS:
                self._clear()
            known = self._known(stream.uid)
            if known is not None and known.released_at is None:
                return False
            self._write(stream)
            return True

    def note_end(self, uid: str, expires_at: float) -> None:
        """Write down when a stream ends, by the word of its facilities."""
        self._change(uid, expires_at=expires_at)

    def note_join_files(self, uid: str, files: Iterable[Path]) -> None:
        """Write down, before they are made, which files will hold the join strings of a stream."""
        self._change(uid, join_files=[str(file.resolve()) for file in files])

    def remove_join_files(self, uid: str) -> None:
        """Remove the files of the join strings of a stream that is over: they are good for nothing more."""
        known = self._known(uid)
        if known is not None:
            _remove_join_files(known)

    def remove(self, uid: str) -> None:
        """Forget a stream, known or not."""
        with self._locked():
            known = self._known(uid)
            if known is not None:
                _remove_join_files(known)
                self._file(uid).unlink()

    def note_release(self, uid: str) -> None:
        """Strike a stream out because it is released; `was_released` still knows it for a day."""
        self.remove_join_files(uid)
        self._change(uid, released_at=time.time(), join_files=[])

    def was_released(self, uid: str) -> str | None:
        """The whole uid of the one released stream that a uid or its beginning fits; None if a stream that is not
        released fits, or not exactly one does."""
        beginning = checked_beginning(uid, changes=True)
        fitting = self._streams(beginning)
        return fitting[0].uid if len(fitting) == 1 and fitting[0].released_at is not None else None

    def all(self) -> list[RememberedStream]:
        """All streams that have not expired, the oldest first."""
        now = time.time()
        return [stream for stream in self._unreleased() if stream.is_known_since(now)]

    def _unreleased(self, beginning: str = "") -> list[RememberedStream]:
        """The same, and those that have expired of which a facility may still tell how they ended."""
        unreleased = (stream for stream in self._streams(beginning) if stream.released_at is None)
        return sorted(unreleased, key=lambda stream: stream.asked_at)

    def find(self, uid: str, *, changes: bool = False) -> RememberedStream:
        """The stream of a uid, which may be shortened to its beginning.

        :param changes: whether something will be done to the stream: the beginning is then no mere stub.
        :raises ConfigError: if none, or more than one, fits, or too little of it is there.
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
            known = self._known(uid)
            if known is not None:
                self._write(msgspec.structs.replace(known, **changes))

    def _file(self, uid: str) -> Path:
        return self._folder / (quote(uid, safe="") + SUFFIX)

    def _streams(self, beginning: str) -> list[RememberedStream]:
        """Those whose uid begins so and that are neither over nor forgotten, in no order."""
        try:
            names = [name for name in os.listdir(self._folder) if name.endswith(SUFFIX) and name.startswith(beginning)]
        except FileNotFoundError:
            return []
        except OSError as problem:
            raise ConfigError(f"{self._folder}: cannot be read: {problem.strerror}") from None
        return [known for name in names if (known := self._read(self._folder / name)) is not None]

    def _known(self, uid: str) -> RememberedStream | None:
        return self._read(self._file(uid))

    def _read(self, file: Path) -> RememberedStream | None:
        """What a file tells of a stream; None if there is no such file, or its stream has long been over."""
        try:
            stream = msgspec.json.decode(file.read_bytes(), type=RememberedStream)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as problem:
            raise ConfigError(f"{file}: cannot be read: {problem}; move it away to go on without it") from None
        now = time.time()
        if stream.join_files and not stream.is_known_since(now):
            _remove_join_files(stream)
        return stream if stream.is_known_since(now - timing.REMEMBER_OVER) else None

    def _write(self, stream: RememberedStream) -> None:
        file = self._file(stream.uid)
        fresh = file.with_suffix(".new")
        with open(fresh, "wb", opener=_private) as written:
            written.write(msgspec.json.encode(stream) + b"\n")
            written.flush()
            os.fsync(written.fileno())
        fresh.replace(file)

    def _clear(self) -> None:
        """Remove the files of streams that have long been over, and what a command that was killed has left."""
        for file in self._folder.iterdir():
            with suppress(ConfigError):  # one that cannot be read is for its user to move away, when it is asked for
                if file.suffix == ".new" or (file.suffix == SUFFIX and self._read(file) is None):
                    file.unlink()
        self._cleared_at = time.monotonic()


def _remove_join_files(stream: RememberedStream) -> None:
    for name in stream.join_files:
        file = Path(name)
        if file.stem == stream.uid:  # as they are named; nothing else is ever removed
            with suppress(OSError):
                file.unlink()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)

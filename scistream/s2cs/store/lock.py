"""The lock of a store: one S2CS has it, for the life of its process.

It stands on a file of its own beside the store, since SQLite's locks on the store last for a transaction only.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from twisted.logger import Logger

from scistream.file_lock import holder as holder_of
from scistream.s2cs.store.database import StoreError


class StoreLock:
    """Held from when it is made until `release`, or until the process ends in any way.

    :param store: the file of the store, which need not exist yet.
    :raises StoreError: if another process has it, or the lock's file cannot be made.
    """

    log = Logger()

    def __init__(self, store: Path) -> None:
        store = store.resolve()
        self.path = store.with_name(f"{store.name}.lock")
        try:
            store.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as problem:
            raise StoreError(f"state: the store {store} cannot be locked: {self.path}: {problem.strerror}") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = holder_of(os.read(self._file, 32))
            os.close(self._file)
            raise StoreError(
                f"state: the store {store} is in use by another S2CS{holder}: stop that one first, or set `state` to "
                "a file of its own"
            ) from None
        except OSError as problem:
            self.log.warn(
                "{path} cannot be locked ({reason}): nothing but care keeps a second S2CS from the same store",
                path=str(self.path),
                reason=problem.strerror,
            )

    def note_holder(self) -> None:
        """Write this process's number into the file, for whoever comes second; a daemon has another one once it runs in
        the background."""
        try:
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, f"{os.getpid()}\n".encode(), 0)
        except OSError as problem:
            self.log.warn("{path} cannot be written: {reason}", path=str(self.path), reason=problem.strerror)

    def release(self) -> None:
        """Let another process have it. The file stays: removing it could take it from whoever has it by then."""
        if self._file >= 0:
            os.close(self._file)
        self._file = -1

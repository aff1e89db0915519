"""The lock of a store, which lets only one S2CS at a time use it.

The lock is on a separate file beside the store, because SQLite's own locks last for one transaction only.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from twisted.logger import Logger

from scistream.file_lock import holder as holder_of
from scistream.s2cs.store.database import StoreError


class StoreLock:
    """The lock of one store, held until `release` or until the process ends for any reason.

    :param store: the file of the store, which need not exist yet.
    :raises StoreError: if another process has the lock, or the lock file cannot be created.
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
                f"state: the store {store} is in use by another S2CS{holder}: stop that S2CS first, or set `state` to "
                "another file"
            ) from None
        except OSError as problem:
            self.log.warn(
                "{path} cannot be locked ({reason}): make sure that no second S2CS uses the same store",
                path=str(self.path),
                reason=problem.strerror,
            )

    def note_holder(self) -> None:
        """Write the process id into the lock file, for the error message of a second S2CS.

        Call this after the daemon has moved to the background, which changes the process id.
        """
        try:
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, f"{os.getpid()}\n".encode(), 0)
        except OSError as problem:
            self.log.warn("{path} cannot be written: {reason}", path=str(self.path), reason=problem.strerror)

    def release(self) -> None:
        """Release the lock. The file stays: another process may have locked it by the time it would be removed."""
        if self._file >= 0:
            os.close(self._file)
        self._file = -1

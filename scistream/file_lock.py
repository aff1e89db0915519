"""A file lock that processes hold during one change, with a limit on the wait for it."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scistream import timing


class NotLockedError(Exception):
    """A lock could not be taken. The message is a sentence that names the file and the reason."""


@contextmanager
def locked_file(path: Path) -> Iterator[None]:
    """Hold the lock of a file, which is created if it does not exist and is not deleted afterwards.

    :raises OSError: if the file cannot be opened for writing.
    :raises NotLockedError: if another process holds the lock for too long, or the file system does not support locks.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _take(handle, path)
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(handle)


def _take(handle: int, path: Path) -> None:
    give_up_at = time.monotonic() + timing.FILE_LOCK
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= give_up_at:
                raise NotLockedError(
                    f"{path} is still locked by another command{holder(os.pread(handle, 32, 0))} after "
                    f"{timing.FILE_LOCK:g} s: end that process if it hangs, or try again later"
                ) from None
        except OSError as problem:
            raise NotLockedError(
                f"{path} cannot be locked: {problem.strerror} (some network file systems do not support locks)"
            ) from None
        time.sleep(timing.FILE_LOCK_POLL)


def holder(written: bytes) -> str:
    """Name the process that holds a lock, by the contents of its file; empty if they are not a process number."""
    number = written.strip()
    return f", process {number.decode()}" if number.isdigit() else ""

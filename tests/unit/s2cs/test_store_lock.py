"""The lock of a store, with a real file and real processes."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from twisted.logger import globalLogPublisher

from scistream.s2cs.store.database import StoreError
from scistream.s2cs.store.lock import StoreLock

HOLD = """
import sys
from pathlib import Path
from scistream.s2cs.store.lock import StoreLock
lock = StoreLock(Path(sys.argv[1]))
lock.note_holder()
print("has it", flush=True)
sys.stdin.read()
"""


def test_a_second_process_is_refused_with_the_file_and_the_holder_until_that_one_is_killed(tmp_path: Path) -> None:
    store = tmp_path / "state" / "s2cs.sqlite"
    command = [sys.executable, "-c", HOLD, str(store)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "has it\n"
        with pytest.raises(StoreError) as refused:
            StoreLock(store)
        expected = f"the store {store} is in use by another S2CS, process {holder.pid}: stop that S2CS"
        assert expected in str(refused.value)
        holder.send_signal(signal.SIGKILL)
        holder.wait(30)
    StoreLock(store).release()


def test_the_same_store_by_another_path_is_the_same(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    lock = StoreLock(tmp_path / "s2cs.sqlite")
    with pytest.raises(StoreError, match="in use by another S2CS: stop"):
        StoreLock(tmp_path / "link" / "s2cs.sqlite")
    lock.release()
    lock.release()
    StoreLock(tmp_path / "link" / "s2cs.sqlite").release()


def test_a_folder_that_takes_no_lock_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file, no folder")
    with pytest.raises(StoreError, match="cannot be locked"):
        StoreLock(tmp_path / "state" / "s2cs.sqlite")


def test_a_file_system_without_locks_is_used_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: Any) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    events: list[dict[str, Any]] = []
    globalLogPublisher.addObserver(events.append)
    try:
        lock = StoreLock(tmp_path / "s2cs.sqlite")
    finally:
        globalLogPublisher.removeObserver(events.append)
    lock.release()
    (event,) = [event for event in events if event["log_level"].name == "warn"]
    assert event["path"] == str(tmp_path / "s2cs.sqlite.lock")
    assert event["reason"] == os.strerror(errno.EOPNOTSUPP)

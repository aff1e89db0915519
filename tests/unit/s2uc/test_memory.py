"""The list of a user's streams, and how commands wait for each other's changes to it."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from scistream import timing
from scistream.config import ConfigError
from scistream.pki.register import PkiError, locked
from scistream.s2uc.history import RememberedStream, StreamHistory


def stream(uid: str, **changes: float) -> RememberedStream:
    times = {"asked_at": time.time(), "expires_at": time.time() + 3600} | changes
    return RememberedStream(uid=uid, prod="a:1", cons="b:1", num_conn=1, rate=1.0, **times)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_refused_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def unsupported(_file: int, _how: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with pytest.raises(ConfigError, match=rf"{os.strerror(number)}.*XDG_STATE_HOME"):
        StreamHistory(tmp_path / "streams").remove("x")
    with pytest.raises(PkiError, match=rf"{os.strerror(number)}.*local disk"), locked(tmp_path):
        pass


def test_a_lock_that_is_kept_is_waited_for_with_a_limit_and_its_holder_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing, "FILE_LOCK", 0.2)
    code = (
        "import sys, pathlib\nfrom scistream.file_lock import locked_file\n"
        "with locked_file(pathlib.Path(sys.argv[1])), locked_file(pathlib.Path(sys.argv[2])):\n"
        "    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    (tmp_path / "streams").mkdir()
    files = [str(tmp_path / "streams" / ".lock"), str(tmp_path / ".issued.jsonl.lock")]
    with subprocess.Popen(
        [sys.executable, "-c", code, *files], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match=rf"process {other.pid} after 0.2 s"):
            StreamHistory(tmp_path / "streams").remove("x")
        with pytest.raises(PkiError, match=rf"process {other.pid} after 0.2 s"), locked(tmp_path):
            pass
        other.communicate(timeout=10)
    StreamHistory(tmp_path / "streams").remove("x")


def test_a_released_stream_is_known_as_released_and_listed_no_more(tmp_path: Path) -> None:
    memory = StreamHistory(tmp_path / "streams")
    uid = str(uuid.uuid4())
    assert memory.add(stream(uid))
    assert memory.was_released(uid) is None
    memory.note_release(uid)
    assert memory.was_released(uid) == memory.was_released(uid[:6].upper()) == uid
    assert memory.all() == []
    with pytest.raises(ConfigError, match="no stream"):
        memory.find(uid)
    assert memory.add(stream(uid)), "a uid may be asked for again"
    assert memory.was_released(uid) is None
    assert not memory.add(stream(uid))


def test_a_release_is_remembered_for_a_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = StreamHistory(tmp_path / "streams")
    uid = str(uuid.uuid4())
    memory.add(stream(uid, expires_at=time.time() + 30 * 86400))
    memory.note_release(uid)
    tomorrow = time.time() + 86401
    monkeypatch.setattr(time, "time", lambda: tomorrow)
    assert memory.was_released(uid) is None


def test_the_cost_of_a_change_does_not_grow_with_the_number_of_streams(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = StreamHistory(tmp_path / "streams")
    for _ in range(30):
        memory.add(stream(str(uuid.uuid4())))
    seen: list[str] = []
    read, written = Path.read_bytes, memory._write
    monkeypatch.setattr(Path, "read_bytes", lambda file: (seen.append(file.stem), read(file))[1])
    monkeypatch.setattr(memory, "_write", lambda known: (seen.append(known.uid), written(known))[1])
    uid = str(uuid.uuid4())
    memory.add(stream(uid))
    memory.note_end(uid, time.time() + 60)
    memory.note_release(uid)
    assert set(seen) == {uid}


def test_files_of_streams_that_are_long_over_are_removed_and_so_is_what_a_killed_command_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "streams"
    memory = StreamHistory(folder)
    old, released, new = (str(uuid.uuid4()) for _ in range(3))
    memory.add(stream(old, expires_at=time.time() + 10))
    memory.add(stream(released))
    memory.note_release(released)
    (folder / f"{old}.new").write_text("{half")
    tomorrow = time.time() + 86411
    monkeypatch.setattr(time, "time", lambda: tomorrow)
    StreamHistory(folder).add(stream(new))
    assert sorted(file.name for file in folder.iterdir()) == [".lock", f"{new}.json"]


# -- files of join strings


def with_files(folder: Path, **changes: Any) -> tuple[StreamHistory, list[Path]]:
    uid = str(uuid.uuid4())
    files = [folder / f"{uid}.{role}" for role in ("prod", "cons")]
    memory = StreamHistory()
    memory.add(stream(uid, **changes))
    memory.note_join_files(uid, files)
    for file in files:
        file.write_text("a secret")
    return memory, files


@pytest.mark.parametrize("how", ["note_release", "remove", "remove_join_files"])
def test_files_of_join_strings_go_with_their_stream(tmp_path: Path, how: str) -> None:
    memory, files = with_files(tmp_path)
    memory.all()
    assert all(file.exists() for file in files)
    getattr(memory, how)(files[0].stem)
    assert not any(file.exists() for file in files)


def test_files_of_join_strings_go_when_it_is_seen_that_their_stream_has_expired(tmp_path: Path) -> None:
    memory, files = with_files(tmp_path, expires_at=time.time() - 1)
    assert memory.all() == []
    assert not any(file.exists() for file in files)


def test_no_other_file_is_removed_even_if_the_list_names_it(tmp_path: Path) -> None:
    memory, files = with_files(tmp_path)
    precious = tmp_path / "thesis.prod"
    precious.write_text("of years")
    memory.note_join_files(files[0].stem, [*files, precious])
    memory.remove(files[0].stem)
    assert precious.exists()
    assert not any(file.exists() for file in files)

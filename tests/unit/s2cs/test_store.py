"""The store of an S2CS, with a real SQLite file."""

import os
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from log_lines import logged
from twisted.internet.task import Clock
from twisted.logger import Logger

from scistream.logs import Lasting
from scistream.protocol.errors import StreamError
from scistream.protocol.messages import CONS, PROD, LastError, Req, Role
from scistream.s2cs.record import Record
from scistream.s2cs.store.database import SCHEMA_VERSION, Store, StoreError

UID = "12345678-1234-4234-8234-123456789abc"


def record(uid: str = UID, role: Role = PROD, state: str = "Listening") -> Record:
    request = Req(uid=uid, role=role, seq=1, num_conn=2, rate=10.0, app_key_hash="0" * 64, label="beamline 7 été")
    return Record(
        uid=uid,
        role=role,
        owner="mailto:ada@lab.example",
        state=state,
        request=request,
        plan={"dtn1": [0], "dtn2": [1]},
        boots={"dtn1": "0" * 32},
        listeners={0: "127.0.0.1:5100", 1: "127.0.0.1:5101"},
        csr={"dtn1": "a", "dtn2": "b"},
        app_listeners=["127.0.0.1:7000"],
        greeted=True,
        generation=3,
        last_error=LastError(code="no-ports", msg="none"),
        life=60.0,
        expires_at=1e9,
    )


def path_in(folder: Path) -> Path:
    return folder / "state" / "s2cs.sqlite"


def test_what_was_saved_is_there_after_a_reopen(tmp_path: Path) -> None:
    store = Store(path_in(tmp_path))
    store.save(record(state="Reserving"))
    store.save(record(role=CONS))
    store.save(record(state="Streaming"))
    store.close()
    assert Store(path_in(tmp_path)).load() == [record(role=CONS), record(state="Streaming")]


def test_what_was_saved_is_there_after_the_process_was_killed(tmp_path: Path) -> None:
    script = """
import os, signal, sys
from pathlib import Path
from scistream.logs import Lasting
from scistream.s2cs.record import Record
from scistream.s2cs.store.database import Store
store = Store(Path(sys.argv[1]))
for number in range(50):
    store.save(Record(uid=f"{number:08x}-1234-4234-8234-123456789abc", role="PROD", owner="ada", state="Listening"))
os.kill(os.getpid(), signal.SIGKILL)
"""
    path = path_in(tmp_path)
    killed = subprocess.run([sys.executable, "-c", script, str(path)], check=False, timeout=60)
    assert killed.returncode == -9
    assert [one.uid[:8] for one in Store(path).load()] == [f"{number:08x}" for number in range(50)]


def test_a_forgotten_record_is_gone_after_a_reopen(tmp_path: Path) -> None:
    store = Store(path_in(tmp_path))
    store.save(record())
    store.save(record(role=CONS))
    store.forget((UID, PROD))
    store.forget((UID, PROD))
    store.close()
    assert [one.role for one in Store(path_in(tmp_path)).load()] == [CONS]


def test_the_store_is_made_with_its_folder_and_is_readable_by_its_owner_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        store = Store(path_in(tmp_path))
        store.save(record())
        files = list(path_in(tmp_path).parent.iterdir())
        assert {file.name: oct(stat.S_IMODE(file.stat().st_mode)) for file in files} == {
            file.name: "0o600" for file in files
        }
    finally:
        os.umask(before)
    assert path_in(tmp_path) in files


def test_nothing_secret_is_in_the_store(tmp_path: Path) -> None:
    store = Store(path_in(tmp_path))
    store.save(record())
    store.close()
    columns = {row[1] for row in sqlite3.connect(path_in(tmp_path)).execute("PRAGMA table_info(stream)")}
    assert columns == {"uid", "role", "owner", "state", "released_at", "record"}
    kept = path_in(tmp_path).read_bytes()
    assert b"app_key_hash" in kept
    assert b'"app_key"' not in kept
    assert b"data_conn_key" not in kept


def test_a_store_of_another_schema_version_is_refused_with_both_versions_and_left_alone(tmp_path: Path) -> None:
    path = path_in(tmp_path)
    Store(path).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 77")
    with pytest.raises(StoreError) as refused:
        Store(path)
    for part in (str(path), "schema version 77", f"knows {SCHEMA_VERSION}"):
        assert part in str(refused.value)
    assert sqlite3.connect(path).execute("PRAGMA user_version").fetchone() == (77,)


def test_a_file_that_is_no_store_is_refused_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("these are not the records of a control server\n" * 50)
    with pytest.raises(StoreError, match=r"notes\.txt cannot be opened"):
        Store(path)


def test_a_folder_that_cannot_be_made_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file, not a folder")
    with pytest.raises(StoreError, match="cannot be opened"):
        Store(path_in(tmp_path))


def test_a_record_that_cannot_be_read_is_a_problem_of_the_store(tmp_path: Path) -> None:
    store = Store(path_in(tmp_path))
    store.save(record())
    store.close()
    with sqlite3.connect(path_in(tmp_path)) as db:
        db.execute("UPDATE stream SET record = '{\"half'")
    with pytest.raises(StoreError, match="cannot be read"):
        Store(path_in(tmp_path)).load()


def test_a_write_that_fails_is_a_stream_error_and_keeps_what_was_there(tmp_path: Path) -> None:
    store = Store(path_in(tmp_path))
    store.save(record())
    store._db.execute("PRAGMA query_only = ON")
    with pytest.raises(StreamError) as refused:
        store.save(record(state="Streaming"))
    assert refused.value.code == "no-capacity"
    assert str(path_in(tmp_path)) in refused.value.msg
    store.forget((UID, PROD))
    store._db.execute("PRAGMA query_only = OFF")
    assert store.load() == [record()]


def test_a_full_disk_is_a_stream_error(tmp_path: Path) -> None:
    store = Store(path_in(tmp_path))
    store._db.execute("PRAGMA max_page_count = 4")
    full = record(uid="00000000-1234-4234-8234-123456789abc")
    full.csr = {"dtn1": "x" * 100_000}
    with pytest.raises(StreamError, match="cannot be written"):
        store.save(full)
    store._db.execute("PRAGMA max_page_count = 1000000")
    store.save(record())
    assert record() in store.load()


def test_a_disk_that_stays_full_is_told_once_and_that_there_is_room_again_once(tmp_path: Path) -> None:
    store = Store(path_in(tmp_path))
    large = record(uid="00000000-1234-4234-8234-123456789abc")
    large.csr = {"dtn1": "x" * 100_000}
    with logged() as lines:
        for _ in range(3):
            store._db.execute("PRAGMA max_page_count = 4")
            for _ in range(1000):
                with pytest.raises(StreamError, match="cannot be written"):
                    store.save(large)
            store._db.execute("PRAGMA max_page_count = 1000000")
            store.save(record())
    store.close()
    told, over = lines
    assert "cannot be written: database or disk is full" in told
    assert "free disk space" in told
    assert over.endswith("can be written again; failures before that: 1000")


def test_a_recurring_failure_is_logged_once_a_minute_with_its_count() -> None:
    clock = Clock()
    reason = Lasting(Logger(), clock.seconds)
    with logged() as lines:
        for _ in range(180):
            reason.has_come("full")
            reason.is_over("room again")
            clock.advance(1.0)
    assert lines == [
        "full",
        "room again; failures before that: 1",
        *["full", "room again; failures before that: 60"] * 2,
    ]

"""`scistream store check` reports on sound and damaged stores, and changes none of them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import sqlite3
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from scistream.cli import main
from scistream.protocol.messages import CONS, PROD, Req, Role
from scistream.s2cs.record import Record
from scistream.s2cs.store.check import check_store
from scistream.s2cs.store.cli import in_words
from scistream.s2cs.store.database import SCHEMA_VERSION, STEPS, Step, Store, StoreError
from support.programs import Program

NOW = 1_000_000.0
KILLS = 20


def uid_of(number: int) -> str:
    return f"{number:08x}-1234-4234-8234-123456789abc"


def record(number: int = 0, role: Role = PROD, state: str = "Streaming", expires_at: float = NOW + 3 * 3600) -> Record:
    uid = uid_of(number)
    request = Req(uid=uid, role=role, seq=1, num_conn=1, rate=10.0, app_key_hash="0" * 64)
    return Record(
        uid=uid,
        role=role,
        owner="ada",
        state=state,
        request=request,
        plan={"dtn1": [0]},
        listeners={0: "127.0.0.1:5100"},
        life=60.0,
        expires_at=expires_at,
        released_at=NOW if state == "Released" else 0.0,
    )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "s2cs.sqlite"


def filled(file: Path, *records: Record) -> None:
    store = Store(file)
    for one in records:
        store.save(one)
    store.close()


@contextlib.contextmanager
def tampered(file: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(file)) as db:
        yield db
        db.commit()


def check(file: Path, status: int) -> str:
    """Return the output of the command, and check that it neither changes the store nor creates files beside it."""
    before = contents(file.parent)
    ran = CliRunner().invoke(main, ["store", "check", str(file)])
    assert ran.exit_code == status, ran.output
    assert contents(file.parent) == before
    return ran.output


def contents(folder: Path) -> dict[str, str]:
    """Return a digest of each file of a folder, without the shared-memory index of SQLite."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if not path.name.endswith("-shm") and path.is_file()
    }


# -- sound stores


def test_a_sound_store_is_told_with_its_live_streams_by_state(file: Path) -> None:
    filled(
        file,
        record(1, state="Streaming"),
        record(2, state="Listening"),
        record(2, CONS, state="Streaming"),
        record(3, state="Released"),
    )
    assert in_words(file, check_store(file), NOW) == [
        f"{file}: schema version {SCHEMA_VERSION}, 4 records",
        "live streams: 3 (1 Listening, 2 Streaming)",
        f"  Listening  PROD {uid_of(2)} of ada, expires in 3 hours",
        f"  Streaming  PROD {uid_of(1)} of ada, expires in 3 hours",
        f"  Streaming  CONS {uid_of(2)} of ada, expires in 3 hours",
        "released streams, kept for a day: 1",
        "the store is sound: SQLite reports no damage, and all records are readable and consistent",
    ]
    assert "the store is sound" in check(file, 0)


def test_live_streams_that_have_expired_are_pointed_out_and_no_problem(file: Path) -> None:
    late = record(1, state="Ready", expires_at=NOW - 600)
    waiting = record(2, state="Releasing", expires_at=NOW - 7200)
    filled(file, late, waiting)
    lines = in_words(file, check_store(file), NOW)
    assert lines[2].endswith("of ada, EXPIRED 10 minutes ago: the S2CS releases it when it next runs")
    assert lines[3].endswith("of ada, expired 2 hours ago, waiting for dtn1 to confirm the release")
    assert "EXPIRED" in check(file, 0)


def test_an_empty_store_is_sound(file: Path) -> None:
    filled(file)
    assert "0 records" in check(file, 0)


def test_a_file_that_the_s2cs_has_only_just_made_is_sound(file: Path) -> None:
    file.touch()
    assert f"schema version 0, upgraded to {SCHEMA_VERSION} when its S2CS starts" in check(file, 0)


def test_a_store_is_looked_at_while_its_s2cs_runs_and_writes(file: Path) -> None:
    store = Store(file)
    store.save(record(1))
    assert "live streams: 1 (1 Streaming)" in check(file, 0)
    store.save(record(2))
    assert "live streams: 2 (2 Streaming)" in check(file, 0)
    store.save(record(1, state="Released"))
    store.close()
    assert "live streams: 1 (1 Streaming)" in check(file, 0)


# -- problems


def test_a_record_that_cannot_be_read_is_named_and_the_others_are_looked_at_all_the_same(file: Path) -> None:
    filled(file, record(1), record(2), record(3))
    with tampered(file) as db:
        db.execute("UPDATE stream SET record = '{\"half' WHERE uid = ?", (uid_of(2),))
    said = check(file, 1)
    assert f"PROBLEM: stream {uid_of(2)} (PROD): its record cannot be read" in said
    assert "live streams: 2 (2 Streaming)" in said
    assert said.count("What to do") == 1
    assert "DELETE FROM stream" in said


@pytest.mark.parametrize(
    ("column", "value"), [("owner", "eve"), ("state", "Released"), ("released_at", 5.0), ("role", "CONS")]
)
def test_a_row_that_does_not_agree_with_its_record_is_named_with_both(file: Path, column: str, value: object) -> None:
    filled(file, record(1))
    with tampered(file) as db:
        db.execute(f"UPDATE stream SET {column} = ?", (value,))
    said = check(file, 1)
    assert f"its row has {column} {value!r}, but its record has {getattr(record(1), column)!r}" in said


def test_a_record_that_no_s2cs_would_write_is_named(file: Path) -> None:
    strange, empty, half = record(1, state="Idle"), record(2), record(3)
    empty.request = None
    half.listeners = {}
    filled(file, strange, empty, half, record(4))
    said = check(file, 1)
    assert f"{uid_of(1)} (PROD): its state 'Idle' is not a state of a stream" in said
    assert f"{uid_of(2)} (PROD): it is Streaming, but its record has no request" in said
    assert f"{uid_of(3)} (PROD): it is Streaming with 0 listeners for 1 channels" in said
    assert said.count("PROBLEM") == 3


def test_words_in_a_store_forge_no_line_and_move_no_cursor(file: Path) -> None:
    hostile = record(1)
    hostile.owner = "eve\nthe store is sound\x1b[2J"
    filled(file, hostile)
    with tampered(file) as db:
        db.execute("UPDATE stream SET uid = ?", ("\x1b[1A\rall is well",))
    said = check(file, 1)
    assert f"PROD {uid_of(1)} of eve?the store is sound?[2J, " in said
    assert "PROBLEM: stream ?[1A?all is well (PROD): " in said
    assert "\nthe store is sound" not in said
    assert "\x1b" not in said


def test_damage_to_the_file_is_found(file: Path) -> None:
    filled(file, *[record(number) for number in range(200)])
    data = bytearray(file.read_bytes())
    last = len(data) - 4096
    data[last + 100 : last + 3000] = bytes(2900)
    file.write_bytes(data)
    said = check(file, 1)
    assert "PROBLEM: SQLite reports damage: " in said
    assert "What to do: Stop the S2CS, keep a copy of the file" in said


def test_a_store_of_a_newer_software_is_a_problem_and_its_records_are_left_alone(file: Path) -> None:
    filled(file, record(1))
    with tampered(file) as db:
        db.execute("PRAGMA user_version = 9")
    said = check(file, 1)
    assert f"its schema version is 9, but this version of SciStream knows {SCHEMA_VERSION}" in said
    assert "What to do: Use the version of SciStream that wrote the file, or a newer one." in said


def test_a_database_of_something_else_is_a_problem(file: Path) -> None:
    with tampered(file) as db:
        db.execute("CREATE TABLE songs (title TEXT)")
    assert "but not of an S2CS" in check(file, 1)


def test_a_file_that_is_no_database_is_not_there_or_is_a_folder_cannot_be_read(file: Path) -> None:
    assert f"{file} cannot be read: No such file or directory" in check(file, 2)
    assert "cannot be read: Is a directory" in check(file.parent, 2)
    file.write_text("these are not the records of a control server\n" * 100)
    assert "file is not a database" in check(file, 2)


# -- versions of the schema


def more(db: sqlite3.Connection) -> None:
    """Upgrade the schema as a later version might do."""
    db.execute("ALTER TABLE stream ADD COLUMN site TEXT NOT NULL DEFAULT 'here'")


def fails(db: sqlite3.Connection) -> None:
    db.execute("CREATE TABLE half (done TEXT)")
    raise sqlite3.OperationalError("disk I/O error")


def version_of(file: Path) -> int:
    with contextlib.closing(sqlite3.connect(file)) as db:
        return int(db.execute("PRAGMA user_version").fetchone()[0])


def test_an_older_store_is_brought_up_to_date_step_by_step_with_its_records(file: Path) -> None:
    filled(file, record(1), record(2))
    taken = []

    def step(number: int) -> Step:
        def take(db: sqlite3.Connection) -> None:
            taken.append((number, db.in_transaction, db.execute("PRAGMA user_version").fetchone()[0]))

        return take

    known = SCHEMA_VERSION
    Store(file, [*STEPS, more, step(known + 2), step(known + 3)]).close()
    assert taken == [(known + 2, True, known + 1), (known + 3, True, known + 2)]
    assert version_of(file) == known + 3
    with contextlib.closing(sqlite3.connect(file)) as db:
        assert db.execute("SELECT uid, site FROM stream ORDER BY uid").fetchall() == [
            (uid_of(1), "here"),
            (uid_of(2), "here"),
        ]
    with pytest.raises(StoreError, match=f"schema version {known + 3}, but this version of SciStream knows {known}"):
        Store(file)
    assert version_of(file) == known + 3


def test_an_upgrade_that_fails_in_the_middle_leaves_the_store_as_it_was(file: Path) -> None:
    filled(file, record(1))
    with pytest.raises(StoreError, match="disk I/O error"):
        Store(file, [*STEPS, more, fails])
    assert version_of(file) == SCHEMA_VERSION
    assert "the store is sound" in check(file, 0)
    store = Store(file)
    assert store.load() == [record(1)]
    store.close()


def test_a_new_store_is_made_by_all_steps_from_nothing(file: Path) -> None:
    Store(file, [*STEPS, more]).close()
    assert version_of(file) == SCHEMA_VERSION + 1


def test_a_database_of_something_else_is_not_made_a_store(file: Path) -> None:
    with tampered(file) as db:
        db.execute("CREATE TABLE songs (title TEXT)")
    before = contents(file.parent)
    with pytest.raises(StoreError, match="it is the database of another program"):
        Store(file)
    assert version_of(file) == 0
    assert set(contents(file.parent)) == set(before)


# -- kill -9

WRITER = """
import random, sys
from pathlib import Path
from scistream.s2cs.record import Record
from scistream.s2cs.store.database import Store
store = Store(Path(sys.argv[1]))
print("open", flush=True)
chance = random.Random(int(sys.argv[2]))
while True:
    uid, role = f"{chance.randrange(40):08x}-1234-4234-8234-123456789abc", chance.choice(["PROD", "CONS"])
    csr = {"dtn1": "x" * chance.choice([10, 400, 4000, 40000])}
    store.save(Record(uid=uid, role=role, owner="ada", state="Released", csr=csr))
    if chance.random() < 0.2:
        store.forget((uid, chance.choice(["PROD", "CONS"])))
"""


def test_a_writer_that_is_killed_at_any_instant_leaves_a_store_that_opens_and_is_sound(
    file: Path, fork_server: None
) -> None:
    chance = random.Random(20)
    for number in range(KILLS):
        writer = Program([sys.executable, "-c", WRITER, str(file), str(number)], file.parent / "writer.log")
        try:
            if number % 4:  # every fourth is killed around its start
                assert writer.line() == "open"
            time.sleep(chance.uniform(0, 0.15 if number % 4 else 0.05))
        finally:
            writer.process.kill()
            writer.end(status=None)
        if file.exists():
            check(file, 0)
            store = Store(file)
            known = store.load()
            store.save(record(99))
            store.forget(record(99).key)
            assert store.load() == known
            store.close()
    assert known, "it has written something"


def test_what_is_found_is_json_for_programs_with_the_same_exit_status(file: Path) -> None:
    filled(file, record(1), record(2, state="Released"))
    sound = CliRunner().invoke(main, ["store", "check", "--json", str(file)])
    told = json.loads(sound.stdout)
    assert (sound.exit_code, told["sound"], told["problems"]) == (0, True, [])
    assert (told["version"], told["records"], told["released"]) == (SCHEMA_VERSION, 2, 1)
    (live,) = told["live"]
    assert (live["uid"], live["role"], live["owner"], live["state"]) == (uid_of(1), PROD, "ada", "Streaming")
    with contextlib.closing(sqlite3.connect(file)) as db, db:
        db.execute("UPDATE stream SET state = 'Ready' WHERE uid = ?", (uid_of(1),))
    spoilt = CliRunner().invoke(main, ["store", "check", "--json", str(file)])
    told = json.loads(spoilt.stdout)
    assert (spoilt.exit_code, told["sound"]) == (1, False)
    assert all(problem["what"] and problem["remedy"] for problem in told["problems"])

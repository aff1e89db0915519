"""What is in an S2CS's store, and whether it is sound: for `scistream store check`. Reads only, also beside a running
S2CS; nothing here is used by the server. `read_only` is how `scistream usage` opens it, too.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from scistream.config import ConfigError
from scistream.s2cs.machine import LIVE, Released, Releasing
from scistream.s2cs.record import Record
from scistream.s2cs.store.database import SCHEMA_VERSION, Counts

RELEASED = str(Released.name)
LIVE_STATES = tuple(str(state.name) for state in (*LIVE, Releasing))
"""In the order of a stream's life."""

_DAMAGED = "SQLite finds the file damaged"
_COMPLETE = ("Listening", "Ready", "Updating", "Streaming")
_COLUMNS = ["uid", "role", "owner", "state", "released_at", "record"]
_BOOKS = {
    "heard": ["uid", "role", "gateway", "boot", *Counts._fields],
    "usage": ["day", "owner", "uid", "role", *Counts._fields[:3]],
}
_DAY = "[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]"
_SELECT = f"SELECT {', '.join(_COLUMNS)} FROM stream ORDER BY uid, role"
START_ANEW = (
    "Stop the S2CS, keep a copy of the file, and restore it from a backup or let the S2CS make a new one: what its "
    "gateways hold and it has no record of stays there until it expires, or until you start it once with "
    "`twistd s2cs --release-unknown`."
)
DROP = (
    'Stop the S2CS, keep a copy of the file, and remove each of these records by sqlite3 FILE "DELETE FROM stream '
    "WHERE uid = 'UID' AND role = 'ROLE'\": what its gateways hold of them stays there until it expires, or "
    "until you start it once with `twistd s2cs --release-unknown`."
)
UPGRADE = "Use the software that wrote it, or a newer one."
ANOTHER_FILE = "Look at `state` in s2cs.toml: it names the file of the S2CS."


class StoreUnreadableError(ConfigError):
    """The file cannot be read as a store; the message is a sentence with the reason."""


@dataclass(frozen=True)
class StoreFault:
    """Something that is wrong, and what to do: one of the sentences above."""

    what: str
    remedy: str


@dataclass
class Findings:
    """What was found. `live` are the records that are not released."""

    version: int = 0
    records: int = 0
    live: list[Record] = field(default_factory=list)
    released: int = 0
    problems: list[StoreFault] = field(default_factory=list)


def check_store(path: Path) -> Findings:
    """Look through a store.

    :raises StoreUnreadableError: if it is not there, may not be read, or is no SQLite database.
    """
    with read_only(path) as db:
        return _look_through(db)


@contextmanager
def read_only(path: Path) -> Iterator[sqlite3.Connection]:
    """One moment of a store, whatever an S2CS writes meanwhile.

    :raises StoreUnreadableError: if it is not there, may not be read, or is no SQLite database.
    """
    try:
        with open(path, "rb") as file:
            if file.read(1) == b"{":
                raise StoreUnreadableError(
                    f"{path} is no store: it holds lines of JSON, as an audit trail does. {ANOTHER_FILE}"
                )
        with closing(sqlite3.connect(f"file:{quote(str(path))}?{_manner(path)}", uri=True)) as db:
            db.execute("BEGIN")
            yield db
    except OSError as problem:
        raise StoreUnreadableError(f"{path} cannot be read: {problem.strerror}") from None
    except sqlite3.Error as problem:
        why = f"{path} cannot be read as a store: {problem}"
        raise StoreUnreadableError(
            f"{why}. Only the user of its S2CS can read it; if it is damaged: {START_ANEW}"
        ) from None


def _manner(path: Path) -> str:
    """How SQLite opens it so that no file is made or changed: a log beside it holds what is newer than the file, and
    is read with all care for who writes it; without one the file alone is all.
    """
    log = path.with_name(path.name + "-wal")
    return "mode=ro" if log.exists() and log.stat().st_size else "mode=ro&immutable=1"


def _look_through(db: sqlite3.Connection) -> Findings:
    found = Findings(version=int(db.execute("PRAGMA user_version").fetchone()[0]))
    try:
        _look_at_tables(db, found)
    except sqlite3.DatabaseError as problem:
        found.problems.append(StoreFault(f"{_DAMAGED}: {problem}", START_ANEW))
    return found


def _look_at_tables(db: sqlite3.Connection, found: Findings) -> None:
    damage = [row[0] for row in db.execute("PRAGMA integrity_check(20)")]
    if damage != ["ok"]:
        found.problems.append(StoreFault(f"{_DAMAGED}: {'; '.join(damage)}", START_ANEW))
    if found.version > SCHEMA_VERSION:
        newer = f"its schema version is {found.version}, and this software knows {SCHEMA_VERSION}"
        found.problems.append(StoreFault(newer, UPGRADE))
        return
    columns = [row[1] for row in db.execute("PRAGMA table_info(stream)")]
    if columns == _COLUMNS:
        _look_at_records(db, found)
        if found.version == SCHEMA_VERSION:
            found.problems += [StoreFault(what, START_ANEW) for what in _books_problems(db)]
    elif found.version == SCHEMA_VERSION:
        found.problems.append(StoreFault("its table of streams is not as it should be", START_ANEW))
    elif db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        found.problems.append(StoreFault("it is a database, but no S2CS made it", ANOTHER_FILE))


def _look_at_records(db: sqlite3.Connection, found: Findings) -> None:
    for row in db.execute(_SELECT):
        found.records += 1
        stream = f"stream {row[0]} ({row[1]})"
        try:
            record = msgspec.json.decode(row[-1], type=Record)
        except (msgspec.DecodeError, UnicodeDecodeError, TypeError) as wrong:
            found.problems.append(StoreFault(f"{stream}: its record cannot be read: {wrong}", DROP))
            continue
        found.problems += [StoreFault(f"{stream}: {what}", DROP) for what in _contradictions(row, record)]
        if record.state == RELEASED:
            found.released += 1
        else:
            found.live.append(record)


def _books_problems(db: sqlite3.Connection) -> Iterator[str]:
    """What no S2CS would have written into the tables of `ledger.py`."""
    for table, columns in _BOOKS.items():
        if [row[1] for row in db.execute(f"PRAGMA table_info({table})")] != columns:
            yield f"its table {table} is not as it should be"
            continue
        numbers = [column for column in columns if column in Counts._fields]
        wrong = " OR ".join(f"typeof({column}) != 'integer' OR {column} < 0" for column in numbers)
        for row in db.execute(f"SELECT {', '.join(columns)} FROM {table} WHERE {wrong} LIMIT 20"):
            yield f"its table {table} has a row that counts less than nothing, or no number: {row}"
    for (day,) in db.execute(f"SELECT DISTINCT day FROM usage WHERE day NOT GLOB '{_DAY}' LIMIT 20"):
        yield f"its table usage has {day!r} in place of a day"


def _contradictions(row: tuple[Any, ...], record: Record) -> Iterator[str]:
    of_record = (record.uid, record.role, record.owner, record.state, record.released_at)
    for name, column, recorded in zip(_COLUMNS, row, of_record, strict=False):
        if column != recorded:
            yield f"its row has {name} {column!r}, and its record {recorded!r}"
    if record.state not in (*LIVE_STATES, RELEASED):
        yield f"its state {record.state!r} is no state of a stream"
    elif record.state != RELEASED and record.request is None:
        yield f"it is {record.state}, and its record does not say what was asked for"
    elif record.state in _COMPLETE and record.request is not None and len(record.listeners) != record.request.num_conn:
        yield f"it is {record.state} with {len(record.listeners)} listeners for {record.request.num_conn} channels"

"""Check a store for `scistream store check`, and open it read-only for `scistream usage`.

Nothing here changes the store, so it may be used while an S2CS runs. The server itself does not use this module.
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
"""The states of a live stream, in the order in which a stream passes them."""

_DAMAGED = "SQLite reports damage"
_COMPLETE = ("Listening", "Ready", "Updating", "Streaming")
_COLUMNS = ["uid", "role", "owner", "state", "released_at", "record"]
_USAGE_TABLES = {
    "heard": ["uid", "role", "gateway", "boot", *Counts._fields],
    "usage": ["day", "owner", "uid", "role", *Counts._fields[:3]],
}
_DAY = "[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]"
_SELECT = f"SELECT {', '.join(_COLUMNS)} FROM stream ORDER BY uid, role"
START_OVER = (
    "Stop the S2CS, keep a copy of the file, and restore it from a backup or let the S2CS create a new one. Streams on "
    "the gateways that the S2CS then has no record of stay there until they expire, or until you start the S2CS once "
    "with `twistd s2cs --release-unknown`."
)
DROP = (
    'Stop the S2CS, keep a copy of the file, and remove each of these records with sqlite3 FILE "DELETE FROM stream '
    "WHERE uid = 'UID' AND role = 'ROLE'\". These streams stay on the gateways until they expire, or until you start "
    "the S2CS once with `twistd s2cs --release-unknown`."
)
UPGRADE = "Use the version of SciStream that wrote the file, or a newer one."
ANOTHER_FILE = "Check `state` in s2cs.toml: it names the file of the S2CS."


class StoreUnreadableError(ConfigError):
    """The file cannot be read as a store; the message gives the reason."""


@dataclass(frozen=True)
class StoreFault:
    """Something that is wrong with a store, and the remedy: one of the constants above."""

    what: str
    remedy: str


@dataclass
class Findings:
    """The result of a check. `records` and `released` are counts; `live` has the records that are not released."""

    version: int = 0
    records: int = 0
    live: list[Record] = field(default_factory=list)
    released: int = 0
    problems: list[StoreFault] = field(default_factory=list)


def check_store(path: Path) -> Findings:
    """Check a store.

    :raises StoreUnreadableError: if the file does not exist, may not be read, or is not an SQLite database.
    """
    with read_only(path) as db:
        return _check(db)


@contextmanager
def read_only(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a consistent snapshot of a store, which does not change while an S2CS writes to the store.

    :raises StoreUnreadableError: if the file does not exist, may not be read, or is not an SQLite database.
    """
    try:
        with open(path, "rb") as file:
            if file.read(1) == b"{":
                raise StoreUnreadableError(
                    f"{path} is not a store: it contains lines of JSON, like an audit trail. {ANOTHER_FILE}"
                )
        with closing(sqlite3.connect(f"file:{quote(str(path))}?{_open_options(path)}", uri=True)) as db:
            db.execute("BEGIN")
            yield db
    except OSError as problem:
        raise StoreUnreadableError(f"{path} cannot be read: {problem.strerror}") from None
    except sqlite3.Error as problem:
        why = f"{path} cannot be read as a store: {problem}"
        raise StoreUnreadableError(
            f"{why}. Only the user that runs the S2CS can read it. If it is damaged: {START_OVER}"
        ) from None


def _open_options(path: Path) -> str:
    """Return the options with which SQLite opens the file without creating or changing any file.

    If there is a write-ahead log, it has newer content than the file, so SQLite must read it together with its locks.
    Otherwise the file is opened as immutable.
    """
    log = path.with_name(path.name + "-wal")
    return "mode=ro" if log.exists() and log.stat().st_size else "mode=ro&immutable=1"


def _check(db: sqlite3.Connection) -> Findings:
    found = Findings(version=int(db.execute("PRAGMA user_version").fetchone()[0]))
    try:
        _check_tables(db, found)
    except sqlite3.DatabaseError as problem:
        found.problems.append(StoreFault(f"{_DAMAGED}: {problem}", START_OVER))
    return found


def _check_tables(db: sqlite3.Connection, found: Findings) -> None:
    damage = [row[0] for row in db.execute("PRAGMA integrity_check(20)")]
    if damage != ["ok"]:
        found.problems.append(StoreFault(f"{_DAMAGED}: {'; '.join(damage)}", START_OVER))
    if found.version > SCHEMA_VERSION:
        newer = f"its schema version is {found.version}, but this version of SciStream knows {SCHEMA_VERSION}"
        found.problems.append(StoreFault(newer, UPGRADE))
        return
    columns = [row[1] for row in db.execute("PRAGMA table_info(stream)")]
    if columns == _COLUMNS:
        _check_records(db, found)
        if found.version == SCHEMA_VERSION:
            found.problems += [StoreFault(what, START_OVER) for what in _usage_problems(db)]
    elif found.version == SCHEMA_VERSION:
        found.problems.append(StoreFault("its table stream does not have the expected columns", START_OVER))
    elif db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        found.problems.append(StoreFault("it is a database, but not of an S2CS", ANOTHER_FILE))


def _check_records(db: sqlite3.Connection, found: Findings) -> None:
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


def _usage_problems(db: sqlite3.Connection) -> Iterator[str]:
    """Yield what is wrong in the tables of `ledger.py`."""
    for table, columns in _USAGE_TABLES.items():
        if [row[1] for row in db.execute(f"PRAGMA table_info({table})")] != columns:
            yield f"its table {table} does not have the expected columns"
            continue
        numbers = [column for column in columns if column in Counts._fields]
        wrong = " OR ".join(f"typeof({column}) != 'integer' OR {column} < 0" for column in numbers)
        for row in db.execute(f"SELECT {', '.join(columns)} FROM {table} WHERE {wrong} LIMIT 20"):
            yield f"its table {table} has a row with a count that is negative or not a number: {row}"
    for (day,) in db.execute(f"SELECT DISTINCT day FROM usage WHERE day NOT GLOB '{_DAY}' LIMIT 20"):
        yield f"its table usage has {day!r} where a day should be"


def _contradictions(row: tuple[Any, ...], record: Record) -> Iterator[str]:
    of_record = (record.uid, record.role, record.owner, record.state, record.released_at)
    for name, column, recorded in zip(_COLUMNS, row, of_record, strict=False):
        if column != recorded:
            yield f"its row has {name} {column!r}, but its record has {recorded!r}"
    if record.state not in (*LIVE_STATES, RELEASED):
        yield f"its state {record.state!r} is not a state of a stream"
    elif record.state != RELEASED and record.request is None:
        yield f"it is {record.state}, but its record has no request"
    elif record.state in _COMPLETE and record.request is not None and len(record.listeners) != record.request.num_conn:
        yield f"it is {record.state} with {len(record.listeners)} listeners for {record.request.num_conn} channels"

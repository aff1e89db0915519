"""The store: the records of an S2CS's streams, in SQLite, called directly.

Write-ahead logging makes a record safe against the death of the process at any instant. One row a
stream, keyed by (uid, role), with the record as JSON beside what a person may want to select by.
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import msgspec

from scistream.config import ConfigProblem
from scistream.s2cs.record import Record
from scistream.wire.errors import StreamError
from scistream.wire.messages import StreamKey

SCHEMA_VERSION = 1
REMEMBER_SECONDS = 24 * 3600.0

_SCHEMA = """
CREATE TABLE stream (
    uid TEXT NOT NULL,
    role TEXT NOT NULL CHECK (role IN ('PROD', 'CONS')),
    owner TEXT NOT NULL,
    state TEXT NOT NULL,
    released_at REAL NOT NULL,
    record BLOB NOT NULL,
    PRIMARY KEY (uid, role)
) WITHOUT ROWID
"""


class StoreProblem(ConfigProblem):
    """The store cannot be opened; the message is a sentence that names the file and the reason."""


class Store:
    """The records of one S2CS.

    :param path: the database file; made, with mode 0600, if it is not there.
    :raises StoreProblem: if it cannot be opened, or another version of the software wrote it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            self._db = sqlite3.connect(path, isolation_level=None)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._prepare()
        except (OSError, sqlite3.Error) as problem:
            raise StoreProblem(f"the store {path} cannot be opened: {problem}") from None

    def _prepare(self) -> None:
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version == SCHEMA_VERSION:
            return
        if version != 0:
            raise StoreProblem(
                f"the store {self._path} has schema version {version}, and this software knows {SCHEMA_VERSION}: "
                "upgrade the software or set `state` to another file"
            )
        self._db.execute("BEGIN IMMEDIATE")
        self._db.execute(_SCHEMA)
        self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        self._db.execute("COMMIT")

    def save(self, record: Record) -> None:
        """Write a record.

        :raises StreamError: `no-capacity` if it cannot be written.
        """
        row = (record.uid, record.role, record.owner, record.state, record.released_at, msgspec.json.encode(record))
        try:
            self._db.execute("INSERT OR REPLACE INTO stream VALUES (?, ?, ?, ?, ?, ?)", row)
        except sqlite3.Error as problem:
            raise StreamError("no-capacity", f"the store {self._path} cannot be written: {problem}") from None

    def load(self) -> list[Record]:
        """All records, also of streams that are released.

        :raises StoreProblem: if a record cannot be read.
        """
        try:
            rows = self._db.execute("SELECT uid, role, record FROM stream ORDER BY uid, role").fetchall()
            return [msgspec.json.decode(record, type=Record) for _, _, record in rows]
        except (sqlite3.Error, msgspec.DecodeError) as problem:
            raise StoreProblem(f"the store {self._path} cannot be read: {problem}") from None

    def forget(self, key: StreamKey) -> None:
        """Remove a record; one that cannot be removed now goes at the next start."""
        try:
            self._db.execute("DELETE FROM stream WHERE uid = ? AND role = ?", key)
        except sqlite3.Error:
            return

    def close(self) -> None:
        """Close the file."""
        self._db.close()

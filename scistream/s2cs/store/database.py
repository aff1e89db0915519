"""The store: the records of streams at an S2CS, and what the streams have carried, in SQLite.

The store is called directly, without a thread. Write-ahead logging makes a record safe if the process dies at any time.
There is one row per stream, keyed by (uid, role), with the record as JSON beside columns for queries by a person. The
tables `heard` and `usage` belong to `ledger.py`: `heard` has the last report of each gateway about each stream, and
`usage` the totals of each day, which outlive the records. Each table is limited for each owner, and SQLite reuses free
pages, so the file does not grow beyond the size of a busy day. The table `drain` belongs to `scistream.s2cs.drains`.
"""

from __future__ import annotations

import os
import re
import secrets
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from twisted.logger import Logger

from scistream.config import ConfigError
from scistream.durations import Durations
from scistream.logs import Lasting
from scistream.protocol.errors import StreamError
from scistream.protocol.messages import Role, StreamKey
from scistream.s2cs.record import Record

MOST_RELEASED = 1000
"""Released streams of one owner that the store keeps."""
MOST_EARLY_RELEASES = 100
"""Releases of unknown streams of one owner that the store keeps. A REL may overtake its REQ; the limit is there because
any user can send any number of them."""


MOST_BOOKED = 1000
"""Streams of one owner with a row of their own in the usage of a day; all others share one row for each role."""
MOST_DAYS = 400
"""Days with usage that the store keeps: the latest ones on which anything was booked."""


class StoreError(ConfigError):
    """The store cannot be opened; the message names the file and the reason."""


Step = Callable[[sqlite3.Connection], None]
"""Upgrades the tables from one version to the next, inside a transaction: no `executescript`, no COMMIT."""


def _make_tables(db: sqlite3.Connection) -> None:
    """Create version 1 in an empty database."""
    if db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        raise sqlite3.DatabaseError("it is the database of another program")
    db.execute(
        """
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
    )


def _make_books(db: sqlite3.Connection) -> None:
    """Upgrade to version 2: what streams have carried."""
    db.execute(
        """
        CREATE TABLE heard (
            uid TEXT NOT NULL,
            role TEXT NOT NULL CHECK (role IN ('PROD', 'CONS')),
            gateway TEXT NOT NULL,
            boot TEXT NOT NULL,
            bytes_to_consumer INTEGER NOT NULL,
            bytes_to_producer INTEGER NOT NULL,
            connections INTEGER NOT NULL,
            reset INTEGER NOT NULL,
            PRIMARY KEY (uid, role, gateway)
        ) WITHOUT ROWID
        """
    )
    db.execute(
        """
        CREATE TABLE usage (
            day TEXT NOT NULL,
            owner TEXT NOT NULL,
            uid TEXT NOT NULL,
            role TEXT NOT NULL CHECK (role IN ('PROD', 'CONS')),
            bytes_to_consumer INTEGER NOT NULL,
            bytes_to_producer INTEGER NOT NULL,
            connections INTEGER NOT NULL,
            PRIMARY KEY (day, owner, uid, role)
        ) WITHOUT ROWID
        """
    )


def _make_identity(db: sqlite3.Connection) -> None:
    """Upgrade to version 3: a random name of the store, early releases by owner, and indexes of released streams.

    Gateways keep the name of the store with each reservation.
    """
    db.execute("CREATE TABLE identity (id TEXT NOT NULL)")
    db.execute("INSERT INTO identity VALUES (?)", (secrets.token_hex(16),))
    db.execute(
        """
        CREATE TABLE early_release (
            owner TEXT NOT NULL,
            uid TEXT NOT NULL,
            role TEXT NOT NULL CHECK (role IN ('PROD', 'CONS')),
            released_at REAL NOT NULL,
            PRIMARY KEY (owner, uid, role)
        )
        """
    )
    unasked = "FROM stream WHERE state = 'Released' AND instr(CAST(record AS TEXT), '\"request\":') = 0"
    db.execute(f"INSERT INTO early_release SELECT owner, uid, role, released_at {unasked}")
    db.execute(f"DELETE {unasked}")
    db.execute("CREATE INDEX over ON stream (released_at) WHERE state = 'Released'")
    db.execute("CREATE INDEX over_of ON stream (owner, released_at) WHERE state = 'Released'")


def _count_own_updates(_db: sqlite3.Connection) -> None:
    """Upgrade to version 4: records count the updates of targets that the S2CS has made itself.

    The tables do not change. The new version keeps out older software, which would reuse generations.
    """


def _make_drains(db: sqlite3.Connection) -> None:
    """Upgrade to version 5: what is being drained. Older software is kept out, since it would place streams there."""
    db.execute("CREATE TABLE drain (gateway TEXT PRIMARY KEY, owner TEXT NOT NULL, until REAL) WITHOUT ROWID")


STEPS: tuple[Step, ...] = (_make_tables, _make_books, _make_identity, _count_own_updates, _make_drains)
"""The step at index n upgrades version n to n + 1. Never change a step that was part of a release."""
SCHEMA_VERSION = len(STEPS)


DURATION_BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
"""The bounds of the histogram of the store's durations, in seconds."""


class Counts(NamedTuple):
    """What was carried: bytes in each direction, accepted connections, and connections that were reset."""

    bytes_to_consumer: int = 0
    bytes_to_producer: int = 0
    connections: int = 0
    reset: int = 0


NO_COUNTS = Counts()


class Booking(NamedTuple):
    """A report of a gateway about a stream: its totals, and the difference to the last report that was booked."""

    uid: str
    role: Role
    gateway: str
    owner: str
    boot: str
    counts: Counts
    difference: Counts


class Store:
    """The records of one S2CS, and the usage of its users.

    :param path: the database file. It is created with mode 0600 if it does not exist, and upgraded if it is older.
    :param steps: the steps of the upgrade.
    :raises StoreError: if the file cannot be opened or upgraded, or was written by a newer version of SciStream. The
        file is then left unchanged.
    """

    log = Logger()

    def __init__(self, path: Path, steps: Sequence[Step] = STEPS) -> None:
        self._path = path
        self._syncs = "NORMAL"
        self.durations = {operation: Durations(DURATION_BOUNDS) for operation in ("read", "write")}
        """How long reading and writing a record, and booking usage, have taken."""
        self._unwritable = Lasting(self.log)
        self._write_problem: str | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            self._db = sqlite3.connect(path, isolation_level=None)
        except (OSError, sqlite3.Error) as problem:
            raise StoreError(f"state: the store {path} cannot be opened: {problem}") from None
        try:
            self._refuse_newer(len(steps))
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._upgrade(steps)
            self.id = self._read_id(len(steps))
        except sqlite3.Error as problem:
            self._db.close()
            raise StoreError(f"state: the store {path} cannot be opened: {problem}") from None
        except BaseException:
            self._db.close()
            raise

    def _version(self) -> int:
        return int(self._db.execute("PRAGMA user_version").fetchone()[0])

    def _refuse_newer(self, known: int) -> None:
        version = self._version()
        if version > known:
            raise StoreError(
                f"state: the store {self._path} has schema version {version}, but this version of SciStream knows "
                f"{known}: upgrade SciStream, or set `state` to another file"
            )

    def _upgrade(self, steps: Sequence[Step]) -> None:
        """Run the steps that are missing: all of them or none."""
        if self._version() == len(steps):
            return
        self._db.execute("BEGIN IMMEDIATE")
        try:
            first = version = self._version()
            for step in steps[first:]:
                step(self._db)
                version += 1
                self._db.execute(f"PRAGMA user_version = {version}")
            self._db.execute("COMMIT")
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        if first:
            self.log.info("upgraded the store {path} to schema version {version}", path=self._path, version=version)

    def _read_id(self, version: int) -> str:
        """Return the random name that the store got when it was created. A copy of the store has the same name."""
        if version < STEPS.index(_make_identity) + 1:
            return ""
        ids = self._db.execute("SELECT id FROM identity").fetchall()
        if len(ids) != 1 or not re.fullmatch(r"[0-9a-f]{32}", str(ids[0][0])):
            raise sqlite3.DatabaseError(
                f"its table identity has {len(ids)} rows, not one row with 32 hexadecimal digits"
            )
        return str(ids[0][0])

    def save(self, record: Record) -> None:
        """Write a record.

        The record of a new stream is synced to disk before a gateway reserves anything for it. So if a gateway has a
        stream of this store that the store does not know, the store is an older copy.

        :raises StreamError: `no-capacity` if the record cannot be written.
        """
        row = (record.uid, record.role, record.owner, record.state, record.released_at, msgspec.json.encode(record))
        try:
            with self.durations["write"].of_block():
                self._write(record, row)
        except sqlite3.Error as problem:
            raise self._cannot_be_written(problem) from None
        self._written()

    def _write(self, record: Record, row: tuple[Any, ...]) -> None:
        self._sync("FULL" if record.state == "Reserving" else "NORMAL")
        self._db.execute("INSERT OR REPLACE INTO stream VALUES (?, ?, ?, ?, ?, ?)", row)

    def _cannot_be_written(self, problem: sqlite3.Error) -> StreamError:
        error = StreamError("no-capacity", f"the store {self._path} cannot be written: {problem}")
        self._write_problem = error.msg
        self._unwritable.has_come(
            f"{error.msg}. Until it can, new streams are refused and usage is not recorded: free disk space"
        )
        return error

    def problem(self) -> str | None:
        """Return why the store does not answer now: it cannot be read, or the last attempt to write it has failed."""
        try:
            self._db.execute("SELECT count(*) FROM identity").fetchone()
        except sqlite3.Error as problem:
            return f"the store {self._path} cannot be read: {problem}"
        return self._write_problem

    def _written(self) -> None:
        self._write_problem = None
        self._unwritable.is_over(f"the store {self._path} can be written again")

    def _sync(self, how: str) -> None:
        if how != self._syncs:
            self._db.execute(f"PRAGMA synchronous = {how}")
            self._syncs = how

    def load(self, *, live: bool = False) -> list[Record]:
        """Return all records, ordered by uid and role.

        :param live: leave out released streams.
        :raises StoreError: if a record cannot be read.
        """
        where = "WHERE state != 'Released'" if live else ""
        try:
            rows = self._db.execute(f"SELECT uid, role, record FROM stream {where} ORDER BY uid, role").fetchall()
            return [msgspec.json.decode(record, type=Record) for _, _, record in rows]
        except (sqlite3.Error, msgspec.DecodeError) as problem:
            raise StoreError(f"state: the store {self._path} cannot be read: {problem}") from None

    def find(self, key: StreamKey) -> Record | None:
        """Return the record of a stream, or None if there is none.

        :raises StreamError: `no-capacity` if the store cannot be read.
        """
        try:
            with self.durations["read"].of_block():
                row = self._db.execute("SELECT record FROM stream WHERE uid = ? AND role = ?", key).fetchone()
            return msgspec.json.decode(row[0], type=Record) if row is not None else None
        except (sqlite3.Error, msgspec.DecodeError) as problem:
            raise StreamError("no-capacity", f"the store {self._path} cannot be read: {problem}") from None

    def forget(self, key: StreamKey) -> None:
        """Remove a record. If that fails, the record is removed at the next start. Booked usage stays."""
        try:
            self._db.execute("DELETE FROM heard WHERE uid = ? AND role = ?", key)
            self._db.execute("DELETE FROM stream WHERE uid = ? AND role = ?", key)
        except sqlite3.Error:
            return

    # -- released streams

    def forget_old(self, before: float) -> None:
        """Remove the records of streams released before a time. If that fails, a later call removes them.

        Booked usage stays.

        :param before: seconds since the epoch.
        """
        self._remove(f"WHERE {_OVER} AND released_at < ?", (before,))
        try:
            self._db.execute("DELETE FROM early_release WHERE released_at < ?", (before,))
        except sqlite3.Error:
            return

    def keep_newest(self, owner: str, most: int) -> None:
        """Remove all but the `most` latest released streams of an owner."""
        newest = (
            f"SELECT released_at FROM stream WHERE {_OVER} AND owner = ? ORDER BY released_at DESC LIMIT 1 OFFSET ?"
        )
        self._remove(f"WHERE {_OVER} AND owner = ? AND released_at <= ({newest})", (owner, owner, most))

    def _remove(self, where: str, values: tuple[Any, ...]) -> None:
        try:
            self._db.execute(f"DELETE FROM heard WHERE (uid, role) IN (SELECT uid, role FROM stream {where})", values)
            self._db.execute(f"DELETE FROM stream {where}", values)
        except sqlite3.Error:
            return

    def note_early_release(self, owner: str, key: StreamKey, now: float, most: int) -> None:
        """Note that an owner has released an unknown stream, so that a REQ that arrives later is refused.

        :param now: seconds since the epoch.
        :param most: how many of these notes to keep for each owner; the oldest are removed.
        :raises StreamError: `no-capacity` if the store cannot be written.
        """
        try:
            self._db.execute("INSERT OR REPLACE INTO early_release VALUES (?, ?, ?, ?)", (owner, *key, now))
            self._db.execute(
                "DELETE FROM early_release WHERE owner = ? AND rowid NOT IN "
                "(SELECT rowid FROM early_release WHERE owner = ? ORDER BY released_at DESC, rowid DESC LIMIT ?)",
                (owner, owner, most),
            )
        except sqlite3.Error as problem:
            raise self._cannot_be_written(problem) from None

    def was_released_early(self, owner: str, key: StreamKey) -> bool:
        """Return True if the owner has released this stream before requesting it.

        :raises StreamError: `no-capacity` if the store cannot be read.
        """
        select = "SELECT 1 FROM early_release WHERE owner = ? AND uid = ? AND role = ?"
        try:
            return self._db.execute(select, (owner, *key)).fetchone() is not None
        except sqlite3.Error as problem:
            raise StreamError("no-capacity", f"the store {self._path} cannot be read: {problem}") from None

    # -- drains

    def drains(self) -> list[tuple[str, str, float | None]]:
        """Return the name of each gateway that is drained (empty: all of them), who asked for it, and until when.

        :raises StoreError: if the store cannot be read.
        """
        try:
            rows = self._db.execute("SELECT gateway, owner, until FROM drain ORDER BY gateway").fetchall()
        except sqlite3.Error as problem:
            raise StoreError(f"state: the store {self._path} cannot be read: {problem}") from None
        return [(gateway, owner, until) for gateway, owner, until in rows]

    def note_drain(self, gateway: str, owner: str, until: float | None) -> None:
        """Note that a gateway is drained, in place of an earlier note.

        :param until: when the streams that are left are released, in seconds since the epoch; None: they go on.
        :raises StreamError: `no-capacity` if the store cannot be written.
        """
        self._change_drains("INSERT OR REPLACE INTO drain VALUES (?, ?, ?)", gateway, owner, until)

    def forget_drain(self, gateway: str) -> None:
        """Note that a gateway is not drained any more.

        :raises StreamError: `no-capacity` if the store cannot be written.
        """
        self._change_drains("DELETE FROM drain WHERE gateway = ?", gateway)

    def _change_drains(self, statement: str, *values: Any) -> None:
        try:
            self._sync("FULL")
            self._db.execute(statement, values)
        except sqlite3.Error as problem:
            raise self._cannot_be_written(problem) from None
        self._written()

    # -- usage

    def load_heard(self) -> dict[tuple[str, Role, str], tuple[str, Counts]]:
        """Return the boot and the totals of the last report about each live stream, by (uid, role, gateway).

        :raises StoreError: if the store cannot be read.
        """
        try:
            rows = self._db.execute(
                "SELECT heard.* FROM heard LEFT JOIN stream USING (uid, role) WHERE stream.state IS NOT 'Released'"
            ).fetchall()
        except sqlite3.Error as problem:
            raise StoreError(f"state: the store {self._path} cannot be read: {problem}") from None
        return {(uid, role, gateway): (boot, Counts(*counts)) for uid, role, gateway, boot, *counts in rows}

    def book(self, day: str, bookings: Iterable[Booking]) -> None:
        """Write reports of gateways, and add their differences to the usage of a day: all of them or none.

        :param day: as YYYY-MM-DD.
        :raises StreamError: `no-capacity` if the store cannot be written.
        """
        try:
            with self.durations["write"].of_block():
                self._book(day, bookings)
        except sqlite3.Error as problem:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise self._cannot_be_written(problem) from None
        self._written()

    def _book(self, day: str, bookings: Iterable[Booking]) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        is_first = self._db.execute("SELECT 1 FROM usage WHERE day = ? LIMIT 1", (day,)).fetchone() is None
        for one in bookings:
            self._db.execute(_HEAR, (one.uid, one.role, one.gateway, one.boot, *one.counts))
            uid = self._booked_as(day, one)
            self._db.execute(_ADD, (day, one.owner, uid, one.role, *one.difference[:3]))
        if is_first:
            self._db.execute(_FORGET_DAYS, (MOST_DAYS - 1,))
        self._db.execute("COMMIT")

    def _booked_as(self, day: str, one: Booking) -> str:
        """Return the uid of the usage row for a stream: its own, or "" for the row shared beyond the limit."""
        row = "SELECT 1 FROM usage WHERE day = ? AND owner = ? AND uid = ? AND role = ?"
        if self._db.execute(row, (day, one.owner, one.uid, one.role)).fetchone() is not None:
            return one.uid
        count = "SELECT count(*) FROM usage WHERE day = ? AND owner = ? AND uid != ''"
        return one.uid if self._db.execute(count, (day, one.owner)).fetchone()[0] < MOST_BOOKED else ""

    def bytes_on(self, day: str, owner: str) -> int:
        """Return the bytes of an owner's streams on a day, both directions together.

        :raises StreamError: `no-capacity` if the store cannot be read.
        """
        try:
            return int(self._db.execute(_BYTES, (day, owner)).fetchone()[0])
        except sqlite3.Error as problem:
            raise StreamError("no-capacity", f"the store {self._path} cannot be read: {problem}") from None

    def close(self) -> None:
        """Close the database."""
        self._db.close()


_OVER = "state = 'Released'"
_HEAR = "INSERT OR REPLACE INTO heard VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
MOST_COUNT = 2**62
"""The limit of sums in the store, below the largest integer of SQLite."""
_ADD = f"""
    INSERT INTO usage VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET
        bytes_to_consumer = min({MOST_COUNT}, bytes_to_consumer + excluded.bytes_to_consumer),
        bytes_to_producer = min({MOST_COUNT}, bytes_to_producer + excluded.bytes_to_producer),
        connections = min({MOST_COUNT}, connections + excluded.connections)
"""


_FORGET_DAYS = """
    DELETE FROM usage WHERE day < (SELECT day FROM (SELECT DISTINCT day FROM usage) ORDER BY day DESC LIMIT 1 OFFSET ?)
"""


def saturating(column: str) -> str:
    """Return SQL for the sum of a column, limited to `MOST_COUNT`. SQLite's own `sum` fails beyond 2^63."""
    return f"CAST(min({MOST_COUNT}, total({column})) AS INTEGER)"


_BYTES = (
    f"SELECT {saturating('bytes_to_consumer')} + {saturating('bytes_to_producer')} FROM usage "
    "WHERE day = ? AND owner = ?"
)

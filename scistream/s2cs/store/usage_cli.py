"""The command `scistream usage`: how many bytes each identity has moved on each day, from the store of an S2CS.

The store is opened read-only, so the command may be used while the S2CS runs.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import click
import msgspec

from scistream.cli_support import refuse
from scistream.s2cs.audit.trail import split_owner
from scistream.s2cs.store.check import StoreUnreadableError, read_only
from scistream.s2cs.store.database import SCHEMA_VERSION, saturating
from scistream.tables import Columns
from scistream.units import spoken_size

_DATE = click.DateTime(["%Y-%m-%d"])
_KEYS = {"day": ("day",), "identity": ("owner",), "both": ("day", "owner")}


@dataclass(frozen=True)
class Usage:
    """Bytes and connections of one day, one identity, or both; `day` or `identity` is None if not grouped by it.

    `streams` counts the streams that moved any bytes.
    """

    day: str | None
    identity: str | None
    issuer: str | None
    streams: int
    bytes_to_consumer: int
    bytes_to_producer: int
    connections: int


def read_usage(path: Path, since: str | None, until: str | None, by: str) -> list[Usage]:
    """Return the recorded usage, ordered by day and identity.

    :param since: the first day, as YYYY-MM-DD; None for the first one there is.
    :param until: the last day, as YYYY-MM-DD; None for the last one there is.
    :param by: `day`, `identity` or `both`.
    :raises StoreUnreadableError: if the file cannot be read as a store, or its schema version has no usage.
    """
    keys = _KEYS[by]
    order = ", ".join(keys)
    sums = ", ".join(saturating(column) for column in ("bytes_to_consumer", "bytes_to_producer", "connections"))
    select = (
        f"SELECT {order}, count(DISTINCT uid || role), {sums} FROM usage WHERE day BETWEEN ? AND ? "
        f"GROUP BY {order} ORDER BY {order}"
    )
    with read_only(path) as db:
        _refuse_other_versions(path, db)
        rows = db.execute(select, (since or "", until or "9999-99-99")).fetchall()
    return [_usage(dict(zip(keys, row, strict=False)), row[len(keys) :]) for row in rows]


def _refuse_other_versions(path: Path, db: sqlite3.Connection) -> None:
    version = int(db.execute("PRAGMA user_version").fetchone()[0])
    if version < 2:
        raise StoreUnreadableError(
            f"{path} has schema version {version}, which has no usage: start its S2CS once to upgrade it"
        )
    if version > SCHEMA_VERSION:
        raise StoreUnreadableError(
            f"{path} has schema version {version}, but this version of SciStream knows {SCHEMA_VERSION}: upgrade "
            "SciStream"
        )


def _usage(keys: dict[str, str], counts: Sequence[int]) -> Usage:
    owner = keys.get("owner")
    identity, issuer = split_owner(owner) if owner is not None else (None, None)
    return Usage(keys.get("day"), identity, issuer, *counts)


@click.command()
@click.argument("file", metavar="STORE", type=click.Path(path_type=Path))
@click.option("--since", type=_DATE, metavar="DATE", help="The first day, such as 2026-01-31.")
@click.option("--until", type=_DATE, metavar="DATE", help="The last day.")
@click.option(
    "--by", type=click.Choice(list(_KEYS)), default="both", show_default=True, help="Group the lines by this."
)
@click.option("--json", "as_json", is_flag=True, help="Print exact numbers, as a JSON list.")
def usage(file: Path, since: datetime | None, until: datetime | None, by: str, as_json: bool) -> None:
    """Show how much each identity has moved on each day (UTC).

    STORE is the file that `state` in s2cs.toml names. Nothing in it is changed, and the S2CS may keep running. The
    numbers are at most 15 seconds old. A stream with both sides at this facility counts twice, once for each side.

    Exit status: 0 done, 2 the store cannot be read.
    """
    if since is not None and until is not None and since > until:
        raise click.BadParameter("is before --since", param_hint="--until")
    try:
        rows = read_usage(file, _day(since), _day(until), by)
    except StoreUnreadableError as problem:
        refuse(problem)
    if as_json:
        click.echo(msgspec.json.encode(rows).decode())
    elif rows:
        _table(rows, by).show()
    else:
        click.echo("no bytes were moved")


def _day(date: datetime | None) -> str | None:
    return date.strftime("%Y-%m-%d") if date is not None else None


def _table(rows: list[Usage], by: str) -> Columns:
    names = {"day": ["day"], "identity": ["identity", "issuer"], "both": ["day", "identity", "issuer"]}[by]
    table = Columns(*names, "streams", "to consumers", "to producers", "connections")
    for row in rows:
        keys = [getattr(row, name) or "" for name in names]
        table.add(*keys, str(row.streams), *_moved([row]))
    table.add("total", *[""] * len(names), *_moved(rows))
    return table


def _moved(rows: list[Usage]) -> tuple[str, str, str]:
    """Return the bytes to consumers and to producers, and the connections, of all these rows together."""
    to_consumer = sum(row.bytes_to_consumer for row in rows)
    to_producer = sum(row.bytes_to_producer for row in rows)
    return spoken_size(to_consumer), spoken_size(to_producer), str(sum(row.connections for row in rows))

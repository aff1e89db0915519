"""The commands `scistream store`, for the operator of an S2CS."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import click

from scistream.cli_support import refuse
from scistream.protocol.errors import printable
from scistream.s2cs.record import Record
from scistream.s2cs.store.check import LIVE_STATES, Findings, StoreUnreadableError, check_store
from scistream.s2cs.store.database import SCHEMA_VERSION
from scistream.units import spoken_seconds


@click.group()
def store() -> None:
    """Inspect the store of an S2CS.

    The store is the file that `state` in s2cs.toml names.
    """


@store.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def check(file: Path, as_json: bool) -> None:
    """Check the store FILE for damage, and list its live streams.

    Nothing is changed, and the S2CS may keep running. Exit status: 0 the store is sound, 1 it has problems, 2 it cannot
    be read.
    """
    try:
        found = check_store(file)
    except StoreUnreadableError as problem:
        refuse(problem)
    if as_json:
        click.echo(json.dumps(in_json(file, found)))
        sys.exit(1 if found.problems else 0)
    for line in in_words(file, found, time.time()):
        click.echo(printable(line))  # users choose their own names, and a damaged file may contain anything
    sys.exit(1 if found.problems else 0)


def in_json(file: Path, found: Findings) -> dict[str, Any]:
    """Return the result of a check as a JSON object."""
    facts = ("uid", "role", "owner", "state", "expires_at")
    return {
        "file": str(file),
        "version": found.version,
        "records": found.records,
        "live": [{name: getattr(record, name) for name in facts} for record in sorted(found.live, key=_order)],
        "released": found.released,
        "problems": [{"what": problem.what, "remedy": problem.remedy} for problem in found.problems],
        "sound": not found.problems,
    }


def in_words(file: Path, found: Findings, now: float) -> list[str]:
    """Return the result of a check as lines of text.

    :param now: seconds since the epoch.
    """
    lines = [f"{file}: {_version(found.version)}, {_count(found.records, 'record')}"]
    by_state = Counter(record.state for record in found.live)
    states = ", ".join(f"{by_state[state]} {state}" for state in LIVE_STATES if by_state[state])
    lines.append(f"live streams: {len(found.live)}{f' ({states})' if states else ''}")
    for record in sorted(found.live, key=_order):
        lines.append(f"  {record.state:<10} {record.role} {record.uid} of {record.owner}, {_end(record, now)}")
    lines.append(f"released streams, kept for a day: {found.released}")
    lines += [f"PROBLEM: {problem.what}" for problem in found.problems]
    lines += [f"What to do: {remedy}" for remedy in dict.fromkeys(problem.remedy for problem in found.problems)]
    if not found.problems:
        lines.append("the store is sound: SQLite reports no damage, and all records are readable and consistent")
    return lines


def _version(version: int) -> str:
    if version == SCHEMA_VERSION:
        return f"schema version {version}"
    if version > SCHEMA_VERSION:
        return f"schema version {version}, of a newer version of SciStream"
    return f"schema version {version}, upgraded to {SCHEMA_VERSION} when its S2CS starts"


def _order(record: Record) -> tuple[int, str, str]:
    known = LIVE_STATES.index(record.state) if record.state in LIVE_STATES else len(LIVE_STATES)
    return known, record.uid, record.role


def _end(record: Record, now: float) -> str:
    left = record.expires_at - now
    if left >= 0:
        return f"expires in {spoken_seconds(left)}"
    if record.state == "Releasing":
        waits_for = ", ".join(record.plan) or "nothing"
        return f"expired {spoken_seconds(-left)} ago, waiting for {waits_for} to confirm the release"
    return f"EXPIRED {spoken_seconds(-left)} ago: the S2CS releases it when it next runs"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"

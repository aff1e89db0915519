"""The command `s2uc facilities`: show which facilities answer, of which version they are, and what they warn about."""

from __future__ import annotations

import json

import click
import msgspec

from scistream.s2uc.client import Client
from scistream.tables import Columns


async def show_facilities(client: Client, facilities: tuple[str, ...], as_json: bool) -> int:
    """Ask facilities, or all that have a name, and show what they answer. Return the exit status."""
    checks = await client.check_facilities(*facilities)
    ok = all(check.ok for check in checks)
    if as_json:
        click.echo(json.dumps({"ok": ok, "facilities": [msgspec.to_builtins(check) for check in checks]}))
        return 0 if ok else 1
    if not checks:
        click.echo("no facility has a name: give it one in s2uc.toml, as `s2uc facilities --help` shows")
        return 0
    table = Columns("name", "address", "answers", "version", note="note")
    for check in checks:
        answers = f"in {check.round_trip_ms:.3g} ms" if check.round_trip_ms is not None else "no"
        version = check.version or ("unknown" if check.ok else "")
        notes = "; ".join([check.reason] * (not check.ok) + [f"warning: {warning}" for warning in check.warnings])
        table.add(check.name or "", check.address, answers, version, note=notes, noted=check.name or check.address)
    table.show()
    return 0 if ok else 1

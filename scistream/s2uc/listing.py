"""The list of streams that `s2uc` remembers on this machine, for `s2uc list`; no facility is asked."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import click
import msgspec

from scistream.cli_support import refuse
from scistream.config import ConfigError
from scistream.s2uc.history import StreamHistory
from scistream.tables import Columns, short_uids
from scistream.units import clock_time
from scistream.wrapping import wrapped


def list_remembered(warnings: Callable[[], list[str]], as_json: bool) -> None:
    """Print the streams that have neither been released nor expired, and warnings on standard error."""
    try:
        streams = StreamHistory().all()
    except ConfigError as problem:
        refuse(problem)
    for warning in warnings():
        click.echo(wrapped(f"warning: {warning}", sys.stderr), err=True)
    if as_json:
        click.echo(json.dumps([msgspec.to_builtins(stream) for stream in streams]))
        return
    if not streams:
        click.echo("no streams")
        return
    short = short_uids([stream.uid for stream in streams])
    table = Columns(
        "uid", "producer side", "consumer side", "ch", "Mbit/s", "requested", "expires", "label", whole=("requested",)
    )
    for stream in streams:
        requested = clock_time(stream.asked_at)
        expires = clock_time(stream.expires_at) if stream.expires_at is not None else ""
        sides, channels, label = (stream.prod, stream.cons), str(stream.num_conn), stream.label or ""
        table.add(short[stream.uid], *sides, channels, f"{stream.rate:g}", requested, expires, label)
    table.show()

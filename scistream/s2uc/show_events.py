"""The command `s2uc events`: what has happened to a stream, when, and at which side."""

from __future__ import annotations

import json
import time
from dataclasses import asdict

import click

from scistream.cli_support import failure_names
from scistream.protocol.errors import printable
from scistream.s2uc.client import Client, StreamEvents
from scistream.s2uc.history import StreamHistory
from scistream.s2uc.output import progress, reaching, tell, unknown_stream
from scistream.s2uc.show import whole_uid_at
from scistream.s2uc.stream import SIDE
from scistream.standard_streams import check_output


async def show_events(client: Client, uid: str, as_json: bool) -> int:
    """Show the events of a stream in the user's list, from both facilities."""
    check_output()
    with failure_names(uid=uid):
        remembered = StreamHistory().find(uid)
        stream = client.remembered(remembered.uid, prod=remembered.prod, cons=remembered.cons)
        with progress(client, lambda: stream.waits_for):
            found = await stream.events()
        if not found.events and not found.without and not found.unreachable:
            raise unknown_stream(remembered)
    return _show(remembered.uid, found, as_json)


async def show_events_at(client: Client, s2cs: str, uid: str, as_json: bool) -> int:
    """Show the events of a stream at one S2CS: for an administrator, of any user."""
    check_output()
    with failure_names(uid=uid), reaching(client, s2cs):
        uid = await whole_uid_at(client, s2cs, uid, changes=False)
        found = await client.events_at(s2cs, uid)
    return _show(uid, found, as_json)


def _show(uid: str, found: StreamEvents, as_json: bool) -> int:
    errors = {role: str(error) for role, error in found.unreachable.items()}
    if as_json:
        events = [asdict(one) for one in found.events]
        result = {"uid": uid, "events": events, "dropped": dict(found.dropped), "without": found.without}
        click.echo(json.dumps({**result, "errors": errors}))
    else:
        for role, count in found.dropped.items():
            click.echo(f"{SIDE[role]} side: {count} older events were dropped")
        for one in found.events:
            when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one.at))
            times = f" ({one.count} times)" if one.count > 1 else ""
            state = f"{one.state}: " if one.state else ""
            click.echo(printable(f"{when}  {SIDE[one.role]:8}  {state}{one.text}{times}"))
    for role in found.without:
        tell(f"the {SIDE[role]} side keeps no events of this stream: its facility runs an earlier version of SciStream")
    for role, error in errors.items():
        tell(f"the {SIDE[role]} side did not answer: {error}")
    return 1 if errors else 0

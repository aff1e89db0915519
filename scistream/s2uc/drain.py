"""The command `scistream drain`, with which an administrator empties a gateway or a whole S2CS before it is stopped."""

from __future__ import annotations

import json
import sys
from typing import Any

import click
import msgspec
from twisted.internet.defer import CancelledError
from twisted.internet.task import deferLater

from scistream import timing
from scistream.cli_support import TIME
from scistream.protocol.errors import StreamError, printable
from scistream.protocol.messages import DrainProgress
from scistream.s2uc.cli_options import FACILITY, credential_options, finish
from scistream.s2uc.client import Client
from scistream.s2uc.output import progress, reaching, tell
from scistream.units import format_rate, short_seconds


@click.command
@click.argument("gateway", required=False)
@click.option("--at", type=FACILITY, required=True, help="The S2CS of your facility: HOST:PORT, or a name.")
@click.option(
    "--within",
    type=TIME,
    help="Release the streams that are left after this time [default: they go on until they end].",
)
@click.option("--undo", is_flag=True, help="Let new streams begin there again.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object at the start and at each change.")
@credential_options
@click.pass_context
def drain(ctx: click.Context, gateway: str | None, at: str, within: float | None, undo: bool, as_json: bool) -> None:
    """Let no new streams begin on GATEWAY, or at the whole S2CS, and wait until none is left there.

    GATEWAY is its name in the settings of the S2CS. New streams get other gateways, or are refused if there is none.
    The S2CS keeps on draining when this command is interrupted, and after a restart, until --undo. Only an
    administrator of the facility's policy may do this.

    Exit status: 0 no stream is left; 1 the S2CS has refused, or streams cannot be released; 2 wrong usage.
    """
    if undo and within is not None:
        raise click.UsageError("--within goes with the beginning of a drain, not with --undo")
    finish(ctx.obj, lambda client: _drain(client, at, gateway, within, undo=undo, as_json=as_json))


async def _drain(
    client: Client, s2cs: str, gateway: str | None, within: float | None, *, undo: bool, as_json: bool
) -> int:
    where = f"gateway {gateway}" if gateway else f"the S2CS at {s2cs}"
    with reaching(client, s2cs):
        found = await client.drain_at(s2cs, "undo" if undo else "start", gateway, within)
    if undo:
        click.echo(json.dumps({"gateway": gateway, "draining": False}) if as_json else f"{where} is not drained")
        return 0
    try:
        await _Watch(client, s2cs, gateway, as_json).run(_of(found, gateway, where))
    except CancelledError:
        tell(f"{where} is still being drained; `scistream drain --at {s2cs} --undo` ends that")
        raise
    if not as_json:
        click.echo(f"{where} is drained: no stream is left")
    return 0


def _of(found: list[DrainProgress], gateway: str | None, where: str) -> DrainProgress:
    """Return what an administrator has asked for.

    :raises StreamError: `wrong-state`, if it is not there any more.
    """
    for one in found:
        if one.gateway == gateway and one.by:
            return one
    raise StreamError("wrong-state", f"{where} is no longer being drained: another administrator has ended that")


class _Watch:
    """Watches what is left of a drain."""

    def __init__(self, client: Client, s2cs: str, gateway: str | None, as_json: bool) -> None:
        self._client = client
        self._s2cs = s2cs
        self._gateway = gateway
        self._as_json = as_json
        self._now = DrainProgress()
        self._rate = 0.0
        self._measured: tuple[float, int] | None = None
        self._overdue_since: float | None = None

    async def run(self, first: DrainProgress) -> None:
        """Return when no stream is left, and print what changes.

        :raises StreamError: if streams cannot be released.
        """
        self._note(first)
        with progress(self._client, self._left):
            while self._now.streams:
                await deferLater(self._client.reactor, timing.DRAIN_POLL)
                found = await self._client.drain_at(self._s2cs, "show")
                self._note(_of(found, self._gateway, self._gateway or f"the S2CS at {self._s2cs}"))
                self._check_overdue()

    def _note(self, now: DrainProgress) -> None:
        seconds = self._client.reactor.seconds()
        if self._measured is None or now.bytes != self._measured[1]:
            if self._measured is not None:
                self._rate = max(0, now.bytes - self._measured[1]) * 8e-6 / max(1e-3, seconds - self._measured[0])
            self._measured = seconds, now.bytes
        elif seconds - self._measured[0] > timing.POLL:
            self._rate = 0.0
        is_news = self._now.streams != now.streams or not self._now.by
        self._now = now
        if self._as_json and is_news:
            click.echo(json.dumps(self._fields()))
            sys.stdout.flush()

    def _fields(self) -> dict[str, Any]:
        fields = {"gateway": None, "streams": 0, "connections": 0, "bytes": 0, "seconds_left": None}
        return {**fields, **msgspec.to_builtins(self._now), "draining": True}

    def _check_overdue(self) -> None:
        """Give up if streams are still there long after they should have been released."""
        seconds = self._client.reactor.seconds()
        if self._now.seconds_left != 0:
            self._overdue_since = None
        elif self._overdue_since is None:
            self._overdue_since = seconds
        elif seconds - self._overdue_since > timing.WHOLE_LIST:
            raise StreamError(
                "gateway-failed",
                f"{self._now.streams} streams are still there {seconds - self._overdue_since:.0f} s after the time was "
                f"over: a gateway does not answer; `s2uc list --at {self._s2cs}` shows them",
            )

    def _left(self) -> str:
        now = self._now
        text = "1 stream to end" if now.streams == 1 else f"{now.streams} streams to end"
        if not sys.stderr.isatty():
            return text  # each change would be a line
        text += f": {now.connections} connections, {format_rate(round(self._rate, 3))}"
        if now.seconds_left is not None:
            text += f", {short_seconds(now.seconds_left)} left"
        return printable(text)

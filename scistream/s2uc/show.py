"""The commands of `s2uc` that show streams: `list --at` and `status`. Each returns the exit status of the process."""

from __future__ import annotations

import json
import sys

import click
import msgspec
from twisted.internet.defer import Deferred, DeferredSemaphore, gatherResults

from scistream.cli_support import failure_names
from scistream.config import ConfigError
from scistream.protocol.errors import StreamError, printable
from scistream.protocol.messages import CONS, PROD, ChannelFigures, PathFigures, ResetReason, Role, StreamStatus
from scistream.s2uc.client import Client
from scistream.s2uc.history import WHOLE_UID, RememberedStream, StreamHistory, checked_beginning
from scistream.s2uc.output import reaching, tell, unknown_stream
from scistream.s2uc.stream import DIALERS, SIDE
from scistream.tables import Columns, short_uids
from scistream.units import short_seconds
from scistream.wrapping import wrapped

MAX_CONCURRENT = 64
"""Streams whose facilities are asked at the same time."""


async def list_at(client: Client, s2cs: str, as_json: bool) -> int:
    """Show the streams at one S2CS that this user may see."""
    with reaching(client, s2cs):
        streams = await client.streams_at(s2cs)
    if as_json:
        click.echo(json.dumps([msgspec.to_builtins(stream) for stream in streams]))
        return 0
    _print_warnings(client)
    if not streams:
        click.echo("no streams")
        return 0
    short = short_uids([stream.uid for stream in streams])
    table = Columns("uid", "role", "state", "owner", "ch", "Mbit/s", "GB>cons", "GB>prod", "left", "label")
    for stream in streams:
        state, channels, rate, _, to_consumer, to_producer, left = _status_row(stream)
        figures = (channels, rate, to_consumer, to_producer, left)
        table.add(short[stream.uid], stream.role, state, stream.owner, *figures, stream.label or "")
    table.show()
    return 0


async def whole_uid_at(client: Client, s2cs: str, uid: str, *, changes: bool) -> str:
    """Return the whole uid, looking for one that is shortened among all streams at an S2CS.

    :param changes: whether the command changes the stream, for which very short uids are refused.
    :raises ConfigError: if no stream fits, more than one does, or the uid is too short.
    """
    beginning = checked_beginning(uid, changes=changes)
    if len(beginning) == WHOLE_UID:
        return beginning
    fitting = sorted({stream.uid for stream in await client.streams_at(s2cs) if stream.uid.startswith(beginning)})
    if len(fitting) == 1:
        return fitting[0]
    which = f"{len(fitting)} streams" if fitting else "no stream"
    raise ConfigError(f"{which} at {s2cs} with a uid that begins with {uid!r}: `s2uc list --at {s2cs}` shows all")


async def show_status(client: Client, uid: str | None, as_json: bool) -> int:
    """Ask both facilities about one remembered stream, or about all, and show what they answer."""
    history = StreamHistory()
    with failure_names(uid=uid):
        streams = [history.find(uid)] if uid is not None else history.all()
    answers: dict[str, dict[Role, StreamStatus]] = {}
    failures: dict[str, dict[Role, StreamError]] = {}
    semaphore = DeferredSemaphore(MAX_CONCURRENT)

    async def ask(remembered: RememberedStream) -> None:
        stream = client.remembered(remembered.uid, prod=remembered.prod, cons=remembered.cons)
        answers[stream.uid], failures[stream.uid] = await stream.sides()

    await gatherResults([semaphore.run(lambda each: Deferred.fromCoroutine(ask(each)), stream) for stream in streams])
    errors = {one: "; ".join(map(str, both.values())) for one, both in failures.items() if both}
    if uid is not None and not answers[streams[0].uid] and not errors:
        with failure_names(uid=streams[0].uid):
            raise unknown_stream(streams[0])
    for one, both in answers.items():
        if both and not failures[one] and all(side.state == "Released" for side in both.values()):
            history.remove_join_files(one)
    if as_json:
        sides = {one: {role: msgspec.to_builtins(side) for role, side in both.items()} for one, both in answers.items()}
        click.echo(json.dumps({"streams": sides, "errors": errors, "warnings": client.warnings}))
    else:
        _print_status(streams, answers, failures)
        if uid is not None:
            _print_channels(answers[streams[0].uid])
            _print_dialer(answers[streams[0].uid])
            _print_paths(answers[streams[0].uid])
            _print_resets(answers[streams[0].uid])
            _print_silent(answers[streams[0].uid])
            _print_notices(answers[streams[0].uid])
        _print_warnings(client)
    for one, error in errors.items():
        tell(f"{one}: {error}")
    return 1 if errors else 0


def _print_warnings(client: Client) -> None:
    for server, warnings in client.warnings.items():
        for warning in warnings:
            tell(f"warning: {server}: {warning}")


def _print_status(
    streams: list[RememberedStream],
    answers: dict[str, dict[Role, StreamStatus]],
    failures: dict[str, dict[Role, StreamError]],
) -> None:
    if not streams:
        click.echo("no streams")
        return
    short = short_uids([stream.uid for stream in streams])
    table = Columns("uid", "side", "state", "ch", "Mbit/s", "open", "GB>cons", "GB>prod", "left", note="last error")
    for stream in streams:
        for role in (PROD, CONS):
            side = answers[stream.uid].get(role)
            uid = short[stream.uid]
            if side is not None:
                note = _last_error(side)
                table.add(uid, SIDE[role], *_status_row(side), note=note, noted=f"{uid} {SIDE[role]}")
            else:
                state = "no answer" if role in failures[stream.uid] else "unknown"
                table.add(uid, SIDE[role], state, *[""] * 6)
    table.show()


def _print_channels(sides: dict[Role, StreamStatus]) -> None:
    table = Columns(
        "side", "ch", "open", "ready", "all", "reset", "GB>cons", "GB>prod", "rtt ms", "resent", "Mbit/s", "kB wait"
    )
    for role in (PROD, CONS):
        for figures in sides[role].figures if role in sides else ():
            table.add(SIDE[role], *_channel_row(figures))
    if len(table):
        click.echo()
        table.show()


def _print_paths(sides: dict[Role, StreamStatus]) -> None:
    table = Columns("side", "path", "is", "open", "GB>cons", "GB>prod", "rtt ms", "resent", "failed")
    for role in (PROD, CONS):
        for path in sides[role].paths if role in sides else ():
            table.add(SIDE[role], *_path_row(path))
    if len(table):
        click.echo()
        table.show()


async def show_status_at(client: Client, s2cs: str, uid: str, as_json: bool) -> int:
    """Show everything that one S2CS knows of a stream: for an administrator, of any user."""
    with failure_names(uid=uid), reaching(client, s2cs):
        uid = await whole_uid_at(client, s2cs, uid, changes=False)
        sides = await client.stream_at(s2cs, uid)
    if as_json:
        click.echo(json.dumps([{**msgspec.to_builtins(side), "csr": ""} for side in sides]))
        return 0
    for number, side in enumerate(sides):
        if number:
            click.echo()
        fields = {
            "uid": uid,
            "side": SIDE[side.role],
            "state": side.state,
            "owner": side.owner,
            "label": side.label or "",
            "rate": f"{_number(side.rate)} Mbit/s",
            "left": _hours(side.seconds_left),
            "gateways": ", ".join(side.gateways),
            "ports": ", ".join(map(str, side.listen_ports or ())) + " (requested)" * (side.listen_ports is not None),
            "WAN": _dialer_sentence(side),
            "ProdApp": ", ".join(side.app_listeners),
            "last error": _last_error(side),
        }
        for name, value in fields.items():
            if value:
                _sentence(f"{name + ':':<12}{value}")
        click.echo()
        _print_addresses(side)
    _print_channels({side.role: side for side in sides})
    _print_paths({side.role: side for side in sides})
    _print_resets({side.role: side for side in sides})
    _print_silent({side.role: side for side in sides})
    _print_notices({side.role: side for side in sides})
    return 0


def _dialer_sentence(side: StreamStatus) -> str:
    if side.wan_dialer is None:
        return ""
    where = f" at {', '.join(side.wan_listeners)}" if side.wan_listeners else ""
    return DIALERS[side.wan_dialer] + where


def _print_dialer(sides: dict[Role, StreamStatus]) -> None:
    if any(side.wan_dialer == PROD for side in sides.values()):
        click.echo(f"over the WAN, {DIALERS[PROD]}")


def _print_addresses(side: StreamStatus) -> None:
    table = Columns("ch", "listener", "leads to")
    for channel, listener in zip(side.channels, side.listeners, strict=False):
        table.add(str(channel), listener, side.connection_map.get(listener, ""))
    if len(table):
        table.show()


def _print_resets(sides: dict[Role, StreamStatus]) -> None:
    for role in (PROD, CONS):
        for broken in sides[role].broken if role in sides else ():
            _sentence(
                f"{SIDE[role]}, channel {broken.channel}: broken for {short_seconds(broken.seconds)}: {broken.reason}"
            )
        for reset in sides[role].resets if role in sides else ():
            _sentence(f"{SIDE[role]}, {reset_sentence(reset)}")


def _print_silent(sides: dict[Role, StreamStatus]) -> None:
    for role in (PROD, CONS):
        for name, seconds in sides[role].silent.items() if role in sides else ():
            silence = f"{SIDE[role]}, gateway {name}: has not answered its S2CS for {short_seconds(seconds)}"
            _sentence(f"{silence}; if it was restarted, this side ends when it is back")


def _print_notices(sides: dict[Role, StreamStatus]) -> None:
    for role in (PROD, CONS):
        for notice in sides[role].notices if role in sides else ():
            _sentence(f"{SIDE[role]}, {notice}")


def _sentence(text: str) -> None:
    click.echo(wrapped(printable(text), sys.stdout))


def reset_sentence(reset: ResetReason) -> str:
    """Say why connections of a channel were reset, how many, and how long ago the last one was."""
    connections = "connection" if reset.count == 1 else "connections"
    last = f"last {short_seconds(reset.seconds_ago)} ago"
    return f"channel {reset.channel}: {reset.count} {connections} reset ({reset.cause}), {last}: {reset.reason}"


def _channel_row(figures: ChannelFigures) -> tuple[str, ...]:
    return (
        str(figures.channel),
        str(figures.connections),
        str(figures.ready),
        str(figures.accepted),
        str(figures.reset),
        _gigabytes(figures.bytes_to_consumer),
        _gigabytes(figures.bytes_to_producer),
        f"{figures.rtt_ms:.4g}" if figures.rtt_ms else "",
        str(figures.retransmits),
        f"{figures.delivery_mbit:.4g}" if figures.delivery_mbit else "",
        f"{figures.waiting / 1e3:.4g}" if figures.connections else "",
    )


def _path_row(path: PathFigures) -> tuple[str, ...]:
    return (
        f"{path.local} - {path.remote}" if path.local else "others",
        "up" if path.up else "down",
        str(path.connections),
        _gigabytes(path.bytes_to_consumer),
        _gigabytes(path.bytes_to_producer),
        f"{path.rtt_ms:.4g}" if path.rtt_ms else "",
        str(path.retransmits),
        str(path.failures),
    )


def _status_row(side: StreamStatus) -> tuple[str, ...]:
    return (
        side.state,
        str(len(side.channels)),
        _number(side.rate),
        str(sum(one.connections for one in side.figures)),
        _gigabytes(sum(one.bytes_to_consumer for one in side.figures)),
        _gigabytes(sum(one.bytes_to_producer for one in side.figures)),
        _hours(side.seconds_left),
    )


def _last_error(side: StreamStatus) -> str:
    last = ""
    if side.last_error is not None:
        last = f"{side.last_error.code}: {side.last_error.msg}"
    elif side.broken:
        last = f"broken for {short_seconds(side.broken[0].seconds)}: {side.broken[0].reason}"
    elif side.resets:
        last = f"{side.resets[0].count} reset: {side.resets[0].reason}"
    if side.silent:
        gateways = ", ".join(f"{name} for {short_seconds(seconds)}" for name, seconds in side.silent.items())
        last = f"{last} [silent: {gateways}]".strip()
    if side.wrong_hellos:
        last = f"{last} [Hellos with a wrong key: {side.wrong_hellos}]".strip()
    return last


def _number(value: float) -> str:
    return f"{value:g}"


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.3f}" if count < 1e12 else f"{count / 1e9:.4g}"


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if 0 <= seconds < 1e7 else f"{seconds / 3600:.3g} h"

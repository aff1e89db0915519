"""What the commands of `s2uc` do, once their options are read: each gives the exit status of the process."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec
from msgspec import Struct
from twisted.internet.defer import CancelledError, Deferred, DeferredSemaphore, gatherResults
from twisted.internet.task import LoopingCall, deferLater

from scistream import timing
from scistream.config import BOM, ConfigError, SettingProblem, checked, raise_if_any, unless
from scistream.protocol.address import Address
from scistream.protocol.errors import StreamError, printable
from scistream.protocol.messages import (
    CONS,
    MAX_CHANNELS,
    PROD,
    ChannelFigures,
    NumConn,
    ResetReason,
    Role,
    StreamStatus,
)
from scistream.s2uc.client import Client, Requested, Stream
from scistream.s2uc.history import WHOLE_UID, RememberedStream, StreamHistory, checked_beginning
from scistream.s2uc.stream import SIDE
from scistream.shared_settings import DEFAULT_RATE, parse_port_ranges
from scistream.standard_streams import OutputLostError, check_output
from scistream.tables import Columns, short_uids
from scistream.tls.files import CertificateError
from scistream.units import parse_rate, parse_seconds, short_seconds

F = TypeVar("F", bound=Callable[..., Any])


MAX_LOOKS = 64
"""Streams whose facilities are asked at a time."""


def clock_time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


class RequestOptions(Struct, frozen=True):
    """A request, from options or from a file: the arguments of `Client.request`."""

    prod: str
    cons: str
    num_conn: int
    rate: float
    expires: float | None
    uid: str
    label: str | None
    listen_ports: dict[Role, list[int]] = {}


def parse_listen_ports(texts: Sequence[str]) -> dict[Role, list[int]]:
    """Read ``cons=5075``, ``prod=5100-5103`` or ``cons=5075,5080``: a side, and a port for each of its channels.

    :raises ValueError: with a sentence that names the text and what is allowed.
    """
    ports: dict[Role, list[int]] = {}
    for text in texts:
        match = _LISTEN_PORTS.match(text)
        if match is None:
            raise ValueError(
                f"{text!r} is not SIDE=PORTS: write a side and its ports, like cons=5075 or prod=5100-5103"
            )
        role = PROD if match[1].lower() == "prod" else CONS
        for first, last in parse_port_ranges(match[2]):
            ports.setdefault(role, []).extend(range(first, last + 1))
            if len(ports[role]) > MAX_CHANNELS:
                raise ValueError(f"{text!r} has more ports than a stream has channels: {MAX_CHANNELS} at most")
    return ports


_LISTEN_PORTS = re.compile(r"(prod|cons)=(.+)\Z", re.IGNORECASE)


@dataclass(frozen=True)
class Output:
    """How the user wants to hear of it."""

    as_json: bool = False
    timeout: float | None = None
    join_dir: Path | None = None
    written: list[Path] = field(default_factory=list)
    """The files of join strings that this command has made."""

    def join_files(self, uid: str) -> dict[Role, Path]:
        """Where the join strings are written to, if they are."""
        return {role: self.join_dir / f"{uid}.{role.lower()}" for role in (PROD, CONS)} if self.join_dir else {}


async def request_stream(client: Client, wishes: RequestOptions, output: Output) -> int:
    check_output()
    with failure_in_json(wishes.uid, output.as_json):
        if any(known.uid == wishes.uid for known in StreamHistory().all()):
            raise StreamError(
                "uid-in-use",
                f"you have asked for stream {wishes.uid} already: look at it with `s2uc status`, end it with "
                "`s2uc release`, or choose another uid",
            )
        asking = client.request(**msgspec.structs.asdict(wishes))
    await _in_time(client, asking.stream, _set_up(client, asking, output), output)
    return 0


async def attach_stream(client: Client, uid: str, output: Output) -> int:
    check_output()
    with failure_in_json(uid, output.as_json):
        known = StreamHistory().find(uid, changes=True)
        stream = client.remembered(known.uid, prod=known.prod, cons=known.cons)
    await _in_time(client, stream, _take_up(client, stream), output)
    _print_streaming(stream, output)  # what streams goes on, whether or not that can be said
    return 0


async def _in_time(client: Client, stream: Stream, working: Coroutine[Any, Any, None], output: Output) -> None:
    """Work until it streams, or until the user's time is over; release if it fails, whatever the reason is."""

    def why_late(timeout: float) -> str:
        return f"it does not stream after {timeout:g} s of waiting for {stream.waits_for}, so it is released"

    try:
        await _bounded(client, working, output.timeout, why_late)
    except GeneratorExit:
        raise
    except BaseException as why:
        was_reached = stream.was_reached
        released = await _end(client, stream, output)
        if released and isinstance(why, CancelledError):
            tell("both sides are released" if was_reached else "nothing was reserved")
        if output.as_json:
            _print_failure(stream.uid, why, released=released)
        raise


async def _bounded(
    client: Client, working: Coroutine[Any, Any, None], timeout: float | None, why_late: Callable[[float], str]
) -> None:
    """Work to the end, or until the user's time is over.

    :param why_late: says what is missing then.
    :raises StreamError: `timeout`, if it is.
    """
    work = Deferred.fromCoroutine(working)
    too_late: list[StreamError] = []

    def give_up(seconds: float) -> None:
        too_late.append(StreamError("timeout", why_late(seconds)))
        work.cancel()

    late = client.reactor.callLater(timeout, give_up, timeout) if timeout is not None else None
    try:
        await work
    except CancelledError:
        if too_late:
            raise too_late[0] from None
        raise
    finally:
        if late is not None and late.active():
            late.cancel()


async def _set_up(client: Client, asking: Requested, output: Output) -> None:
    with _progress(client, lambda: asking.stream.waits_for):
        stream = await asking
    _print_joins(stream, output)
    with _progress(client, lambda: stream.waits_for):
        await stream.provisioned()
    _print_streaming(stream, output)


async def _take_up(client: Client, stream: Stream) -> None:
    with _progress(client, lambda: stream.waits_for):
        await stream.attach()
        if stream.state != "Streaming":
            tell("join strings are not kept: if the applications do not have theirs, release the stream and ask anew")
        await stream.provisioned()


async def _end(client: Client, stream: Stream, output: Output) -> bool:
    """Release both sides, but do not wait for long; gives whether that was confirmed."""
    late = client.reactor.callLater(timing.INTERRUPTED_RELEASE, stream.abandon)
    try:
        await stream.release()
    except StreamError as error:
        tell(f"warning: {error.msg}; try `s2uc release {stream.uid}` later")
        return False
    finally:
        if late.active():
            late.cancel()
        for file in output.written:
            with suppress(OSError):
                file.unlink()
    return True


def tell(text: str) -> None:
    """Say something on standard error; words of far ends are made harmless."""
    click.echo(printable(text), err=True)


def _print_failure(uid: str | None, problem: BaseException, **more: Any) -> None:
    """The last line of JSON of what has failed."""
    code = problem.code if isinstance(problem, StreamError) else None
    msg = problem.msg if isinstance(problem, StreamError) else str(problem) or "interrupted"
    failure = {"uid": uid, "state": "Failed", "error": {"code": code, "msg": msg}, **more}
    with suppress(OutputLostError):
        click.echo(json.dumps(failure))


@contextmanager
def failure_in_json(uid: str | None, as_json: bool) -> Iterator[None]:
    """If a command fails that prints JSON, its last line says why."""
    try:
        yield
    except (StreamError, ConfigError, CertificateError, CancelledError) as problem:
        if as_json:
            _print_failure(uid, problem)
        raise


def _print_end(uid: str, state: str, as_json: bool, text: str, **more: Any) -> None:
    click.echo(json.dumps({"uid": uid, "state": state, **more}) if as_json else text)


def _print_joins(stream: Stream, output: Output) -> None:
    """:raises ConfigError: if a join file cannot be written."""
    files = output.join_files(stream.uid)
    if output.join_dir is not None:
        try:
            output.join_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            StreamHistory().note_join_files(stream.uid, files.values())
            for role, join in stream.join.items():
                with open(os.open(files[role], os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                    output.written.append(files[role])
                    file.write(join + "\n")
        except OSError as problem:
            raise ConfigError(f"{problem.filename}: cannot be written: {problem.strerror}") from None
    if output.as_json:
        joins = {"join_files": {role: str(file) for role, file in files.items()}} if files else {"join": stream.join}
        reserved = {"uid": stream.uid, "state": "Reserved", "seconds_left": round(stream.seconds_left, 3)}
        click.echo(json.dumps({**reserved, "listeners": stream.listeners, **joins}))
        return
    click.echo(f"uid: {stream.uid}")
    click.echo(f"ends: {clock_time(time.time() + stream.seconds_left)}, in {short_seconds(stream.seconds_left)}")
    for role in (PROD, CONS):
        click.echo(f"# for the {SIDE[role]}, {'in a file' if files else 'a secret to paste where it starts'}:")
        click.echo(f"export SCISTREAM_JOIN={shlex.quote(stream.join[role])}" if not files else str(files[role]))
    for role in (PROD, CONS):
        click.echo(printable(f"{SIDE[role]} side listens on {', '.join(stream.listeners[role])}"))
    sys.stdout.flush()


def _reaching(client: Client, s2cs: str) -> AbstractContextManager[None]:
    """Say on standard error that this S2CS has not answered yet, and why."""

    def words() -> str:
        reason = client.reason_at(s2cs)
        return f"the S2CS at {s2cs}" + (f": {reason}" if reason else "")

    return _progress(client, words)


@contextmanager
def _progress(client: Client, waits_for: Callable[[], str]) -> Iterator[None]:
    """Say on standard error what is waited for, as long as it is.

    In the foreground of a terminal it is one line that changes. Elsewhere it is a line for each new reason, and in the
    background of a terminal there is none: it would be written over what is being typed.
    """
    started = client.reactor.seconds()
    on_terminal = sys.stderr.isatty()
    shown = ""

    def tick() -> None:
        nonlocal shown
        words = printable(f"waiting for {waits_for()}")
        if on_terminal:
            if _in_foreground():
                passed = client.reactor.seconds() - started
                room = max(20, shutil.get_terminal_size().columns - len(f" ... {passed:.0f} s") - 1)
                line = f"{words[:room]} ... {passed:.0f} s"
                click.echo(f"\r\x1b[K{line}", nl=False, err=True)
                shown = words
        elif words != shown:
            click.echo(words, err=True)
            shown = words

    progress = LoopingCall(tick)
    progress.clock = client.reactor
    begin = client.reactor.callLater(timing.FIRST_WORD, progress.start, timing.PROGRESS)
    try:
        yield
    finally:
        if begin.active():
            begin.cancel()
        if progress.running:
            progress.stop()
        if on_terminal and shown and _in_foreground():
            click.echo("\r\x1b[K", nl=False, err=True)


def _in_foreground() -> bool:
    """Whether the terminal at standard error is ours to write on."""
    try:
        return os.tcgetpgrp(2) == os.getpgrp()
    except OSError:
        return False


def _print_streaming(stream: Stream, output: Output) -> None:
    if output.as_json:
        whole = {
            "uid": stream.uid,
            "state": stream.state,
            "seconds_left": round(stream.seconds_left, 3),
            "connection_map": stream.connection_map,
            "unused_listeners": stream.unused_listeners,
            "process_seconds": round(stream.process_seconds, 6),
        }
        click.echo(json.dumps(whole))
        return
    for listener, target in stream.connection_map.items():
        click.echo(f"{listener} --> {target}")
    if stream.unused_listeners:
        click.echo(f"more listeners than channels; not used: {', '.join(stream.unused_listeners)}")
    click.echo(f"*** Process time: {stream.process_seconds:.3f} sec.")


async def release_stream(client: Client, uid: str, as_json: bool = False) -> int:
    with failure_in_json(uid, as_json):
        if (over := StreamHistory().was_released(uid)) is not None:
            _print_end(over, "Released", as_json, f"{over} is already released", already=True)
            return 0
        known = StreamHistory().find(uid, changes=True)
        stream = client.remembered(known.uid, prod=known.prod, cons=known.cons)
    with failure_in_json(known.uid, as_json):
        try:
            with _progress(client, lambda: stream.waits_for):
                await stream.release()
        except CancelledError:
            stream.abandon()
            await stream.release()  # which says what has not confirmed
        unknown = stream.unknown_at
        if len(unknown) == len(stream.servers):
            raise _unknown(known)
    for role, address in unknown.items():
        tell(f"the {SIDE[role]} side at {address} has no stream of yours with this uid")
    _print_end(known.uid, "Released", as_json, f"released {known.uid}", already=False)
    return 0


def _unknown(known: RememberedStream) -> StreamError:
    return StreamError(
        "unknown-uid",
        f"neither {known.prod} nor {known.cons} has a stream {known.uid} of yours: if you asked for it with another "
        f"certificate, use that one; `s2uc forget {known.uid}` takes it out of your list",
    )


async def list_at(client: Client, s2cs: str, as_json: bool) -> int:
    with failure_in_json(None, as_json), _reaching(client, s2cs):
        streams = await client.streams_at(s2cs)
    if as_json:
        click.echo(json.dumps([msgspec.to_builtins(stream) for stream in streams]))
        return 0
    if not streams:
        click.echo("no streams")
        return 0
    short = short_uids([one.uid for one in streams])
    table = Columns("uid", "role", "state", "owner", "ch", "Mbit/s", "GB>cons", "GB>prod", "left", "label")
    for one in streams:
        state, channels, rate, _, to_consumer, to_producer, left = _status_row(one)
        figures = (channels, rate, to_consumer, to_producer, left)
        table.add(short[one.uid], one.role, state, one.owner, *figures, one.label or "")
    table.show()
    return 0


async def release_at(client: Client, s2cs: str, uid: str, as_json: bool = False) -> int:
    with failure_in_json(uid, as_json), _reaching(client, s2cs):
        whole = await _uid_at(client, s2cs, uid, changes=True)
        sides = await client.release_at(s2cs, whole)
    if as_json:
        released = [{"role": side.role, "owner": side.owner} for side in sides]
        _print_end(whole, "Released", as_json, "", sides=released)
        return 0
    for side in sides:
        click.echo(printable(f"released {whole} ({side.role}) of {side.owner}"))
    return 0


async def _uid_at(client: Client, s2cs: str, uid: str, *, changes: bool) -> str:
    """The whole uid; one that is shortened is looked for among all streams at an S2CS.

    :raises ConfigError: if none, or more than one, fits, or too little of it is there.
    """
    beginning = checked_beginning(uid, changes=changes)
    if len(beginning) == WHOLE_UID:
        return beginning
    fitting = sorted({one.uid for one in await client.streams_at(s2cs) if one.uid.startswith(beginning)})
    if len(fitting) == 1:
        return fitting[0]
    which = f"{len(fitting)} streams" if fitting else "no stream"
    raise ConfigError(f"{which} at {s2cs} with a uid that begins with {uid!r}: `s2uc list --at {s2cs}` shows all")


async def wait_for_stream(client: Client, uid: str, timeout: float | None, as_json: bool = False) -> int:
    with failure_in_json(uid, as_json):
        known = StreamHistory().find(uid)
        stream = client.remembered(known.uid, prod=known.prod, cons=known.cons)
    waiting = _UntilStreaming(client, known, stream)
    with failure_in_json(known.uid, as_json), _progress(client, waiting.waits_for):
        await _bounded(
            client,
            waiting.run(),
            timeout,
            lambda seconds: f"it does not stream after {seconds:g} s of waiting for {waiting.waits_for()}",
        )
    _print_end(known.uid, "Streaming", as_json, f"{known.uid} is Streaming")
    return 0


class _UntilStreaming:
    """Looks at a stream until it streams at both sides."""

    def __init__(self, client: Client, known: RememberedStream, stream: Stream) -> None:
        self._reactor = client.reactor
        self._known = known
        self._stream = stream
        self._asked_at = client.reactor.seconds()
        self._states = ""

    def waits_for(self) -> str:
        """Who has not answered for a while, or else what both sides said last."""
        if not self._states or self._reactor.seconds() - self._asked_at > timing.LONG_LOOK:
            return self._stream.waits_for
        return f"the applications or the user: {self._states}"

    async def run(self) -> None:
        """:raises StreamError: if it cannot come to that any more, or a side does not answer."""
        while True:
            self._asked_at = self._reactor.seconds()
            sides = await self._stream.status()
            if not sides:
                raise _unknown(self._known)
            for role in (PROD, CONS):
                state = sides[role].state if role in sides else "unknown"
                if state in ("Releasing", "Released", "unknown"):
                    last = sides[role].last_error if role in sides else None
                    why = f": {last.code}: {last.msg}" if last is not None else ""
                    raise StreamError("wrong-state", f"the {SIDE[role]} side is {state}{why}")
            if all(side.state == "Streaming" for side in sides.values()):
                return
            self._states = ", ".join(f"{SIDE[role]} {side.state}" for role, side in sides.items())
            await deferLater(self._reactor, timing.WATCH_LOOK)


async def show_status(client: Client, uid: str | None, as_json: bool) -> int:
    memory = StreamHistory()
    with failure_in_json(uid, as_json):
        streams = [memory.find(uid)] if uid is not None else memory.all()
    answers: dict[str, dict[Role, StreamStatus]] = {}
    reasons: dict[str, dict[Role, StreamError]] = {}
    at_once = DeferredSemaphore(MAX_LOOKS)

    async def look(known: RememberedStream) -> None:
        stream = client.remembered(known.uid, prod=known.prod, cons=known.cons)
        answers[known.uid], reasons[known.uid] = await stream.sides()

    await gatherResults([at_once.run(lambda one: Deferred.fromCoroutine(look(one)), known) for known in streams])
    errors = {one: "; ".join(map(str, both.values())) for one, both in reasons.items() if both}
    if uid is not None and not answers[streams[0].uid] and not errors:
        with failure_in_json(streams[0].uid, as_json):
            raise _unknown(streams[0])
    for one, both in answers.items():
        if both and not reasons[one] and all(side.state == "Released" for side in both.values()):
            memory.remove_join_files(one)
    if as_json:
        sides = {one: {role: msgspec.to_builtins(side) for role, side in both.items()} for one, both in answers.items()}
        click.echo(json.dumps({"streams": sides, "errors": errors, "warnings": client.warnings}))
    else:
        _print_status(streams, answers, reasons)
        if uid is not None:
            _print_channels(answers[streams[0].uid])
            _print_resets(answers[streams[0].uid])
            _print_silent(answers[streams[0].uid])
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
    reasons: dict[str, dict[Role, StreamError]],
) -> None:
    if not streams:
        click.echo("no streams")
        return
    short = short_uids([known.uid for known in streams])
    table = Columns("uid", "side", "state", "ch", "Mbit/s", "open", "GB>cons", "GB>prod", "left", note="last error")
    for known in streams:
        for role in (PROD, CONS):
            side = answers[known.uid].get(role)
            noted = f"{short[known.uid]} {SIDE[role]}"
            if side is not None:
                table.add(short[known.uid], SIDE[role], *_status_row(side), note=_last_error(side), noted=noted)
            else:
                state = "no answer" if role in reasons[known.uid] else "unknown"
                table.add(short[known.uid], SIDE[role], state, *[""] * 6)
    table.show()


def _print_channels(sides: dict[Role, StreamStatus]) -> None:
    table = Columns("side", "ch", "open", "all", "reset", "GB>cons", "GB>prod", "rtt ms", "resent", "Mbit/s", "kB wait")
    for role in (PROD, CONS):
        for one in sides[role].figures if role in sides else ():
            table.add(SIDE[role], *_channel_row(one))
    if len(table):
        click.echo()
        table.show()


async def show_status_at(client: Client, s2cs: str, uid: str, as_json: bool) -> int:
    """One stream, as one facility sees it: for an administrator, who may not ask the other one."""
    with failure_in_json(uid, as_json), _reaching(client, s2cs):
        whole = await _uid_at(client, s2cs, uid, changes=False)
        sides = await client.stream_at(s2cs, whole)
    if as_json:
        click.echo(json.dumps([{**msgspec.to_builtins(side), "csr": ""} for side in sides]))
        return 0
    for number, side in enumerate(sides):
        if number:
            click.echo()
        facts = {
            "uid": whole,
            "side": SIDE[side.role],
            "state": side.state,
            "owner": side.owner,
            "label": side.label or "",
            "rate": f"{_number(side.rate)} Mbit/s",
            "left": _hours(side.seconds_left),
            "gateways": ", ".join(side.gateways),
            "ports": ", ".join(map(str, side.listen_ports or ())) + " (asked for)" * (side.listen_ports is not None),
            "ProdApp": ", ".join(side.app_listeners),
            "last error": _last_error(side),
        }
        for name, fact in facts.items():
            if fact:
                click.echo(printable(f"{name + ':':<12}{fact}"))
        click.echo()
        _print_addresses(side)
    _print_channels({side.role: side for side in sides})
    _print_resets({side.role: side for side in sides})
    _print_silent({side.role: side for side in sides})
    return 0


def _print_addresses(side: StreamStatus) -> None:
    table = Columns("ch", "listener", "leads to")
    for channel, listener in zip(side.channels, side.listeners, strict=False):
        table.add(str(channel), listener, side.connection_map.get(listener, ""))
    if len(table):
        table.show()


def _print_resets(sides: dict[Role, StreamStatus]) -> None:
    for role in (PROD, CONS):
        for broken in sides[role].broken if role in sides else ():
            click.echo(
                printable(
                    f"{SIDE[role]}, channel {broken.channel}: broken for {short_seconds(broken.seconds)}: "
                    f"{broken.reason}"
                )
            )
        for one in sides[role].resets if role in sides else ():
            click.echo(printable(f"{SIDE[role]}, {reset_sentence(one)}"))


def _print_silent(sides: dict[Role, StreamStatus]) -> None:
    for role in (PROD, CONS):
        for name, seconds in sides[role].silent.items() if role in sides else ():
            heard = f"{SIDE[role]}, gateway {name}: not heard by its S2CS for {short_seconds(seconds)}"
            click.echo(printable(f"{heard}; if it was restarted, this side ends when it is heard again"))


def reset_sentence(one: ResetReason) -> str:
    """Why connections of a channel were reset, how many, and how long ago the last one was."""
    connections = "connection" if one.count == 1 else "connections"
    last = f"last {short_seconds(one.seconds_ago)} ago"
    return f"channel {one.channel}: {one.count} {connections} reset, {last}: {one.reason}"


def _channel_row(one: ChannelFigures) -> tuple[str, ...]:
    return (
        str(one.channel),
        str(one.connections),
        str(one.accepted),
        str(one.reset),
        _gigabytes(one.bytes_to_consumer),
        _gigabytes(one.bytes_to_producer),
        f"{one.rtt_ms:.4g}" if one.rtt_ms else "",
        str(one.retransmits),
        f"{one.delivery_mbit:.4g}" if one.delivery_mbit else "",
        f"{one.waiting / 1e3:.4g}" if one.connections else "",
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
        last = f"{last} [not heard: {gateways}]".strip()
    if side.wrong_hellos:
        last = f"{last} [Hellos with a wrong key: {side.wrong_hellos}]".strip()
    return last


def _number(value: float) -> str:
    return f"{value:g}"


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.3f}" if count < 1e12 else f"{count / 1e9:.4g}"


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if 0 <= seconds < 1e7 else f"{seconds / 3600:.3g} h"


# -- the request file


class _FileReq(Struct, kw_only=True):
    """A request as a file; `rate` in Mbit/s or as on the command line."""

    prod: str
    cons: str
    num_conn: NumConn = 1
    rate: float | str = DEFAULT_RATE
    expires: float | str | None = None
    uid: str | None = None
    label: str | None = None
    listen_ports: list[str] = []

    def problems(self) -> Iterator[SettingProblem]:
        """What is wrong with the values."""
        yield from unless(Address.parse, self.prod, "prod")
        yield from unless(Address.parse, self.cons, "cons")
        yield from unless(parse_rate, str(self.rate), "rate")
        if self.expires is not None:
            yield from unless(parse_seconds, str(self.expires), "expires")
        if self.uid is not None:
            yield from unless(_uuid, self.uid, "uid")
        yield from unless(parse_listen_ports, self.listen_ports, "listen_ports")


class _FileRel(Struct, kw_only=True):
    """A release as a file."""

    uid: str

    def problems(self) -> Iterator[SettingProblem]:
        """Nothing: a uid may be shortened."""
        return iter(())


_FORM = 'write {"cmd": "REQ", "prod": "HOST:PORT", "cons": "HOST:PORT"}, or {"cmd": "REL", "uid": "UID"}'


def read_file(file: Path) -> RequestOptions | str:
    """What a request file asks for; of a release, the uid.

    :raises ConfigError: if it cannot be read or says something else.
    """
    try:
        whole = msgspec.json.decode(file.read_bytes().removeprefix(BOM))
    except OSError as problem:
        raise ConfigError(f"{file}: cannot be read: {problem.strerror}") from None
    except (msgspec.DecodeError, ValueError) as wrong:
        raise ConfigError(f"{file}: is no JSON: {wrong}; {_FORM}") from None
    if not isinstance(whole, dict) or whole.get("cmd") not in ("REQ", "REL"):
        what = f"its cmd is {json.dumps(whole.get('cmd'))}" if isinstance(whole, dict) else "it holds no JSON object"
        raise ConfigError(f"{file}: {what}: {_FORM}")
    kind: type[_FileReq | _FileRel] = _FileReq if whole.pop("cmd") == "REQ" else _FileRel
    asked, problems = checked({name: value for name, value in whole.items() if value is not None}, kind)
    raise_if_any(file, problems)
    if isinstance(asked, _FileRel):
        return asked.uid
    return RequestOptions(
        str(Address.parse(asked.prod)),
        str(Address.parse(asked.cons)),
        asked.num_conn,
        parse_rate(str(asked.rate)),
        None if asked.expires is None else parse_seconds(str(asked.expires)),
        str(uuid.uuid4() if asked.uid is None else _uuid(asked.uid)),
        asked.label,
        parse_listen_ports(asked.listen_ports),
    )


def _uuid(text: str) -> uuid.UUID:
    try:
        return uuid.UUID(text)
    except ValueError:
        raise ValueError(f"{text!r} is no UUID") from None

"""The command `s2uc`: ask for a stream, wait for it, look at it, release it."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
import uuid
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click
import msgspec
from msgspec import Struct
from rich.console import Console
from rich.table import Table
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import LoopingCall, deferLater

import scistream
from scistream.command_line import ADDRESS, RATE, TIME, refuse, run, start_logging
from scistream.config import ConfigProblem, S2UCConfig, beside, load, parse_rate, parse_seconds
from scistream.s2uc.client import DEFAULT_EXPIRES, DEFAULT_PROBE_SECONDS, DEFAULT_RATE, Client, Requested, Stream
from scistream.s2uc.effects import SIDE
from scistream.s2uc.memory import Memory, Remembered
from scistream.wire.address import Address
from scistream.wire.errors import StreamError
from scistream.wire.messages import CONS, MAX_PROBE_SECONDS, PROD, NumConn, Role, StreamStatus

F = TypeVar("F", bound=Callable[..., Any])


# -- certificates, from options or the configuration file


@dataclass
class _Credentials:
    """What the options say; the configuration file fills in the rest."""

    config: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    authorities: tuple[Path, ...] = ()
    insecure: bool = False

    def client(self, reactor: Any) -> Client:
        """:raises ConfigProblem: if neither the options nor the file name certificates."""
        file = self.config or default_config()
        settings = load(file, S2UCConfig) if self.config is not None or file.exists() else S2UCConfig()
        insecure = self.insecure or settings.insecure
        certificate = self.certificate or (beside(file, settings.certificate) if settings.certificate else None)
        key = self.key or (beside(file, settings.key) if settings.key else None)
        authorities = self.authorities or tuple(beside(file, name) for name in settings.authorities)
        if not insecure and not (certificate and key and authorities):
            raise ConfigProblem(
                f"no certificates: name certificate, key and authorities in {file}, or give --certificate, --key and "
                "--authority (only on loopback, for a trial, --insecure does without)"
            )
        return Client(certificate=certificate, key=key, authorities=authorities, insecure=insecure, reactor=reactor)


def default_config() -> Path:
    """``$XDG_CONFIG_HOME/scistream/s2uc.toml``, or the like below ``~/.config``."""
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return Path(home) / "scistream" / "s2uc.toml"


def _note(field: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    """Keeps an option wherever it stands, before the subcommand or after it."""

    def noted(ctx: click.Context, _param: click.Parameter, value: Any) -> None:
        credentials = ctx.ensure_object(_Credentials)
        if value:
            setattr(credentials, field, value)

    return noted


def _credential_options(command: F) -> F:
    path = click.Path(path_type=Path, dir_okay=False)
    for option in (
        click.option(
            "--insecure",
            is_flag=True,
            expose_value=False,
            callback=_note("insecure"),
            help="Plain TCP, on loopback only, in place of certificates.",
        ),
        click.option(
            "--authority",
            "authorities",
            type=path,
            multiple=True,
            expose_value=False,
            callback=_note("authorities"),
            help="An authority of the facilities (PEM); may be repeated.",
        ),
        click.option(
            "--key", type=path, expose_value=False, callback=_note("key"), help="The key of your certificate (PEM)."
        ),
        click.option(
            "--certificate",
            type=path,
            expose_value=False,
            callback=_note("certificate"),
            help="Your certificate (PEM).",
        ),
        click.option(
            "--config",
            type=path,
            expose_value=False,
            callback=_note("config"),
            help="Where the certificates are named [default: ~/.config/scistream/s2uc.toml].",
        ),
    ):
        command = option(command)
    return command


# -- the command


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(scistream.__version__, prog_name="s2uc")
@click.option(
    "--req-file", type=click.Path(path_type=Path, dir_okay=False), help="Do what a JSON file says (REQ, REL)."
)
@click.option("-v", "--verbose", count=True, help="Log what happens; -vv logs all.")
@_credential_options
@click.pass_context
def main(ctx: click.Context, req_file: Path | None, verbose: int) -> None:
    """Stream from a program at one facility to a program at another.

    \b
    Ask two facilities for a stream, give each application its join string, wait:
        s2uc request --prod anl.example:5000 --cons ornl.example:5000 --num-conn 4 --rate 10Gbit
    Find out the day before whether all that it needs is there:
        s2uc probe --prod anl.example:5000 --cons ornl.example:5000 --num-conn 4 --rate 10Gbit
    Later, from any terminal:
        s2uc list
        s2uc status UID
        s2uc release UID

    A UID may be shortened to its beginning. The applications say Hello with `appctrl`.
    Exit status: 0 done; 1 the stream or a facility failed; 2 wrong usage or configuration.
    """
    start_logging(verbose)
    if req_file is not None:
        if ctx.invoked_subcommand is not None:
            raise click.UsageError("--req-file does it all: no further command goes with it")
        _run_file(ctx.obj, req_file)
    elif ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
        ctx.exit(2)


@main.command()
@click.option("--prod", type=ADDRESS, required=True, help="The S2CS of the producer's facility.")
@click.option("--cons", type=ADDRESS, required=True, help="The S2CS of the consumer's facility.")
@click.option("--num-conn", type=click.IntRange(1, 1024), default=1, show_default=True, help="Channels.")
@click.option(
    "--rate",
    type=RATE,
    default=DEFAULT_RATE,
    metavar="RATE",
    show_default="1Gbit",
    help="Of the whole stream, each way: 10Gbit, 500Mbit, or plain Mbit/s. It is reserved, and it is the limit.",
)
@click.option("--uid", type=click.UUID, help="The stream's UUID [default: a new one].")
@click.option(
    "--expires", type=TIME, default=DEFAULT_EXPIRES, show_default="24h", help="How long it lives at most: 30m, 8h, 2d."
)
@click.option("--label", help="A name for people; the facilities see it.")
@click.option("--json", "as_json", is_flag=True, help="JSON lines in place of text: one when reserved, one at the end.")
@click.option("--timeout", type=TIME, help="Give up, and release, if it does not stream by then.")
@click.option(
    "--join-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Write the join strings to DIR/UID.prod and DIR/UID.cons, of mode 0600, in place of printing them.",
)
@_credential_options
@click.pass_context
def request(
    ctx: click.Context,
    prod: Address,
    cons: Address,
    num_conn: int,
    rate: float,
    uid: uuid.UUID | None,
    expires: float,
    label: str | None,
    as_json: bool,
    timeout: float | None,
    join_dir: Path | None,
) -> None:
    """Ask for a stream and wait until it streams.

    Prints the stream's uid and the two join strings as soon as both facilities have reserved: paste each where that
    side's application starts. Ctrl-C releases both sides. When it streams, this command ends and the stream goes on.
    """
    wishes = _Request(str(prod), str(cons), num_conn, rate, expires, str(uid or uuid.uuid4()), label)
    output = _Output(as_json, timeout, join_dir)
    _finish(ctx.obj, lambda client: _request(client, wishes, output))


@main.command()
@click.argument("uid")
@_credential_options
@click.pass_context
def release(ctx: click.Context, uid: str) -> None:
    """End a stream at both facilities."""
    _finish(ctx.obj, lambda client: _release(client, uid))


@main.command()
@click.argument("uid")
@click.option("--timeout", type=TIME, help="Give up waiting after this time; the stream is left as it is.")
@_credential_options
@click.pass_context
def wait(ctx: click.Context, uid: str, timeout: float | None) -> None:
    """Wait until a stream streams at both facilities."""
    _finish(ctx.obj, lambda client: _wait(client, uid, timeout))


@main.command()
@click.argument("uid")
@click.option("--timeout", type=TIME, help="Give up, and release, if it does not stream by then.")
@click.option("--json", "as_json", is_flag=True, help="A JSON line at the end in place of text.")
@_credential_options
@click.pass_context
def attach(ctx: click.Context, uid: str, timeout: float | None, as_json: bool) -> None:
    """Go on with a request whose `s2uc` was lost, from wherever the stream stands, until it streams."""
    _finish(ctx.obj, lambda client: _attach(client, uid, _Output(as_json, timeout)))


@main.command()
@click.argument("uid", required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@_credential_options
@click.pass_context
def status(ctx: click.Context, uid: str | None, as_json: bool) -> None:
    """Ask the facilities for the state and the figures of a stream, or of all that are remembered."""
    _finish(ctx.obj, lambda client: _status(client, uid, as_json))


@main.command()
@click.option("--prod", type=ADDRESS, required=True, help="The S2CS of the producer's facility.")
@click.option("--cons", type=ADDRESS, required=True, help="The S2CS of the consumer's facility.")
@click.option("--num-conn", type=click.IntRange(1, 1024), default=1, show_default=True, help="Channels.")
@click.option(
    "--rate",
    type=RATE,
    default=DEFAULT_RATE,
    metavar="RATE",
    show_default="1Gbit",
    help="As for a request: it is reserved for the probe, and no more than that is measured.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(1, MAX_PROBE_SECONDS),
    default=DEFAULT_PROBE_SECONDS,
    show_default=True,
    help="How long test data flows each way.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object at the end in place of text.")
@_credential_options
@click.pass_context
def probe(
    ctx: click.Context, prod: Address, cons: Address, num_conn: int, rate: float, seconds: float, as_json: bool
) -> None:
    """Try out, the day before, what a stream between two facilities will need.

    Reaches both S2CS, asks both for a stream of one minute, has their gateways send each other test data, and
    releases. No application takes part. A line for each check says ok or FAILED, and what to do; `-` stands before
    what could not be tried. Exit status 0 if all is ok, 1 if not.
    """

    async def work(client: Client) -> int:
        tell = None if as_json else click.echo
        report = await client.probe(
            prod=str(prod), cons=str(cons), num_conn=num_conn, rate=rate, seconds=seconds, tell=tell
        )
        if as_json:
            click.echo(json.dumps({"ok": report.ok, **msgspec.to_builtins(report)}))
        return 0 if report.ok else 1

    _finish(ctx.obj, work)


@main.command("list")
@click.option("--json", "as_json", is_flag=True, help="A JSON list.")
def list_streams(as_json: bool) -> None:
    """Show the streams that this user has asked for and not released, without asking the facilities."""
    try:
        streams = Memory().all()
    except ConfigProblem as problem:
        refuse(problem)
    if as_json:
        click.echo(json.dumps([msgspec.to_builtins(stream) for stream in streams]))
        return
    table = Table("uid", "producer side", "consumer side", "channels", "Mbit/s", "asked for", "expires", "label")
    for one in streams:
        asked, expires = _clock_time(one.asked_at), _clock_time(one.expires_at)
        table.add_row(one.uid, one.prod, one.cons, str(one.num_conn), f"{one.rate:g}", asked, expires, one.label or "")
    _wide_console().print(table if streams else "no streams")


def _clock_time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def _wide_console() -> Console:
    """Where output is no terminal, tables are not squeezed into 80 columns."""
    return Console() if sys.stdout.isatty() else Console(width=200)


# -- running


Work = Callable[[Client], Coroutine[Any, Any, int]]


def _finish(credentials: _Credentials, work: Work) -> NoReturn:
    """Run the work with a client and end the process with its exit status."""

    async def whole(reactor: Any) -> int:
        client = credentials.client(reactor)
        try:
            return await work(client)
        finally:
            await client.close()

    sys.exit(run(whole))


class _Request(Struct, frozen=True):
    """A request, from options or from a file: the arguments of `Client.request`."""

    prod: str
    cons: str
    num_conn: int
    rate: float
    expires: float
    uid: str
    label: str | None


@dataclass(frozen=True)
class _Output:
    """How the user wants to hear of it."""

    as_json: bool = False
    timeout: float | None = None
    join_dir: Path | None = None


async def _request(client: Client, wishes: _Request, output: _Output) -> int:
    memory = Memory()
    now = time.time()
    is_new = memory.add(
        Remembered(
            uid=wishes.uid,
            prod=wishes.prod,
            cons=wishes.cons,
            num_conn=wishes.num_conn,
            rate=wishes.rate,
            asked_at=now,
            expires_at=now + wishes.expires,
            label=wishes.label,
        )
    )
    if not is_new:
        raise StreamError(
            "uid-in-use",
            f"you have asked for stream {wishes.uid} already: look at it with `s2uc status`, end it with "
            "`s2uc release`, or choose another uid",
        )
    try:
        asking = client.request(**msgspec.structs.asdict(wishes))
    except StreamError:
        memory.remove(wishes.uid)
        raise
    return await _in_time(client, asking.stream, _set_up(client, asking, memory, output), output)


async def _attach(client: Client, uid: str, output: _Output) -> int:
    known = Memory().find(uid)
    stream = client.remembered(known.uid, prod=known.prod, cons=known.cons)
    return await _in_time(client, stream, _take_up(client, stream, output), output)


async def _in_time(client: Client, stream: Stream, working: Coroutine[Any, Any, None], output: _Output) -> int:
    work = Deferred.fromCoroutine(working)
    too_late: list[StreamError] = []

    def give_up() -> None:
        waited = f"it does not stream after {output.timeout:g} s of waiting for {stream.waits_for}, so it was released"
        too_late.append(StreamError("timeout", waited))
        work.cancel()

    late = client.reactor.callLater(output.timeout, give_up) if output.timeout is not None else None
    try:
        await work
    except CancelledError:
        raise too_late[0] if too_late else CancelledError() from None
    finally:
        if late is not None and late.active():
            late.cancel()
    return 0


async def _set_up(client: Client, asking: Requested, memory: Memory, output: _Output) -> None:
    try:
        stream = await asking
        _print_joins(stream, output)
        await _with_progress(client, stream)
    except (StreamError, CancelledError, ConfigProblem, OSError):
        await _end(asking.stream, memory)
        raise
    _print_streaming(stream, output)


async def _take_up(client: Client, stream: Stream, output: _Output) -> None:
    try:
        await stream.attach()
        await _with_progress(client, stream)
    except (StreamError, CancelledError):
        await _end(stream, Memory())
        raise
    _print_streaming(stream, output)


async def _end(stream: Stream, memory: Memory) -> None:
    """Release, and forget the stream once both sides have confirmed."""
    try:
        await stream.release()
    except StreamError as error:
        click.echo(f"warning: {error.msg}; try `s2uc release {stream.uid}` later", err=True)
    else:
        memory.remove(stream.uid)


def _print_joins(stream: Stream, output: _Output) -> None:
    """:raises ConfigProblem: if a join file cannot be written."""
    files: dict[Role, Path] = {}
    if output.join_dir is not None:
        files = {role: output.join_dir / f"{stream.uid}.{role.lower()}" for role in stream.join}
        try:
            output.join_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            for role, join in stream.join.items():
                with open(os.open(files[role], os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                    file.write(join + "\n")
        except OSError as problem:
            raise ConfigProblem(f"{problem.filename}: cannot be written: {problem.strerror}") from None
    if output.as_json:
        joins = {"join_files": {role: str(file) for role, file in files.items()}} if files else {"join": stream.join}
        click.echo(json.dumps({"uid": stream.uid, "state": "Reserved", **joins}))
        return
    click.echo(f"uid: {stream.uid}")
    for role in (PROD, CONS):
        click.echo(f"# for the {SIDE[role]}, {'in a file' if files else 'a secret to paste where it starts'}:")
        click.echo(f"export SCISTREAM_JOIN={shlex.quote(stream.join[role])}" if not files else str(files[role]))
    sys.stdout.flush()


async def _with_progress(client: Client, stream: Stream) -> None:
    """Wait until it streams, saying what it waits for."""
    started = client.reactor.seconds()
    shown = sys.stderr.isatty()

    def tick() -> None:
        passed = client.reactor.seconds() - started
        click.echo(f"\r\x1b[Kwaiting for {stream.waits_for} ... {passed:.0f} s", nl=False, err=True)

    progress = LoopingCall(tick)
    progress.clock = client.reactor
    if shown:
        progress.start(0.5)
    else:
        click.echo("waiting for ProdApp's Hello", err=True)
    try:
        await stream.provisioned()
    finally:
        if shown:
            progress.stop()
            click.echo("\r\x1b[K", nl=False, err=True)


def _print_streaming(stream: Stream, output: _Output) -> None:
    if output.as_json:
        whole = {
            "uid": stream.uid,
            "state": stream.state,
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


async def _release(client: Client, uid: str) -> int:
    memory = Memory()
    known = memory.find(uid)
    stream = client.remembered(known.uid, prod=known.prod, cons=known.cons)
    try:
        await stream.release()
    except CancelledError:
        stream.abandon()
        await stream.release()  # which says what has not confirmed
    memory.remove(known.uid)
    click.echo(f"released {known.uid}")
    return 0


async def _wait(client: Client, uid: str, timeout: float | None) -> int:
    known = Memory().find(uid)
    stream = client.remembered(known.uid, prod=known.prod, cons=known.cons)
    started = client.reactor.seconds()
    while True:
        sides = await stream.status()
        for role in (PROD, CONS):
            state = sides[role].state if role in sides else "unknown"
            if state in ("Releasing", "Released", "unknown"):
                last = sides[role].last_error if role in sides else None
                why = f": {last.code}: {last.msg}" if last is not None else ""
                raise StreamError("wrong-state", f"the {SIDE[role]} side is {state}{why}")
        if all(side.state == "Streaming" for side in sides.values()):
            click.echo(f"{known.uid} is Streaming")
            return 0
        if timeout is not None and client.reactor.seconds() - started > timeout:
            states = ", ".join(f"{SIDE[role]} {side.state}" for role, side in sides.items())
            raise StreamError("timeout", f"it does not stream after {timeout:g} s: {states}")
        await deferLater(client.reactor, 0.5)


async def _status(client: Client, uid: str | None, as_json: bool) -> int:
    memory = Memory()
    streams = [memory.find(uid)] if uid is not None else memory.all()
    answers: dict[str, dict[Role, StreamStatus]] = {}
    troubles: dict[str, str] = {}
    for known in streams:
        try:
            answers[known.uid] = await client.remembered(known.uid, prod=known.prod, cons=known.cons).status()
        except StreamError as error:
            troubles[known.uid] = str(error)
    if as_json:
        sides = {one: {role: msgspec.to_builtins(side) for role, side in both.items()} for one, both in answers.items()}
        click.echo(json.dumps({"streams": sides, "errors": troubles}))
    else:
        _print_status(streams, answers)
    for one, trouble in troubles.items():
        click.echo(f"{one}: {trouble}", err=True)
    return 1 if troubles else 0


def _print_status(streams: list[Remembered], answers: dict[str, dict[Role, StreamStatus]]) -> None:
    table = Table(
        "uid", "side", "state", "channels", "Mbit/s", "open", "GB to cons.", "GB to prod.", "left", "last error"
    )
    for known in streams:
        for role in (PROD, CONS):
            side = answers.get(known.uid, {}).get(role)
            table.add_row(known.uid, SIDE[role], *(_status_row(side) if side is not None else ("unknown",)))
    _wide_console().print(table if streams else "no streams")


def _status_row(side: StreamStatus) -> tuple[str, ...]:
    last = f"{side.last_error.code}: {side.last_error.msg}" if side.last_error is not None else ""
    return (
        side.state,
        str(len(side.channels)),
        f"{side.rate:g}",
        str(sum(one.connections for one in side.figures)),
        f"{sum(one.bytes_to_consumer for one in side.figures) / 1e9:.3f}",
        f"{sum(one.bytes_to_producer for one in side.figures) / 1e9:.3f}",
        f"{side.seconds_left / 3600:.1f} h",
        last,
    )


# -- the request file


class _FileReq(Struct, tag_field="cmd", tag="REQ", forbid_unknown_fields=True, kw_only=True):
    """A request as a file; `rate` in Mbit/s or as on the command line."""

    prod: str
    cons: str
    num_conn: NumConn = 1
    rate: float | str = DEFAULT_RATE
    expires: float | str = DEFAULT_EXPIRES
    uid: str | None = None
    label: str | None = None


class _FileRel(Struct, tag_field="cmd", tag="REL", forbid_unknown_fields=True, kw_only=True):
    """A release as a file."""

    uid: str


def _run_file(credentials: _Credentials, file: Path) -> NoReturn:
    try:
        wishes = _read_file(file)
    except ConfigProblem as problem:
        refuse(problem)
    if isinstance(wishes, _Request):
        _finish(credentials, lambda client: _request(client, wishes, _Output()))
    uid = wishes
    _finish(credentials, lambda client: _release(client, uid))


def _read_file(file: Path) -> _Request | str:
    """What a request file asks for; of a release, the uid.

    :raises ConfigProblem: if it cannot be read or says something else.
    """
    try:
        asked = msgspec.json.decode(file.read_bytes(), type=_FileReq | _FileRel)
        if isinstance(asked, _FileRel):
            return asked.uid
        return _Request(
            str(_field("prod", Address.parse, asked.prod)),
            str(_field("cons", Address.parse, asked.cons)),
            asked.num_conn,
            _field("rate", parse_rate, str(asked.rate)),
            _field("expires", parse_seconds, str(asked.expires)),
            str(uuid.uuid4() if asked.uid is None else _field("uid", _uuid, asked.uid)),
            asked.label,
        )
    except OSError as problem:
        raise ConfigProblem(f"{file}: cannot be read: {problem.strerror}") from None
    except (msgspec.DecodeError, ValueError) as wrong:
        raise ConfigProblem(f"{file}: {wrong}") from None


def _field(name: str, parse: Callable[[str], Any], text: str) -> Any:
    try:
        return parse(text)
    except ValueError as wrong:
        raise ValueError(f"field {name}: {wrong}") from None


def _uuid(text: str) -> uuid.UUID:
    try:
        return uuid.UUID(text)
    except ValueError:
        raise ValueError(f"{text!r} is no UUID") from None


if __name__ == "__main__":
    main()

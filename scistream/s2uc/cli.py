"""The command `s2uc`: ask for a stream, wait for it, look at it, release it."""

from __future__ import annotations

import json
import os
import sys
import uuid
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click
import msgspec

import scistream
from scistream import timing
from scistream.cli_support import ADDRESS, RATE, TIME, Commands, refuse, run, start_logging
from scistream.config import ConfigError, load
from scistream.os_process import keep_secrets
from scistream.protocol.address import Address
from scistream.protocol.messages import MAX_PROBE_SECONDS, Role
from scistream.s2uc.client import Client, arguments_of, default_config
from scistream.s2uc.commands import (
    Output,
    RequestOptions,
    attach_stream,
    clock_time,
    failure_in_json,
    list_at,
    parse_listen_ports,
    read_file,
    release_at,
    release_stream,
    request_stream,
    show_status,
    show_status_at,
    wait_for_stream,
)
from scistream.s2uc.history import StreamHistory
from scistream.s2uc.settings import S2UCConfig
from scistream.shared_settings import DEFAULT_RATE, trust_of
from scistream.tables import Columns, short_uids
from scistream.tls.expiry import expiring_soon
from scistream.tls.files import CertificateError
from scistream.units import format_rate

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
        """:raises ConfigError: if neither the options nor the file name certificates."""
        file = self._file()
        settings = load(file, S2UCConfig) if self.config is not None or file.exists() else S2UCConfig()
        insecure = self.insecure or settings.insecure
        arguments = arguments_of(settings, file) | {"insecure": insecure}
        arguments |= {name: given for name in ("certificate", "key", "authorities") if (given := getattr(self, name))}
        vouched_for = arguments["authorities"] or arguments["facilities"]
        if not insecure and not (arguments["certificate"] and arguments["key"] and vouched_for):
            raise ConfigError(
                f"no certificates: name certificate, key and authorities in {file}, or give --certificate, --key and "
                "--authority (only on loopback, for a trial, --insecure does without)"
            )
        return Client(**arguments, reactor=reactor)

    def _file(self) -> Path:
        """The configuration file, which need not be there; an empty one if no folder has it and none is needed.

        :raises ConfigError: if a folder has to be known, and is not.
        """
        try:
            return self.config or default_config()
        except ConfigError:
            if self.insecure or (self.certificate and self.key and self.authorities):
                return Path(os.devnull)
            raise

    def warnings(self) -> list[str]:
        """What of the user's own files expires soon; files that cannot be read are no matter here."""
        try:
            file = self._file()
            settings = load(file, S2UCConfig)
            if settings.insecure or not settings.certificate:
                return []
            trusts = [trust_of(settings, file)]
            for one in settings.facilities:
                only_its_own = msgspec.structs.replace(settings, authorities=one.authorities, crl=one.crl)
                trusts.append(trust_of(only_its_own, file))
            found = [expiring_soon("your", trust) for trust in trusts if trust.authorities]
            return list(dict.fromkeys(warning for warnings in found for warning in warnings))
        except (ConfigError, CertificateError):
            return []


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


_LAST_LINE = click.option("--json", "as_json", is_flag=True, help="A JSON line at the end in place of text.")


def _ports_by_side(_ctx: click.Context, _param: click.Parameter, texts: tuple[str, ...]) -> dict[Role, list[int]]:
    try:
        return parse_listen_ports(texts)
    except ValueError as wrong:
        raise click.BadParameter(str(wrong)) from None


_LISTEN_PORT = click.option(
    "--listen-port",
    "listen_ports",
    multiple=True,
    metavar="SIDE=PORTS",
    callback=_ports_by_side,
    help="The ports that the gateways of a side listen on, one for each channel: cons=5075, cons=5075-5078, prod=5100. "
    "For programs that tell each other port numbers; what a facility does not grant refuses the request.",
)

# -- the command


@click.group(cls=Commands, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
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
    If the terminal of a request was lost before it streamed:
        s2uc attach UID

    A UID may be shortened to its beginning. The applications say Hello with `appctrl`.
    Exit status: 0 done; 1 the stream or a facility failed; 2 wrong usage or configuration.
    """
    keep_secrets()
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
    help="Of the whole stream, each way: 10Gbit, 500Mbit, or plain Mbit/s. It is reserved, and it is the limit "
    f"[default: {format_rate(DEFAULT_RATE)}].",
)
@click.option("--uid", type=click.UUID, help="The stream's UUID [default: a new one].")
@click.option(
    "--expires",
    type=TIME,
    help="How long it lives at most: 30m, 8h, 2d [default: as the facilities have it; the shorter of the two counts].",
)
@click.option("--label", help="A name for people; the facilities see it.")
@_LISTEN_PORT
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
    expires: float | None,
    label: str | None,
    listen_ports: dict[Role, list[int]],
    as_json: bool,
    timeout: float | None,
    join_dir: Path | None,
) -> None:
    """Ask for a stream and wait until it streams.

    Prints the stream's uid, what both sides listen on and the two join strings as soon as both facilities have
    reserved: paste each where that side's application starts. Ctrl-C releases both sides. When it streams, this
    command ends and the stream goes on.
    """
    wishes = RequestOptions(
        str(prod), str(cons), num_conn, rate, expires, str(uid or uuid.uuid4()), label, listen_ports
    )
    output = Output(as_json, timeout, join_dir)
    _finish(ctx.obj, lambda client: request_stream(client, wishes, output), wishes.uid, as_json=as_json)


@main.command()
@click.argument("uid")
@click.option(
    "--at", type=ADDRESS, help="End what this S2CS has of it, and nothing else: of any user's, for an administrator."
)
@_LAST_LINE
@_credential_options
@click.pass_context
def release(ctx: click.Context, uid: str, at: Address | None, as_json: bool) -> None:
    """End a stream at both facilities."""
    if at is not None:
        _finish(ctx.obj, lambda client: release_at(client, str(at), uid, as_json), uid, as_json=as_json)
    _finish(ctx.obj, lambda client: release_stream(client, uid, as_json), uid, as_json=as_json)


@main.command()
@click.argument("uid")
@_LAST_LINE
def forget(uid: str, as_json: bool) -> None:
    """Take a stream out of the list, without asking its facilities.

    For one that can be released no more, since a facility is gone for good. What it holds there ends when it expires.
    """
    memory = StreamHistory()
    try:
        with failure_in_json(uid, as_json):
            known = memory.find(uid, changes=True)
            memory.remove(known.uid)
    except ConfigError as problem:
        refuse(problem)
    click.echo(json.dumps({"uid": known.uid, "state": "Forgotten"}) if as_json else f"forgotten {known.uid}")


@main.command()
@click.argument("uid")
@click.option("--timeout", type=TIME, help="Give up waiting after this time; the stream is left as it is.")
@_LAST_LINE
@_credential_options
@click.pass_context
def wait(ctx: click.Context, uid: str, timeout: float | None, as_json: bool) -> None:
    """Wait until a stream streams at both facilities."""
    _finish(ctx.obj, lambda client: wait_for_stream(client, uid, timeout, as_json), uid, as_json=as_json)


@main.command()
@click.argument("uid")
@click.option("--timeout", type=TIME, help="Give up, and release, if it does not stream by then.")
@_LAST_LINE
@_credential_options
@click.pass_context
def attach(ctx: click.Context, uid: str, timeout: float | None, as_json: bool) -> None:
    """Go on with a request whose `s2uc` was lost, from wherever the stream stands, until it streams."""
    _finish(ctx.obj, lambda client: attach_stream(client, uid, Output(as_json, timeout)), uid, as_json=as_json)


@main.command()
@click.argument("uid", required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.option(
    "--at",
    type=ADDRESS,
    help="What this S2CS has of the stream UID, and nothing else: of any user's, for its administrator.",
)
@_credential_options
@click.pass_context
def status(ctx: click.Context, uid: str | None, as_json: bool, at: Address | None) -> None:
    """Ask the facilities for the state and the figures of a stream, or of all that are remembered.

    With --at one facility tells all that it knows of one stream: owner, gateways, addresses, figures.
    """
    if at is not None:
        if uid is None:
            raise click.UsageError("--at needs a UID: `s2uc list --at` shows all streams of a facility")
        _finish(ctx.obj, lambda client: show_status_at(client, str(at), uid, as_json), uid, as_json=as_json)
    _finish(ctx.obj, lambda client: show_status(client, uid, as_json), uid, as_json=as_json)


@main.command()
@click.option("--prod", type=ADDRESS, required=True, help="The S2CS of the producer's facility.")
@click.option("--cons", type=ADDRESS, required=True, help="The S2CS of the consumer's facility.")
@click.option("--num-conn", type=click.IntRange(1, 1024), default=1, show_default=True, help="Channels.")
@click.option(
    "--rate",
    type=RATE,
    default=DEFAULT_RATE,
    metavar="RATE",
    help="As for a request: it is reserved for the probe, and no more than that is measured "
    f"[default: {format_rate(DEFAULT_RATE)}].",
)
@click.option(
    "--seconds",
    type=click.FloatRange(1, MAX_PROBE_SECONDS),
    default=timing.PROBE_DATA,
    show_default=True,
    help="How long test data flows each way.",
)
@_LISTEN_PORT
@click.option("--json", "as_json", is_flag=True, help="One JSON object at the end in place of text.")
@_credential_options
@click.pass_context
def probe(
    ctx: click.Context,
    prod: Address,
    cons: Address,
    num_conn: int,
    rate: float,
    seconds: float,
    listen_ports: dict[Role, list[int]],
    as_json: bool,
) -> None:
    """Try out, the day before, what a stream between two facilities will need.

    Reaches both S2CS, asks both for a stream of one minute, has their gateways send each other test data, and
    releases. No application takes part. A line for each check says ok or FAILED, and what to do; `-` stands before
    what could not be tried. Exit status 0 if all is ok, 1 if not.
    """

    async def work(client: Client) -> int:
        tell = None if as_json else click.echo
        report = await client.probe(
            prod=str(prod),
            cons=str(cons),
            num_conn=num_conn,
            rate=rate,
            seconds=seconds,
            listen_ports=listen_ports,
            tell=tell,
        )
        if as_json:
            click.echo(json.dumps({"ok": report.ok, **msgspec.to_builtins(report)}))
        return 0 if report.ok else 1

    _finish(ctx.obj, work, as_json=as_json)


@main.command("list")
@click.option("--json", "as_json", is_flag=True, help="A JSON list.")
@click.option("--at", type=ADDRESS, help="Ask this S2CS for all that live there: of all users, for an administrator.")
@_credential_options
@click.pass_context
def list_streams(ctx: click.Context, as_json: bool, at: Address | None) -> None:
    """Show the streams that this user has asked for and not released, without asking the facilities.

    On standard error it also warns of certificates of this user that expire soon.
    """
    if at is not None:
        _finish(ctx.obj, lambda client: list_at(client, str(at), as_json), as_json=as_json)
    try:
        with failure_in_json(None, as_json):
            streams = StreamHistory().all()
    except ConfigError as problem:
        refuse(problem)
    for warning in ctx.ensure_object(_Credentials).warnings():
        click.echo(f"warning: {warning}", err=True)
    if as_json:
        click.echo(json.dumps([msgspec.to_builtins(stream) for stream in streams]))
        return
    if not streams:
        click.echo("no streams")
        return
    short = short_uids([one.uid for one in streams])
    table = Columns(
        "uid", "producer side", "consumer side", "ch", "Mbit/s", "asked for", "expires", "label", whole=("asked for",)
    )
    for one in streams:
        times = (clock_time(one.asked_at), clock_time(one.expires_at) if one.expires_at is not None else "")
        table.add(short[one.uid], one.prod, one.cons, str(one.num_conn), f"{one.rate:g}", *times, one.label or "")
    table.show()


# -- running


Work = Callable[[Client], Coroutine[Any, Any, int]]


def _finish(credentials: _Credentials, work: Work, uid: str | None = None, *, as_json: bool = False) -> NoReturn:
    """Run the work with a client and end the process with its exit status.

    :param uid: the stream that a line of JSON is about, if there is no client.
    """

    async def whole(reactor: Any) -> int:
        with failure_in_json(uid, as_json):
            client = credentials.client(reactor)
        try:
            return await work(client)
        finally:
            await client.close()

    sys.exit(run(whole))


def _run_file(credentials: _Credentials, file: Path) -> NoReturn:
    try:
        wishes = read_file(file)
    except ConfigError as problem:
        refuse(problem)
    if isinstance(wishes, RequestOptions):
        _finish(credentials, lambda client: request_stream(client, wishes, Output()))
    uid = wishes
    _finish(credentials, lambda client: release_stream(client, uid))


if __name__ == "__main__":
    main()

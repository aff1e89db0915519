"""The command `s2uc`: its options, its help, and the client that its commands run with."""

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
from scistream.s2uc.commands import attach_stream, release_at, release_stream, request_stream, wait_for_stream
from scistream.s2uc.history import StreamHistory
from scistream.s2uc.lifetime import extend_stream
from scistream.s2uc.options import OutputOptions, RequestOptions, parse_listen_ports, parse_side, read_file
from scistream.s2uc.output import clock_time, failure_in_json
from scistream.s2uc.settings import S2UCConfig
from scistream.s2uc.show import list_at, show_status, show_status_at
from scistream.shared_settings import DEFAULT_RATE, trust_of
from scistream.tables import Columns, short_uids
from scistream.tls.expiry import expiring_soon
from scistream.tls.files import CertificateError
from scistream.units import format_rate

F = TypeVar("F", bound=Callable[..., Any])


# -- certificates, from options or the configuration file


@dataclass
class _Credentials:
    """The certificates that the options name. The configuration file gives those that the options leave out."""

    config: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    authorities: tuple[Path, ...] = ()
    insecure: bool = False

    def client(self, reactor: Any) -> Client:
        """Make a client with these certificates.

        :raises ConfigError: if neither the options nor the configuration file name certificates.
        """
        file = self._file()
        settings = load(file, S2UCConfig) if self.config is not None or file.exists() else S2UCConfig()
        insecure = self.insecure or settings.insecure
        arguments = arguments_of(settings, file) | {"insecure": insecure}
        arguments |= {name: given for name in ("certificate", "key", "authorities") if (given := getattr(self, name))}
        authorities = arguments["authorities"] or arguments["facilities"]
        if not insecure and not (arguments["certificate"] and arguments["key"] and authorities):
            raise ConfigError(
                f"no certificates: name certificate, key and authorities in {file}, or give --certificate, --key and "
                "--authority (only for a test on loopback: --insecure needs none)"
            )
        return Client(**arguments, reactor=reactor)

    def _file(self) -> Path:
        """Return the configuration file, which need not exist.

        If the user's configuration folder is unknown and the options name all certificates, return an empty file.

        :raises ConfigError: if the folder is unknown and the options leave something out.
        """
        try:
            return self.config or default_config()
        except ConfigError:
            if self.insecure or (self.certificate and self.key and self.authorities):
                return Path(os.devnull)
            raise

    def warnings(self) -> list[str]:
        """Return warnings about the user's own certificate files that expire soon.

        Files that cannot be read are left out: a command that needs them reports the reason.
        """
        try:
            file = self._file()
            settings = load(file, S2UCConfig)
            if settings.insecure or not settings.certificate:
                return []
            files = [trust_of(settings, file)]
            for facility in settings.facilities:
                of_facility = msgspec.structs.replace(settings, authorities=facility.authorities, crl=facility.crl)
                files.append(trust_of(of_facility, file))
            found = [expiring_soon("your", each) for each in files if each.authorities]
            return list(dict.fromkeys(warning for warnings in found for warning in warnings))
        except (ConfigError, CertificateError):
            return []


def _store_in(field: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    """Return a callback that stores an option in `_Credentials`, whether it stands before the subcommand or after."""

    def store(ctx: click.Context, _param: click.Parameter, value: Any) -> None:
        credentials = ctx.ensure_object(_Credentials)
        if value:
            setattr(credentials, field, value)

    return store


def _credential_options(command: F) -> F:
    path = click.Path(path_type=Path, dir_okay=False)
    for option in (
        click.option(
            "--insecure",
            is_flag=True,
            expose_value=False,
            callback=_store_in("insecure"),
            help="Use plain TCP without certificates; on loopback only.",
        ),
        click.option(
            "--authority",
            "authorities",
            type=path,
            multiple=True,
            expose_value=False,
            callback=_store_in("authorities"),
            help="A certificate authority of the facilities (PEM file); may be repeated.",
        ),
        click.option(
            "--key",
            type=path,
            expose_value=False,
            callback=_store_in("key"),
            help="The private key of your certificate (PEM file).",
        ),
        click.option(
            "--certificate",
            type=path,
            expose_value=False,
            callback=_store_in("certificate"),
            help="Your certificate (PEM file).",
        ),
        click.option(
            "--config",
            type=path,
            expose_value=False,
            callback=_store_in("config"),
            help="The file that names your certificates [default: ~/.config/scistream/s2uc.toml].",
        ),
    ):
        command = option(command)
    return command


_JSON_RESULT = click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")


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
    help="Ask for certain ports: cons=5075, cons=5075-5078 or prod=5100, one port for each channel. The gateways of "
    "that side listen on them. For programs that tell each other port numbers. If a facility does not grant a port, "
    "the request fails.",
)


def _side(_ctx: click.Context, _param: click.Parameter, text: str | None) -> Role | None:
    return None if text is None else parse_side(text)


_WAN_DIALER = click.option(
    "--wan-dialer",
    type=click.Choice(["prod", "cons"], case_sensitive=False),
    callback=_side,
    help="The side whose gateways dial the others over the WAN [default: cons if the facilities allow it, else prod].",
)

# -- the command


@click.group(cls=Commands, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(scistream.__version__, prog_name="s2uc")
@click.option(
    "--req-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Read a request (REQ) or a release (REL) from a JSON file and carry it out.",
)
@click.option("-v", "--verbose", count=True, help="Log events to standard error; -vv also logs debug messages.")
@_credential_options
@click.pass_context
def main(ctx: click.Context, req_file: Path | None, verbose: int) -> None:
    """Stream from a program at one facility to a program at another.

    \b
    Request a stream from two facilities, and get a join string for each application:
        s2uc request --prod anl.example:5000 --cons ornl.example:5000 --num-conn 4 --rate 10Gbit
    Test the path beforehand:
        s2uc probe --prod anl.example:5000 --cons ornl.example:5000 --num-conn 4 --rate 10Gbit
    Later, from any terminal:
        s2uc list
        s2uc status UID
        s2uc release UID
    If the terminal of a request was lost before the stream was ready:
        s2uc attach UID

    A UID may be shortened to its first characters. Applications join a stream with `appctrl`.

    Exit status: 0 success; 1 the stream or a facility failed; 2 wrong usage or configuration.
    """
    keep_secrets()
    start_logging(verbose)
    if req_file is not None:
        if ctx.invoked_subcommand is not None:
            raise click.UsageError("--req-file cannot be combined with a command: leave one of them out")
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
    help="The rate of the whole stream in each direction: 10Gbit, 500Mbit, or a number of Mbit/s. The facilities "
    f"reserve it, and the stream gets no more [default: {format_rate(DEFAULT_RATE)}].",
)
@click.option("--uid", type=click.UUID, help="The stream's UUID [default: a new one].")
@click.option(
    "--expires",
    type=TIME,
    help="End the stream after this time: 30m, 8h, 2d [default: the shorter of the facilities' own defaults].",
)
@click.option("--label", help="A name for the stream; the facilities see it.")
@_LISTEN_PORT
@_WAN_DIALER
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object when both sides have reserved, and one at the end."
)
@click.option("--timeout", type=TIME, help="Release the stream if it is not streaming after this time.")
@click.option(
    "--join-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Write the join strings to the files DIR/UID.prod and DIR/UID.cons (mode 0600) instead of printing them.",
)
@click.option(
    "--wait-for-release",
    is_flag=True,
    help="Stay until the stream is over: Ctrl-C releases it. The exit status is 0 if it was released, and 1 if it has "
    "failed or expired.",
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
    wan_dialer: Role | None,
    as_json: bool,
    timeout: float | None,
    join_dir: Path | None,
    wait_for_release: bool,
) -> None:
    """Request a stream and wait until it streams.

    As soon as both facilities have reserved, the command prints the stream's uid, the listeners of both sides, and
    the two join strings: paste each where that side's application starts. When both sides stream, the command ends
    and the stream continues. Before that, Ctrl-C releases both sides.
    """
    options = RequestOptions(
        str(prod), str(cons), num_conn, rate, expires, str(uid or uuid.uuid4()), label, listen_ports, wan_dialer
    )
    output = OutputOptions(as_json, timeout, join_dir, wait_for_release)
    _finish(ctx.obj, lambda client: request_stream(client, options, output), options.uid, as_json=as_json)


@main.command()
@click.argument("uid")
@click.option(
    "--at", type=ADDRESS, help="Release this S2CS's side only. An administrator may name a stream of any user."
)
@_JSON_RESULT
@_credential_options
@click.pass_context
def release(ctx: click.Context, uid: str, at: Address | None, as_json: bool) -> None:
    """End a stream at both facilities."""
    if at is not None:
        _finish(ctx.obj, lambda client: release_at(client, str(at), uid, as_json), uid, as_json=as_json)
    _finish(ctx.obj, lambda client: release_stream(client, uid, as_json), uid, as_json=as_json)


@main.command()
@click.argument("uid")
@click.option("--by", type=TIME, required=True, help="How much later the stream ends than it would now: 30m, 4h, 1d.")
@_JSON_RESULT
@_credential_options
@click.pass_context
def extend(ctx: click.Context, uid: str, by: float, as_json: bool) -> None:
    """Let a stream end later, at both facilities or at neither.

    Each facility limits the whole lifetime of a stream, counted from its request.
    """
    _finish(ctx.obj, lambda client: extend_stream(client, uid, by, as_json), uid, as_json=as_json)


@main.command()
@click.argument("uid")
@_JSON_RESULT
def forget(uid: str, as_json: bool) -> None:
    """Remove a stream from your list only.

    The facilities are not asked. This is for a stream that cannot be released because a facility is gone for good. Its
    ports and capacity are given back when it expires.
    """
    history = StreamHistory()
    try:
        with failure_in_json(uid, as_json):
            stream = history.find(uid, changes=True)
            history.remove(stream.uid)
    except ConfigError as problem:
        refuse(problem)
    click.echo(json.dumps({"uid": stream.uid, "state": "Forgotten"}) if as_json else f"forgotten {stream.uid}")


@main.command()
@click.argument("uid")
@click.option("--timeout", type=TIME, help="Stop waiting after this time; the stream is left as it is.")
@_JSON_RESULT
@_credential_options
@click.pass_context
def wait(ctx: click.Context, uid: str, timeout: float | None, as_json: bool) -> None:
    """Wait until a stream streams at both facilities."""
    _finish(ctx.obj, lambda client: wait_for_stream(client, uid, timeout, as_json), uid, as_json=as_json)


@main.command()
@click.argument("uid")
@click.option("--timeout", type=TIME, help="Release the stream if it is not streaming after this time.")
@_JSON_RESULT
@_credential_options
@click.pass_context
def attach(ctx: click.Context, uid: str, timeout: float | None, as_json: bool) -> None:
    """Continue a request whose terminal was lost.

    The command waits until the stream streams, like `s2uc request`, and Ctrl-C releases both sides. Join strings are
    not stored: the applications need those that `s2uc request` printed.
    """
    _finish(ctx.obj, lambda client: attach_stream(client, uid, OutputOptions(as_json, timeout)), uid, as_json=as_json)


@main.command()
@click.argument("uid", required=False)
@_JSON_RESULT
@click.option(
    "--at",
    type=ADDRESS,
    help="Ask this S2CS only, about the stream UID. An administrator may name a stream of any user.",
)
@_credential_options
@click.pass_context
def status(ctx: click.Context, uid: str | None, as_json: bool, at: Address | None) -> None:
    """Show what the facilities report about your streams.

    Without a UID it shows the state of every stream in your list. With a UID it also shows traffic and faults of each
    channel. With --at it shows everything that one facility knows of the stream: owner, gateways, addresses and
    channels.
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
    help="The rate to reserve for the probe, as for a request; no more than that is measured "
    f"[default: {format_rate(DEFAULT_RATE)}].",
)
@click.option(
    "--seconds",
    type=click.FloatRange(1, MAX_PROBE_SECONDS),
    default=timing.PROBE_DATA,
    show_default=True,
    help="How long test data flows in each direction, in seconds.",
)
@_LISTEN_PORT
@_WAN_DIALER
@_JSON_RESULT
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
    wan_dialer: Role | None,
    as_json: bool,
) -> None:
    """Test the path between two facilities, without applications.

    The probe connects to both S2CS, reserves a stream for one minute, lets the gateways send each other test data,
    and releases the stream. Each check prints a line: `ok`, or `FAILED` with the reason and what to do, or `-` if it
    could not be tried. The exit status is 0 if every check is ok, and 1 otherwise.
    """

    async def work(client: Client) -> int:
        report = await client.probe(
            prod=str(prod),
            cons=str(cons),
            num_conn=num_conn,
            rate=rate,
            seconds=seconds,
            listen_ports=listen_ports,
            wan_dialer=wan_dialer,
            tell=None if as_json else click.echo,
        )
        if as_json:
            click.echo(json.dumps({"ok": report.ok, **msgspec.to_builtins(report)}))
        return 0 if report.ok else 1

    _finish(ctx.obj, work, as_json=as_json)


@main.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
@click.option(
    "--at",
    type=ADDRESS,
    help="Ask this S2CS for the streams there instead. An administrator sees those of all users.",
)
@_credential_options
@click.pass_context
def list_streams(ctx: click.Context, as_json: bool, at: Address | None) -> None:
    """List the streams that you have not released.

    The list is kept on this machine; the facilities are asked only with --at. Warnings about your certificates that
    expire soon go to standard error.
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


# -- running


Work = Callable[[Client], Coroutine[Any, Any, int]]


def _finish(credentials: _Credentials, work: Work, uid: str | None = None, *, as_json: bool = False) -> NoReturn:
    """Run the work with a client and end the process with its exit status.

    :param uid: the stream to name in the JSON failure, if the client cannot be made.
    """

    async def with_client(reactor: Any) -> int:
        with failure_in_json(uid, as_json):
            client = credentials.client(reactor)
        try:
            return await work(client)
        finally:
            await client.close()

    sys.exit(run(with_client))


def _run_file(credentials: _Credentials, file: Path) -> NoReturn:
    try:
        command = read_file(file)
    except ConfigError as problem:
        refuse(problem)
    if isinstance(command, RequestOptions):
        _finish(credentials, lambda client: request_stream(client, command, OutputOptions()))
    _finish(credentials, lambda client: release_stream(client, command))


if __name__ == "__main__":
    main()

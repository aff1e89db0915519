"""The command `s2uc`: its options and its help.

What a command needs to run is imported when it runs: see `scistream.cli_support`.
"""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

import scistream
from scistream import timing
from scistream.cli_support import RATE, TIME, Commands, add_completion, failure_names, refuse, start_logging
from scistream.config import ConfigError
from scistream.os_process import keep_secrets
from scistream.protocol.messages import MAX_PROBE_SECONDS, Role
from scistream.s2uc.cli_options import (
    FACILITY,
    JSON_RESULT,
    LISTEN_PORT,
    UID,
    WAN_DIALER,
    CertificateOptions,
    credential_options,
    finish,
)
from scistream.s2uc.explain import codes_that_begin, explain_code
from scistream.units import DEFAULT_RATE, format_rate

if TYPE_CHECKING:
    from scistream.s2uc.client import Client


@click.group(cls=Commands, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(scistream.__version__, prog_name="s2uc")
@click.option(
    "--req-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Read a request (REQ) or a release (REL) from a JSON file and carry it out.",
)
@click.option("-v", "--verbose", count=True, help="Log events to standard error; -vv also logs debug messages.")
@credential_options
@click.pass_context
def main(ctx: click.Context, req_file: Path | None, verbose: int) -> None:
    """Stream from a program at one facility to a program at another.

    \b
    Request a stream from two facilities; each application gets a join string:
      s2uc request --prod anl.example:5000 --cons ornl.example:5000 --rate 10Gbit
    Test the path beforehand:
      s2uc probe --prod anl.example:5000 --cons ornl.example:5000 --rate 10Gbit
    Later, from any terminal:
      s2uc list
      s2uc watch UID
      s2uc release UID
    If the terminal of a request was lost before the stream was ready:
      s2uc attach UID

    A UID may be shortened to its first characters. A facility has the address HOST:PORT, or a name that s2uc.toml
    gives it (`s2uc facilities`). Applications join a stream with `appctrl`.

    Exit status: 0 success; 1 the stream or a facility failed; 2 wrong usage or configuration; 130 interrupted before
    anything was done; 141 the reader of the output is gone. `s2uc explain` explains them and every error code.
    """
    keep_secrets()
    if req_file is not None:
        if ctx.invoked_subcommand is not None:
            raise click.UsageError("--req-file cannot be combined with a command: leave one of them out")
        start_logging(verbose)
        _run_file(ctx.obj, req_file)
    elif ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
        ctx.exit(2)


@main.command()
@click.option("--prod", type=FACILITY, required=True, help="The producer's facility: HOST:PORT of its S2CS, or a name.")
@click.option("--cons", type=FACILITY, required=True, help="The consumer's facility: HOST:PORT of its S2CS, or a name.")
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
@LISTEN_PORT
@WAN_DIALER
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
@credential_options
@click.pass_context
def request(
    ctx: click.Context,
    prod: str,
    cons: str,
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
    from scistream.s2uc.commands import request_stream
    from scistream.s2uc.options import OutputOptions, RequestOptions

    options = RequestOptions(
        prod, cons, num_conn, rate, expires, str(uid or uuid.uuid4()), label, listen_ports, wan_dialer
    )
    output = OutputOptions(as_json, timeout, join_dir, wait_for_release)
    finish(ctx.obj, lambda client: request_stream(client, options, output), options.uid)


@main.command()
@click.argument("uid", type=UID)
@click.option(
    "--at", type=FACILITY, help="Release this S2CS's side only. An administrator may name a stream of any user."
)
@JSON_RESULT
@credential_options
@click.pass_context
def release(ctx: click.Context, uid: str, at: str | None, as_json: bool) -> None:
    """End a stream at both facilities."""
    from scistream.s2uc.commands import release_at, release_stream

    if at is not None:
        finish(ctx.obj, lambda client: release_at(client, at, uid, as_json), uid)
    finish(ctx.obj, lambda client: release_stream(client, uid, as_json), uid)


@main.command()
@click.argument("uid", type=UID)
@click.option("--by", type=TIME, required=True, help="How much later the stream ends than it would now: 30m, 4h, 1d.")
@JSON_RESULT
@credential_options
@click.pass_context
def extend(ctx: click.Context, uid: str, by: float, as_json: bool) -> None:
    """Let a stream end later, at both facilities or at neither.

    Each facility limits the whole lifetime of a stream, counted from its request.
    """
    from scistream.s2uc.lifetime import extend_stream

    finish(ctx.obj, lambda client: extend_stream(client, uid, by, as_json), uid)


@main.command()
@click.argument("uid", type=UID)
@JSON_RESULT
@click.option("--at", type=FACILITY, help="Ask this S2CS only. An administrator may name a stream of any user.")
@credential_options
@click.pass_context
def events(ctx: click.Context, uid: str, as_json: bool, at: str | None) -> None:
    """Show what has happened to a stream, when, and at which side.

    Each facility keeps the latest events of its side, until a day after the stream has ended.
    """
    from scistream.s2uc.show_events import show_events, show_events_at

    if at is not None:
        finish(ctx.obj, lambda client: show_events_at(client, at, uid, as_json), uid)
    finish(ctx.obj, lambda client: show_events(client, uid, as_json), uid)


@main.command()
@click.argument("uid", type=UID)
@JSON_RESULT
def forget(uid: str, as_json: bool) -> None:
    """Remove a stream from your list only.

    The facilities are not asked. This is for a stream that cannot be released because a facility is gone for good. Its
    ports and capacity are given back when it expires.
    """
    from scistream.s2uc.history import StreamHistory

    history = StreamHistory()
    try:
        with failure_names(uid=uid):
            stream = history.find(uid, changes=True)
            history.remove(stream.uid)
    except ConfigError as problem:
        refuse(problem)
    click.echo(json.dumps({"uid": stream.uid, "state": "Forgotten"}) if as_json else f"forgotten {stream.uid}")


@main.command()
@click.argument("uid", type=UID)
@click.option("--timeout", type=TIME, help="Stop waiting after this time; the stream is left as it is.")
@JSON_RESULT
@credential_options
@click.pass_context
def wait(ctx: click.Context, uid: str, timeout: float | None, as_json: bool) -> None:
    """Wait until a stream streams at both facilities."""
    from scistream.s2uc.commands import wait_for_stream

    finish(ctx.obj, lambda client: wait_for_stream(client, uid, timeout, as_json), uid)


@main.command()
@click.argument("uid", type=UID)
@click.option("--timeout", type=TIME, help="Release the stream if it is not streaming after this time.")
@JSON_RESULT
@credential_options
@click.pass_context
def attach(ctx: click.Context, uid: str, timeout: float | None, as_json: bool) -> None:
    """Continue a request whose terminal was lost.

    The command waits until the stream streams, like `s2uc request`, and Ctrl-C releases both sides. Join strings are
    not stored: the applications need those that `s2uc request` printed.
    """
    from scistream.s2uc.commands import attach_stream
    from scistream.s2uc.options import OutputOptions

    finish(ctx.obj, lambda client: attach_stream(client, uid, OutputOptions(as_json, timeout)), uid)


@main.command()
@click.argument("uid", type=UID, required=False)
@JSON_RESULT
@click.option(
    "--at",
    type=FACILITY,
    help="Ask this S2CS only, about the stream UID. An administrator may name a stream of any user.",
)
@credential_options
@click.pass_context
def status(ctx: click.Context, uid: str | None, as_json: bool, at: str | None) -> None:
    """Show what the facilities report about your streams.

    Without a UID it shows the state of every stream in your list. With a UID it also shows traffic and faults of each
    channel. With --at it shows everything that one facility knows of the stream: owner, gateways, addresses and
    channels.
    """
    from scistream.s2uc.show import show_status, show_status_at

    if at is not None:
        if uid is None:
            raise click.UsageError("--at needs a UID: `s2uc list --at` shows all streams of a facility")
        finish(ctx.obj, lambda client: show_status_at(client, at, uid, as_json), uid)
    finish(ctx.obj, lambda client: show_status(client, uid, as_json), uid)


@main.command()
@click.option("--prod", type=FACILITY, required=True, help="The producer's facility: HOST:PORT of its S2CS, or a name.")
@click.option("--cons", type=FACILITY, required=True, help="The consumer's facility: HOST:PORT of its S2CS, or a name.")
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
@LISTEN_PORT
@WAN_DIALER
@JSON_RESULT
@credential_options
@click.pass_context
def probe(
    ctx: click.Context,
    prod: str,
    cons: str,
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
    import msgspec

    async def work(client: Client) -> int:
        report = await client.probe(
            prod=prod,
            cons=cons,
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

    finish(ctx.obj, work)


@main.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
@click.option(
    "--at",
    type=FACILITY,
    help="Ask this S2CS for the streams there instead. An administrator sees those of all users.",
)
@credential_options
@click.pass_context
def list_streams(ctx: click.Context, as_json: bool, at: str | None) -> None:
    """List the streams that you have not released.

    The list is kept on this machine; the facilities are asked only with --at. Warnings about your certificates that
    expire soon go to standard error.
    """
    if at is not None:
        from scistream.s2uc.show import list_at

        finish(ctx.obj, lambda client: list_at(client, at, as_json))
    from scistream.s2uc.listing import list_remembered

    list_remembered(ctx.ensure_object(CertificateOptions).warnings, as_json)


@main.command()
@click.argument("uid", type=UID)
@click.option(
    "--interval", type=TIME, default="2s", show_default=True, metavar="TIME", help="Ask the facilities this often."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at each interval.")
@credential_options
@click.pass_context
def watch(ctx: click.Context, uid: str, interval: float, as_json: bool) -> None:
    """Watch a stream until it ends: states, rates, channels, resets and paths.

    On a terminal the view is drawn in place, and `q` ends it. Into a pipe or a file, and with TERM=dumb, each interval
    adds a line. Neither `q` nor Ctrl-C changes the stream, and the exit status is 0 then.

    If the stream ends meanwhile, the exit status is 0 if it was released, and 1 with the reason otherwise.
    """
    from scistream.s2uc.watch import watch_stream

    finish(ctx.obj, lambda client: watch_stream(client, uid, max(interval, timing.SHORTEST_WATCH), as_json), uid)


@main.command()
@click.argument("facilities", type=FACILITY, nargs=-1, metavar="[FACILITY]...")
@JSON_RESULT
@credential_options
@click.pass_context
def facilities(ctx: click.Context, facilities: tuple[str, ...], as_json: bool) -> None:
    """Show the facilities that s2uc.toml names: whether they answer, their version, and what they warn about.

    All are asked at the same time. FACILITY is a name or HOST:PORT; without any, all names are shown. A name is given
    in ~/.config/scistream/s2uc.toml, and may be used for --prod, --cons and --at:

    \b
      [[facilities]]
      name = "lab"
      address = "s2cs.lab.example:5000"

    The exit status is 0 if all answer, and 1 otherwise.
    """
    from scistream.s2uc.show_facilities import show_facilities

    finish(ctx.obj, lambda client: show_facilities(client, facilities, as_json))


@main.command()
@click.argument("code", required=False, shell_complete=lambda _ctx, _param, text: codes_that_begin(text))
@JSON_RESULT
def explain(code: str | None, as_json: bool) -> None:
    """Explain an error code, an exit status, or the cause of a reset.

    CODE is such as no-ports, 141, or far-side; a whole error message will do, too. Without CODE all are listed.
    """
    explain_code(code, as_json)


def _run_file(credentials: CertificateOptions, file: Path) -> NoReturn:
    from scistream.s2uc.commands import release_stream, request_stream
    from scistream.s2uc.options import OutputOptions, RequestOptions, read_file

    try:
        command = read_file(file)
    except ConfigError as problem:
        refuse(problem)
    if isinstance(command, RequestOptions):
        finish(credentials, lambda client: request_stream(client, command, OutputOptions()))
    finish(credentials, lambda client: release_stream(client, command))


add_completion(main, "s2uc")

if __name__ == "__main__":
    main()

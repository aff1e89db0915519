"""The command `appctrl`: say Hello for an unchanged program, and start it.

What a command needs to run is imported when it runs: see `scistream.cli_support`.
"""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

import scistream
from scistream.app.startup import JOIN_VARIABLE, StartEnvironment, take_environment
from scistream.cli_support import TIME, Commands, add_completion, fail, failure_names, refuse, run
from scistream.config import ConfigError
from scistream.os_process import keep_secrets
from scistream.protocol.address import Address
from scistream.protocol.join_string import Join
from scistream.protocol.messages import CONS, MAX_HOSTS, PROD, Role

if TYPE_CHECKING:
    from scistream.app.handover import Keeper

F = TypeVar("F", bound=Callable[..., Any])


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(scistream.__version__, prog_name="appctrl")
@click.option("-v", "--verbose", count=True, help="Log events to standard error; -vv also logs debug messages.")
@click.pass_context
def main(context: click.Context, /, **_verbose: int) -> None:
    """Join a stream on behalf of a program that knows nothing of SciStream.

    \b
    At the producer's facility, where the program listens on port 7000 here:
        export SCISTREAM_JOIN=...        # as `s2uc request` printed it
        appctrl prod --listen 192.0.2.7:7000 -- ./detector --port 7000
    At the consumer's facility, where the program connects to {host} and {port}:
        export SCISTREAM_JOIN=...
        appctrl cons -- ./analyse {host} {port}

    The join string is a secret. It is read from SCISTREAM_JOIN, which the program does not inherit, or from
    --join-file, never from an argument.

    COMMAND takes the place of appctrl: it has the same process id, terminal and open files, receives every signal,
    and its exit status is what the caller sees. A second process keeps the link to the S2CS and reports on standard
    error if the stream ends before the program does.

    Exit status if COMMAND is not started: 127 there is no such program; 126 it cannot be executed; 1 the stream
    failed; 2 wrong usage.
    """
    context.obj = take_environment()
    keep_secrets(no_core=False)


def _join_option(command: F) -> F:
    option = click.option(
        "--join-file",
        type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
        help="Read the join string from a file; - reads it from standard input.",
    )
    wait = click.option(
        "--join-wait",
        type=TIME,
        help="Wait for the join file if it is not there yet, for at most this time, such as 12h: a batch job may start "
        "before the stream is requested. The file is complete when it ends with a line feed.",
    )
    return option(wait(command))


_JSON = click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print the result as one JSON object, also if it is a failure. A program that is started has the output for "
    "itself.",
)


@main.command()
@click.option(
    "--listen",
    "listeners",
    multiple=True,
    required=True,
    metavar="HOST:PORT",
    help="Where the program listens, as its gateway reaches it; give it once for each channel. 0.0.0.0 stands for the "
    "address of this machine from which it reaches the S2CS.",
)
@click.option(
    "--toward",
    metavar="HOST",
    help="Let 0.0.0.0 stand for the address of this machine from which it reaches HOST instead, such as a gateway of "
    "its facility: a compute node may reach the two through different networks.",
)
@_join_option
@_JSON
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def prod(
    start: StartEnvironment,
    listeners: tuple[str, ...],
    toward: str | None,
    join_file: Path | None,
    join_wait: float | None,
    as_json: bool,
    command: tuple[str, ...],
) -> None:
    """Join a stream as its producer, then start COMMAND.

    Without COMMAND, appctrl ends with status 0 as soon as the facility knows the listeners.
    """
    found = [_numeric(text) for text in listeners]
    others = {first: rest for first, *rest in found if rest}
    addresses = [first for first, *_ in found]
    if toward is not None:
        from scistream.app.own_address import address_toward, in_place_of_wildcard

        try:
            own = address_toward(toward)
        except OSError as problem:
            raise click.BadParameter(f"{toward}: {problem.strerror or problem}", param_hint="--toward") from None
        addresses = [in_place_of_wildcard(address, own) for address in addresses]
    _run(start, PROD, join_file, join_wait, addresses, command, others, as_json)


@main.command()
@_join_option
@_JSON
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def cons(
    start: StartEnvironment,
    join_file: Path | None,
    join_wait: float | None,
    as_json: bool,
    command: tuple[str, ...],
) -> None:
    """Join a stream as its consumer, then start COMMAND.

    COMMAND starts as soon as the stream is ready. In COMMAND, {host} and {port} are replaced by those of the first
    listener, and {listeners} by all listeners as HOST:PORT,HOST:PORT... The environment variable SCISTREAM_LISTENERS
    has all listeners as a JSON list. Without COMMAND, appctrl prints them as one line of JSON.
    """
    _run(start, CONS, join_file, join_wait, [], command, as_json=as_json)


def _run(
    start: StartEnvironment,
    role: Role,
    join_file: Path | None,
    join_wait: float | None,
    listeners: list[Address],
    command: tuple[str, ...],
    others: OtherAddresses = None,
    as_json: bool = False,
) -> None:
    from scistream.app.handover import ProgramStartError, become, check_executable, fill_placeholders, split

    try:
        join = _read_join(start, role, join_file, join_wait or 0.0)
        if command and "{" not in command[0]:
            check_executable(command[0], start.environment)
        if not command:
            sys.exit(run(lambda reactor: _announce(reactor, join, listeners, others, as_json)))
        targets = split(
            lambda keeper: run(
                lambda reactor: _say_hello(reactor, join, listeners, others, keeper), interruptible=False
            )
        )
        extra = {"SCISTREAM_LISTENERS": json.dumps(targets)} if role == CONS else {}
        become(fill_placeholders(command, targets), {**start.environment, **extra})
    except ConfigError as problem:
        refuse(problem)
    except ProgramStartError as problem:
        fail("not-started", str(problem))
        sys.exit(problem.status)


OtherAddresses = Mapping[Address, list[Address]] | None
"""For each listener that was given by name, the other addresses of the name."""


async def _say_hello(reactor: Any, join: Join, listeners: list[Address], others: OtherAddresses, keeper: Keeper) -> int:
    from scistream.app.controller import Controller

    await Controller(reactor, join, listeners, keeper, _note, others).run()
    return 0


async def _announce(reactor: Any, join: Join, listeners: list[Address], others: OtherAddresses, as_json: bool) -> int:
    """Say Hello for a program that appctrl does not start; for a consumer, print where to connect."""
    from scistream.app.controller import Controller, NoProgram

    program = NoProgram()
    with failure_names(uid=join.uid):
        await Controller(reactor, join, listeners, program, _note, others).run()
    if join.role == CONS:
        click.echo(json.dumps({"uid": join.uid, "listeners": program.listeners}))
    elif as_json:
        click.echo(json.dumps({"uid": join.uid, "listeners": list(map(str, listeners))}))
    return 0


def _note(sentence: str) -> None:
    click.echo(f"appctrl: {sentence}", err=True)


def _read_join(start: StartEnvironment, role: Role, file: Path | None, patience: float) -> Join:
    from scistream.app.join_file import read_join_file

    try:
        text = start.join if file is None else read_join_file(file, patience, _note)
        if not text.strip():
            raise ConfigError(f"no join string: set {JOIN_VARIABLE} to the line that `s2uc request` printed")
        join = Join.parse(text)
    except FileNotFoundError:
        remedy = "check the path" if patience else "check the path, or let --join-wait wait for it"
        raise ConfigError(f"{file}: cannot be read: there is no such file: {remedy}") from None
    except OSError as problem:
        raise ConfigError(f"{file}: cannot be read: {problem.strerror}") from None
    except ValueError as wrong:
        raise ConfigError(f"{file or JOIN_VARIABLE}: {wrong}") from None
    if join.role != role:
        raise ConfigError(
            f"this join string is for the other application, `appctrl {join.role.lower()}`: "
            f"use the one that `s2uc request` printed for `appctrl {role.lower()}`"
        )
    return join


def _numeric(text: str) -> list[Address]:
    """Return the numeric addresses of a listener, since gateways do not resolve the names of applications.

    A name may have several addresses, and the program may listen on any of them.

    :raises BadParameter: if the text is not an address, or the name cannot be resolved.
    """
    try:
        address = Address.parse(text)
        if address.numeric is not None:
            return [address]
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except ValueError as wrong:
        raise click.BadParameter(str(wrong), param_hint="--listen") from None
    except OSError as problem:
        raise click.BadParameter(f"{text}: {problem.strerror}", param_hint="--listen") from None
    ipv4_first = sorted(found, key=lambda entry: entry[0] != socket.AF_INET)
    hosts = dict.fromkeys(str(entry[4][0]) for entry in ipv4_first)
    if address.host.lower().rstrip(".") == "localhost":  # /etc/hosts may name one family only
        hosts |= dict.fromkeys(["127.0.0.1", "::1"])
    return [Address(host, address.port) for host in hosts][: MAX_HOSTS + 1]


add_completion(main, "appctrl")

if __name__ == "__main__":
    main()

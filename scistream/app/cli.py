"""What `appctrl` does: says Hello for an unchanged program, and may start it."""

from __future__ import annotations

import json
import os
import socket
import stat
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

import scistream
from scistream.app.controller import Controller, Nobody
from scistream.app.handover import Keeper, ProgramStartError, become, filled_in, find, split
from scistream.app.startup import JOIN_VARIABLE, Beginning, begin
from scistream.cli_support import Commands, refuse, run, start_logging
from scistream.config import ConfigError
from scistream.os_process import keep_secrets
from scistream.protocol.address import Address
from scistream.protocol.join_string import LONGEST, Join
from scistream.protocol.messages import CONS, MAX_HOSTS, PROD, Role

F = TypeVar("F", bound=Callable[..., Any])


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(scistream.__version__, prog_name="appctrl")
@click.option("-v", "--verbose", count=True, help="Log what happens; -vv logs all.")
@click.pass_context
def main(context: click.Context, verbose: int) -> None:
    """Say Hello to a facility for a program that knows nothing of SciStream.

    \b
    At the producer's facility, the program listens on port 7000 of this machine:
        export SCISTREAM_JOIN=...        # as `s2uc request` printed it
        appctrl prod --listen 192.0.2.7:7000 -- ./detector --port 7000
    At the consumer's facility, the program connects to where it is told:
        export SCISTREAM_JOIN=...
        appctrl cons -- ./analyse {host} {port}

    The join string is a secret: it is read from SCISTREAM_JOIN (and taken out of the program's environment) or from
    --join-file, never from an argument.

    COMMAND is started as if there were no appctrl: it gets the process id that appctrl was started with, and with it
    every signal, the terminal, and the descriptors; its end is the end that the caller sees. A second process keeps
    the link to the S2CS and says on standard error if the stream ends before the program. The exit status is 127 if
    there is no such program, 126 if it cannot be executed, 1 if the stream failed before the program was started.
    """
    context.obj = begin()
    keep_secrets(no_core=False)
    start_logging(verbose)


def _join_option(command: F) -> F:
    option = click.option(
        "--join-file",
        type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
        help="Read the join string from a file; - is standard input.",
    )
    return option(command)


@main.command()
@click.option(
    "--listen",
    "listeners",
    multiple=True,
    required=True,
    metavar="HOST:PORT",
    help="Where the program listens, as its gateway reaches it; once a channel. 0.0.0.0 means this machine's address "
    "towards the S2CS.",
)
@_join_option
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def prod(beginning: Beginning, listeners: tuple[str, ...], join_file: Path | None, command: tuple[str, ...]) -> None:
    """Say Hello for a producer, and start COMMAND if there is one.

    Without COMMAND it ends with status 0 once the facility knows the program's listeners.
    """
    found = [_numeric(text) for text in listeners]
    others = {one: rest for one, *rest in found if rest}
    _run(beginning, PROD, join_file, [one for one, *_ in found], command, others)


@main.command()
@_join_option
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def cons(beginning: Beginning, join_file: Path | None, command: tuple[str, ...]) -> None:
    """Say Hello for a consumer, wait until it may connect, and start COMMAND if there is one.

    In COMMAND, {host} and {port} become the first listener's, {listeners} all of them as HOST:PORT,HOST:PORT...;
    SCISTREAM_LISTENERS holds them as a JSON list. Without COMMAND they are printed as one JSON line.
    """
    _run(beginning, CONS, join_file, [], command)


def _run(
    beginning: Beginning,
    role: Role,
    join_file: Path | None,
    listeners: list[Address],
    command: tuple[str, ...],
    others: Others = None,
) -> None:
    try:
        join = _read_join(beginning, role, join_file)
        if command and "{" not in command[0]:
            find(command[0], beginning.environment)
        if not command:
            sys.exit(run(lambda reactor: _announce(reactor, join, listeners, others)))
        told = split(
            lambda keeper: run(
                lambda reactor: _say_hello(reactor, join, listeners, others, keeper), interruptible=False
            )
        )
        extra = {"SCISTREAM_LISTENERS": json.dumps(told)} if role == CONS else {}
        become(filled_in(command, told), {**beginning.environment, **extra})
    except ConfigError as problem:
        refuse(problem)
    except ProgramStartError as problem:
        click.echo(f"error: {problem}", err=True)
        sys.exit(problem.status)


Others = Mapping[Address, list[Address]] | None
"""Of listeners that were given by name, the other addresses."""


async def _say_hello(reactor: Any, join: Join, listeners: list[Address], others: Others, keeper: Keeper) -> int:
    await Controller(reactor, join, listeners, keeper, _note, others).run()
    return 0


async def _announce(reactor: Any, join: Join, listeners: list[Address], others: Others) -> int:
    """Say Hello for a program that somebody else starts, and tell where a consumer connects."""
    known = Nobody()
    await Controller(reactor, join, listeners, known, _note, others).run()
    if join.role == CONS:
        click.echo(json.dumps({"uid": join.uid, "listeners": known.listeners}))
    return 0


def _note(sentence: str) -> None:
    click.echo(f"appctrl: {sentence}", err=True)


def _read_join(beginning: Beginning, role: Role, file: Path | None) -> Join:
    try:
        text = beginning.join if file is None else _read(file)
        if not text.strip():
            raise ConfigError(f"no join string: set {JOIN_VARIABLE} to the line that `s2uc request` printed")
        join = Join.parse(text)
    except OSError as problem:
        raise ConfigError(f"{file}: cannot be read: {problem.strerror}") from None
    except ValueError as wrong:
        raise ConfigError(f"{file or JOIN_VARIABLE}: {wrong}") from None
    if join.role != role:
        raise ConfigError(
            f"this join string is for the other application, `appctrl {join.role.lower()}`: "
            f"take the one that `s2uc request` printed for `appctrl {role.lower()}`"
        )
    return join


def _read(file: Path) -> str:
    if str(file) == "-":
        return _first_line()
    with open(file, "rb") as opened:
        status = os.fstat(opened.fileno())
        if stat.S_ISREG(status.st_mode) and status.st_mode & (stat.S_IRGRP | stat.S_IROTH):
            _note(f"warning: others on this machine can read {file}, and it holds a secret: `chmod 600 {file}`")
        return opened.read(LONGEST).decode(errors="replace")


def _first_line() -> str:
    """The first line of standard input, and no byte more: the rest is the program's."""
    source = getattr(sys.stdin.buffer, "raw", sys.stdin.buffer)
    line = b""
    while len(line) < LONGEST and (byte := source.read(1)) not in (b"", b"\n"):
        line += byte
    return line.decode(errors="replace")


def _numeric(text: str) -> list[Address]:
    """Where a program listens, in numeric form: gateways look no names of applications up. A name may have several
    addresses, and the program listens at one of them at least."""
    try:
        address = Address.parse(text)
        if address.numeric is not None:
            return [address]
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except ValueError as wrong:
        raise click.BadParameter(str(wrong), param_hint="--listen") from None
    except OSError as problem:
        raise click.BadParameter(f"{text}: {problem.strerror}", param_hint="--listen") from None
    families = sorted(found, key=lambda one: one[0] != socket.AF_INET)
    hosts = dict.fromkeys(str(one[4][0]) for one in families)
    if address.host.lower().rstrip(".") == "localhost":  # this machine by either family, whatever /etc/hosts says
        hosts |= dict.fromkeys(["127.0.0.1", "::1"])
    return [Address(host, address.port) for host in hosts][: MAX_HOSTS + 1]


if __name__ == "__main__":
    main()

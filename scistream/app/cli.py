"""The command `appctrl`: says Hello for an unchanged program, and may start it."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

import scistream
from scistream.app.controller import Controller
from scistream.command_line import Commands, refuse, run, start_logging
from scistream.config import ConfigProblem
from scistream.process import keep_secrets
from scistream.wire.address import Address
from scistream.wire.join import Join
from scistream.wire.messages import CONS, PROD, Role

F = TypeVar("F", bound=Callable[..., Any])
JOIN_VARIABLE = "SCISTREAM_JOIN"


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(scistream.__version__, prog_name="appctrl")
@click.option("-v", "--verbose", count=True, help="Log what happens; -vv logs all.")
def main(verbose: int) -> None:
    """Say Hello to a facility for a program that knows nothing of SciStream.

    \b
    At the producer's facility, the program listens on port 7000 of this machine:
        export SCISTREAM_JOIN=...        # as `s2uc request` printed it
        appctrl prod --listen 192.0.2.7:7000 -- ./detector --port 7000
    At the consumer's facility, the program connects to where it is told:
        export SCISTREAM_JOIN=...
        appctrl cons -- ./analyse {host} {port}

    The join string is a secret: it is read from SCISTREAM_JOIN (and taken out of the program's environment) or from
    --join-file, never from an argument. The exit status is the program's.
    """
    keep_secrets(no_core=False)  # the program's core files are its own affair
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
def prod(listeners: tuple[str, ...], join_file: Path | None, command: tuple[str, ...]) -> None:
    """Say Hello for a producer, and start COMMAND if there is one.

    Without COMMAND it ends with status 0 once the facility knows the program's listeners.
    """
    _run(PROD, join_file, [_numeric(text) for text in listeners], command)


@main.command()
@_join_option
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def cons(join_file: Path | None, command: tuple[str, ...]) -> None:
    """Say Hello for a consumer, wait until it may connect, and start COMMAND if there is one.

    In COMMAND, {host} and {port} become the first listener's, {listeners} all of them as HOST:PORT,HOST:PORT...;
    SCISTREAM_LISTENERS holds them as a JSON list. Without COMMAND they are printed as one JSON line.
    """
    _run(CONS, join_file, [], command)


def _run(role: Role, join_file: Path | None, listeners: list[Address], command: tuple[str, ...]) -> None:
    try:
        join = _read_join(join_file)
        if join.role != role:
            raise ConfigProblem(
                f"the join string is for `appctrl {join.role.lower()}`: take the one for the other application"
            )
    except ConfigProblem as problem:
        refuse(problem)

    async def whole(reactor: Any) -> int:
        return await Controller(reactor, join, listeners, command, click.echo).run()

    sys.exit(run(whole))


def _read_join(file: Path | None) -> Join:
    # What the kernel shows in /proc/PID/environ stays as it was: that is why `keep_secrets` closes it to others.
    from_environment = os.environ.pop(JOIN_VARIABLE, "")
    try:
        text = from_environment if file is None else _first_line(file)
        if not text.strip():
            raise ConfigProblem(f"no join string: set {JOIN_VARIABLE} to the line that `s2uc request` printed")
        return Join.parse(text)
    except OSError as problem:
        raise ConfigProblem(f"{file}: cannot be read: {problem.strerror}") from None
    except ValueError as wrong:
        raise ConfigProblem(f"{file or JOIN_VARIABLE}: {wrong}") from None


def _first_line(file: Path) -> str:
    return sys.stdin.readline() if str(file) == "-" else file.read_text()


def _numeric(text: str) -> Address:
    """Where a program listens, in numeric form: gateways look no names of applications up."""
    try:
        address = Address.parse(text)
        if address.numeric is not None:
            return address
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except ValueError as wrong:
        raise click.BadParameter(str(wrong), param_hint="--listen") from None
    except OSError as problem:
        raise click.BadParameter(f"{text}: {problem.strerror}", param_hint="--listen") from None
    families = sorted(found, key=lambda one: one[0] != socket.AF_INET)
    return Address(str(families[0][4][0]), address.port)


if __name__ == "__main__":
    main()

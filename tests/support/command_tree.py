"""The three command-line programs, and all of their subcommands."""

from __future__ import annotations

from collections.abc import Iterator

import click

import scistream.app.cli
import scistream.cli
import scistream.s2uc.cli
from scistream.cli_support import Commands

COMMANDS: dict[str, Commands] = {
    "s2uc": scistream.s2uc.cli.main,
    "appctrl": scistream.app.cli.main,
    "scistream": scistream.cli.main,
}


def every_command() -> Iterator[tuple[str, click.Command]]:
    """Yield each program and each subcommand, as typed and as an object."""

    def below(path: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
        yield path, command
        if isinstance(command, click.Group):
            context = click.Context(command)
            for name in command.list_commands(context):
                sub = command.get_command(context, name)
                assert sub is not None
                yield from below(f"{path} {name}", sub)

    for name, command in COMMANDS.items():
        yield from below(name, command)

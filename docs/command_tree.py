"""All commands of all programs, with the parts of their help: for the page about them and for the manual pages."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from typing import NamedTuple

import click

PROGRAMS = {
    "s2uc": "scistream.s2uc.cli",
    "appctrl": "scistream.app.cli",
    "scistream": "scistream.cli",
}


class Command(NamedTuple):
    """A command of a program.

    :ivar path: its name, with those of the commands above it: ``scistream pki issue``.
    """

    path: str
    command: click.Command
    context: click.Context

    @property
    def usage(self) -> str:
        """The part of the usage line after the name of the command."""
        return " ".join(self.command.collect_usage_pieces(self.context))

    @property
    def summary(self) -> str:
        """The first sentence of the description, without its full stop."""
        return self.command.get_short_help_str(200).rstrip(".")

    @property
    def options(self) -> list[tuple[str, str]]:
        """The options and what they mean."""
        options = (one for one in self.command.get_params(self.context) if isinstance(one, click.Option))
        records = (option.get_help_record(self.context) for option in options)
        return [record for record in records if record is not None]

    @property
    def paragraphs(self) -> list[tuple[bool, str]]:
        """The description in paragraphs, each with whether its lines are to be kept as they are."""
        found = []
        for block in re.split(r"\n{2,}", inspect.cleandoc(self.command.help or "")):
            if block.startswith("\b\n"):
                found.append((True, block[2:]))
            elif block.strip():
                found.append((False, " ".join(block.split())))
        return found

    @property
    def below(self) -> list[Command]:
        """The commands of a group."""
        if not isinstance(self.command, click.Group):
            return []
        found = []
        for name in self.command.list_commands(self.context):
            sub = self.command.get_command(self.context, name)
            assert sub is not None
            found.append(Command(f"{self.path} {name}", sub, click.Context(sub, info_name=name, parent=self.context)))
        return found


def every_command(name: str) -> Iterator[Command]:
    """Yield a program and all its commands, each before those below it."""
    program = import_module(PROGRAMS[name]).main
    yield from _from(Command(name, program, click.Context(program, info_name=name, **program.context_settings)))


def _from(command: Command) -> Iterator[Command]:
    yield command
    for sub in command.below:
        yield from _from(sub)

"""What all commands share: running a coroutine in the reactor, signals, one-line errors, exit statuses.

Exit statuses: 0 success; 1 the stream or the far side failed, or the output cannot be written; 2 wrong usage or
configuration; 130 interrupted before there was anything to clean up; 141 the reader of the output has closed it.

Importing this module takes little time, so that help appears at once: what only a running command needs is imported
when it runs.
"""

from __future__ import annotations

import io
import json
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, NoReturn

import click

from scistream.explanations import remedy_for
from scistream.protocol.address import Address
from scistream.protocol.errors import StreamError
from scistream.standard_streams import OutputLostError, claim
from scistream.units import parse_rate, parse_seconds, parse_size
from scistream.wrapping import wrapped

if TYPE_CHECKING:
    from twisted.logger import LogLevelFilterPredicate
    from twisted.python.failure import Failure

if TYPE_CHECKING:
    _ParamType = click.ParamType[Any]
else:
    _ParamType = click.ParamType

Main = Callable[[Any], Coroutine[Any, Any, int]]


class ParsedType(_ParamType):
    """The type of an option with a syntax of its own: a rate, a time, an address.

    :param name: its name in ``--help``.
    :param parse: returns the value; raises ValueError, with a sentence for the user, if the text is wrong.
    """

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse the text of an option."""
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except ValueError as wrong:
            self.fail(str(wrong), param, ctx)


RATE = ParsedType("rate", parse_rate)
TIME = ParsedType("time", parse_seconds)
SIZE = ParsedType("size", parse_size)
ADDRESS = ParsedType("host:port", Address.parse)


# -- failures


class _CommandLine:
    """The command line that runs: whether it asked for JSON, and what a failure of it has to name."""

    def __init__(self) -> None:
        self.arguments: list[str] = []
        self.fields: dict[str, Any] = {}
        self.told = False
        self.verbose: int | None = None
        """How many `-v` it has; None if it has no such option."""

    def starts(self, arguments: Sequence[str]) -> None:
        self.arguments, self.fields, self.told, self.verbose = list(arguments), {}, False, None

    @property
    def wants_json(self) -> bool:
        own = self.arguments[: self.arguments.index("--")] if "--" in self.arguments else self.arguments
        return "--json" in own


_line = _CommandLine()


@contextmanager
def failure_names(**fields: Any) -> Iterator[None]:
    """Add fields, such as the uid of the stream, to the JSON object that reports a failure of the block."""
    try:
        yield
    except BaseException:
        name_in_failure(**fields)
        raise


def name_in_failure(**fields: Any) -> None:
    """Add fields to the JSON object that reports the failure of this command, unless it has them already."""
    _line.fields = {**fields, **_line.fields}


def fail(code: str | None, msg: str, *, shown: str | None = None, **fields: Any) -> None:
    """Report why the command fails: in a line on standard error, and with ``--json`` in the last line of the output.

    :param code: an error code of the protocol, or one of the kind "command" in `scistream.explanations`.
    :param shown: the line for people, if it is not ``error: MSG``; empty if they have been told.
    :param fields: further fields of the JSON object.
    """
    line = f"error: {msg}" if shown is None else shown
    if line:
        click.echo(wrapped(line, sys.stderr), err=True)
    if _line.wants_json and not _line.told:
        _line.told = True
        error = {"code": code, "msg": msg, "remedy": remedy_for(code)}
        with suppress(OutputLostError):
            click.echo(json.dumps({"uid": None, **fields, **_line.fields, "state": "Failed", "error": error}))


def refuse(problem: Exception) -> NoReturn:
    """Print the error and end the process with status 2: the usage or the configuration is wrong."""
    fail(_code_of(problem), str(problem))
    sys.exit(2)


def _code_of(problem: BaseException) -> str:
    """Return the code of an error that no facility has sent; `failed` if it has none of its own."""
    from scistream.config import ConfigError

    if isinstance(problem, StreamError):
        return problem.code
    if isinstance(problem, click.UsageError):
        return "usage"
    if isinstance(problem, ConfigError):
        return "configuration"
    if isinstance(problem, click.ClickException):
        return getattr(problem, "code", "failed")
    return _CODES.get(type(problem).__name__, "failed")


_CODES = {"CancelledError": "interrupted", "CertificateError": "certificate", "PkiError": "certificate"}
"""By the name of the class: their modules are imported by commands that can raise them."""
_USAGE = ("configuration", "certificate", "bad-message")


def report(failure: Failure) -> int:
    """Print in one line what has failed, and return the exit status."""
    problem = failure.value
    assert problem is not None
    code = _code_of(problem)
    if code == "interrupted":
        fail(code, "interrupted", shown="interrupted")
        return 1
    if isinstance(problem, OutputLostError):
        return report_lost(problem)
    if isinstance(problem, StreamError):
        fail(code, problem.msg, shown=f"error: {problem}")
        return 2 if code in _USAGE else 1
    if code in _USAGE:
        fail(code, str(problem))
        return 2
    failure.printTraceback(file=sys.stderr)
    fail("internal", f"{type(problem).__name__}: {problem}", shown="")
    return 1


def report_lost(lost: OutputLostError) -> int:
    """Print that output cannot be written, unless its reader has closed the pipe. Return the exit status."""
    if lost.is_pipe:
        return 128 + signal.SIGPIPE
    click.echo(wrapped(f"error: {lost}", sys.stderr), err=True)
    return 1


def _show(problem: click.ClickException) -> None:
    """Print a wrong usage as click does, but with the message broken between words on a terminal."""
    shown = io.StringIO()
    problem.show(shown)
    click.echo(wrapped(shown.getvalue().rstrip("\n"), sys.stderr), err=True)


# -- commands


VERBOSE = "verbose"
"""The name of a program's parameter `-v`, which all of its commands get as well."""


class Lazy:
    """A command that is imported when it is used, since its module takes long to import.

    :param where: ``module:attribute``.
    :param short_help: its line in the list of commands; a test compares it with the command.
    """

    def __init__(self, where: str, short_help: str) -> None:
        self._module, _, self._name = where.partition(":")
        self.short_help = short_help

    def load(self) -> click.Command:
        """Import the command."""
        found = getattr(import_module(self._module), self._name)
        assert isinstance(found, click.Command), f"{self._module}:{self._name} is no command"
        return found


class Commands(click.Group):
    """The commands of one program. Calling it runs the command line and ends the process.

    If the program has the option `-v`, each of its commands has it as well. With it a command logs from the start,
    without it from when it runs the reactor.

    Standard input, output and error are prepared first (`scistream.standard_streams`). Output that cannot be written
    ends every command with at most one line on standard error. A failure is one line on standard error and, with
    ``--json``, also the last line of the output: see `fail`.

    :param lazy: commands that are imported when they are used, by name.
    """

    def __init__(self, *args: Any, lazy: Mapping[str, Lazy] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lazy = dict(lazy or {})

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        return sorted({*super().list_commands(ctx), *self._lazy})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command, which is imported now if it is lazy."""
        if cmd_name in self._lazy and cmd_name not in self.commands:
            self.add_command(self._lazy[cmd_name].load(), cmd_name)
        return super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands, without importing them."""
        names = self.list_commands(ctx)
        room = formatter.width - 6 - max(map(len, names))
        with formatter.section("Commands"):
            formatter.write_dl([(name, self._short_help(ctx, name, room)) for name in names])

    def _short_help(self, ctx: click.Context, name: str, room: int) -> str:
        if name in self._lazy:
            return self._lazy[name].short_help
        command = self.get_command(ctx, name)
        return command.get_short_help_str(room) if command is not None else ""

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """Add a command, and give it the option `-v` if the program has it."""
        super().add_command(cmd, name)
        verbose = next((option for option in self.params if option.name == VERBOSE), None)
        if isinstance(verbose, click.Option) and not isinstance(cmd, click.Group):
            cmd.params.append(
                click.Option(verbose.opts, count=True, expose_value=False, callback=_log, help=verbose.help)
            )

    def __call__(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        """Run the command line, and end the process with its exit status."""
        try:
            claim()
            if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
                signal.signal(signal.SIGINT, signal.default_int_handler)
            status = self._status(sys.argv[1:], None)
        except KeyboardInterrupt:
            status = 128 + signal.SIGINT
        finally:
            if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                signal.signal(signal.SIGINT, signal.SIG_DFL)  # an interrupt while Python exits would print a traceback
        sys.exit(status)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run a command line, as click does, but report failures as all our commands do."""
        arguments = list(sys.argv[1:] if args is None else args)
        if standalone_mode:
            sys.exit(self._status(arguments, prog_name))
        return super().main(arguments, prog_name, complete_var, standalone_mode=False, **extra)

    def _status(self, arguments: list[str], prog_name: str | None) -> Any:
        _line.starts(arguments)
        try:
            status = super().main(arguments, prog_name, standalone_mode=False)
            sys.stdout.flush()
        except click.ClickException as problem:
            _show(problem)
            fail(_code_of(problem), problem.format_message(), shown="")
            return problem.exit_code
        except click.Abort:
            fail("interrupted", "interrupted", shown="")
            return 128 + signal.SIGINT
        except OutputLostError as lost:
            return report_lost(lost)
        except SystemExit as end:
            try:
                sys.stdout.flush()
            except OutputLostError as lost:
                return report_lost(lost)
            return end.code
        return status if isinstance(status, int) else 0


def add_completion(program: Commands, name: str) -> None:
    """Add the command that prints a script for the completion of a program's commands, options and values.

    :param name: of the program.
    """

    def completion(shell: str) -> None:
        from click.shell_completion import get_completion_class

        kind = get_completion_class(shell)
        assert kind is not None, "click knows these shells"
        click.echo(kind(program, {}, name, f"_{name.upper()}_COMPLETE").source())

    text = f"""Print a script that lets a shell complete what you type after `{name}`.

    \b
    bash, in ~/.bashrc:
      eval "$({name} completion bash)"
    zsh, in ~/.zshrc, after compinit:
      eval "$({name} completion zsh)"
    fish, once:
      {name} completion fish > ~/.config/fish/completions/{name}.fish
    """
    shells = click.Choice(["bash", "zsh", "fish"])
    parameter = click.Argument(["shell"], type=shells)
    program.add_command(click.Command("completion", callback=completion, params=[parameter], help=text))


# -- logs


@cache
def _levels() -> LogLevelFilterPredicate:
    from twisted.logger import LogLevel, LogLevelFilterPredicate

    return LogLevelFilterPredicate(LogLevel.error)


def _log(context: click.Context, _option: click.Parameter, times: int) -> None:
    """Start logging for a command, with the `-v` before it and after it. Without any, `run` starts it."""
    program = context.find_root().params
    if VERBOSE in program and not context.resilient_parsing:
        _line.verbose = times + program[VERBOSE]
        if _line.verbose:
            start_logging(_line.verbose)


def _level_of(verbose: int) -> Any:
    from twisted.logger import LogLevel

    return {0: LogLevel.error, 1: LogLevel.info}.get(verbose, LogLevel.debug)


def start_logging(verbose: int) -> None:
    """Log to standard error: errors only, events too with `-v`, and debug messages too with `-vv`."""
    from twisted import logger

    _levels().setLogLevelForNamespace("", _level_of(verbose))
    shown = logger.FilteringLogObserver(logger.textFileLogObserver(sys.stderr), [_levels()])
    logger.globalLogBeginner.beginLoggingTo([shown], redirectStandardIO=False)


# -- running


def run(main: Main, *, interruptible: bool = True) -> int:
    """Run a coroutine function in the reactor, and return its exit status.

    The first SIGINT or SIGTERM cancels it, so that it can clean up; a second one ends the process at once.

    :param main: called with the reactor; returns the exit status, or raises an error, which is reported.
    :param interruptible: False leaves the handling of signals as it is.
    """
    from twisted.internet import reactor as installed
    from twisted.internet.defer import Deferred

    if _line.verbose == 0:
        start_logging(0)
    from scistream.links.resolver import use_daemon_threads
    from scistream.reactors import run_on_monotonic_time

    reactor: Any = installed
    run_on_monotonic_time(reactor)
    use_daemon_threads(reactor)
    status: list[int] = []

    def start() -> None:
        if interruptible:  # before the first step, which may start programs
            _cancel_on_signals(reactor, lambda: working.cancel())
        working = Deferred.fromCoroutine(main(reactor))
        working.addCallbacks(status.append, lambda failure: status.append(report(failure)))
        working.addBoth(lambda _: reactor.stop())

    reactor.callWhenRunning(start)
    reactor.run(installSignalHandlers=interruptible)
    return status[0] if status else 1


def _cancel_on_signals(reactor: Any, stop: Callable[[], None]) -> None:
    """Replace the reactor's handlers of SIGINT and SIGTERM. The reactor has to be running already.

    :param stop: called after the first signal, in a later turn of the reactor.
    """

    def cancel(signum: int, _frame: Any) -> None:
        signal.signal(signum, signal.SIG_DFL)
        reactor.callFromThread(stop)

    signal.signal(signal.SIGINT, cancel)
    signal.signal(signal.SIGTERM, cancel)

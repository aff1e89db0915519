"""What all commands share: running a coroutine in the reactor, signals, one-line errors, exit statuses.

Exit statuses: 0 success; 1 the stream or the far side failed, or the output cannot be written; 2 wrong usage or
configuration; 130 interrupted before there was anything to clean up; 141 the reader of the output has closed it.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, NoReturn

import click
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import (
    FilteringLogObserver,
    LogLevel,
    LogLevelFilterPredicate,
    globalLogBeginner,
    textFileLogObserver,
)
from twisted.python.failure import Failure

from scistream.config import ConfigError
from scistream.links.resolver import use_daemon_threads
from scistream.pki.register import PkiError
from scistream.protocol.address import Address
from scistream.protocol.errors import StreamError
from scistream.reactors import run_on_monotonic_time
from scistream.standard_streams import OutputLostError, claim
from scistream.tls.files import CertificateError
from scistream.units import parse_rate, parse_seconds, parse_size

if TYPE_CHECKING:
    _ParamType = click.ParamType[Any]
else:
    _ParamType = click.ParamType

Main = Callable[[Any], Coroutine[Any, Any, int]]

_USAGE_PROBLEMS = (ConfigError, CertificateError, PkiError)


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


VERBOSE = "verbose"
"""The name of a program's parameter `-v`, which all of its commands get as well."""


class Commands(click.Group):
    """The commands of one program. Calling it runs the command line and ends the process.

    If the program has the option `-v`, each of its commands has it as well.

    Standard input, output and error are prepared first (`scistream.standard_streams`). Output that cannot be written
    ends every command with at most one line on standard error.
    """

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """Add a command, and give it the option `-v` if the program has it."""
        super().add_command(cmd, name)
        verbose = next((option for option in self.params if option.name == VERBOSE), None)
        if isinstance(verbose, click.Option) and not isinstance(cmd, click.Group):
            cmd.params.append(
                click.Option(verbose.opts, count=True, expose_value=False, callback=_log_more, help=verbose.help)
            )

    def __call__(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        """Run the command line, and end the process with its exit status."""
        try:
            claim()
            if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
                signal.signal(signal.SIGINT, signal.default_int_handler)
            status = self._status()
        except KeyboardInterrupt:
            status = 128 + signal.SIGINT
        finally:
            if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                signal.signal(signal.SIGINT, signal.SIG_DFL)  # an interrupt while Python exits would print a traceback
        sys.exit(status)

    def _status(self) -> Any:
        try:
            status = self.main(standalone_mode=False)
            sys.stdout.flush()
        except click.ClickException as problem:
            problem.show()
            return problem.exit_code
        except click.Abort:
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


def report_lost(lost: OutputLostError) -> int:
    """Print that output cannot be written, unless its reader has closed the pipe. Return the exit status."""
    if lost.is_pipe:
        return 128 + signal.SIGPIPE
    click.echo(f"error: {lost}", err=True)
    return 1


_levels = LogLevelFilterPredicate(LogLevel.error)


def _log_more(context: click.Context, _option: click.Parameter, times: int) -> None:
    """Add the `-v` after a command to those before it."""
    if times:
        _levels.setLogLevelForNamespace("", _level_of(times + context.find_root().params[VERBOSE]))


def _level_of(verbose: int) -> Any:
    return {0: LogLevel.error, 1: LogLevel.info}.get(verbose, LogLevel.debug)


def start_logging(verbose: int) -> None:
    """Log to standard error: errors only, events too with `-v`, and debug messages too with `-vv`."""
    _levels.setLogLevelForNamespace("", _level_of(verbose))
    shown = FilteringLogObserver(textFileLogObserver(sys.stderr), [_levels])
    globalLogBeginner.beginLoggingTo([shown], redirectStandardIO=False)


def run(main: Main, *, interruptible: bool = True) -> int:
    """Run a coroutine function in the reactor, and return its exit status.

    The first SIGINT or SIGTERM cancels it, so that it can clean up; a second one ends the process at once.

    :param main: called with the reactor; returns the exit status, or raises an error, which is reported.
    :param interruptible: False leaves the handling of signals as it is.
    """
    from twisted.internet import reactor as installed

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


def refuse(problem: Exception) -> NoReturn:
    """Print the error and end the process with status 2: the usage or the configuration is wrong."""
    click.echo(f"error: {problem}", err=True)
    sys.exit(2)


def report(failure: Failure) -> int:
    """Print in one line what has failed, and return the exit status."""
    problem = failure.value
    if isinstance(problem, CancelledError):
        click.echo("interrupted", err=True)
        return 1
    if isinstance(problem, OutputLostError):
        return report_lost(problem)
    if isinstance(problem, StreamError):
        click.echo(f"error: {problem}", err=True)
        return 2 if problem.code == "bad-message" else 1
    if isinstance(problem, _USAGE_PROBLEMS):
        click.echo(f"error: {problem}", err=True)
        return 2
    failure.printTraceback(file=sys.stderr)
    return 1

"""What the command lines share: running a coroutine in the reactor, signals, one-line errors, exit statuses.

Exit statuses: 0 done; 1 the stream or the far side failed, or the output cannot be written; 2 bad usage or
configuration; 130 interrupted before there was anything to clean up; 141 the reader of the output has gone away.
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
    """An option that is text with a form of its own: a rate, a time, an address.

    :param name: how --help calls it.
    :param parse: raises ValueError with a sentence if the text is wrong.
    """

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Called by click."""
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
"""The parameter of a program whose `-v` its commands have, too."""


class Commands(click.Group):
    """The commands of one program. Calling it runs what the command line says and ends the process.

    If the program has the option `-v`, each of its commands takes it as well.

    Before that, standard input, output and error are taken care of (`scistream.standard_streams`); output that cannot
    be written ends any command with at most one line.
    """

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """Called by click."""
        super().add_command(cmd, name)
        own = next((option for option in self.params if option.name == VERBOSE), None)
        if isinstance(own, click.Option) and not isinstance(cmd, click.Group):
            more = click.Option(own.opts, count=True, expose_value=False, callback=_log_more, help=own.help)
            cmd.params.append(more)

    def __call__(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        """Called by the console script."""
        try:
            claim()
            if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
                signal.signal(signal.SIGINT, signal.default_int_handler)
            status = self._status()
        except KeyboardInterrupt:
            status = 128 + signal.SIGINT
        finally:
            if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing is left to do but to end
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
    """Say that output cannot be written, unless its reader has just gone away, and give the exit status for it."""
    if lost.is_pipe:
        return 128 + signal.SIGPIPE
    click.echo(f"error: {lost}", err=True)
    return 1


_levels = LogLevelFilterPredicate(LogLevel.error)


def _log_more(context: click.Context, _option: click.Parameter, times: int) -> None:
    """`-v` behind a command counts with that before it."""
    if times:
        _levels.setLogLevelForNamespace("", _level_of(times + context.find_root().params[VERBOSE]))


def _level_of(verbose: int) -> Any:
    return {0: LogLevel.error, 1: LogLevel.info}.get(verbose, LogLevel.debug)


def start_logging(verbose: int) -> None:
    """Log to standard error: errors, with -v what happens, with -vv all."""
    _levels.setLogLevelForNamespace("", _level_of(verbose))
    shown = FilteringLogObserver(textFileLogObserver(sys.stderr), [_levels])
    globalLogBeginner.beginLoggingTo([shown], redirectStandardIO=False)


def run(main: Main, *, interruptible: bool = True) -> int:
    """Run a coroutine function in the reactor to its end and give its exit status.

    The first SIGINT or SIGTERM cancels it, so that it can clean up; a second one ends the process at once.

    :param main: gets the reactor; gives the exit status, or raises.
    :param interruptible: False leaves signals as they are.
    """
    from twisted.internet import reactor as installed

    reactor: Any = installed
    run_on_monotonic_time(reactor)
    use_daemon_threads(reactor)
    status: list[int] = []

    def start() -> None:
        working = Deferred.fromCoroutine(main(reactor))
        if interruptible:
            _cancel_on_signals(reactor, working)
        working.addCallbacks(status.append, lambda failure: status.append(report(failure)))
        working.addBoth(lambda _: reactor.stop())

    reactor.callWhenRunning(start)
    reactor.run(installSignalHandlers=interruptible)
    return status[0] if status else 1


def _cancel_on_signals(reactor: Any, working: Deferred[Any]) -> None:
    """Called when the reactor has installed its own handlers: those of these two signals are replaced."""

    def cancel(signum: int, _frame: Any) -> None:
        signal.signal(signum, signal.SIG_DFL)
        reactor.callFromThread(working.cancel)

    signal.signal(signal.SIGINT, cancel)
    signal.signal(signal.SIGTERM, cancel)


def refuse(problem: Exception) -> NoReturn:
    """End with status 2 and one line: the usage or the configuration is wrong."""
    click.echo(f"error: {problem}", err=True)
    sys.exit(2)


def report(failure: Failure) -> int:
    """Say in one line what went wrong, and give the exit status for it."""
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

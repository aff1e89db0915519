"""The command ``scistream demo``: its options, its output, its exit status. The demonstration itself is in run.py."""

from __future__ import annotations

import signal
import sys
from typing import Any

import click
from rich.console import Console
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from scistream.cli_support import RATE, SIZE, TIME, fail
from scistream.demo.facilities import DemoError
from scistream.demo.run import Demo, DemoOptions
from scistream.demo.view import Progress, Summary, print_summary
from scistream.reactors import run_on_monotonic_time

_DEFAULT_BYTES = 2 << 30
_STOPPED_BY = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@click.command("demo")
@click.option("--seconds", type=TIME, metavar="S", help="Stream for this time.")
@click.option("--bytes", "total", type=SIZE, metavar="N", help="Stream this amount [default: 2G unless --seconds].")
@click.option("--num-conn", type=click.IntRange(1, 128), default=4, show_default=True, help="Channels.")
@click.option("--rate", type=RATE, metavar="R", default="10Gbit", show_default=True, help="Request this rate.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one line of JSON.")
def demo(seconds: float | None, total: int | None, num_conn: int, rate: float, as_json: bool) -> None:
    """Stream between two facilities on this machine.

    The demonstration starts two facilities on loopback, each with an S2CS, an S2DS and certificates of its own. It
    requests a stream from them and starts a detector and a consumer, two programs that know nothing of SciStream.
    The detector sends numbered frames, and the consumer checks every frame. Nothing has to be set up beforehand, and
    nothing is left behind.

    The exit status is 0 if every frame arrived intact and the stream was released, and 1 otherwise.
    """
    if seconds is not None and total is not None:
        raise click.UsageError("--seconds and --bytes exclude each other: leave one of them out")
    if seconds is None and total is None:
        total = _DEFAULT_BYTES
    try:
        summary = _run(DemoOptions(total, seconds, num_conn, rate))
    except DemoError as problem:
        for line in problem.log:
            click.echo(f"  {line}", err=True)
        fail("failed", str(problem), shown=f"scistream demo: {problem}")
        sys.exit(1)
    if as_json:
        click.echo(summary.json())
    else:
        print_summary(Console(), summary)
    if summary.problem is not None:
        click.echo(f"scistream demo: {summary.problem}", err=True)
        sys.exit(1)


def _run(options: DemoOptions) -> Summary:
    """Run the reactor for one demonstration.

    :raises DemoError: if the demonstration failed before its end.
    """
    from twisted.internet import reactor as the_reactor

    reactor: Any = the_reactor
    run_on_monotonic_time(reactor)
    outcome: list[Summary | Failure] = []

    def ended(result: Summary | Failure) -> None:
        outcome.append(result)
        reactor.stop()

    def begin() -> None:
        demonstration = Demo(reactor, options, progress.show)
        for number in _STOPPED_BY:
            signal.signal(number, lambda got, _frame: reactor.callFromThread(demonstration.stop, _interrupted(got)))
        running: Deferred[Summary] = demonstration.start()
        running.addBoth(ended)

    with Progress(Console(stderr=True)) as progress:
        reactor.callWhenRunning(begin)
        reactor.run()
    result = outcome[0]
    if isinstance(result, Failure):
        result.raiseException()
    assert isinstance(result, Summary)
    return result


def _interrupted(number: int) -> DemoError:
    return DemoError(f"stopped by {signal.Signals(number).name}; every process that it started has ended")

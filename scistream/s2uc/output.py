"""What every command of `s2uc` prints: results, and progress and warnings on standard error."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import click
from twisted.internet.task import LoopingCall

from scistream import timing
from scistream.protocol.errors import StreamError, printable
from scistream.s2uc.client import Client
from scistream.s2uc.history import RememberedStream
from scistream.wrapping import wrapped


def tell(text: str) -> None:
    """Print a line on standard error, with unprintable characters replaced: a facility may have sent them."""
    click.echo(wrapped(printable(text), sys.stderr), err=True)


# -- results


def print_end(uid: str, state: str, as_json: bool, text: str, **more: Any) -> None:
    """Print the result of a command about one stream: `text`, or a JSON object with `more` fields."""
    click.echo(json.dumps({"uid": uid, "state": state, **more}) if as_json else text)


def unknown_stream(stream: RememberedStream) -> StreamError:
    """Make the error for a stream that neither of its facilities knows."""
    return StreamError(
        "unknown-uid",
        f"neither {stream.prod} nor {stream.cons} has a stream {stream.uid} of yours: if you requested it with another "
        f"certificate, use that certificate; `s2uc forget {stream.uid}` removes it from your list",
    )


# -- progress


def reaching(client: Client, s2cs: str) -> AbstractContextManager[None]:
    """While the block runs, report that this S2CS has not answered yet, and why."""

    def waits_for() -> str:
        reason = client.reason_at(s2cs)
        return f"the S2CS at {s2cs}" + (f": {reason}" if reason else "")

    return progress(client, waits_for)


@contextmanager
def progress(client: Client, waits_for: Callable[[], str]) -> Iterator[None]:
    """While the block runs, report on standard error what the command is waiting for.

    In the foreground of a terminal, one line is updated in place. In the background of a terminal nothing is printed,
    since it would overwrite what the user types. Elsewhere each new reason is a line of its own.

    :param waits_for: returns what is missing, to complete the sentence "waiting for ...".
    """
    started = client.reactor.seconds()
    on_terminal = sys.stderr.isatty()
    shown = ""

    def tick() -> None:
        nonlocal shown
        text = printable(f"waiting for {waits_for()}")
        if on_terminal:
            if _in_foreground():
                passed = client.reactor.seconds() - started
                width = max(20, shutil.get_terminal_size().columns - len(f" ... {passed:.0f} s") - 1)
                line = f"{text[:width]} ... {passed:.0f} s"
                click.echo(f"\r\x1b[K{line}", nl=False, err=True)
                shown = text
        elif text != shown:
            click.echo(text, err=True)
            shown = text

    ticks = LoopingCall(tick)
    ticks.clock = client.reactor
    start = client.reactor.callLater(timing.FIRST_WORD, ticks.start, timing.PROGRESS_INTERVAL)
    try:
        yield
    finally:
        if start.active():
            start.cancel()
        if ticks.running:
            ticks.stop()
        if on_terminal and shown and _in_foreground():
            click.echo("\r\x1b[K", nl=False, err=True)


def _in_foreground() -> bool:
    """Return True if this process may write to the terminal at standard error."""
    try:
        return os.tcgetpgrp(2) == os.getpgrp()
    except OSError:
        return False

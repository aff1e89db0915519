"""The command `s2uc watch`: ask both sides about a stream again and again, and show what they say until it is over.

What it shows is made in `watch_view`. Nothing that it does changes the stream.
"""

from __future__ import annotations

import json
import os
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol

import click
from rich.console import Console
from rich.live import Live
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReadDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from scistream.cli_support import failure_names
from scistream.s2uc import watch_view
from scistream.s2uc.client import Client, Stream
from scistream.s2uc.history import StreamHistory
from scistream.s2uc.output import print_end, tell, unknown_stream
from scistream.s2uc.watch_history import DIRECTIONS, WatchHistory, WatchMoment, reason_of_end
from scistream.units import spoken_size

_QUIT = (b"q", b"Q", b"\x04")


async def watch_stream(client: Client, uid: str, interval: float, as_json: bool) -> int:
    """Show a stream until it is over, or the user has seen enough.

    :raises StreamError: the reason, if the stream has failed; `unknown-uid`, if no facility knows it.
    """
    with failure_names(uid=uid):
        if (released := StreamHistory().was_released(uid)) is not None:
            print_end(released, "Released", as_json, f"{released} is already released", already=True)
            return 0
        remembered = StreamHistory().find(uid)
    with failure_names(uid=remembered.uid):
        stream = client.remembered(remembered.uid, prod=remembered.prod, cons=remembered.cons)
        history = WatchHistory(remembered.uid, remembered.label)
        leaving = _Leaving()
        try:
            with _shown(client, history, as_json, leaving) as view:
                await _until_over(client, stream, history, view, interval, leaving)
        except CancelledError:
            tell(f"no longer watched: stream {remembered.uid} goes on")
            return 0
        if not history.last.is_over:
            return 0
        if not history.last.sides:
            raise unknown_stream(remembered)
        reason = reason_of_end(history.last)
        if reason is not None:
            raise reason
    sums = {direction: history.last.total(direction) for direction in DIRECTIONS}
    moved = f"{spoken_size(sums['to_consumer'])} to the consumer, {spoken_size(sums['to_producer'])} to the producer"
    print_end(remembered.uid, "Released", as_json, f"{remembered.uid} is released: {moved}", bytes=sums)
    return 0


async def _until_over(
    client: Client, stream: Stream, history: WatchHistory, view: _View, interval: float, leaving: _Leaving
) -> None:
    """Show a new moment every `interval` seconds until the stream is over or the user leaves."""
    while not leaving.asked:
        asked_at = client.reactor.seconds()
        sides, failures = await stream.sides()
        history.add(WatchMoment(client.reactor.seconds(), sides, {role: error.msg for role, error in failures.items()}))
        view.show(history)
        if history.last.is_over:
            return
        await leaving.wait(client, max(0.0, asked_at + interval - client.reactor.seconds()))


class _Leaving:
    """Whether the user wants to leave the view, and what to do when they say so."""

    def __init__(self) -> None:
        self.asked = False
        self.on_ask: Callable[[], None] = lambda: None

    def ask(self) -> None:
        """Note that the user wants to leave."""
        self.asked = True
        self.on_ask()

    async def wait(self, client: Client, seconds: float) -> None:
        """Wait, but no longer than until the user wants to leave."""
        pause: Deferred[None] = Deferred()

        def over() -> None:
            if not pause.called:
                pause.callback(None)

        timer = client.reactor.callLater(seconds, over)
        self.on_ask = over
        try:
            await pause
        finally:
            self.on_ask = lambda: None
            if timer.active():
                timer.cancel()


class _View(Protocol):
    """Shows the last moment of a history."""

    def show(self, history: WatchHistory) -> None:
        """Show it now."""


@contextmanager
def _shown(client: Client, history: WatchHistory, as_json: bool, leaving: _Leaving) -> Iterator[_View]:
    """Show a stream as standard output allows: as JSON lines, as text lines, or as a picture.

    :param leaving: asked when the user presses q.
    """
    if as_json:
        yield _JsonLines()
    elif not _can_draw():
        yield _Lines()
    else:
        with (
            _keys(client, leaving) as has_keys,
            Live(
                console=Console(highlight=False),
                auto_refresh=False,
                screen=True,
                redirect_stdout=False,
                redirect_stderr=False,
            ) as live,
        ):
            yield _Picture(live, has_keys)
        if history.moments:
            click.echo(watch_view.line(history, time.strftime("%H:%M:%S")))


def _can_draw() -> bool:
    """Return True if standard output is a terminal that can move the cursor, and this process may write to it."""
    if not sys.stdout.isatty() or os.environ.get("TERM", "dumb") in ("", "dumb", "unknown"):
        return False
    try:
        return os.tcgetpgrp(sys.stdout.fileno()) == os.getpgrp()
    except OSError:  # it is not the terminal that controls this process, so that nobody types commands there
        return True


class _JsonLines:
    """One JSON object for each moment."""

    def show(self, history: WatchHistory) -> None:
        click.echo(json.dumps(watch_view.fields(history, time.time())))


class _Lines:
    """One line of text for each moment, and one for each new reason of a reset."""

    def __init__(self) -> None:
        self._before: WatchMoment | None = None

    def show(self, history: WatchHistory) -> None:
        clock = time.strftime("%H:%M:%S")
        for sentence in watch_view.news(self._before, history.last):
            click.echo(f"{clock}  {sentence}")
        self._before = history.last
        click.echo(watch_view.line(history, clock))


class _Picture:
    """A picture that is drawn over the one before."""

    def __init__(self, live: Live, has_keys: bool) -> None:
        self._live = live
        self._has_keys = has_keys

    def show(self, history: WatchHistory) -> None:
        console = self._live.console
        plain = not console.encoding.lower().startswith("utf")
        width, height = console.size
        shown = watch_view.picture(history, width, height, plain=plain, keys=self._has_keys)
        self._live.update(shown, refresh=True)


# -- keys


@contextmanager
def _keys(client: Client, leaving: _Leaving) -> Iterator[bool]:
    """Read keys from the terminal while the block runs; yield False if standard input is none."""
    try:
        before = termios.tcgetattr(0) if sys.stdin.isatty() else None
    except termios.error:
        before = None
    if before is None:
        yield False
        return
    keys = _Keys(client.reactor, leaving)
    tty.setcbreak(0)
    client.reactor.addReader(keys)
    try:
        yield True
    finally:
        client.reactor.removeReader(keys)
        with suppress(termios.error):
            termios.tcsetattr(0, termios.TCSADRAIN, before)


@implementer(IReadDescriptor)
class _Keys:
    """Notes that the user wants to leave when q is pressed."""

    def __init__(self, reactor: Any, leaving: _Leaving) -> None:
        self._reactor = reactor
        self._leaving = leaving

    def fileno(self) -> int:
        return 0

    def logPrefix(self) -> str:
        return "keys"

    def doRead(self) -> None:
        try:
            pressed = os.read(0, 256)
        except OSError:
            pressed = b""
        if not pressed:
            self._reactor.removeReader(self)
        if any(key in pressed for key in _QUIT):
            self._leaving.ask()

    def connectionLost(self, _reason: Failure) -> None:
        pass

"""Results that can be awaited both under Twisted and under plain asyncio.

Under Twisted a coroutine awaits Deferreds; in an asyncio task it must await futures. An `Awaitable` acts as either,
depending on who awaits it, and `current_reactor` finds or makes the reactor that goes with it.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine, Generator
from contextlib import suppress
from typing import Any, TypeVar
from weakref import WeakSet

from twisted.internet.defer import Deferred

from scistream.links.resolver import use_daemon_threads

T = TypeVar("T")


class Awaitable(Coroutine[Any, Any, T]):
    """A result that is not available yet. Await it once, or pass it to anything that takes a coroutine.

    :param deferred: fires with the result.
    """

    def __init__(self, deferred: Deferred[T]) -> None:
        self._deferred = deferred
        self._steps: Generator[Any, Any, T] | None = None

    @property
    def deferred(self) -> Deferred[T]:
        """The underlying Deferred, for code that uses Deferreds directly."""
        return self._deferred

    def __await__(self) -> Generator[Any, Any, T]:
        try:
            if current_loop() is not None:
                result = yield from self._deferred.asFuture(asyncio.get_running_loop()).__await__()
            else:
                result = yield from self._deferred.__await__()
        except BaseException:
            self._not_taken()
            raise
        self._taken()
        return result

    # -- as a coroutine, for asyncio.create_task and the like

    def send(self, value: Any, /) -> Any:
        """Advance, as a coroutine; called by the task or event loop."""
        if self._steps is None:
            self._steps = self.__await__()
        return self._steps.send(value)

    def throw(self, *raised: Any) -> Any:
        """Raise an exception where it waits, as in a coroutine; called to cancel it."""
        if self._steps is None:
            self._drop()
            self._steps = self.__await__()
        return self._steps.throw(*raised)

    def close(self) -> None:
        """Abandon the result, as for a coroutine that is never awaited."""
        if self._steps is None:
            self._drop()
        else:
            self._steps.close()

    def _drop(self) -> None:
        """Cancel the Deferred, which nothing has awaited."""
        self._deferred.addErrback(lambda _: None)
        self._deferred.cancel()
        self._not_taken()

    # -- for subclasses that own resources

    def _taken(self) -> None:
        """Handle that the awaiter has got the result."""

    def _not_taken(self) -> None:
        """Handle that nobody will get the result."""


def current_loop() -> asyncio.AbstractEventLoop | None:
    """Return the event loop of the current asyncio task, or None outside of tasks."""
    try:
        return asyncio.get_running_loop() if asyncio.current_task() is not None else None
    except RuntimeError:
        return None


def loop_of_reactor() -> asyncio.AbstractEventLoop | None:
    """Return the event loop for which `current_reactor` makes a reactor, or None if it returns the global one.

    This is the loop that runs, also in a callback outside of tasks, unless it belongs to the global reactor.
    """
    loop = current_loop()
    if loop is None and not getattr(sys.modules.get("twisted.internet.reactor"), "running", False):
        with suppress(RuntimeError):
            loop = asyncio.get_running_loop()
    return loop


_made_here: WeakSet[Any] = WeakSet()


def current_reactor() -> Any:
    """Return the default reactor: in an asyncio event loop a new one on this loop, otherwise the global one."""
    loop = loop_of_reactor()
    if loop is not None:
        reactor = _reactor_on(loop)
        _made_here.add(reactor)
        return reactor
    from twisted.internet import reactor

    return reactor


def _reactor_on(loop: asyncio.AbstractEventLoop) -> Any:
    """Start a reactor that a running loop drives; its `run` is never called."""
    from twisted.internet.asyncioreactor import AsyncioSelectorReactor

    reactor = AsyncioSelectorReactor(loop)
    reactor.seconds = loop.time
    use_daemon_threads(reactor)
    reactor.startRunning(installSignalHandlers=False)
    return reactor


def leave(reactor: Any) -> None:
    """Release the threads and descriptors of a reactor that `current_reactor` made; do nothing for another reactor."""
    if reactor not in _made_here:
        return
    _made_here.discard(reactor)
    if reactor.threadpool is not None:
        reactor.threadpool.stop()
    reactor.removeReader(reactor.waker)
    reactor.waker.connectionLost(None)

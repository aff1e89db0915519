"""The results of the libraries, to be awaited under Twisted and under plain asyncio alike.

Under Twisted a coroutine waits for Deferreds; in an asyncio task it must wait for futures. `Awaitable`
is whichever its awaiter needs, and `current_reactor` finds or makes the reactor to go with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from typing import Any, TypeVar
from weakref import WeakSet

from twisted.internet.defer import Deferred

from scistream.links.resolver import use_daemon_threads

T = TypeVar("T")


class Awaitable(Coroutine[Any, Any, T]):
    """A result that is not there yet. Await it once, or give it to whatever takes a coroutine.

    :param deferred: fires with the result.
    """

    def __init__(self, deferred: Deferred[T]) -> None:
        self._deferred = deferred
        self._steps: Generator[Any, Any, T] | None = None

    @property
    def deferred(self) -> Deferred[T]:
        """The result for who handles Deferreds by himself."""
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
        """Called by whoever runs it."""
        if self._steps is None:
            self._steps = self.__await__()
        return self._steps.send(value)

    def throw(self, *raised: Any) -> Any:
        """Called by whoever cancels it."""
        if self._steps is None:
            self._drop()
            self._steps = self.__await__()
        return self._steps.throw(*raised)

    def close(self) -> None:
        """Called by whoever gives it up."""
        if self._steps is None:
            self._drop()
        else:
            self._steps.close()

    def _drop(self) -> None:
        """Give it up before anybody has waited for it."""
        self._deferred.addErrback(lambda _: None)
        self._deferred.cancel()
        self._not_taken()

    # -- for those who lend more than a result

    def _taken(self) -> None:
        """Whoever waited has the result."""

    def _not_taken(self) -> None:
        """Whoever waited does not have it and will not get it."""


def current_loop() -> asyncio.AbstractEventLoop | None:
    """The event loop of the asyncio task that this is called in, if there is one."""
    try:
        return asyncio.get_running_loop() if asyncio.current_task() is not None else None
    except RuntimeError:
        return None


_made_here: WeakSet[Any] = WeakSet()


def current_reactor() -> Any:
    """The reactor to use where none was given: in an asyncio task a new one on its loop, otherwise the global one."""
    loop = current_loop()
    if loop is not None:
        reactor = _reactor_on(loop)
        _made_here.add(reactor)
        return reactor
    from twisted.internet import reactor

    return reactor


def _reactor_on(loop: asyncio.AbstractEventLoop) -> Any:
    """A reactor that a running loop drives: it is started here, and its `run` is never called."""
    from twisted.internet.asyncioreactor import AsyncioSelectorReactor

    reactor = AsyncioSelectorReactor(loop)
    reactor.seconds = loop.time
    use_daemon_threads(reactor)
    reactor.startRunning(installSignalHandlers=False)
    return reactor


def leave(reactor: Any) -> None:
    """A client is done with its reactor: one that `current_reactor` made gives its threads and descriptors back."""
    if reactor not in _made_here:
        return
    _made_here.discard(reactor)
    if reactor.threadpool is not None:
        reactor.threadpool.stop()
    reactor.removeReader(reactor.waker)
    reactor.waker.connectionLost(None)

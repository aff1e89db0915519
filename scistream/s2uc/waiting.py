"""The library's results, to be awaited under Twisted and under plain asyncio alike.

Under Twisted a coroutine waits for Deferreds; in an asyncio task it must wait for futures. `Waiting`
is whichever its awaiter needs, and `reactor_here` finds or makes the reactor to go with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any, Generic, TypeVar
from weakref import WeakSet

from twisted.internet.defer import Deferred

T = TypeVar("T")


class Waiting(Generic[T]):
    """A result that is not there yet. Await it once.

    :param deferred: fires with the result.
    """

    def __init__(self, deferred: Deferred[T]) -> None:
        self.deferred = deferred

    def __await__(self) -> Generator[Any, Any, T]:
        if _in_asyncio_task():
            return self.deferred.asFuture(asyncio.get_running_loop()).__await__()
        return self.deferred.__await__()


def _in_asyncio_task() -> bool:
    try:
        return asyncio.current_task() is not None
    except RuntimeError:
        return False


_made_here: WeakSet[Any] = WeakSet()


def reactor_here() -> Any:
    """The reactor to use where none was given: in an asyncio task a new one on its loop, otherwise the global one."""
    if _in_asyncio_task():
        reactor = _reactor_on(asyncio.get_running_loop())
        _made_here.add(reactor)
        return reactor
    from twisted.internet import reactor

    return reactor


def _reactor_on(loop: asyncio.AbstractEventLoop) -> Any:
    """A reactor that a running loop drives: it is started here, and its `run` is never called."""
    from twisted.internet.asyncioreactor import AsyncioSelectorReactor

    reactor = AsyncioSelectorReactor(loop)
    reactor.seconds = loop.time
    reactor.startRunning(installSignalHandlers=False)
    return reactor


def leave(reactor: Any) -> None:
    """A client is done with its reactor: one that `reactor_here` made gives its threads and descriptors back."""
    if reactor not in _made_here:
        return
    _made_here.discard(reactor)
    if reactor.threadpool is not None:
        reactor.threadpool.stop()
    reactor.removeReader(reactor.waker)
    reactor.waker.connectionLost(None)

"""A thread with an event loop, in which other threads run coroutines and wait for their results.

A blocking client has one. It is a daemon thread, so it never keeps Python from exiting.
"""

from __future__ import annotations

import asyncio
import os
import queue
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError, Future, wait
from typing import Any, TypeVar

from scistream import timing
from scistream.protocol.errors import StreamError
from scistream.s2uc.observers import call

T = TypeVar("T")


class LoopThread:
    """An event loop in a thread of its own, and a second thread for callbacks, which may block and use the client."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="scistream client", daemon=True)
        self._callbacks: queue.SimpleQueue[tuple[Callable[[Any], object], Any, str, str] | None] = queue.SimpleQueue()
        self._caller: threading.Thread | None = None
        self._lock = threading.Lock()
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.close()

    @property
    def is_usable(self) -> bool:
        """True until the thread is stopped, in the process that has started it."""
        return self._thread.is_alive() and os.getpid() == self._pid

    def run(self, make: Callable[[], Awaitable[T]], timeout: float | None, late: Callable[[], str]) -> T:
        """Call `make` in the event loop, and wait for its result. If the wait ends early, the call is cancelled.

        :param timeout: the most seconds to wait; None: as long as it takes.
        :param late: returns what was waited for, to complete the sentence "no result after 5 s of waiting for ...".
        :raises StreamError: what the call raises; `timeout`, if it takes too long; `wrong-state`, if the client is
            closed, or this is its own thread or a forked process.
        """
        if os.getpid() != self._pid:
            raise StreamError(
                "wrong-state",
                "this Client was made before a fork and works in its parent process only: make a new one, and go on "
                "with streams by `stream.handle()` and `client.attach(handle)`",
            )
        if threading.current_thread() is self._thread:
            raise StreamError(
                "wrong-state", "this is the client's own thread, which must not wait for itself: use another thread"
            )

        async def called() -> T:
            return await make()

        coroutine = called()
        try:
            future: Future[T] = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        except RuntimeError:  # the loop is closed
            coroutine.close()
            raise StreamError("wrong-state", _CLOSED) from None
        try:
            done, _ = wait([future], timeout)
            if not done:
                raise StreamError("timeout", f"no result after {timeout:g} s of waiting for {late()}")
            return future.result(0)
        except CancelledError:
            raise StreamError("wrong-state", _CLOSED) from None
        finally:
            future.cancel()

    def call_soon(self, function: Callable[[], object]) -> None:
        """Call a function in the event loop soon, unless the thread is stopped."""
        try:
            self._loop.call_soon_threadsafe(function)
        except RuntimeError:
            return

    def stop_after(self, make: Callable[[], Awaitable[object]]) -> None:
        """Stop the thread when a last coroutine has ended, without waiting for it."""

        async def last() -> None:
            try:
                await make()
            finally:
                self._loop.stop()

        def begin() -> None:
            self._last = self._loop.create_task(last())

        self._callbacks.put(None)
        self.call_soon(begin)

    def stop(self) -> None:
        """Stop the thread: whoever still waits for a result gets a StreamError."""
        self._callbacks.put(None)
        self.call_soon(self._loop.stop)
        if threading.current_thread() is not self._thread:
            self._thread.join(timing.CLIENT_EXIT)

    # -- callbacks

    def call_back(self, callback: Callable[[Any], object], event: Any, name: str, uid: str) -> None:
        """Call a callback in the thread of callbacks, in order."""
        with self._lock:
            if self._caller is None:
                self._caller = threading.Thread(target=self._call_back, name="scistream callbacks", daemon=True)
                self._caller.start()
        self._callbacks.put((callback, event, name, uid))

    def _call_back(self) -> None:
        for callback, event, name, uid in iter(lambda: self._callbacks.get(timeout=None), None):
            call(callback, event, name, uid)


_CLOSED = "this Client is closed: make a new one"

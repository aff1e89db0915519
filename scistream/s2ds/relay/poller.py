"""The poller that wakes the legs of an element: an epoll set in which each leg is registered once, edge-triggered.

A leg remembers whether it is readable and writable, so a change of interest needs no system call, and a hang-up is
reported once. A `Poller` is one reader of any reactor. An `ElementReactor` is for element processes: its own epoll set
contains the legs, and it serves them directly.
"""

from __future__ import annotations

import select
import time
from collections import deque
from typing import Any, Protocol

from twisted.internet.epollreactor import EPollReactor
from twisted.internet.interfaces import IReadDescriptor
from twisted.internet.main import installReactor
from twisted.python import log
from twisted.python.failure import Failure
from zope.interface import implementer

from scistream import timing

READABLE = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
WRITABLE = select.EPOLLOUT | select.EPOLLHUP | select.EPOLLERR
ENDING = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR

_ALL = select.EPOLLIN | select.EPOLLPRI | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
_BATCH = 64
"""The number of events to fetch at a time."""
_LONGEST_WAIT = 3600.0
"""The seconds until a timer beyond which only the main loop waits: it knows the longest wait of the system."""


class Polled(Protocol):
    """An object that handles the events of a descriptor."""

    batch_added: int
    """The batch in which the poller added it: earlier events are for a former owner of its descriptor."""

    def fileno(self) -> int:
        """Return the descriptor."""

    def event(self, mask: int) -> None:
        """Handle an event. Never raises."""


class QueuedTurn(Protocol):
    """A pump that has used up its turn and waits for the next one."""

    def resume(self) -> None:
        """Take the next turn. Never raises."""


@implementer(IReadDescriptor)
class Poller:
    """An epoll set in any reactor; it needs no descriptor while it has no legs.

    :param reactor: an `IReactorFDSet` and `IReactorTime`.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._epoll: select.epoll | None = None
        self._polled: dict[int, Polled] = {}
        self._waiting: deque[QueuedTurn] = deque()
        self._batch = 0
        self._call: Any = None

    def add(self, polled: Polled) -> None:
        """Report events until `remove`, which must be called before the descriptor is closed."""
        if self._epoll is None:
            self._epoll = select.epoll()
            self._reactor.addReader(self)
        self._register(self._epoll, polled)

    def remove(self, polled: Polled) -> None:
        """Report no more events."""
        assert self._epoll is not None
        self._unregister(self._epoll, polled)
        if not self._polled:
            self._reactor.removeReader(self)
            self._epoll.close()
            self._epoll = None
            self._waiting.clear()  # no pump has a leg any more
            if self._call is not None:
                self._call.cancel()
                self._call = None

    def queue_turn(self, turn: QueuedTurn) -> None:
        """Queue a pump for one more turn, after the others. It must not be in the queue already."""
        self._waiting.append(turn)
        if self._call is None:
            self._call = self._reactor.callLater(0, self._resume)

    def _register(self, into: select.epoll, polled: Polled) -> None:
        fd = polled.fileno()
        into.register(fd, _ALL)
        polled.batch_added = self._batch
        self._polled[fd] = polled

    def _unregister(self, out_of: select.epoll, polled: Polled) -> None:
        fd = polled.fileno()
        del self._polled[fd]
        out_of.unregister(fd)

    def _give_turns(self) -> None:
        """Give waiting pumps a turn each, until it is time to look for new messages."""
        waiting, until = self._waiting, time.monotonic() + timing.TURNS
        for _ in range(len(waiting)):
            if not waiting:  # the last leg was removed
                return
            waiting.popleft().resume()
            if time.monotonic() >= until:
                return

    def _resume(self) -> None:
        self._call = None
        self._give_turns()
        if self._waiting and self._call is None:
            self._call = self._reactor.callLater(0, self._resume)

    # IReadDescriptor

    def fileno(self) -> int:
        """Return the descriptor of the epoll set; -1 while there is none."""
        return -1 if self._epoll is None else self._epoll.fileno()

    def logPrefix(self) -> str:
        """Return the prefix of log lines."""
        return "relay"

    def doRead(self) -> None:
        """Report a batch of events."""
        if self._epoll is None:
            return
        events = self._epoll.poll(0, _BATCH)
        self._batch = batch = self._batch + 1
        for fd, mask in events:
            polled = self._polled.get(fd)
            if polled is not None and polled.batch_added < batch:
                polled.event(mask)

    def connectionLost(self, _reason: Failure) -> None:
        """Go on: the event was for an earlier owner of this descriptor."""
        if self._epoll is not None:
            self._reactor.addReader(self)


class _ReactorPoller(Poller):
    """The poller of an `ElementReactor`, which uses the epoll set of the reactor."""

    def add(self, polled: Polled) -> None:
        self._register(self._reactor._poller, polled)

    def remove(self, polled: Polled) -> None:
        self._unregister(self._reactor._poller, polled)

    def queue_turn(self, turn: QueuedTurn) -> None:
        self._waiting.append(turn)


class ElementReactor(EPollReactor):
    """An epoll reactor that serves the legs of an element directly."""

    def __init__(self) -> None:
        super().__init__()
        self.poller = _ReactorPoller(self)

    def doPoll(self, timeout: float | None) -> None:
        """Serve legs until something else is due: an iteration of the main loop costs as much as a message."""
        poller, wait, all_polled = self.poller, self._poller.poll, self.poller._polled
        waiting, now = poller._waiting, self.seconds
        while True:
            events = wait(0 if waiting else timeout, _BATCH)
            poller._batch = batch = poller._batch + 1
            others: list[tuple[int, int]] | None = None
            for event in events:
                polled = all_polled.get(event[0])
                if polled is not None:
                    if polled.batch_added < batch:
                        polled.event(event[1])
                elif others is None:
                    others = [event]
                else:
                    others.append(event)
            if waiting:
                poller._give_turns()
            if others is not None:
                self._serve(others)
                return
            if self.threadCallQueue or self._newTimedCalls or self._justStopped or not self._started:
                return
            timers = self._pendingTimedCalls
            timeout = timers[0].time - now() if timers else None
            if timeout is not None and not 0 < timeout < _LONGEST_WAIT:
                return

    doIteration = doPoll

    def _serve(self, events: list[tuple[int, int]]) -> None:
        for fd, mask in events:
            selectable = self._selectables.get(fd)
            if selectable is not None:
                log.callWithLogger(selectable, self._doReadOrWrite, selectable, fd, mask)


def poller_of(reactor: Any) -> Poller:
    """Return the poller for an element in this reactor."""
    return reactor.poller if isinstance(reactor, ElementReactor) else Poller(reactor)


def install() -> None:
    """Install an `ElementReactor` as the reactor of this process. Call it before anything imports the reactor."""
    installReactor(ElementReactor())

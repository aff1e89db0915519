"""What wakes the legs of an element: an epoll set in which each is registered once, edge-triggered.

A leg remembers by itself that it can be read or written until a call says otherwise, so no call to the kernel tells
of changing interest, and a hang-up is told once. A `Poller` works in any reactor, as one reader of it. `ElementReactor`
is for processes that do nothing else: there the legs are in the reactor's own set, and it goes to them directly.
"""

from __future__ import annotations

import select
from collections import deque
from typing import Any, Protocol

from twisted.internet.epollreactor import EPollReactor
from twisted.internet.interfaces import IReadDescriptor
from twisted.internet.main import installReactor
from twisted.python import log
from twisted.python.failure import Failure
from zope.interface import implementer

READABLE = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
WRITABLE = select.EPOLLOUT | select.EPOLLHUP | select.EPOLLERR
ENDING = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR

_ALL = select.EPOLLIN | select.EPOLLPRI | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
_BATCH = 64
"""Events that are asked for at a time."""


class Polled(Protocol):
    """Who waits for events of a descriptor."""

    born: int
    """The poller's: in which batch it was added, so that no event of its descriptor's last owner reaches it."""

    def fileno(self) -> int: ...

    def event(self, mask: int) -> None:
        """Something has changed; never raises."""


class PollTurn(Protocol):
    """Who has used its share and goes on after the others."""

    def go_on(self) -> None:
        """Never raises."""


@implementer(IReadDescriptor)
class Poller:
    """Tells legs of their events. In an ordinary reactor it uses nothing while it has no legs.

    :param reactor: an `IReactorFDSet` and `IReactorTime`.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._set: select.epoll | None = None
        self._polled: dict[int, Polled] = {}
        self._waiting: deque[PollTurn] = deque()
        self._batch = 0
        self._call: Any = None

    def add(self, polled: Polled) -> None:
        """Tell it of its events, until `remove`, which must come before its descriptor is closed."""
        if self._set is None:
            self._set = select.epoll()
            self._reactor.addReader(self)
        self._register(self._set, polled)

    def remove(self, polled: Polled) -> None:
        """Tell it no more."""
        assert self._set is not None
        self._unregister(self._set, polled)
        if not self._polled:
            self._reactor.removeReader(self)
            self._set.close()
            self._set = None
            self._waiting.clear()  # nobody has a leg any more
            if self._call is not None:
                self._call.cancel()
                self._call = None

    def again(self, turn: PollTurn) -> None:
        """Let it go on once, when the others that can have had their turn. It waits only once at a time."""
        self._waiting.append(turn)
        if self._call is None:
            self._call = self._reactor.callLater(0, self._go_on)

    def _register(self, into: select.epoll, polled: Polled) -> None:
        fd = polled.fileno()
        into.register(fd, _ALL)
        polled.born = self._batch
        self._polled[fd] = polled

    def _unregister(self, out_of: select.epoll, polled: Polled) -> None:
        fd = polled.fileno()
        del self._polled[fd]
        out_of.unregister(fd)

    def _give_turns(self) -> None:
        waiting = self._waiting
        for turn in [waiting.popleft() for _ in range(len(waiting))]:
            turn.go_on()

    def _go_on(self) -> None:
        self._call = None
        self._give_turns()
        if self._waiting and self._call is None:
            self._call = self._reactor.callLater(0, self._go_on)

    # IReadDescriptor

    def fileno(self) -> int:
        return -1 if self._set is None else self._set.fileno()

    def logPrefix(self) -> str:
        return "relay"

    def doRead(self) -> None:
        if self._set is None:
            return
        events = self._set.poll(0, _BATCH)
        self._batch = batch = self._batch + 1
        for fd, mask in events:
            polled = self._polled.get(fd)
            if polled is not None and polled.born < batch:
                polled.event(mask)

    def connectionLost(self, _reason: Failure) -> None:
        if self._set is not None:  # an event of who had this descriptor before
            self._reactor.addReader(self)


class _InnerPoller(Poller):
    """The poller of an `ElementReactor`, in whose own set its legs are."""

    def add(self, polled: Polled) -> None:
        self._register(self._reactor._poller, polled)

    def remove(self, polled: Polled) -> None:
        self._unregister(self._reactor._poller, polled)

    def again(self, turn: PollTurn) -> None:
        self._waiting.append(turn)


class ElementReactor(EPollReactor):
    """A reactor whose first concern is legs. To everything else it is Twisted's."""

    def __init__(self) -> None:
        super().__init__()
        self.poller = _InnerPoller(self)

    def doPoll(self, timeout: float | None) -> None:
        """Serve legs for as long as nothing else is to be done: a turn of the main loop costs as much as a message."""
        poller, wait, all_polled = self.poller, self._poller.poll, self.poller._polled
        while True:
            events = wait(0 if poller._waiting else timeout, _BATCH)
            poller._batch = batch = poller._batch + 1
            others: list[tuple[int, int]] | None = None
            for event in events:
                polled = all_polled.get(event[0])
                if polled is not None:
                    if polled.born < batch:
                        polled.event(event[1])
                elif others is None:
                    others = [event]
                else:
                    others.append(event)
            if poller._waiting:
                poller._give_turns()
            if others is not None:
                self._serve(others)
                return
            if self.threadCallQueue or self._justStopped or not self._started:
                return
            timeout = self.timeout()
            if timeout == 0:
                return

    doIteration = doPoll

    def _serve(self, events: list[tuple[int, int]]) -> None:
        for fd, mask in events:
            selectable = self._selectables.get(fd)
            if selectable is not None:
                log.callWithLogger(selectable, self._doReadOrWrite, selectable, fd, mask)


def poller_of(reactor: Any) -> Poller:
    """The poller for an element in this reactor."""
    return reactor.poller if isinstance(reactor, ElementReactor) else Poller(reactor)


def install() -> None:
    """Make an `ElementReactor` the reactor of this process, before anything imports it."""
    installReactor(ElementReactor())

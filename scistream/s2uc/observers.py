"""Tell a program what happens to its stream: changes of state, and figures at an interval.

`Observers` belongs to one stream. A callback is called from the event loop, after the change, and never while the
machine of the stream is at work. An exception of a callback is logged, and changes nothing else.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import deferLater
from twisted.logger import Logger

from scistream import timing
from scistream.links.outbox import cancel_call
from scistream.protocol.errors import StreamError
from scistream.protocol.messages import CONS, PROD, ResetReason, Role, StreamStatus

_log = Logger()

Event = TypeVar("Event")
Sides = tuple[dict[Role, StreamStatus], dict[Role, StreamError]]
"""What each side that can be reached reports, and the error of each that cannot."""


@dataclass(frozen=True)
class StateChange:
    """A change of a stream's state.

    :ivar uid: the stream.
    :ivar before: the state that it has left.
    :ivar state: the state that it has entered; the names are those of `Stream.state`.
    :ivar error: why the stream has failed, or None: in Releasing and Released, None means that the user has released
        it.
    """

    uid: str
    before: str
    state: str
    error: StreamError | None = None


@dataclass(frozen=True)
class StreamFigures:
    """The traffic of a stream, all channels together.

    :ivar uid: the stream.
    :ivar seconds: since the figures before these; 0 for the first.
    :ivar bytes_to_consumer: application bytes that have left towards the consumer since the stream was requested.
    :ivar bytes_to_producer: application bytes that have left towards the producer.
    :ivar mbit_to_consumer: the mean rate since the figures before these, in Mbit/s; 0 for the first.
    :ivar mbit_to_producer: likewise.
    :ivar rtt_ms: the mean round-trip time of the open connections between the gateways in milliseconds; 0 if unknown.
    :ivar connections: connections of applications that are open now, at the side that has more.
    :ivar retransmits: segments that gateways have sent again over the WAN since the stream was requested.
    :ivar resets: for each side that answered, the latest reasons for which connections were reset, newest first.
    :ivar sides: everything that each side reports.
    :ivar unreachable: why a side did not answer. Its bytes are then those that it reported last.
    """

    uid: str
    seconds: float
    bytes_to_consumer: int
    bytes_to_producer: int
    mbit_to_consumer: float
    mbit_to_producer: float
    rtt_ms: float
    connections: int
    retransmits: int
    resets: Mapping[Role, list[ResetReason]] = field(repr=False)
    sides: Mapping[Role, StreamStatus] = field(repr=False)
    unreachable: Mapping[Role, StreamError] = field(repr=False)


class Subscription:
    """A callback that gets events until `cancel` is called or the stream is over."""

    def __init__(self, cancel: Callable[[], None]) -> None:
        self._cancel = cancel

    def cancel(self) -> None:
        """Call the callback no more. Idempotent."""
        self._cancel()


class Observers:
    """The callbacks of one stream.

    :param reactor: calls them.
    :param ask: asks both sides for their status.
    """

    def __init__(self, reactor: Any, uid: str, ask: Callable[[], Coroutine[Any, Any, Sides]]) -> None:
        self._reactor = reactor
        self._uid = uid
        self._ask = ask
        self._of_state: list[Callable[[StateChange], object]] = []
        self._polls: set[Deferred[None]] = set()
        self._pending: list[tuple[str, str]] = []
        self._next: IDelayedCall | None = None
        self._error: Callable[[], StreamError | None] = lambda: None

    # -- changes of state

    def on_state(self, callback: Callable[[StateChange], object]) -> Subscription:
        """Call `callback` after each change of state."""
        check_callback("on_state", callback)
        self._of_state.append(callback)

        def cancel() -> None:
            if callback in self._of_state:
                self._of_state.remove(callback)

        return Subscription(cancel)

    def state_changed(self, before: str, state: str, error: Callable[[], StreamError | None]) -> None:
        """Note a change of state, and tell of it as soon as the machine is done.

        :param error: returns why the stream has failed; called then.
        """
        if not self._of_state:
            return
        self._pending.append((before, state))
        self._error = error
        if self._next is None:
            self._next = self._reactor.callLater(0, self._tell_changes)

    def _tell_changes(self) -> None:
        self._next = None
        pending, self._pending = self._pending, []
        for before, state in pending:
            change = StateChange(self._uid, before, state, self._error() if state in _OVER else None)
            for callback in list(self._of_state):
                call(callback, change, "on_state", self._uid)

    # -- figures

    def on_figures(self, callback: Callable[[StreamFigures], object], interval: float) -> Subscription:
        """Call `callback` with figures every `interval` seconds, until the stream is over at both sides."""
        check_callback("on_figures", callback)
        if not interval >= timing.SHORTEST_FIGURES:
            least = f"{timing.SHORTEST_FIGURES:g} s"
            raise StreamError(
                "bad-message", f"interval {interval!r}: must be at least {least}, since gateways are asked"
            )
        poll = Deferred.fromCoroutine(self._poll(callback, interval))
        self._polls.add(poll)

        def ended(result: Any) -> None:
            self._polls.discard(poll)
            if not (hasattr(result, "check") and result.check(CancelledError)) and result is not None:
                _log.failure("uid={uid} on_figures ends because of a fault", failure=result, uid=self._uid)

        poll.addBoth(ended)
        return Subscription(poll.cancel)

    async def _poll(self, callback: Callable[[StreamFigures], object], interval: float) -> None:
        last: StreamFigures | None = None
        asked_before = self._reactor.seconds()
        while True:
            asked_at = self._reactor.seconds()
            sides, unreachable = await self._ask()
            if not sides and not unreachable:  # no side knows the stream any more
                return
            last = figures_of(self._uid, sides, unreachable, last, asked_at - asked_before)
            asked_before = asked_at
            call(callback, last, "on_figures", self._uid)
            if len(sides) == len((PROD, CONS)) and all(side.state == "Released" for side in sides.values()):
                return
            await deferLater(self._reactor, max(0.0, asked_at + interval - self._reactor.seconds()))

    # -- the end

    def stop_polling(self) -> None:
        """Ask for no more figures."""
        for poll in list(self._polls):
            poll.cancel()

    def tell_pending(self) -> None:
        """Tell now of the changes that wait for their turn."""
        if self._next is not None:
            cancel_call(self._next)
            self._tell_changes()


_OVER = ("Releasing", "Released")


def figures_of(
    uid: str,
    sides: Mapping[Role, StreamStatus],
    unreachable: Mapping[Role, StreamError],
    last: StreamFigures | None,
    seconds: float,
) -> StreamFigures:
    """Return the figures of a stream from what both sides report.

    :param last: the figures before these, if any.
    :param seconds: between the two.
    """

    def delivered(role: Role, name: str) -> int:
        side = sides.get(role)
        known = getattr(last, name) if last is not None else 0
        return max(known, sum(getattr(one, name) for one in side.figures)) if side is not None else known

    def rate(name: str, now: int) -> float:
        return (now - getattr(last, name)) * 8e-6 / seconds if last is not None and seconds > 0 else 0.0

    every = [one for side in sides.values() for one in side.figures]
    trips = [one.rtt_ms for one in every if one.rtt_ms > 0]
    to_consumer, to_producer = delivered(CONS, "bytes_to_consumer"), delivered(PROD, "bytes_to_producer")
    return StreamFigures(
        uid=uid,
        seconds=seconds if last is not None else 0.0,
        bytes_to_consumer=to_consumer,
        bytes_to_producer=to_producer,
        mbit_to_consumer=rate("bytes_to_consumer", to_consumer),
        mbit_to_producer=rate("bytes_to_producer", to_producer),
        rtt_ms=sum(trips) / len(trips) if trips else 0.0,
        connections=max((sum(one.connections for one in side.figures) for side in sides.values()), default=0),
        retransmits=sum(one.retransmits for one in every),
        resets={role: list(side.resets) for role, side in sides.items()},
        sides=dict(sides),
        unreachable=dict(unreachable),
    )


def check_callback(name: str, callback: object) -> None:
    """Check that something can be called with an event.

    :raises TypeError: if it cannot be called, or is a coroutine function, which nobody would await.
    """
    if not callable(callback):
        raise TypeError(f"{name}: {callback!r} cannot be called: pass a function")
    if inspect.iscoroutinefunction(callback):
        raise TypeError(f"{name}: {callback!r} is a coroutine function: pass a plain function, which may start a task")


def call(callback: Callable[[Event], object], event: Event, name: str, uid: str) -> None:
    """Call a callback of the user's program, and log its exception if it raises one."""
    try:
        result = callback(event)
        if isinstance(result, Awaitable):
            _log.warn(
                "uid={uid} the callback of {name} has returned something that nobody awaits: start a task in it",
                uid=uid,
                name=name,
            )
            if inspect.iscoroutine(result):
                result.close()
    except Exception:
        _log.failure("uid={uid} the callback of {name} failed; the stream goes on", uid=uid, name=name)

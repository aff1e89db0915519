"""The order of a channel's connections: they are dialled as they were accepted, whichever element carries each.

The initiator numbers the accepted connections of a channel from 1. In the memory that all elements share stands of
each number whether its connection waits for its turn, or is gone: it has been dialled, or has ended before that. A
connection is dialled when all before it are gone. It waits for those that wait like itself, but for others, which may
never come so far, only for a shorter time.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall

from scistream import timing
from scistream.s2ds.elements.shared_figures import TURNS


class Turns:
    """The turns of one channel, as one element sees them.

    :param reactor: an `IReactorTime`.
    :param words: the shared memory.
    :param at: where the numbers of the channel are in it.
    """

    def __init__(self, reactor: Any, words: memoryview[int], at: int) -> None:
        self._reactor = reactor
        self._words = words
        self._at = at
        self._low = 1  # nobody waits for smaller numbers any more
        self._waiting: dict[int, tuple[float, float, Deferred[None]]] = {}
        self._timer: IDelayedCall | None = None
        self._is_looking = False
        self._pause = timing.TURN_LOOK

    def is_due(self, number: int, *, skip: bool = False) -> bool:
        """Whether all connections before this one are gone.

        :param skip: those that do not wait for their turn do not count.
        """
        low = max(self._low, number - TURNS + 1)
        while low < number:
            said = self._words[self._at + low % TURNS]
            if said < _gone(low) and (said == _waits(low) or not skip):
                break
            low += 1
        self._low = low
        return low >= number

    def wait(self, number: int, timeout: float) -> Deferred[None]:
        """Fires when it is the turn of that connection, or it has waited long enough. Cancelling it is leaving.

        :param timeout: seconds for connections that do not wait for their turn.
        """
        waits: Deferred[None] = Deferred(lambda _: self._leave(number))
        now = self._reactor.seconds()
        self._waiting[number] = now + timeout, now + timing.TURN, waits
        self._say(number, _waits(number))
        self._look()
        return waits

    def gone(self, number: int) -> None:
        """That connection has been dialled, or never will be. Idempotent."""
        self._say(number, _gone(number))
        self._look()

    def _say(self, number: int, what: int) -> None:
        at = self._at + number % TURNS
        self._words[at] = max(self._words[at], what)

    def _look(self) -> None:
        if self._is_looking:
            return  # the loop below goes on
        self._is_looking = True
        try:
            while self._waiting:
                number = min(self._waiting)
                skip_from, until, waits = self._waiting[number]
                now = self._reactor.seconds()
                if not self.is_due(number, skip=now >= skip_from):
                    if now < until:
                        break
                    self._low = number
                del self._waiting[number]
                self._pause = timing.TURN_LOOK
                waits.callback(None)
        finally:
            self._is_looking = False
        if self._waiting and self._timer is None:
            self._timer = self._reactor.callLater(self._pause, self._again)
            self._pause = min(2 * self._pause, timing.LONGEST_TURN_LOOK)
        elif not self._waiting:
            self._stop()

    def _again(self) -> None:
        self._timer = None
        self._look()

    def _leave(self, number: int) -> None:
        self._waiting.pop(number, None)
        if not self._waiting:
            self._stop()

    def _stop(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()


def _waits(number: int) -> int:
    return 2 * number


def _gone(number: int) -> int:
    return 2 * number + 1


class Turn:
    """The turn of one connection; of a channel without order if `number` is 0."""

    __slots__ = ("_number", "_turns")

    def __init__(self, turns: Turns, number: int) -> None:
        self._turns = turns
        self._number = number

    async def come(self, timeout: float | None = None) -> None:
        """Wait for it.

        :param timeout: seconds for connections that do not wait for their turn; `timing.TURN` if not given.
        """
        if self._number and not self._turns.is_due(self._number):
            await self._turns.wait(self._number, timing.TURN if timeout is None else timeout)

    def over(self) -> None:
        """The connection has been dialled, or has ended: it holds nobody up. Idempotent."""
        number, self._number = self._number, 0
        if number:
            self._turns.gone(number)

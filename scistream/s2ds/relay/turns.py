"""The order of a channel's connections: they are dialled in the order in which they were accepted, on all elements.

The initiator numbers the accepted connections of a channel from 1. The elements share memory that says for each number
whether its connection waits for its turn or is done: dialled, or ended before. A connection is dialled when all before
it are done. It waits a long time for connections that wait for their turn themselves, and a shorter time for others,
which may never be ready.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall

from scistream import timing

TURNS = 128
"""The number of words of shared memory for the turns of a channel's connections."""


class Turns:
    """The turns of one channel at one element.

    :param reactor: an `IReactorTime`.
    :param words: the words of the shared memory.
    :param at: the index of the first word of the channel's turns.
    """

    def __init__(self, reactor: Any, words: memoryview[int], at: int) -> None:
        self._reactor = reactor
        self._words = words
        self._at = at
        self._lowest = 1  # all connections with smaller numbers are done
        self._waiting: dict[int, tuple[float, float, Deferred[None]]] = {}
        self._timer: IDelayedCall | None = None
        self._is_serving = False
        self._interval = timing.TURN_POLL

    def is_due(self, number: int, *, skip: bool = False) -> bool:
        """Return True if all connections before this one are done.

        :param skip: ignore connections that do not wait for their turn.
        """
        lowest = max(self._lowest, number - TURNS + 1)
        while lowest < number:
            mark = self._words[self._at + lowest % TURNS]
            if mark < _done_mark(lowest) and (mark == _waiting_mark(lowest) or not skip):
                break
            lowest += 1
        self._lowest = lowest
        return lowest >= number

    def wait(self, number: int, timeout: float) -> Deferred[None]:
        """Fire when it is the turn of this connection, or it has waited long enough. Cancelling it stops the wait.

        :param timeout: how long to wait for connections that do not wait for their turn themselves, in seconds.
        """
        if number in self._waiting:  # the other gateway has used the number twice
            return succeed(None)
        turn: Deferred[None] = Deferred(lambda _: self._stop_waiting(number))
        now = self._reactor.seconds()
        self._waiting[number] = now + timeout, now + timing.TURN, turn
        self._mark(number, _waiting_mark(number))
        self._serve()
        return turn

    def mark_done(self, number: int) -> None:
        """Note that a connection has been dialled, or never will be. Idempotent."""
        self._mark(number, _done_mark(number))
        self._serve()

    def _mark(self, number: int, mark: int) -> None:
        at = self._at + number % TURNS
        self._words[at] = max(self._words[at], mark)

    def _serve(self) -> None:
        if self._is_serving:
            return  # called from a callback of the loop below
        self._is_serving = True
        try:
            while self._waiting:
                number = min(self._waiting)
                skip_from, until, turn = self._waiting[number]
                now = self._reactor.seconds()
                if not self.is_due(number, skip=now >= skip_from):
                    if now < until:
                        break
                    self._lowest = number
                del self._waiting[number]
                self._interval = timing.TURN_POLL
                turn.callback(None)
        finally:
            self._is_serving = False
        if self._waiting and self._timer is None:
            self._timer = self._reactor.callLater(self._interval, self._serve_later)
            self._interval = min(2 * self._interval, timing.LONGEST_TURN_POLL)
        elif not self._waiting:
            self._stop()

    def _serve_later(self) -> None:
        self._timer = None
        self._serve()

    def _stop_waiting(self, number: int) -> None:
        self._waiting.pop(number, None)
        if not self._waiting:
            self._stop()

    def _stop(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()


def _waiting_mark(number: int) -> int:
    return 2 * number


def _done_mark(number: int) -> int:
    return 2 * number + 1


class Turn:
    """The turn of one connection.

    :param number: the number of the connection; 0 if the order of the channel's connections does not matter.
    """

    __slots__ = ("_number", "_turns")

    def __init__(self, turns: Turns, number: int) -> None:
        self._turns = turns
        self._number = number

    async def wait(self, timeout: float | None = None) -> None:
        """Wait for the turn.

        :param timeout: how long to wait for connections that do not wait for their turn themselves, in seconds;
            `timing.TURN` if None.
        """
        if self._number and not self._turns.is_due(self._number):
            await self._turns.wait(self._number, timing.TURN if timeout is None else timeout)

    def finish(self) -> None:
        """Note that the connection has been dialled or has ended. Idempotent."""
        number, self._number = self._number, 0
        if number:
            self._turns.mark_done(number)

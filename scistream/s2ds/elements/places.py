"""Places among a gateway's connections, for those that an element has dialled for the producer.

The initiator applies the limits of a gateway to the connections that it accepts. Where the producer's gateway dials, it
accepts none, so the element asks it for a place when Connect has come, before ProdApp is dialled. The initiator answers
with the figures of that moment: nothing was promised before, so a limit is exact whichever element asks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from twisted.internet.interfaces import IDelayedCall

from scistream.protocol.messages import StreamKey
from scistream.s2ds.capacity import SharedLimits
from scistream.s2ds.elements.commands import PlaceAnswer, PlaceRequest
from scistream.s2ds.relay.wan import WanConnection

TOO_MANY_JOINING = (
    "too many connections of the channel wait for ProdApp: try again later, or ask the gateway's operator to raise "
    "`half_open` in [limits]"
)


class Places:
    """The requests of one element.

    :param send: sends a request to the initiator, which may answer at once.
    :ivar half_open: how many connections of a channel may wait for ProdApp, over all elements.
    """

    def __init__(self, send: Callable[[PlaceRequest], None]) -> None:
        self._send = send
        self._asked: dict[int, Callable[[str], None]] = {}
        self._last = 0
        self.half_open = SharedLimits().half_open

    def ask(self, key: StreamKey, channel: int, on_answer: Callable[[str], None]) -> int:
        """Ask for a place, and return the number of the request.

        :param on_answer: called with the reason for a refusal, or with an empty text.
        """
        self._last += 1
        self._asked[self._last] = on_answer
        number = self._last
        self._send(PlaceRequest(number=number, uid=key[0], role=key[1], channel=channel))
        return number

    def answered(self, answer: PlaceAnswer) -> bool:
        """Pass on an answer. Return False if its request is forgotten."""
        on_answer = self._asked.pop(answer.number, None)
        if on_answer is not None:
            on_answer(answer.refusal)
        return on_answer is not None

    def forget(self, number: int) -> None:
        """Forget a request, whose stream is closed."""
        self._asked.pop(number, None)


class Claims:
    """The connections of one channel at an element that the other gateway has claimed, and that wait for a place.

    While too many connections of the channel wait for ProdApp, they wait here, the first one first.

    :param clock: an `IReactorTime`.
    :param most: returns how many connections of the channel may wait for ProdApp at this element.
    :param joining: returns how many do.
    :param patience: how long a connection waits until fewer of them do, in seconds.
    :param on_answer: called with a connection, its number, and the reason for a refusal or an empty text.
    :param give_back: called when a place is granted to a connection that has ended in the meantime.
    """

    def __init__(
        self,
        clock: Any,
        places: Places,
        key: StreamKey,
        channel: int,
        most: Callable[[], int],
        joining: Callable[[], int],
        patience: float,
        on_answer: Callable[[WanConnection, int, str], None],
        give_back: Callable[[], None],
    ) -> None:
        self._clock = clock
        self._places = places
        self._key = key
        self._channel = channel
        self._most = most
        self._joining = joining
        self._patience = patience
        self._on_answer = on_answer
        self._give_back = give_back
        self._numbers: dict[WanConnection, int] = {}
        self._waiting: dict[WanConnection, IDelayedCall] = {}
        self._requests: dict[WanConnection, int] = {}
        """The requests that are not answered, also of connections that have ended."""
        self._is_serving = False

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[WanConnection]:
        return iter(self._numbers)

    def __contains__(self, wan: WanConnection) -> bool:
        return wan in self._numbers

    def add(self, wan: WanConnection, number: int) -> None:
        """Add a connection; `on_answer` may be called at once."""
        self._numbers[wan] = number
        if self._waiting or not self._has_room():
            self._waiting[wan] = self._clock.callLater(self._patience, self._time_out, wan)
        else:
            self._ask(wan)

    def serve(self) -> None:
        """Ask for places for those that wait, as far as fewer connections wait for ProdApp than may."""
        if self._is_serving:
            return  # called from an answer within the loop below
        self._is_serving = True
        try:
            while self._waiting and self._has_room():
                wan = next(iter(self._waiting))
                self._waiting.pop(wan).cancel()
                self._ask(wan)
        finally:
            self._is_serving = False

    def remove(self, wan: WanConnection) -> int:
        """Remove a connection that has ended, and return its number."""
        timer = self._waiting.pop(wan, None)
        if timer is not None:
            timer.cancel()
        return self._numbers.pop(wan)

    def close(self) -> None:
        """Forget all connections and requests."""
        for timer in self._waiting.values():
            timer.cancel()
        for request in self._requests.values():
            self._places.forget(request)
        for each in (self._numbers, self._waiting, self._requests):
            each.clear()

    def _has_room(self) -> bool:
        return self._joining() + len(self._requests) < self._most()

    def _ask(self, wan: WanConnection) -> None:
        self._requests[wan] = 0  # the answer may come at once
        request = self._places.ask(self._key, self._channel, partial(self._answered, wan))
        if wan in self._requests:
            self._requests[wan] = request

    def _answered(self, wan: WanConnection, refusal: str) -> None:
        del self._requests[wan]
        number = self._numbers.pop(wan, None)
        if number is not None:
            self._on_answer(wan, number, refusal)
        elif not refusal:
            self._give_back()
        self.serve()

    def _time_out(self, wan: WanConnection) -> None:
        del self._waiting[wan]
        self._on_answer(wan, self._numbers.pop(wan), TOO_MANY_JOINING)

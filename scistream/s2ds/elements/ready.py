"""Ready connections: verified connections to the other gateway that a gateway opens before they are needed.

The gateway that dials keeps some open for each channel (setting `ready`), and replaces those that are claimed or lost.
`ReadyBudget` limits those of a whole element, `ReadyDemand` says how many a channel needs.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import Any, Literal

from scistream import timing
from scistream.protocol.messages import StreamKey
from scistream.s2ds.settings import MOST_READY

MOST_OF_GATEWAY = 1024
"""The ready connections that all streams of a gateway may have."""
OPENING_AT_ONCE = 8
"""The handshakes of ready connections that an element does at a time, so that they delay no others."""
HELD = 4
"""How many times as many ready connections other gateways may open here as this one opens to others."""
STREAM_SHARE = 4
"""One stream may have 1 / `STREAM_SHARE` of the ready connections of an element."""

ReadySetting = int | Literal["auto"]


def share_of_element(total: int, channel: int, element: int, elements: int) -> int:
    """Return how many of `total` connections of a channel are an element's own. The shares add up to `total`.

    An element that has one of fewer connections has one of more, too.
    """
    return total // elements + ((element + channel) % elements < total % elements)


class ReadyBudget:
    """The limits on the ready connections of one element: those that it opens, and those that other gateways open.

    :param most: how many it may open. Other gateways may have as many for each stream, and `HELD` times as many in all.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._streams: Counter[StreamKey] = Counter()
        self._held: Counter[StreamKey] = Counter()
        self._opening = 0
        self._waiting: dict[Callable[[], None], None] = {}

    def begin(self, stream: StreamKey, again: Callable[[], None], *, needed: bool = False) -> bool:
        """Reserve a place for a connection that is to be dialled. Return False if no place is free now.

        :param again: called once a place may be free, if the reason is that too many are being dialled.
        :param needed: dial it even if the stream or the element has its full number of ready connections.
        """
        is_full = self._streams.total() >= self._most or self._streams[stream] * STREAM_SHARE >= self._most
        if is_full and not needed:
            return False
        if self._opening >= OPENING_AT_ONCE:
            self._waiting[again] = None
            return False
        self._streams[stream] += 1
        self._opening += 1
        return True

    def opened(self) -> None:
        """Note that a connection is open, or has failed."""
        self._opening -= 1
        waiting, self._waiting = self._waiting, {}
        for again in waiting:
            again()

    def ended(self, stream: StreamKey) -> None:
        """Return the place of a connection that was claimed or has ended."""
        self._streams[stream] -= 1
        if not self._streams[stream]:
            del self._streams[stream]

    def hold(self, stream: StreamKey) -> bool:
        """Reserve a place for a connection that another gateway has opened. Return False if no place is free."""
        if self._held[stream] >= self._most or self._held.total() >= HELD * self._most:
            return False
        self._held[stream] += 1
        return True

    def release(self, stream: StreamKey) -> None:
        """Return the place of a connection that another gateway has opened."""
        self._held[stream] -= 1
        if not self._held[stream]:
            del self._held[stream]

    def forget(self, again: Callable[[], None]) -> None:
        """Do not call this function of `begin` any more."""
        self._waiting.pop(again, None)


class ReadyDemand:
    """The number of ready connections that a channel needs at one element.

    :param clock: an `IReactorTime`.
    :param setting: the number for the channel over all elements, or "auto".
    :param grows: keep one at least, and let the number follow the rate of new connections even if it is set: the other
        gateway cannot dial when there are too few.
    :param elements: the number of elements, and the `element` that this one is.
    """

    def __init__(
        self, clock: Any, setting: ReadySetting, *, grows: bool, channel: int, element: int, elements: int
    ) -> None:
        self._clock = clock

        self._least = share_of_element(1 if setting == "auto" else max(setting, grows), channel, element, elements)
        self._most = max(1, share_of_element(MOST_READY, channel, element, elements))
        self._grows = grows or setting == "auto"
        self._claims: deque[float] = deque(maxlen=self._most)
        self._seconds = timing.READY_DEMAND

    def note_claim(self, seconds_to_open: float) -> None:
        """Count a connection that was needed.

        :param seconds_to_open: how long a new connection takes.
        """
        self._claims.append(self._clock.seconds())
        self._seconds = max(timing.READY_DEMAND, 2 * seconds_to_open)

    def wanted(self) -> int:
        """Return how many connections should be ready now: those that may be needed while another one is opened."""
        if not self._grows:
            return min(self._least, self._most)
        since = self._clock.seconds() - self._seconds
        while self._claims and self._claims[0] < since:
            self._claims.popleft()
        return min(max(self._least, 2 * len(self._claims)), self._most)

    @property
    def checked_again(self) -> float | None:
        """Seconds after which fewer may be needed; None if the number does not change."""
        return self._seconds if self._claims else None

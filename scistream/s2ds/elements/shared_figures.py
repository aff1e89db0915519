"""The figures of a gateway's channels, in memory that the initiator and its elements share.

Each element writes a row of its own for each channel, so the figures cost the data path an addition and outlive an
element that dies. The tokens of a stream's rate are here too, since its connections are spread over elements. A
channel is known by its slot: its port on this gateway, counted from the first one.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from dataclasses import dataclass

from scistream.protocol.messages import ChannelFigures

(TO_CONSUMER, TO_PRODUCER, OPEN, JOINING, TAKEN, RESET, RTT_US, RETRANSMITS, DELIVERY, WAITING) = range(10)
"""The words of a row: bytes each way; connections that are open, not joined yet, ever taken, ended by a reset; and
the sums, over the open connections, of what TCP says of the WAN: microseconds, segments, bytes a second, bytes."""
BUSY = 10
"""Two more, in the row of a stream's first channel: its connections that wait for the stream's rate, each way."""
JOINED = 12
"""One more: connections that have ever come about."""
UNREAD = 13
"""And the bytes that wait for a program to read them: all of `WAITING` but those that are on their way."""
ACTIVE = 14
"""One more: connections that were taken or carried bytes lately. Some of them may have ended since."""

_ROW = 15
TURNS = 128
"""Words that say which connections of a channel have had their turn: see `turns.py`."""
_BUCKET = 2  # tokens, and when they were counted
_WORD = 8


class SharedFigures:
    """The shared memory of one gateway.

    :param fd: of the memory, which `create` made; owned from here on.
    :param slots: how many channels there can be.
    :param elements: how many elements write.
    """

    def __init__(self, fd: int, slots: int, elements: int) -> None:
        self.fd = fd
        self.slots = slots
        self.elements = elements
        self._map = mmap.mmap(fd, _size(slots, elements))
        self._whole = memoryview(self._map)
        self.words = self._whole.cast("Q")
        self._doubles = self._whole.cast("d")

    @classmethod
    def create(cls, slots: int, elements: int) -> SharedFigures:
        """A new one, all zero."""
        fd = os.memfd_create("scistream-figures", os.MFD_CLOEXEC)
        os.ftruncate(fd, _size(slots, elements))
        return cls(fd, slots, elements)

    def close(self) -> None:
        """Let the memory go. Idempotent."""
        if self.fd != -1:
            for view in (self.words, self._doubles, self._whole):
                view.release()
            self._map.close()
            os.close(self.fd)
            self.fd = -1

    def row(self, slot: int, element: int) -> int:
        """Where the row of a channel at an element begins in `words`."""
        return self.turns(slot) + TURNS + _ROW * element

    def turns(self, slot: int) -> int:
        """Where the turns of a channel begin in `words`."""
        return self._slot(slot) + 2 * _BUCKET

    def ended(self, element: int) -> int:
        """Where, in `words`, an element counts the connections that it is done with."""
        return element

    def tokens(self, slot: int, direction: int) -> SharedTokens:
        """What is left of the rate of the stream whose first channel has this slot, in a direction (0 or 1)."""
        return SharedTokens(self._doubles, self._slot(slot) + _BUCKET * direction, self.fd)

    def busy(self, slot: int, direction: int) -> list[int]:
        """Where in `words` each element says how many connections of a stream wait for its rate in a direction.

        :param slot: of the stream's first channel.
        """
        return [self.row(slot, element) + BUSY + direction for element in range(self.elements)]

    def clear(self, slot: int) -> None:
        """Another channel is to have this slot."""
        for at in range(self._slot(slot), self._slot(slot + 1)):
            self.words[at] = 0

    def figures(self, channel: int, slot: int) -> ChannelFigures:
        """The figures of a channel, over all elements."""
        rows = [self.row(slot, element) for element in range(self.elements)]
        sums = [sum(self.words[row + word] for row in rows) for word in range(_ROW)]
        is_open = sums[OPEN]
        return ChannelFigures(
            channel=channel,
            bytes_to_consumer=sums[TO_CONSUMER],
            bytes_to_producer=sums[TO_PRODUCER],
            connections=is_open,
            accepted=sums[TAKEN],
            reset=sums[RESET],
            rtt_ms=round(sums[RTT_US] / 1000 / is_open, 3) if is_open else 0.0,
            retransmits=sums[RETRANSMITS],
            delivery_mbit=round(sums[DELIVERY] * 8e-6, 3) if is_open else 0.0,
            waiting=sums[WAITING] if is_open else 0,
        )

    def _slot(self, slot: int) -> int:
        return self.elements + slot * (2 * _BUCKET + TURNS + _ROW * self.elements)


def _size(slots: int, elements: int) -> int:
    return _WORD * (elements + slots * (2 * _BUCKET + TURNS + _ROW * elements))


@dataclass(frozen=True)
class SharedTokens:
    """The state of a token bucket: how many there are, and the time at which that was so. 0 and 0: never used.

    Whoever changes it holds its lock, which the kernel takes back from a process that dies.
    """

    words: memoryview[float]
    at: int
    fd: int

    def lock(self) -> bool:
        """Take the lock; False if another process has it just now."""
        try:
            fcntl.lockf(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, self.at)
        except OSError:
            return False
        return True

    def unlock(self) -> None:
        """Give it back."""
        fcntl.lockf(self.fd, fcntl.LOCK_UN, 1, self.at)

    def get(self) -> tuple[float, float]:
        """Tokens, and when."""
        return self.words[self.at], self.words[self.at + 1]

    def put(self, count: float, when: float) -> None:
        """The same, written."""
        self.words[self.at] = count
        self.words[self.at + 1] = when

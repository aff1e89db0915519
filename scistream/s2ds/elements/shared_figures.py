"""The figures of a gateway's channels, in memory that the initiator and its elements share.

Each element writes its own row for each channel, so counting costs the data path one addition, and the figures survive
the death of an element. The tokens of a stream's rate are here too, since several elements carry its connections. A
channel is identified by its slot: the index of its port on this gateway.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from dataclasses import dataclass

from scistream.protocol.messages import ChannelFigures
from scistream.s2ds.relay.turns import TURNS

(TO_CONSUMER, TO_PRODUCER, OPEN, JOINING, TAKEN, RESET, RTT_US, RETRANSMITS, DELIVERY, WAITING) = range(10)
"""The words of a row.

They are bytes in each direction; connections that are open, not yet joined, ever taken over, and ended by a reset; and
sums of TCP's figures for the open connections over the WAN: round-trip times in microseconds, retransmitted segments,
delivery rates in bytes per second, and waiting bytes. Ready connections count as none of these.
"""
BUSY = 10
"""Two words, in the row of a stream's first channel: connections that wait for the stream's rate, by direction."""
JOINED = 12
"""The connections that were ever joined."""
UNREAD = 13
"""The bytes that wait for a program to read them: `WAITING` without those sent and not acknowledged."""
ACTIVE = 14
"""The connections that were new or carried bytes in the last sample. Some of them may have ended since."""
ACCEPTED = 15
"""The connections of applications so far; a ready connection becomes one with Connect."""
READY = 16
"""The ready connections to the other gateway."""
ARRIVING = 17
"""At a consumer's gateway that is dialled: connections from the WAN that are not verified."""
ARRIVED = 18
"""At a consumer's gateway that is dialled: connections from the WAN ever taken over."""
UNSERVED = 19
"""At a consumer's gateway that is dialled: connections of ConsApp that wait for a ready connection."""

HELD = 20
"""The connections that get no large receive window, since there is no memory for more of them."""

GIVEN_BACK = 21
"""At a producer's gateway that dials: places that were granted to connections and given back since these have ended."""

ACCEPTED_USED = 22
"""At a producer's gateway: accepted connections that are joined or ready, which count against the stream's share."""

_ROW = 23
_BUCKET = 2  # the number of tokens, and the time at which they were counted
_WORD = 8


class SharedFigures:
    """The shared memory of one gateway.

    :param fd: the descriptor of the memory, as made by `create`; this object owns it.
    :param slots: the number of channels that the gateway can have.
    :param elements: the number of elements.
    """

    def __init__(self, fd: int, slots: int, elements: int) -> None:
        self.fd = fd
        self.slots = slots
        self.elements = elements
        self._map = mmap.mmap(fd, _size(slots, elements))
        self._whole = memoryview(self._map)
        self.words = self._whole.cast("Q")
        self._doubles = self._whole.cast("d")
        self._slot_size = self._slot(1) - self._slot(0)
        self._first_row = self.turns(0) + TURNS

    @classmethod
    def create(cls, slots: int, elements: int) -> SharedFigures:
        """Return new shared memory in which all words are 0."""
        fd = os.memfd_create("scistream-figures", os.MFD_CLOEXEC)
        os.ftruncate(fd, _size(slots, elements))
        return cls(fd, slots, elements)

    def close(self) -> None:
        """Release the memory. Idempotent."""
        if self.fd != -1:
            for view in (self.words, self._doubles, self._whole):
                view.release()
            self._map.close()
            os.close(self.fd)
            self.fd = -1

    def row(self, slot: int, element: int) -> int:
        """Return the index in `words` at which the row of a channel at an element begins."""
        return self._first_row + slot * self._slot_size + _ROW * element

    def turns(self, slot: int) -> int:
        """Return the index in `words` at which the turns of a channel begin."""
        return self._slot(slot) + 2 * _BUCKET

    def ended(self, element: int) -> int:
        """Return the index in `words` at which an element counts the connections and granted places that have ended."""
        return element

    def kept_ready(self, element: int) -> int:
        """Return the index in `words` at which an element counts the connections that are ready or dialled to be.

        They are not connections of applications yet. Those that a producer's gateway has accepted are not among them:
        any of these can become an application's at any moment, so they count as connections already.
        """
        return self.elements + element

    def tokens(self, slot: int, direction: int) -> SharedTokens:
        """Return the tokens of a stream's rate in one direction (0 or 1).

        :param slot: the slot of the stream's first channel.
        """
        return SharedTokens(self._doubles, self._slot(slot) + _BUCKET * direction, self.fd)

    def busy(self, slot: int, direction: int) -> list[int]:
        """Return the indexes in `words` at which elements count connections that wait for a stream's rate.

        :param slot: the slot of the stream's first channel.
        :param direction: 0 or 1.
        """
        return [self.row(slot, element) + BUSY + direction for element in range(self.elements)]

    def clear(self, slot: int) -> None:
        """Set all words of a slot to 0, before a channel gets it."""
        for at in range(self._slot(slot), self._slot(slot + 1)):
            self.words[at] = 0

    def figures(self, channel: int, slot: int) -> ChannelFigures:
        """Return the figures of a channel, summed over all elements."""
        rows = [self.row(slot, element) for element in range(self.elements)]
        sums = [sum(self.words[row + word] for row in rows) for word in range(_ROW)]
        is_open = sums[OPEN]
        return ChannelFigures(
            channel=channel,
            bytes_to_consumer=sums[TO_CONSUMER],
            bytes_to_producer=sums[TO_PRODUCER],
            connections=is_open,
            accepted=sums[ACCEPTED],
            reset=sums[RESET],
            rtt_ms=round(sums[RTT_US] / 1000 / is_open, 3) if is_open else 0.0,
            retransmits=sums[RETRANSMITS],
            delivery_mbit=round(sums[DELIVERY] * 8e-6, 3) if is_open else 0.0,
            waiting=sums[WAITING] if is_open else 0,
            ready=sums[READY],
        )

    def _slot(self, slot: int) -> int:
        return 2 * self.elements + slot * (2 * _BUCKET + TURNS + _ROW * self.elements)


def _size(slots: int, elements: int) -> int:
    return _WORD * (2 * elements + slots * (2 * _BUCKET + TURNS + _ROW * elements))


@dataclass(frozen=True)
class SharedTokens:
    """The shared state of a token bucket: the number of tokens and when they were counted; both are 0 at first.

    A process must hold the lock to change the state. The kernel releases the lock of a process that dies.
    """

    words: memoryview[float]
    at: int
    fd: int

    def lock(self) -> bool:
        """Take the lock. Return False if another process holds it."""
        try:
            fcntl.lockf(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, self.at)
        except OSError:
            return False
        return True

    def unlock(self) -> None:
        """Release the lock."""
        fcntl.lockf(self.fd, fcntl.LOCK_UN, 1, self.at)

    def get(self) -> tuple[float, float]:
        """Return the number of tokens and the time at which they were counted."""
        return self.words[self.at], self.words[self.at + 1]

    def put(self, count: float, when: float) -> None:
        """Store the number of tokens and the time at which they were counted."""
        self.words[self.at] = count
        self.words[self.at + 1] = when

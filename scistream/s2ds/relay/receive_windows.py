"""Which connections of an element may have large receive windows.

What a connection has shown to carry, it may hold in the kernel's memory when its far end stops reading, and nothing
takes that back. So only so many may have large windows at once, in all, of one stream and of one user's streams; the
others keep small ones, which carry less over a long distance, until one of those ends.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Protocol

from scistream.resources import tcp_memory
from scistream.s2ds.capacity import has_its_share
from scistream.s2ds.settings import OWNER_SHARE

FEWEST = 4
"""Connections of an element that have large windows whatever the machine has."""

_PRESSURE = 2
"""All elements may fill one part in so many of what the kernel has for TCP without being short of it."""
_STREAM = 4
"""One stream may have one part in so many of the large windows."""


class Window(Protocol):
    """A connection whose window can grow."""

    def widen(self) -> None:
        """Let as much come as the path asks for."""

    def hold(self) -> None:
        """Let more come than at first, and no more than that."""


class Windows:
    """The large receive windows of one element.

    :param most: how many there may be at once.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._owners: Counter[str] = Counter()
        self._streams: dict[StreamWindows, None] = {}

    def of_stream(self, owner: str) -> StreamWindows:
        """Those of one more stream.

        :param owner: whose it is; empty: not known, and then it is nobody else's.
        """
        stream = StreamWindows(self, owner, max(FEWEST, self._most // _STREAM))
        self._streams[stream] = None
        return stream

    def forget(self, stream: StreamWindows) -> None:
        """A stream is over, and all its connections have ended."""
        self._streams.pop(stream, None)

    def take(self, owner: str) -> bool:
        """Take the place of one large window, if its owner may have it."""
        left = self._most - self._owners.total()
        if left <= 0 or (owner and has_its_share(self._owners[owner], left, OWNER_SHARE)):
            return False
        self._owners[owner] += 1
        return True

    def give_back(self, owner: str) -> None:
        """Return it; whoever waits and may have it now has it."""
        self._owners[owner] -= 1
        if not self._owners[owner]:
            del self._owners[owner]
        for stream in list(self._streams):
            if stream.went_on():
                self._streams[stream] = self._streams.pop(stream)  # others come first the next time


class StreamWindows:
    """Those of one stream.

    :param most: how many it may have.
    """

    def __init__(self, windows: Windows, owner: str, most: int) -> None:
        self._all = windows
        self._owner = owner
        self._most = most
        self._wide: set[Window] = set()
        self._waiting: dict[Window, None] = {}

    def ask(self, window: Window) -> None:
        """Widen a window, now or when another one has ended. It says when it has ended itself."""
        if not self._widened(window):
            self._waiting[window] = None
            window.hold()

    def ended(self, window: Window) -> None:
        """A connection is over: its room is for another one. Idempotent."""
        self._waiting.pop(window, None)
        if window in self._wide:
            self._wide.discard(window)
            self._all.give_back(self._owner)

    def went_on(self) -> bool:
        """There is room: widen one of those that wait, if there is one and this stream may have it."""
        following = next(iter(self._waiting), None)
        if following is None or not self._widened(following):
            return False
        del self._waiting[following]
        return True

    def _widened(self, window: Window) -> bool:
        if len(self._wide) >= self._most or not self._all.take(self._owner):
            return False
        self._wide.add(window)
        window.widen()
        return True


def most_wide(elements: int) -> int:
    """How many connections may have large windows at each of so many elements.

    :returns: a number that the memory of the kernel for TCP allows; `FEWEST` where the kernel does not tell it.
    """
    try:
        window = int(Path("/proc/sys/net/ipv4/tcp_rmem").read_text().split()[2])
    except (OSError, ValueError, IndexError):
        return FEWEST
    return max(FEWEST, tcp_memory() // _PRESSURE // elements // window)

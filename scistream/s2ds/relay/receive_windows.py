"""Limits on the number of connections with large receive windows at an element.

If the reader of a connection stops, its receive window stays full in the kernel's memory and cannot be taken back. The
number of large windows is therefore limited: in total, for each stream and for each user. Other connections keep small
windows, which are slower over long distances, until a large one becomes free.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Protocol

from scistream.resources import tcp_memory
from scistream.s2ds.capacity import has_full_share
from scistream.s2ds.settings import OWNER_SHARE

FEWEST = 4
"""The least number of large windows of an element, on any machine."""

_PRESSURE = 2
"""The large windows of all elements may fill 1 / `_PRESSURE` of the kernel's memory for TCP."""
_STREAM = 4
"""One stream may have 1 / `_STREAM` of the large windows."""


class Window(Protocol):
    """A connection whose receive window can grow."""

    def widen(self) -> None:
        """Let the window grow with the path."""

    def hold(self) -> None:
        """Set a medium window that does not grow."""


class Windows:
    """The large receive windows of one element.

    :param most: how many there may be at once.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._owners: Counter[str] = Counter()
        self._streams: dict[StreamWindows, None] = {}

    def of_stream(self, owner: str) -> StreamWindows:
        """Return the large windows of a new stream.

        :param owner: the same for all streams of one user; empty if the user is not known.
        """
        stream = StreamWindows(self, owner, max(FEWEST, self._most // _STREAM))
        self._streams[stream] = None
        return stream

    def forget(self, stream: StreamWindows) -> None:
        """Forget a stream whose connections have all ended."""
        self._streams.pop(stream, None)

    def take(self, owner: str) -> bool:
        """Reserve one large window. Return False if there is none for this owner."""
        left = self._most - self._owners.total()
        if left <= 0 or (owner and has_full_share(self._owners[owner], left, OWNER_SHARE)):
            return False
        self._owners[owner] += 1
        return True

    def give_back(self, owner: str) -> None:
        """Return a large window, and give it to a connection that waits for one."""
        self._owners[owner] -= 1
        if not self._owners[owner]:
            del self._owners[owner]
        for stream in list(self._streams):
            if stream.widen_next():
                self._streams[stream] = self._streams.pop(stream)  # to the end: other streams come first next time


class StreamWindows:
    """The large receive windows of one stream.

    :param most: how many there may be at once.
    """

    def __init__(self, windows: Windows, owner: str, most: int) -> None:
        self._all = windows
        self._owner = owner
        self._most = most
        self._wide: set[Window] = set()
        self._waiting: dict[Window, None] = {}

    def ask(self, window: Window) -> None:
        """Widen a window now, or when another one becomes free. Call `ended` when its connection ends."""
        if not self._try_widen(window):
            self._waiting[window] = None
            window.hold()

    def ended(self, window: Window) -> None:
        """Return the window of a connection that has ended. Idempotent."""
        self._waiting.pop(window, None)
        if window in self._wide:
            self._wide.discard(window)
            self._all.give_back(self._owner)

    def widen_next(self) -> bool:
        """Widen the next waiting window if that is allowed. Return True if one was widened."""
        following = next(iter(self._waiting), None)
        if following is None or not self._try_widen(following):
            return False
        del self._waiting[following]
        return True

    def _try_widen(self, window: Window) -> bool:
        if len(self._wide) >= self._most or not self._all.take(self._owner):
            return False
        self._wide.add(window)
        window.widen()
        return True


def most_wide(elements: int) -> int:
    """Return how many large windows each of `elements` elements may have.

    :returns: a number that fits into the kernel's memory for TCP; `FEWEST` if the kernel does not tell its limits.
    """
    try:
        window = int(Path("/proc/sys/net/ipv4/tcp_rmem").read_text().split()[2])
    except (OSError, ValueError, IndexError):
        return FEWEST
    return max(FEWEST, tcp_memory() // _PRESSURE // elements // window)

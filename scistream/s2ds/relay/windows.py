"""Which connections of a stream may have large receive windows.

What a connection has shown to carry, it may hold in the kernel's memory when its far end stops reading, and nothing
takes that back. So only so many of a stream may have large windows at once; the others keep small ones, which carry
less over a long distance, until one of those ends. One element has one of these for each of its streams.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

FEWEST = 4
"""Connections of a stream at an element that have large windows whatever the machine has."""

_PRESSURE = 8
"""A stream may fill one part in so many of what the kernel has for TCP without being short of it."""


class Window(Protocol):
    """A connection whose window can grow."""

    def widen(self) -> None:
        """Let as much come as the path asks for."""

    def hold(self) -> None:
        """Let more come than at first, and no more than that."""


class Windows:
    """The large receive windows of a stream at one element.

    :param most: how many there may be at once.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._wide: set[Window] = set()
        self._waiting: dict[Window, None] = {}

    def ask(self, window: Window) -> None:
        """Widen a window, now or when another one has ended. It says when it has ended itself."""
        if len(self._wide) < self._most:
            self._wide.add(window)
            window.widen()
        else:
            self._waiting[window] = None
            window.hold()

    def ended(self, window: Window) -> None:
        """A connection is over: its room is for another one. Idempotent."""
        self._waiting.pop(window, None)
        if window in self._wide:
            self._wide.discard(window)
            if self._waiting:
                following = next(iter(self._waiting))
                del self._waiting[following]
                self.ask(following)


def most_wide(elements: int) -> int:
    """How many connections of a stream may have large windows at each of so many elements.

    :returns: a number that the memory of the kernel for TCP allows; `FEWEST` where the kernel does not tell it.
    """
    try:
        pressure = int(_setting("tcp_mem")[1]) * os.sysconf("SC_PAGE_SIZE")
        window = int(_setting("tcp_rmem")[2])
    except (OSError, ValueError, IndexError):
        return FEWEST
    return max(FEWEST, pressure // _PRESSURE // elements // window)


def _setting(name: str) -> list[str]:
    return Path("/proc/sys/net/ipv4", name).read_text().split()

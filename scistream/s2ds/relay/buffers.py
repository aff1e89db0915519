"""Buffers, borrowed by a relay only while bytes are in flight: an idle connection holds none."""

from __future__ import annotations


class Buffers:
    """A pool of equal buffers of `size` bytes, of which up to `spare` unused ones are kept."""

    def __init__(self, size: int, spare: int = 64) -> None:
        self.size = size
        self._spare = spare
        self._idle: list[memoryview] = []

    def borrow(self) -> memoryview:
        """A buffer; what it holds is of no meaning."""
        return self._idle.pop() if self._idle else memoryview(bytearray(self.size))

    def give_back(self, buffer: memoryview) -> None:
        """Return what `borrow` gave."""
        if len(self._idle) < self._spare:
            self._idle.append(buffer)

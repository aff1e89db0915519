"""What a relay borrows only while bytes are in flight: buffers, and pipes for bytes that need not be looked at."""

from __future__ import annotations

import contextlib
import fcntl
import os

from scistream.s2ds.relay import openssl

LEAST_PIPE = 65536
"""Bytes: a pipe that holds less brings nothing. It is what Linux gives a user who has not too many yet."""


class Buffer:
    """Bytes.

    :ivar view: as Python has them.
    :ivar at: as OpenSSL has them: the address of the first.
    :ivar pool: where to give it back.
    """

    __slots__ = ("at", "pool", "view")

    def __init__(self, pool: Buffers, size: int) -> None:
        self.pool = pool
        self.view = memoryview(bytearray(size))
        self.at = openssl.address_of(self.view)


class Buffers:
    """A pool of equal buffers of `size` bytes, of which up to `spare` unused ones are kept."""

    __slots__ = ("_idle", "_spare", "size")

    def __init__(self, size: int, spare: int = 64) -> None:
        self.size = size
        self._spare = spare
        self._idle: list[Buffer] = []

    def borrow(self) -> Buffer:
        """A buffer; what it holds is of no meaning."""
        return self._idle.pop() if self._idle else Buffer(self, self.size)

    def give_back(self, buffer: Buffer) -> None:
        """Return what `borrow` gave."""
        if len(self._idle) < self._spare:
            self._idle.append(buffer)


class Pipe:
    """A pipe of the kernel, through which `os.splice` moves what it need not copy.

    :ivar pool: where to give it back.
    :ivar reading: the descriptor to splice from.
    :ivar writing: the descriptor to splice to.
    :ivar size: how many bytes it can hold, at most.
    :ivar held: how many it holds; kept by who has borrowed it.
    """

    __slots__ = ("held", "pool", "reading", "size", "writing")

    def __init__(self, pool: Pipes, reading: int, writing: int, size: int) -> None:
        self.pool = pool
        self.reading = reading
        self.writing = writing
        self.size = size
        self.held = 0

    def close(self) -> None:
        os.close(self.reading)
        os.close(self.writing)


class Pipes:
    """A pool of pipes for `size` bytes: at most `most` at once, of which up to `spare` unused ones are kept."""

    def __init__(self, size: int, spare: int = 16, most: int = 256) -> None:
        self.size = size
        self._spare = spare
        self._most = most
        self._lent = 0
        self._idle: list[Pipe] = []

    def borrow(self) -> Pipe | None:
        """An empty pipe, or None where the system or the limit refuses one: do without."""
        pipe = self._idle.pop() if self._idle else self._open()
        if pipe is not None:
            self._lent += 1
        return pipe

    def give_back(self, pipe: Pipe) -> None:
        """Return what `borrow` gave. What it still holds is lost, and the pipe with it."""
        self._lent -= 1
        if pipe.held or len(self._idle) >= self._spare:
            pipe.close()
        else:
            self._idle.append(pipe)

    def close(self) -> None:
        """Close what is not lent."""
        while self._idle:
            self._idle.pop().close()

    def _open(self) -> Pipe | None:
        if self._lent >= self._most:
            return None
        try:
            reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None  # no more descriptors
        with contextlib.suppress(OSError):  # it is more than a user may have, here or in all
            fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, self.size)
        pipe = Pipe(self, reading, writing, min(self.size, fcntl.fcntl(writing, fcntl.F_GETPIPE_SZ)))
        if pipe.size >= min(self.size, LEAST_PIPE):
            return pipe
        pipe.close()
        return None

"""Pools of buffers and of kernel pipes, from which relays borrow only while bytes are in flight."""

from __future__ import annotations

import contextlib
import fcntl
import os

from scistream.s2ds.relay import openssl

LEAST_PIPE = 65536
"""The least useful size of a pipe, in bytes. Linux gives a pipe this size until its user has too many of them."""


class Buffer:
    """A buffer of a pool.

    :ivar view: its bytes.
    :ivar address: the address of its bytes, for OpenSSL.
    :ivar pool: the pool to which it is returned.
    """

    __slots__ = ("address", "pool", "view")

    def __init__(self, pool: Buffers, size: int) -> None:
        self.pool = pool
        self.view = memoryview(bytearray(size))
        self.address = openssl.address_of(self.view)


class Buffers:
    """A pool of equal buffers of `size` bytes, of which up to `spare` unused ones are kept.

    :ivar idle: the unused ones.
    """

    __slots__ = ("_spare", "idle", "size")

    def __init__(self, size: int, spare: int = 64) -> None:
        self.size = size
        self._spare = spare
        self.idle: list[Buffer] = []

    def borrow(self) -> Buffer:
        """Return a buffer with undefined content."""
        return self.idle.pop() if self.idle else Buffer(self, self.size)

    def give_back(self, buffer: Buffer) -> None:
        """Take back a buffer."""
        if len(self.idle) < self._spare:
            self.idle.append(buffer)


class Pipe:
    """A pipe of the kernel, through which `os.splice` moves bytes without copying them.

    :ivar pool: the pool to which it is returned.
    :ivar reading: the descriptor to splice from.
    :ivar writing: the descriptor to splice to.
    :ivar size: the number of bytes that it can hold.
    :ivar held: the number of bytes in it, which its borrower updates.
    """

    __slots__ = ("held", "pool", "reading", "size", "writing")

    def __init__(self, pool: Pipes, reading: int, writing: int, size: int) -> None:
        self.pool = pool
        self.reading = reading
        self.writing = writing
        self.size = size
        self.held = 0

    def close(self) -> None:
        """Close both ends."""
        os.close(self.reading)
        os.close(self.writing)


class Pipes:
    """A pool of pipes for `size` bytes: up to `most` are lent at once, and up to `spare` unused ones are kept."""

    def __init__(self, size: int, spare: int = 16, most: int = 256) -> None:
        self.size = size
        self._spare = spare
        self._most = most
        self._lent = 0
        self._idle: list[Pipe] = []

    def borrow(self) -> Pipe | None:
        """Return an empty pipe, or None if too many are lent or the system refuses one."""
        pipe = self._idle.pop() if self._idle else self._open()
        if pipe is not None:
            self._lent += 1
        return pipe

    def give_back(self, pipe: Pipe) -> None:
        """Take back a pipe. If bytes are left in it, close it: they are lost."""
        self._lent -= 1
        if pipe.held or len(self._idle) >= self._spare:
            pipe.close()
        else:
            self._idle.append(pipe)

    def close(self) -> None:
        """Close the unused pipes."""
        while self._idle:
            self._idle.pop().close()

    def _open(self) -> Pipe | None:
        if self._lent >= self._most:
            return None
        try:
            reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None  # out of descriptors
        with contextlib.suppress(OSError):  # above the limit for one pipe, or for all pipes of a user
            fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, self.size)
        pipe = Pipe(self, reading, writing, min(self.size, fcntl.fcntl(writing, fcntl.F_GETPIPE_SZ)))
        if pipe.size >= min(self.size, LEAST_PIPE):
            return pipe
        pipe.close()
        return None

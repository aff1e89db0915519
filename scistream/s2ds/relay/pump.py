"""One direction of a connection: a pump reads from one leg and writes to the other.

A `Pump` copies bytes through a buffer, for any two legs. A `PlainPump` is for two plain legs: small messages go through
a buffer, and the kernel moves larger amounts through a pipe. Buffers and pipes are borrowed, and kept only while the
sink has no room.
"""

from __future__ import annotations

import os
from typing import Protocol

from twisted.logger import Logger

from scistream.protocol.messages import Cause
from scistream.s2ds.relay.buffers import Buffer, Buffers, Pipe, Pipes
from scistream.s2ds.relay.flow import Flow
from scistream.s2ds.relay.leg import EOF, WANT, ConnectionBrokenError, Leg
from scistream.s2ds.relay.plain import CannotSpliceError, PlainLeg
from scistream.s2ds.relay.poller import Poller
from scistream.s2ds.relay.tcp_info import bytes_to_send

TURN_BYTES = 256 * 1024
"""The most bytes that one direction of one connection may move before others have their turn.

A stream with a low rate has shorter turns: see `Throttle.turn`.
"""

LONG_TURN = 64 * 1024
"""A pump that has moved this many bytes in a turn waits for its next one until all messages at hand are passed on."""

PROOF_BYTES = 768 * 1024
"""The number of bytes after which the source gets a larger receive buffer.

It is more than the sockets on the way can hold, so the other end must have read some of the bytes.
"""

FIRST_WINDOW = 64 * 1024
"""The number of bytes that the kernel lets a peer send ahead at first, in a small receive buffer."""

DISTANT_PROOF_BYTES = 256 * 1024
"""The number of bytes taken by the other end after which a distant source gets a larger receive buffer.

They are as good a proof as `PROOF_BYTES` that were read here: the sockets and the buffer between hold the rest.
"""

SMALL_SPLICE = 16384
"""Below this number of bytes, a copy through a buffer is faster than a splice."""


class PumpOwner(Protocol):
    """The owner of two pumps, one for each direction."""

    over: bool
    """True once both sides are closed."""

    def broke(self, broken: ConnectionBrokenError) -> None:
        """Note that a leg has ended abnormally."""

    def reset(self, reason: str, cause: Cause) -> None:
        """Reset both sides."""

    def direction_ended(self) -> None:
        """Note that a pump has passed on the end of its direction."""

    def delivered(self) -> None:
        """Note that a pump whose source broke has written all bytes from it."""


class Pump:
    """A pump that reads from its source into a buffer, and writes the buffer to its sink."""

    __slots__ = (
        "_buffers",
        "_bytes_read",
        "_end",
        "_eof",
        "_flow",
        "_in_flight",
        "_is_queued",
        "_owner",
        "_poller",
        "_read_size",
        "_sink",
        "_source",
        "_source_broken",
        "_start",
        "_turn_bytes",
        "_waits_for_rate",
        "_was_long",
        "_window_step",
        "ended",
    )

    log = Logger()

    def __init__(self, owner: PumpOwner, poller: Poller, source: Leg, sink: Leg, flow: Flow, buffers: Buffers) -> None:
        self._owner = owner
        self._poller = poller
        self._source = source
        self._sink = sink
        self._flow = flow
        self._buffers = buffers
        self._read_size = buffers.size  # bytes per read
        self._in_flight: Buffer | Pipe | None = None
        self._start = self._end = 0  # the part of a buffer that is not written yet
        self._bytes_read = 0  # bytes read so far, counted while the source has a small window
        self._window_step = FIRST_WINDOW  # the number of bytes read after which the window may grow
        self._eof = False
        self._source_broken = False  # the source broke, so its end is not a clean end
        self._is_queued = False  # queued for its turn or for the stream's rate
        self._waits_for_rate = False
        self._turn_bytes = min(TURN_BYTES, flow.throttle.turn)
        self._was_long = False  # its last turn was a long one
        self.ended = False
        source.reader = self
        sink.writer = self

    def advance(self) -> None:
        """Move the bytes that can be moved now, up to one turn, or do so after other connections have passed on theirs.

        So a small message waits for one turn of bulk data at most, however many connections carry some.
        """
        if self._is_queued or self.ended or self._owner.over:
            if self._waits_for_rate:
                self._source.enlarge_overflowed_buffer()
            return
        if self._was_long:
            self._queue_turn()
            return
        try:
            self._was_long = self._move() >= LONG_TURN
        except ConnectionBrokenError as broken:
            if broken.leg is self._source:
                self._eof = True
            self._owner.broke(broken)
        except Exception as fault:
            self.log.failure("A pump failed")
            self._owner.reset(f"the gateway failed with {type(fault).__name__}", "gateway")

    def resume(self) -> None:
        """Take a turn after a wait."""
        self._is_queued = self._waits_for_rate = self._was_long = False
        self.advance()

    def _queue_turn(self) -> None:
        self._is_queued = True
        self._poller.queue_turn(self)

    @property
    def waits(self) -> bool:
        """True if it reads nothing for now, since its sink has no room or the stream has used up its rate."""
        return self._waits_for_rate or self._in_flight is not None

    def held(self) -> int:
        """Return how many bytes it has read and not written."""
        if self._in_flight is None:
            return 0
        return self._in_flight.held if isinstance(self._in_flight, Pipe) else self._end - self._start

    def source_broke(self) -> None:
        """Write the bytes that came before the source broke, then call `PumpOwner.delivered`."""
        self._source_broken = True
        if self.ended:
            self._owner.delivered()
        else:
            self._was_long = False
            self.advance()

    def sink_broke(self) -> None:
        """Stop, since the sink broke."""
        self.ended = True
        self.drop()

    @property
    def source(self) -> Leg:
        """The leg that it reads from."""
        return self._source

    @property
    def sink(self) -> Leg:
        """The leg that it writes to."""
        return self._sink

    def drop(self) -> None:
        """Discard the bytes that it has read and not written."""
        in_flight = self._in_flight
        if in_flight is not None:
            self._in_flight = None
            in_flight.pool.give_back(in_flight)  # type: ignore[arg-type]

    def _move(self) -> int:
        """Move bytes for one turn, and return its cost in bytes."""
        source, throttle, cost = self._source, self._flow.throttle, 0
        while self._in_flight is None or self._drain():
            if self._eof:
                self._end_direction()
                return cost
            if not source.readable:
                return cost
            if cost >= self._turn_bytes:
                self._queue_turn()
                return cost
            allowed = throttle.take(self._read_size)
            if not allowed:
                self._is_queued = self._waits_for_rate = True
                throttle.wait(self.resume)
                break
            count = WANT
            try:
                count = self._fill(allowed)
            finally:
                throttle.give_back(allowed - count if count > 0 else allowed)
            if count == WANT:
                return cost
            self._eof = count == EOF
            cost += count if count > source.read_cost else source.read_cost
            if source.has_small_window:
                self._count_read(count)
            if source.looks_empty and source.is_empty() and self._in_flight is None:
                return cost
        source.enlarge_overflowed_buffer()  # it is not read until the sink has room, or the stream a rate
        return cost

    def _count_read(self, count: int) -> None:
        self._bytes_read += count
        if self._bytes_read >= self._window_step:
            self._adapt_window()

    def _adapt_window(self) -> None:
        """Let the small receive window of the source grow as the other end takes the bytes.

        A distant sender doubles what it has on the way in each round trip. If the window stops it for some of them,
        its congestion control takes the window for the rate of the path.
        """
        source, step = self._source, self._window_step
        if step == FIRST_WINDOW and not source.find_distance():
            self._window_step = PROOF_BYTES + 1
        elif step > PROOF_BYTES:
            source.request_large_window(self._flow.windows)
        else:
            taken = self._bytes_read - self.held() - bytes_to_send(self._sink.sock)
            if taken >= DISTANT_PROOF_BYTES:
                source.request_large_window(self._flow.windows)
            elif taken >= step:
                self._window_step = 2 * step
                source.grow_window(2 * step)

    def _fill(self, allowed: int) -> int:
        """Read up to `allowed` bytes, and write what the sink takes. Return the number read, `WANT` or `EOF`."""
        buffers = self._buffers
        buffer = buffers.idle.pop() if buffers.idle else buffers.borrow()
        count = self._source.read_into(buffer, allowed)
        written = 0
        if count > 0 and self._sink.writable:
            written = self._sink.write(buffer, 0, count)
            self._flow.moved(written)
        if written < count:
            self._in_flight, self._start, self._end = buffer, written, count
        else:
            buffers.give_back(buffer)
        return count

    def _drain(self) -> bool:
        """Write the bytes in the buffer. Return False if the sink has no room for all of them."""
        buffer, sink = self._in_flight, self._sink
        assert isinstance(buffer, Buffer)
        while self._start < self._end:
            if not sink.writable:
                return False
            count = sink.write(buffer, self._start, self._end)
            self._start += count
            self._flow.moved(count)
        self.drop()
        return True

    def _end_direction(self) -> None:
        if self._source_broken:
            self.ended = True
            self._owner.delivered()
        elif self._sink.writable and self._sink.finish_writing():
            self.ended = True
            self._owner.direction_ended()


class PlainPump(Pump):
    """A pump between plain legs, whose bytes the kernel can move without a copy."""

    __slots__ = ("_can_splice", "_is_bulk", "_large_buffers", "_pipes", "_small_buffers")

    _source: PlainLeg
    _sink: PlainLeg

    def __init__(
        self,
        owner: PumpOwner,
        poller: Poller,
        source: PlainLeg,
        sink: PlainLeg,
        flow: Flow,
        buffers: Buffers,
        small_buffers: Buffers,
        pipes: Pipes,
    ) -> None:
        super().__init__(owner, poller, source, sink, flow, small_buffers)
        self._large_buffers = buffers
        self._small_buffers = small_buffers
        self._pipes = pipes
        self._is_bulk = False  # reads fill the small buffer
        self._can_splice = True  # until the system refuses to splice

    def _fill(self, allowed: int) -> int:
        count = self._splice(allowed) if self._is_bulk and self._can_splice else None
        if count is None:
            count = super()._fill(min(allowed, self._buffers.size))
        if self._is_bulk:
            if 0 < count < SMALL_SPLICE:
                self._switch(bulk=False)
        elif count == self._small_buffers.size:
            self._switch(bulk=True)
        return count

    def _switch(self, *, bulk: bool) -> None:
        self._is_bulk = bulk
        self._buffers = self._large_buffers if bulk else self._small_buffers
        self._read_size = self._pipes.size if bulk else self._small_buffers.size

    def _splice(self, allowed: int) -> int | None:
        """Move up to `allowed` bytes into a borrowed pipe. Return as `_fill` does, or None if that is not possible."""
        pipe = self._pipes.borrow() if not self._source.is_urgent else None
        if pipe is None:
            return None
        count = WANT
        try:
            count = self._source.splice_to(pipe, min(allowed, pipe.size))
        except CannotSpliceError:
            self._can_splice = False
            return None
        finally:
            if count > 0:
                self._in_flight = pipe
            else:
                self._pipes.give_back(pipe)
        return count

    def _drain(self) -> bool:
        pipe = self._in_flight
        if not isinstance(pipe, Pipe):
            return super()._drain()
        sink = self._sink
        try:
            while pipe.held:
                if not sink.writable:
                    self._top_up(pipe)
                    return False
                self._flow.moved(sink.splice_from(pipe))
        except CannotSpliceError:
            self._can_splice = False
            self._copy_to_buffer(pipe)
            return self._drain()
        self.drop()
        return True

    def _top_up(self, pipe: Pipe) -> None:
        """Read more into the pipe while the sink has no room."""
        if self._eof or not self._source.readable or self._source.is_urgent or pipe.held >= pipe.size:
            return
        throttle = self._flow.throttle
        allowed = throttle.take(pipe.size - pipe.held)
        if not allowed:
            return
        count = WANT
        try:
            count = self._source.splice_to(pipe, allowed)
        finally:
            throttle.give_back(allowed - max(count, 0))
        self._eof = count == EOF

    def _copy_to_buffer(self, pipe: Pipe) -> None:
        """Copy the bytes in a pipe into a buffer."""
        buffer, end = Buffers(pipe.held, spare=0).borrow(), pipe.held  # no pool: this happens once for a pump
        while pipe.held:
            pipe.held -= os.readv(pipe.reading, [buffer.view[end - pipe.held : end]])
        self._pipes.give_back(pipe)
        self._in_flight, self._start, self._end = buffer, 0, end

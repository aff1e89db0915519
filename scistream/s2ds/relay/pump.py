"""One direction of a connection: what comes on one leg goes out on the other.

`Pump` carries bytes in a buffer, whatever the legs are. `PlainPump` is for two plain legs: little messages go
through a buffer as well, and where more comes than fits into it the kernel moves the bytes through a pipe.
What a pump holds it has borrowed, and it holds something only while the far end has no room for it.
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

TURN = 1024 * 1024
"""Bytes that one direction of one connection may move before others have their turn."""

PROOF = 768 * 1024
"""Bytes that have to go through before the source's socket takes in more than little: what a far end that does not read
leaves in sockets on the way is less."""

LITTLE = 16384
"""What the kernel moves at once, if it is less than this, would have been quicker through a buffer."""


class Joint(Protocol):
    """What has two pumps."""

    over: bool

    def broke(self, broken: ConnectionBrokenError) -> None:
        """A leg has ended abnormally."""

    def reset(self, reason: str, cause: Cause) -> None:
        """End both sides with a reset."""

    def direction_ended(self) -> None:
        """A pump has passed on the end of its direction."""

    def delivered(self) -> None:
        """A pump whose source broke has passed on all that came from it."""


class Pump:
    """Fill a buffer from the source, empty it into the sink, and so on."""

    __slots__ = (
        "_buffers",
        "_cargo",
        "_end",
        "_eof",
        "_flow",
        "_is_cut",
        "_joint",
        "_most",
        "_passed",
        "_poller",
        "_sink",
        "_source",
        "_start",
        "_waits",
        "ended",
    )

    log = Logger()

    def __init__(self, joint: Joint, poller: Poller, source: Leg, sink: Leg, flow: Flow, buffers: Buffers) -> None:
        self._joint = joint
        self._poller = poller
        self._source = source
        self._sink = sink
        self._flow = flow
        self._buffers = buffers
        self._most = buffers.size  # bytes to ask for at once
        self._cargo: Buffer | Pipe | None = None
        self._start = self._end = 0  # which part of it is still to be written
        self._passed = 0  # bytes that were read, counted up to PROOF
        self._eof = False
        self._is_cut = False  # the source broke: at its end is no clean end
        self._waits = False  # in a queue, for its turn or for the stream's rate
        self.ended = False
        source.reader = self
        sink.writer = self

    def turn(self) -> None:
        """Move what can be moved now, up to a limit."""
        if self._waits or self.ended or self._joint.over:
            return
        try:
            self._move()
        except ConnectionBrokenError as broken:
            if broken.leg is self._source:
                self._eof = True
            self._joint.broke(broken)
        except Exception as fault:
            self.log.failure("A relay failed")
            self._joint.reset(f"it failed here: {type(fault).__name__}", "gateway")

    def go_on(self) -> None:
        """It has waited long enough."""
        self._waits = False
        self.turn()

    def held(self) -> int:
        """How many bytes it has read and not written."""
        if self._cargo is None:
            return 0
        return self._cargo.held if isinstance(self._cargo, Pipe) else self._end - self._start

    def source_broke(self) -> None:
        """Pass on what came before the source broke, and tell the joint when that is done."""
        self._is_cut = True
        if self.ended:
            self._joint.delivered()
        else:
            self.turn()

    def sink_broke(self) -> None:
        """Pass on nothing more."""
        self.ended = True
        self.drop()

    @property
    def source(self) -> Leg:
        """Where it reads."""
        return self._source

    @property
    def sink(self) -> Leg:
        """Where it writes."""
        return self._sink

    def drop(self) -> None:
        """Let go of what was in flight."""
        cargo = self._cargo
        if cargo is not None:
            self._cargo = None
            cargo.pool.give_back(cargo)  # type: ignore[arg-type]

    def _move(self) -> None:
        source, throttle, left = self._source, self._flow.throttle, TURN
        while self._cargo is None or self._empty():
            if self._eof:
                self._end_direction()
                return
            if not source.readable:
                return
            if left <= 0:
                self._waits = True
                self._poller.again(self)
                return
            allowed = throttle.take(self._most)
            if not allowed:
                self._waits = True
                throttle.wait(self.go_on)
                return
            count = WANT
            try:
                count = self._fill(allowed)
            finally:
                throttle.give_back(allowed - count if count > 0 else allowed)
            if count == WANT:
                return
            self._eof = count == EOF
            left -= max(count, source.work)
            if source.is_modest:
                self._count(count)

    def _count(self, count: int) -> None:
        self._passed += count
        if self._passed > PROOF:
            self._source.proven(self._flow.windows)

    def _fill(self, allowed: int) -> int:
        """Read up to so many bytes, and write what goes at once: how many came, `WANT` or `EOF`."""
        buffer = self._buffers.borrow()
        count = self._source.read_into(buffer, allowed)
        written = 0
        if count > 0 and self._sink.writable:
            written = self._sink.write(buffer, 0, count)
            self._flow.moved(written)
        if written < count:
            self._cargo, self._start, self._end = buffer, written, count
        else:
            self._buffers.give_back(buffer)
        return count

    def _empty(self) -> bool:
        """Write what is held; False when the sink has no more room."""
        buffer, sink = self._cargo, self._sink
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
        if self._is_cut:
            self.ended = True
            self._joint.delivered()
        elif self._sink.writable and self._sink.finish_writing():
            self.ended = True
            self._joint.direction_ended()


class PlainPump(Pump):
    """The same between plain legs, where the kernel can move what need not be looked at."""

    __slots__ = ("_big", "_is_bulk", "_little", "_pipes", "_splices")

    _source: PlainLeg
    _sink: PlainLeg

    def __init__(
        self,
        joint: Joint,
        poller: Poller,
        source: PlainLeg,
        sink: PlainLeg,
        flow: Flow,
        buffers: Buffers,
        little: Buffers,
        pipes: Pipes,
    ) -> None:
        super().__init__(joint, poller, source, sink, flow, little)
        self._big = buffers
        self._little = little
        self._pipes = pipes
        self._is_bulk = False  # more comes than fits into a little buffer
        self._splices = True  # until the system refuses

    def _fill(self, allowed: int) -> int:
        count = self._splice(allowed) if self._is_bulk and self._splices else None
        if count is None:
            count = super()._fill(min(allowed, self._buffers.size))
        if self._is_bulk:
            if 0 < count < LITTLE:
                self._expect(bulk=False)
        elif count == self._little.size:
            self._expect(bulk=True)
        return count

    def _expect(self, *, bulk: bool) -> None:
        self._is_bulk = bulk
        self._buffers = self._big if bulk else self._little
        self._most = self._pipes.size if bulk else self._little.size

    def _splice(self, allowed: int) -> int | None:
        """Move so many bytes into a pipe of one's own: as `_fill`, or None where that cannot be."""
        pipe = self._pipes.borrow() if not self._source.is_urgent else None
        if pipe is None:
            return None
        count = WANT
        try:
            count = self._source.splice_to(pipe, min(allowed, pipe.size))
        except CannotSpliceError:
            self._splices = False
            return None
        finally:
            if count > 0:
                self._cargo = pipe
            else:
                self._pipes.give_back(pipe)
        return count

    def _empty(self) -> bool:
        pipe = self._cargo
        if not isinstance(pipe, Pipe):
            return super()._empty()
        sink = self._sink
        try:
            while pipe.held:
                if not sink.writable:
                    self._top_up(pipe)
                    return False
                self._flow.moved(sink.splice_from(pipe))
        except CannotSpliceError:
            self._splices = False
            self._pour(pipe)
            return self._empty()
        self.drop()
        return True

    def _top_up(self, pipe: Pipe) -> None:
        """Let the source go on while the sink does not: there is room in the pipe."""
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

    def _pour(self, pipe: Pipe) -> None:
        """Take what a pipe holds into a buffer."""
        buffer, end = Buffers(pipe.held, spare=0).borrow(), pipe.held  # it happens once
        while pipe.held:
            pipe.held -= os.readv(pipe.reading, [buffer.view[end - pipe.held : end]])
        self._pipes.give_back(pipe)
        self._cargo, self._start, self._end = buffer, 0, end

"""A receive buffer that nobody reads, and for whose packets the kernel has guessed too little memory."""

from __future__ import annotations

import fcntl
import socket
import struct
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock

from scistream.s2ds.relay import leg
from scistream.s2ds.relay.buffers import Buffers
from scistream.s2ds.relay.flow import Flow
from scistream.s2ds.relay.leg import MOST_ENLARGEMENTS, ReceiveMemory, prepare
from scistream.s2ds.relay.plain import PlainLeg
from scistream.s2ds.relay.poller import Poller
from scistream.s2ds.relay.pump import FIRST_WINDOW, Pump
from scistream.s2ds.relay.receive_windows import Windows
from scistream.s2ds.relay.throttle import Throttle
from scistream.s2ds.relay.token_bucket import TokenBucket
from support.applications import MIB, NOISE
from support.waiting import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="gateways run on Linux")

RECORD = 16406
LAST = 700
"""A short packet: the sender acknowledges from its end even if it is beyond the window."""


class Owner:
    """The owner of the legs and the pump, and the detector of dead peers."""

    over = False

    def __getattr__(self, _name: str) -> Any:
        return lambda *_: None


class Tap(Throttle):
    """The rate of a stream, of which nothing is left once the tap is closed."""

    is_closed = False

    def take(self, wanted: int) -> int:
        return 0 if self.is_closed else super().take(wanted)


class UsualSocket:
    """A socket of a system on which net.core.rmem_max has its usual value."""

    MOST = 212_992

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def setsockopt(self, level: int, option: int, value: int) -> None:
        if (level, option) == (socket.SOL_SOCKET, socket.SO_RCVBUF):
            value = min(value, self.MOST)
        self._sock.setsockopt(level, option, value)


class Line:
    """An application at one end of a pump, and a socket with little room at the other."""

    def __init__(self, opened: ExitStack) -> None:
        owner: Any = Owner()
        self.poller = Poller(MemoryReactorClock())
        with closing(socket.create_server(("127.0.0.1", 0))) as listener:
            self.app = opened.enter_context(closing(socket.create_connection(listener.getsockname(), timeout=10)))
            near = listener.accept()[0]
        far, self.reader = socket.socketpair()
        opened.enter_context(closing(self.reader))
        for sock in (self.app, near):
            prepare(sock, 60.0)
        for sock in (far, self.reader):
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, RECORD)
        self.source, self.sink = (
            PlainLeg(self.poller, sock, owner, owner, "a peer", wan=False) for sock in (near, far)
        )
        opened.callback(self.sink.abort)
        opened.callback(self.source.abort)
        self.tap = Tap(Clock(), TokenBucket(1e6, time.monotonic))
        flow = Flow(self.tap, Windows(1).of_stream(""), memoryview(bytearray(8)).cast("Q"), 0)
        self.pump = Pump(owner, self.poller, self.source, self.sink, flow, Buffers(65536))

    def memory(self) -> ReceiveMemory:
        """Return the memory of the source's receive buffer."""
        return ReceiveMemory.of(self.source.sock)

    def unacknowledged(self) -> int:
        """Return how many bytes of the application have not arrived."""
        return int(struct.unpack("i", fcntl.ioctl(self.app.fileno(), termios.TIOCOUTQ, bytes(4)))[0])

    def send(self, count: int) -> bool:
        """Let the application send so many bytes. Return True once they have arrived, False if they were dropped."""
        dropped = self.memory().dropped
        assert self.app.send(bytes(count)) == count
        until(lambda: not self.unacknowledged() or self.memory().dropped != dropped, self.memory)
        return not self.unacknowledged()

    def pass_on(self) -> None:
        """Pass a few records through the pump, so that the kernel has seen what packets need."""
        for _ in range(20):
            self.app.send(bytes(RECORD))
            self._left = RECORD
            until(self._is_passed, lambda: f"{self._left} bytes are left")

    def _is_passed(self) -> bool:
        self.poller.doRead()
        with suppress(BlockingIOError):
            self._left -= len(self.reader.recv(RECORD))
        return not self._left

    def overflow(self) -> None:
        """Fill the receive buffer while nothing is passed on, until the kernel drops a packet within the window."""
        while not self.pump.waits:
            self.send(RECORD)
            self.poller.doRead()
        guessed = self.memory().size
        self.source.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, guessed * 2 // 5)  # less than the window needs
        while self.memory().used <= self.memory().size:
            self.send(RECORD // 2)
        while self.send(LAST):
            pass


@pytest.fixture
def line() -> Iterator[Line]:
    with ExitStack() as opened:
        yield Line(opened)


@pytest.mark.parametrize("lacks", ["room", "rate"])
def test_what_nobody_reads_does_not_block_the_other_direction(line: Line, lacks: str) -> None:
    line.pass_on()
    line.tap.is_closed = lacks == "rate"
    line.overflow()
    overflowed = line.memory().size
    line.poller.doRead()
    assert line.memory().size > overflowed
    assert bool(line.pump.held()) == (lacks == "room")
    data, came = memoryview(NOISE[: 4 * MIB]), bytearray()
    sent = 0

    def all_came() -> bool:
        nonlocal sent
        with suppress(BlockingIOError):
            sent += line.source.sock.send(data[sent:])
        with suppress(BlockingIOError):
            came.extend(line.app.recv(MIB))
        return len(came) == len(data)

    until(all_came, lambda: f"{len(came)} of {sent} bytes came, {line.memory()}", 10.0)
    assert sha256(came).digest() == sha256(data).digest()


def test_a_buffer_is_enlarged_only_when_packets_were_dropped_since_it_was_full_and_not_without_end(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leg.ReceiveMemory, "of", lambda _sock: memory)
    sizes = [buffer_size(line)]
    for used, dropped in [(0, 3), (sizes[0] + 1, 3), (sizes[0] + 1, 4), (sizes[0] + 1, 4), (2 * sizes[0], 5), (9e9, 6)]:
        memory = ReceiveMemory(int(used), buffer_size(line), dropped)
        line.source.enlarge_overflowed_buffer()
        sizes.append(buffer_size(line))
    first = sizes[0]
    most = 2 * int(Path("/proc/sys/net/core/rmem_max").read_text())
    second, third = min(first * 3 // 2, most), min(first * 9 // 4, most)
    assert sizes == [first, first, first, second, second, third, third]
    assert len(set(sizes)) == 1 + MOST_ENLARGEMENTS


def test_a_buffer_that_overflowed_before_or_while_the_rate_was_used_up_is_enlarged(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropped = count(1)
    monkeypatch.setattr(
        leg.ReceiveMemory, "of", lambda _sock: ReceiveMemory(int(9e9), buffer_size(line), next(dropped))
    )
    line.tap.is_closed = True
    sizes = [buffer_size(line)]
    for _ in range(2):
        line.pump.advance()
        assert line.pump.waits
        sizes.append(buffer_size(line))
    assert sizes[0] < sizes[1] < sizes[2]


@pytest.mark.parametrize("is_distant", [False, True])
def test_a_window_that_was_promised_is_not_withdrawn(
    line: Line, monkeypatch: pytest.MonkeyPatch, *, is_distant: bool
) -> None:
    source, sizes = line.source, [buffer_size(line)]
    source._is_distant = is_distant

    def overflow() -> None:
        for dropped in range(1, MOST_ENLARGEMENTS + 1):
            memory = ReceiveMemory(int(9e9), buffer_size(line), source._dropped + dropped)
            monkeypatch.setattr(leg.ReceiveMemory, "of", lambda _sock, memory=memory: memory)
            source.enlarge_overflowed_buffer()

    for step in (
        overflow,
        lambda: source.grow_window(2 * FIRST_WINDOW),
        lambda: source.grow_window(4 * FIRST_WINDOW),
        overflow,
        source.hold,
        overflow,
        source.widen,
    ):
        step()
        sizes.append(buffer_size(line))
    assert sizes == sorted(sizes)
    assert len(set(sizes)) > 3


@pytest.mark.parametrize("is_distant", [False, True])
def test_where_the_system_allows_little_a_connection_gets_all_of_it(line: Line, *, is_distant: bool) -> None:
    source = line.source
    source._sock = UsualSocket(source.sock)  # type: ignore[assignment]
    source._is_distant = is_distant
    source.grow_window(4 * FIRST_WINDOW)
    assert buffer_size(line) == 2 * UsualSocket.MOST
    source.hold()
    assert buffer_size(line) == 2 * UsualSocket.MOST


def buffer_size(line: Line) -> int:
    """Return the size of the source's receive buffer."""
    return line.source.sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)

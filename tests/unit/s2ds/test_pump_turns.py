"""The turns of pumps: bulk data waits until the small messages at hand are passed on."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from hashlib import sha256
from typing import Any

import pytest
from twisted.internet.task import Clock

from scistream.s2ds.relay import pump
from scistream.s2ds.relay.buffers import Buffers
from scistream.s2ds.relay.flow import Flow
from scistream.s2ds.relay.leg import Leg
from scistream.s2ds.relay.plain import PlainLeg
from scistream.s2ds.relay.pump import Pump
from scistream.s2ds.relay.receive_windows import Windows
from scistream.s2ds.relay.throttle import Throttle
from scistream.s2ds.relay.token_bucket import BYTES_PER_MBIT, TokenBucket
from support.applications import MIB, NOISE

TURN = 32768
LONG = 8192


class Owner:
    """The owner, poller and detector of dead peers of one pump."""

    over = False

    def __init__(self) -> None:
        self.queued: list[Pump] = []

    def queue_turn(self, waiting: Pump) -> None:
        self.queued.append(waiting)

    def __getattr__(self, _name: str) -> Any:
        return lambda *_: None


class Line:
    """A pump between two sockets, and the applications at both ends."""

    def __init__(self, opened: ExitStack, rate: float) -> None:
        self.owner: Any = Owner()
        self.sender, near = socket.socketpair()
        far, self.receiver = socket.socketpair()
        for sock in (self.sender, near, far, self.receiver):
            opened.enter_context(closing(sock))
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * TURN)
        self.source, sink = (self._leg(sock) for sock in (near, far))
        flow = Flow(
            Throttle(Clock(), TokenBucket(rate, time.monotonic)),
            Windows(1).of_stream(""),
            memoryview(bytearray(8)).cast("Q"),
            0,
        )
        self.pump = Pump(self.owner, self.owner, self.source, sink, flow, Buffers(8192))

    def _leg(self, sock: socket.socket) -> Leg:
        leg = PlainLeg(self.owner, sock, self.owner, self.owner, "a peer", wan=False)
        leg.has_small_window = False  # these sockets have no windows
        return leg

    def send(self, data: bytes) -> None:
        """Send, and let the pump's source become readable."""
        assert self.sender.send(data) == len(data)
        self.source.event(select.EPOLLIN)

    def received(self) -> bytes:
        """Return what has arrived so far."""
        data = b""
        with suppress(BlockingIOError):
            while part := self.receiver.recv(MIB):
                data += part
        return data


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[ExitStack]:
    monkeypatch.setattr(pump, "TURN_BYTES", TURN)
    monkeypatch.setattr(pump, "LONG_TURN", LONG)
    with ExitStack() as opened:
        yield opened


def test_bulk_data_moves_one_turn_at_a_time_and_waits_for_the_next_even_when_more_arrives(opened: ExitStack) -> None:
    line, bulk = Line(opened, 1e5), NOISE[: 2 * TURN + LONG]
    line.send(bulk)
    assert line.owner.queued == [line.pump]
    got = line.received()
    assert len(got) == TURN
    line.send(b"more")
    assert (line.owner.queued, line.received()) == ([line.pump], b"")
    while line.owner.queued:
        line.owner.queued.pop().resume()
        got += line.received()
    assert sha256(got).digest() == sha256(bulk + b"more").digest()


def test_a_pump_whose_last_turn_was_long_lets_others_pass_first_and_one_with_small_messages_does_not(
    opened: ExitStack,
) -> None:
    line = Line(opened, 1e5)
    line.send(b"small")
    assert (line.owner.queued, line.received()) == ([], b"small")
    line.send(NOISE[:LONG])
    assert (line.owner.queued, line.received()) == ([], NOISE[:LONG])
    line.send(b"next")
    assert (line.owner.queued, line.received()) == ([line.pump], b"")
    line.owner.queued.pop().resume()
    assert line.received() == b"next"
    line.send(b"small again")
    assert (line.owner.queued, line.received()) == ([], b"small again")


@pytest.mark.parametrize("rate", [4.0, 20.0, 40.0])
def test_a_turn_is_a_few_milliseconds_of_the_rate(opened: ExitStack, rate: float) -> None:
    line = Line(opened, rate)
    line.send(NOISE[: 2 * TURN])
    assert len(line.received()) <= 0.005 * rate * BYTES_PER_MBIT

"""What a small message costs at a gateway, stage by stage: ``python -m bench.stages``.

A message crosses each gateway twice in a round trip: from plain TCP to TLS, and from TLS to plain TCP. Each stage is
measured by itself, with the objects of a real relay on loopback sockets. A stage is repeated in short batches and the
best batch counts, since other programs on the machine can only slow a batch down.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import click
from twisted.internet.task import Clock

from bench.load import TRIP
from scistream.protocol.messages import CONS, PROD
from scistream.s2ds.elements.shared_figures import SharedFigures
from scistream.s2ds.relay.buffers import Buffers
from scistream.s2ds.relay.flow import Flow
from scistream.s2ds.relay.leg import Leg, prepare
from scistream.s2ds.relay.plain import PlainLeg
from scistream.s2ds.relay.pump import Pump
from scistream.s2ds.relay.receive_windows import Windows
from scistream.s2ds.relay.throttle import Throttle
from scistream.s2ds.relay.tls import TlsLeg, tune
from scistream.s2ds.relay.token_bucket import TokenBucket
from scistream.s2uc.stream_certificates import issue_credentials
from scistream.tls.stream_channels import StreamSecret, server_name

BATCH = 200
BATCHES = 60
BUFFER = 256 * 1024
ELEMENTS = 2
RATE = 10_000.0
"""The rate of the stream in Mbit/s."""
PASSES = 2
"""How often a round trip crosses a gateway in each of the two ways."""
HOPS = 6
"""Processes that a round trip wakes: four times a gateway, and each application once."""


@dataclass(frozen=True)
class Stage:
    """One line of the table.

    :param times: how often it occurs.
    :param seconds: for one.
    """

    name: str
    times: int
    seconds: float


class _Owner:
    """Takes the place of a relay, its poller, and its detector of dead peers."""

    over = False

    def __getattr__(self, _name: str) -> Any:
        return lambda *_: None


def best(step: Callable[[], float]) -> float:
    """Return the seconds that a step takes, as it measures by itself: the median of the best batch."""
    batches = [sorted(step() for _ in range(BATCH))[BATCH // 2] for _ in range(BATCHES)]
    return min(batches)


def pair() -> tuple[socket.socket, socket.socket]:
    """Return both ends of a connection over loopback, prepared as a relay's sockets are."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        ends = socket.create_connection(listener.getsockname()), listener.accept()[0]
    for end in ends:
        prepare(end, 60.0)
    return ends


def tls_pair(owner: Any) -> tuple[TlsLeg, TlsLeg]:
    """Return both ends of a connection over the WAN, after the handshake."""
    uid = str(uuid4())
    secrets = {role: StreamSecret() for role in (PROD, CONS)}
    bundles = issue_credentials(uid, 1, 600.0, {role: secret.csr for role, secret in secrets.items()})
    legs = []
    for role, sock in zip((CONS, PROD), pair(), strict=True):
        context = secrets[role].credentials(bundles[role], uid, role).context()
        tune(context)
        name = server_name(uid, 0) if role == CONS else None
        legs.append(TlsLeg(owner, sock, owner, owner, "the other gateway", context, name))
    done: list[None] = []
    for leg in legs:
        leg.handshake(Clock(), 10.0).addCallback(done.append)
    while len(done) < len(legs):
        for leg in legs:
            if leg.reader is not None:
                leg.readable = leg.writable = True
                leg.reader.advance()
    return legs[0], legs[1]


def timed(action: Callable[[], object], before: Callable[[], object] = lambda: None) -> Callable[[], float]:
    """Return a step that measures `action` after `before`."""

    def step() -> float:
        before()
        began = time.perf_counter_ns()
        action()
        return (time.perf_counter_ns() - began) * 1e-9

    return step


def drained(sock: socket.socket) -> None:
    """Read what has arrived."""
    try:
        while sock.recv(65536):
            pass
    except BlockingIOError:
        pass


class Bench:
    """The legs and pumps of one gateway."""

    def __init__(self) -> None:
        owner: Any = _Owner()
        self.app, near = pair()
        self.far, wan = tls_pair(owner)
        self.lan_leg = PlainLeg(owner, near, owner, owner, "ConsApp", wan=False)
        self.wan_leg = wan
        self.buffers = Buffers(BUFFER)
        self.buffer = self.buffers.borrow()
        self.buffer.view[: len(TRIP)] = TRIP
        self._figures = SharedFigures.create(1, ELEMENTS)
        tokens = self._figures.tokens(0, 0)
        throttle = Throttle(Clock(), TokenBucket(RATE, time.monotonic, tokens, buckets=ELEMENTS))
        flow = Flow(throttle, Windows(4).of_stream(""), memoryview(bytearray(16)).cast("Q"), 0)
        self.out = Pump(owner, owner, self.lan_leg, self.wan_leg, flow, self.buffers)
        self.back = Pump(owner, owner, self.wan_leg, self.lan_leg, flow, self.buffers)

    def close(self) -> None:
        """Close all sockets."""
        for sock in (self.app, self.lan_leg.sock, self.far.sock, self.wan_leg.sock):
            sock.close()
        self._figures.close()

    def send_from_app(self) -> None:
        """Let a message arrive on the side of the application, and read at the far gateway what was sent before."""
        self.drop_at_far()
        self.app.send(TRIP)

    def drop_at_far(self) -> None:
        """Read at the far gateway what was sent."""
        drained(self.far.sock)

    def drop_at_app(self) -> None:
        """Read at the application what was sent."""
        drained(self.app)

    def send_from_far(self) -> None:
        """Let a message arrive over the WAN, and read at the application what was sent before."""
        self.drop_at_app()
        self.far.write(self.buffer, 0, len(TRIP))

    def read_plain(self) -> None:
        """Read a message from the application."""
        self.lan_leg.read_into(self.buffer, BUFFER)

    def read_tls(self) -> None:
        """Read a message from the WAN."""
        self.wan_leg.is_first = True
        self.wan_leg.read_into(self.buffer, BUFFER)

    def write_plain(self) -> None:
        """Write a message to the application."""
        self.lan_leg.write(self.buffer, 0, len(TRIP))

    def write_tls(self) -> None:
        """Write a message to the WAN."""
        self.wan_leg.write(self.buffer, 0, len(TRIP))


def hop() -> float:
    """Return the seconds from a write in one process to the end of the read in another, which epoll has woken."""
    ours, theirs = pair()
    child = os.fork()
    if not child:
        _echo(theirs)
        os._exit(0)
    with closing(ours), closing(theirs), select.epoll() as poll:
        poll.register(ours, select.EPOLLIN | select.EPOLLET)

        def trip() -> None:
            ours.send(TRIP)
            poll.poll()
            ours.recv(65536)

        seconds = best(timed(trip)) / 2
        ours.shutdown(socket.SHUT_WR)
        os.waitpid(child, 0)
    return seconds


def _echo(sock: socket.socket) -> None:
    with select.epoll() as poll:
        poll.register(sock, select.EPOLLIN | select.EPOLLET)
        while True:
            poll.poll()
            data = sock.recv(65536)
            if not data:
                return
            sock.send(data)


def stages() -> Sequence[Stage]:
    """Measure all stages."""
    bench = Bench()
    with closing(bench):
        read_plain = best(timed(bench.read_plain, bench.send_from_app))
        write_tls = best(timed(bench.write_tls, bench.drop_at_far))
        read_tls = best(timed(bench.read_tls, bench.send_from_far))
        question = best(timed(bench.wan_leg.is_empty))
        write_plain = best(timed(bench.write_plain, bench.drop_at_app))
        out = best(timed(lambda: _arrived(bench.lan_leg), bench.send_from_app))
        back = best(timed(lambda: _arrived(bench.wan_leg), bench.send_from_far))
    return [
        Stage("write, wake-up and read of the next process (plain TCP)", HOPS, hop()),
        Stage("encryption", PASSES, max(0.0, write_tls - write_plain)),
        Stage("decryption, with a read for the header of the record", PASSES, max(0.0, read_tls - read_plain)),
        Stage("the question whether more has arrived over the WAN", PASSES, question),
        Stage("the gateway's own steps, from plain TCP to TLS", PASSES, max(0.0, out - read_plain - write_tls)),
        Stage(
            "the gateway's own steps, from TLS to plain TCP", PASSES, max(0.0, back - read_tls - question - write_plain)
        ),
    ]


def _arrived(leg: Leg) -> None:
    leg.event(select.EPOLLIN)


def show(stages: Sequence[Stage], of: str) -> None:
    """Print a table of stages, in microseconds.

    :param of: the heading of the last column, whose sum is the last line.
    """
    width = max(len(stage.name) for stage in stages)
    click.echo(f"{'stage':{width}}  {'us each':>8}  {'times':>5}  {of}")
    for stage in stages:
        each = stage.seconds * 1e6
        click.echo(f"{stage.name:{width}}  {each:8.1f}  {stage.times:5}  {each * stage.times:{len(of)}.1f}")
    total = sum(stage.seconds * stage.times for stage in stages) * 1e6
    click.echo(f"{'all':{width}}  {'':8}  {'':5}  {total:{len(of)}.1f}")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Print what a message of 64 bytes costs by stage, in microseconds."""
    show(stages(), "us in a round trip")


if __name__ == "__main__":
    main()

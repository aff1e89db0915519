"""ZeroMQ over a stream: the producer's socket binds, the consumer's connects, and no message is lost on the way.

With its high-water marks at 0 ZeroMQ itself drops nothing, so that a gap would be ours.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from harness import World

from support.applications import noise
from support.facilities import HOST
from support.requirements import needs_module
from support.waiting import PATIENCE

pytestmark = pytest.mark.usefixtures("nothing_left")

COUNT = 10_000
NOISE = noise(4096)


@contextmanager
def sockets(binding: str, connecting: str) -> Iterator[tuple[Any, Any, str]]:
    """Two unconnected sockets of these types, the first bound, and where that is."""
    zmq = needs_module("zmq")
    context = zmq.Context()
    try:
        ends = []
        for kind in (binding, connecting):
            ends.append(context.socket(getattr(zmq, kind)))
            ends[-1].set_hwm(0)
            ends[-1].setsockopt(zmq.LINGER, 0)
            ends[-1].setsockopt(zmq.RCVTIMEO, int(PATIENCE * 1000))
        port = ends[0].bind_to_random_port(f"tcp://{HOST}")
        yield ends[0], ends[1], f"{HOST}:{port}"
    finally:
        context.destroy()


def message(number: int) -> bytes:
    """Return a message: its number, followed by a part of the noise."""
    return number.to_bytes(8, "big") + NOISE[: number * 37 % len(NOISE)]


def send_all(sender: Any) -> str:
    digest = hashlib.sha256()
    for number in range(COUNT):
        sender.send(message(number))
        digest.update(message(number))
    return digest.hexdigest()


def receive_all(receiver: Any) -> str:
    digest = hashlib.sha256()
    for number in range(COUNT):
        got = receiver.recv()
        assert int.from_bytes(got[:8], "big") == number
        digest.update(got)
    return digest.hexdigest()


def test_ten_thousand_pushed_messages_are_pulled_in_order(world: World) -> None:
    with sockets("PUSH", "PULL") as (push, pull, where), world.stream([where]) as stream:
        pull.connect(f"tcp://{stream.listeners[0]}")
        assert send_all(push) == receive_all(pull)
        pull.close()


def test_a_subscriber_that_has_joined_gets_ten_thousand_published_messages_in_order(world: World) -> None:
    # XPUB is PUB that can be asked who has subscribed.
    with sockets("XPUB", "SUB") as (publisher, subscriber, where), world.stream([where]) as stream:
        subscriber.setsockopt(needs_module("zmq").SUBSCRIBE, b"")
        subscriber.connect(f"tcp://{stream.listeners[0]}")
        assert publisher.recv() == b"\x01"
        assert send_all(publisher) == receive_all(subscriber)
        subscriber.close()

"""Connections whose consumer does not read: how little of the kernel's memory the gateways keep for them."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
from collections.abc import Callable
from contextlib import ExitStack, closing
from hashlib import sha256

from gateways import MIB, NOISE, Make, Stream, both, receive, sleep
from harness import PATIENCE, World, accept, address_of, listen, receive_exactly, until

_SO_MEMINFO = 55
_OF_A_SOCKET = struct.Struct("@9I")
"""Received, and its limit; sent, and its limit; held for more; waiting to be sent; and others: bytes of the kernel."""

STALLED = 50
MOST_OF_ONE = 2 * MIB
"""Of the kernel's memory at both gateways together."""


def kernel_memory(sock: socket.socket) -> int:
    """Bytes that the kernel keeps for a socket."""
    told = _OF_A_SOCKET.unpack(sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _OF_A_SOCKET.size))
    return told[0] + told[4] + told[5]


def held(stream: Stream) -> int:
    """The same for all sockets of both gateways."""
    legs = [leg for side in (stream.prod, stream.cons) for relay in side.relays() for leg in relay._legs]
    return sum(kernel_memory(leg.sock) for leg in legs)


async def test_a_stalled_connection_keeps_little_memory_and_loses_no_byte(make: Make) -> None:
    stream = make()
    pairs = [await stream.pair() for _ in range(STALLED)]
    sent = dict.fromkeys((producer for _, producer in pairs), 0)
    quiet = 0
    while quiet < 20:  # until nothing goes in any more; the gateways have bounds, or this ends with the machine's
        before = sum(sent.values())
        for _, producer in pairs:
            producer.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                sent[producer] += producer.send(memoryview(NOISE)[sent[producer] % MIB :])
        quiet = quiet + 1 if sum(sent.values()) == before else 0
        await sleep(0.02)
    assert held(stream) < STALLED * MOST_OF_ONE, f"{held(stream) / STALLED / MIB:.1f} MiB each"
    for consumer, producer in pairs:
        producer.shutdown(socket.SHUT_WR)
        count, digest = (await both(lambda sock=consumer: receive(sock)))[0]
        assert count == sent[producer]
        assert digest == sha256(NOISE * (count // MIB) + NOISE[: count % MIB]).hexdigest()


PLACES = 30


def test_a_stream_leaves_as_many_connections_to_others_as_it_has_and_its_user_learns_why(
    fresh_world: Callable[..., World],
) -> None:
    world = fresh_world(centre={"gateway": {"limits": {"connections": PLACES}}})
    with (
        closing(listen()) as detector,
        closing(listen()) as other_detector,
        world.stream([address_of(detector)], rate="1Mbit") as greedy,
        world.stream([address_of(other_detector)], rate="1Mbit") as other,
        ExitStack() as ends,
    ):
        refused = 0
        for _ in range(2 * PLACES):
            try:
                consumer = ends.enter_context(closing(greedy.connect(0)))
                consumer.sendall(b"!")
                producer = ends.enter_context(closing(accept_or_reset(detector, consumer)))
                assert receive_exactly(producer, 1) == b"!"
            except ConnectionError:
                refused += 1
        assert refused == 2 * PLACES - PLACES // 2
        consumer = ends.enter_context(closing(other.connect(0)))
        producer = ends.enter_context(closing(accept(other_detector)))
        consumer.sendall(b"?")
        assert receive_exactly(producer, 1) == b"?"
        until(
            lambda: "places left for others" in world.s2uc("status", greedy.uid, "--json").stdout, lambda: "no reason"
        )


def accept_or_reset(detector: socket.socket, consumer: socket.socket) -> socket.socket:
    """The connection that comes to the producer; ConnectionError if the consumer's is reset."""
    ready, _, _ = select.select([detector, consumer], [], [], PATIENCE)
    assert ready, f"neither a connection nor a reset within {PATIENCE:g} s"
    if detector not in ready:
        consumer.recv(1)
    return accept(detector)

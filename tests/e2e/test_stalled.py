"""Connections whose consumer does not read: how little of the kernel's memory the gateways keep for them."""

from __future__ import annotations

import contextlib
import socket
import struct
from hashlib import sha256

from gateways import MIB, NOISE, Make, Stream, both, receive, sleep

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

"""An element: carries the connections of streams on one gateway, in this process.

The initiator opens a stream here when it is reserved, arms its channels when their targets are known, hands
over accepted connections, and closes it at the end. An element decides nothing about who may have what.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from typing import Any

from twisted.logger import Logger

from scistream.s2ds.capacity import Bucket
from scistream.s2ds.relay.buffers import Buffers
from scistream.s2ds.relay.flow import Flow
from scistream.s2ds.relay.leg import prepare
from scistream.s2ds.relay.relay import LAN_PATIENCE, Arming, Means, Relay
from scistream.s2ds.relay.throttle import Throttle
from scistream.s2ds.relay.tls import tune
from scistream.s2ds.relay.watch import Watch
from scistream.wire.messages import PROD, ChannelFigures, Role, StreamKey

__all__ = ["Arming", "Element"]

GRACE = 1.0
"""Seconds that a connection from the WAN has for its handshake before another may take its place."""


class Element:
    """A buffer-and-forward element.

    :param reactor: an `IReactorFDSet` and `IReactorTime`.
    :param buffer_size: bytes in flight in each direction of a connection, at most.
    :param dial_timeout: seconds for a connection to the target.
    :param handshake_timeout: seconds for the TLS handshake on the WAN.
    :param wan_timeout: seconds that a break of the WAN may last before connections are reset.
    :param half_open: connections of one channel that are being joined at the same time, at most.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        *,
        buffer_size: int = 262144,
        dial_timeout: float = 10.0,
        handshake_timeout: float = 10.0,
        wan_timeout: float = 60.0,
        half_open: int = 64,
    ) -> None:
        self._means = Means(
            reactor, Buffers(buffer_size), Watch(reactor, wan_timeout), dial_timeout, handshake_timeout, wan_timeout
        )
        self._half_open = half_open
        self._streams: dict[StreamKey, _Stream] = {}

    def open(self, uid: str, role: Role, rate: float, channels: Sequence[int]) -> None:
        """A stream is reserved, at `rate` Mbit/s each way: its figures exist from here. Idempotent."""
        if (uid, role) not in self._streams:
            self._streams[uid, role] = _Stream(self._means.reactor, rate, channels)

    def arm(self, arming: Arming) -> None:
        """New connections of the channel go this way; those that are open finish on the old target."""
        tune(arming.context)
        self._streams[arming.uid, arming.role].channels[arming.channel].arming = arming

    def has_room(self, uid: str, role: Role, channel: int) -> bool:
        """Whether the channel can take a connection now.

        If too many of it are not joined yet, a connection from the WAN that has had its time for the handshake makes
        room: whoever connects and says nothing keeps nobody out for long.
        """
        stream = self._streams.get((uid, role))
        of_channel = stream.channels.get(channel) if stream is not None else None
        if of_channel is None or len(of_channel.opening) < self._half_open:
            return True
        return role == PROD and of_channel.make_room(self._means.reactor.seconds())

    def carry(self, uid: str, role: Role, channel: int, sock: socket.socket) -> None:
        """Take over an accepted connection. Where the channel is not armed it is reset."""
        stream = self._streams.get((uid, role))
        of_channel = stream.channels.get(channel) if stream is not None else None
        if stream is None or of_channel is None:
            _refuse(sock)
            return
        of_channel.accepted += 1
        if of_channel.arming is None:
            of_channel.reset += 1
            _refuse(sock)
            return
        of_channel.carry(self._means, of_channel.arming, sock)

    def close(self, uid: str, role: Role) -> list[ChannelFigures]:
        """Reset every connection of the stream: not one byte crosses after this.

        :returns: its last figures, which go with it; nothing for a stream that is not open.
        """
        stream = self._streams.pop((uid, role), None)
        if stream is None:
            return []
        cut = stream.close()
        self.log.info("Stream {uid} ({role}) is closed; connections cut: {cut}", uid=uid, role=role, cut=cut)
        return stream.figures()

    def figures(self, uid: str, role: Role) -> list[ChannelFigures]:
        """What each channel has carried so far; nothing for a stream that is not open."""
        stream = self._streams.get((uid, role))
        return [] if stream is None else stream.figures()


class _Stream:
    """What an element holds for one stream."""

    def __init__(self, reactor: Any, rate: float, channels: Sequence[int]) -> None:
        self._to_producer = Throttle(reactor, Bucket(rate, time.monotonic))
        self._to_consumer = Throttle(reactor, Bucket(rate, time.monotonic))
        self.channels = {number: _Channel(number, self._to_producer, self._to_consumer) for number in channels}

    def figures(self) -> list[ChannelFigures]:
        return [of_channel.figures() for of_channel in self.channels.values()]

    def close(self) -> int:
        relays = [relay for channel in self.channels.values() for relay in channel.relays]
        for relay in relays:
            relay.reset("the stream was closed", report=False)
        self._to_producer.stop()
        self._to_consumer.stop()
        return len(relays)


class _Channel:
    """One channel, its open connections and its figures."""

    def __init__(self, number: int, to_producer: Throttle, to_consumer: Throttle) -> None:
        self._number = number
        self._to_producer = Flow(to_producer)
        self._to_consumer = Flow(to_consumer)
        self.arming: Arming | None = None
        self.relays: set[Relay] = set()
        self.opening: dict[Relay, float] = {}
        self.accepted = 0
        self.reset = 0

    def carry(self, means: Means, arming: Arming, sock: socket.socket) -> None:
        relay = Relay(means, arming, sock, self._to_producer, self._to_consumer, self._ended, self._opened)
        self.relays.add(relay)
        self.opening[relay] = means.reactor.seconds()
        relay.start()

    def make_room(self, now: float) -> bool:
        """End the connection that has taken longest over its handshake, if that is long enough."""
        for relay, since in self.opening.items():
            if now - since < GRACE:
                return False
            if not relay.is_verified:
                relay.reset("no TLS handshake yet, and others wait")
                return True
        return False

    def figures(self) -> ChannelFigures:
        return ChannelFigures(
            channel=self._number,
            bytes_to_consumer=self._to_consumer.bytes,
            bytes_to_producer=self._to_producer.bytes,
            connections=len(self.relays),
            accepted=self.accepted,
            reset=self.reset,
        )

    def _opened(self, relay: Relay) -> None:
        self.opening.pop(relay, None)

    def _ended(self, relay: Relay, well: bool) -> None:
        self.opening.pop(relay, None)
        self.relays.discard(relay)
        self.reset += not well


def _refuse(sock: socket.socket) -> None:
    prepare(sock, LAN_PATIENCE)
    sock.close()

"""What TCP's buffers on this gateway allow a stream, and the sentences that say so where it is less than its rate.

A connection has at most one buffer of bytes on its way in a round trip, so that its rate is at most the buffer divided
by the round-trip time. A `BoundCheck` belongs to one stream (`stream.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from twisted.logger import Logger

from scistream import timing
from scistream.protocol.messages import MAX_NOTICE, PROD, ChannelFigures, StreamKey
from scistream.s2ds.relay.leg import FIRST_LARGE_BUFFER, MEDIUM_RECEIVE_BUFFER
from scistream.s2ds.relay.token_bucket import BYTES_PER_MBIT

_MIB = 1024 * 1024
MOST_WINDOW = 1024 * _MIB
"""The largest window of TCP, so that a larger buffer gains nothing."""
USABLE_PART = 2
"""The kernel lets a peer fill 1 / `USABLE_PART` of a receive buffer; a little more of a send buffer carries data."""
ENOUGH = 0.95
"""A bound counts as below the rate if it is less than this fraction of it."""


class TcpBuffers(NamedTuple):
    """The largest buffers that the kernel gives a connection, in bytes; 0 if it does not tell."""

    receive: int
    send: int
    receive_by_request: int
    """The most that a program may ask for: net.core.rmem_max."""


def tcp_buffers(root: Path = Path("/")) -> TcpBuffers:
    """Return the largest buffers on this system.

    :param root: the folder of /proc.
    """
    return TcpBuffers(
        _last_number(root / "proc/sys/net/ipv4/tcp_rmem"),
        _last_number(root / "proc/sys/net/ipv4/tcp_wmem"),
        _last_number(root / "proc/sys/net/core/rmem_max"),
    )


def _last_number(file: Path) -> int:
    with suppress(OSError, ValueError, IndexError):
        return int(file.read_text().split()[-1])
    return 0


class BoundCheck:
    """The bounds of one stream's rate that were found so far. Each kind is logged once, and told until the end.

    :param key: the stream.
    :param rate: of the stream in each direction, in Mbit/s.
    :param buffers: returns the buffers of this system.
    """

    log = Logger()

    def __init__(self, key: StreamKey, rate: float, buffers: Callable[[], TcpBuffers] = tcp_buffers) -> None:
        self._uid, self._role = key
        self._rate = rate
        self._buffers = buffers
        self._found: dict[str, str] = {}

    @property
    def notices(self) -> list[str]:
        """The sentences for the user, the oldest first: at most one for each kind of buffer."""
        return list(self._found.values())

    def look(self, channels: Iterable[ChannelFigures], held: Callable[[int], int]) -> None:
        """Look for bounds in the current figures of the stream's channels.

        :param held: returns how many connections of a channel get no large receive window, for want of memory.
        """
        buffers = None
        for channel in channels:
            if channel.connections and channel.rtt_ms > timing.DISTANT * 1000:
                buffers = buffers or self._buffers()
                self._look_at(channel, buffers, min(held(channel.channel), channel.connections))

    def _look_at(self, channel: ChannelFigures, buffers: TcpBuffers, held: int) -> None:
        received, sent = channel.bytes_to_consumer, channel.bytes_to_producer
        if self._role == PROD:
            received, sent = sent, received
        # A direction that has carried less than its buffers is not bound by them.
        medium = min(MEDIUM_RECEIVE_BUFFER, buffers.receive_by_request)
        large = max(buffers.receive // USABLE_PART, min(FIRST_LARGE_BUFFER, buffers.receive_by_request))
        window = large * (channel.connections - held) + medium * held
        if buffers.receive and received > window:
            if held:
                remedy = "let TCP have more memory for large receive windows: net.ipv4.tcp_mem"
                self._note("tcp_mem", channel, window, remedy)
            else:
                self._note("tcp_rmem", channel, window, self._remedy("tcp_rmem", channel, "4096 131072"))
        window = buffers.send * channel.connections
        if buffers.send and sent > window:
            self._note("tcp_wmem", channel, window, self._remedy("tcp_wmem", channel, "4096 16384"))

    def _remedy(self, setting: str, channel: ChannelFigures, first: str) -> str:
        needed = USABLE_PART * self._rate * BYTES_PER_MBIT * channel.rtt_ms / 1000 / channel.connections
        size = -int(-needed // _MIB) * _MIB
        if size <= MOST_WINDOW:
            return f'sysctl -w net.ipv4.{setting}="{first} {size}", or more connections'
        more = f"{-int(-size // MOST_WINDOW)} times as many connections"
        return f'sysctl -w net.ipv4.{setting}="{first} {MOST_WINDOW}" and {more}'

    def _note(self, kind: str, channel: ChannelFigures, window: int, remedy: str) -> None:
        bound = window / (channel.rtt_ms / 1000) / BYTES_PER_MBIT
        if kind in self._found or bound >= self._rate * ENOUGH:
            return
        connections = "1 connection" if channel.connections == 1 else f"{channel.connections} connections"
        direction = "send" if kind == "tcp_wmem" else "receive"
        notice = (
            f"channel {channel.channel}: over {channel.rtt_ms:.0f} ms, TCP's {direction} buffers on this gateway bound "
            f"its {connections} to about {bound:.3g} Mbit/s, below the stream's {self._rate:g} Mbit/s: {remedy}"
        )
        self._found[kind] = notice[:MAX_NOTICE]
        self.log.warn("uid={uid} role={role} {notice}", uid=self._uid, role=self._role, notice=notice)

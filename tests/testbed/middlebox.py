"""A middlebox on the WAN between two hosts, such as a firewall or NAT that knows connections: a part of `wan_router`.

It forgets connections that were idle too long, or resets them, and it may remove the option of Multipath TCP. A
connection that it has not seen before begins with its first packet here, so that it can be switched on at any time.
Anything but TCP passes, and fragments do. It knows nothing of SciStream.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10
_TCP = 6
_END, _NOTHING = 0, 1
MULTIPATH = 30
"""The number of the TCP option of Multipath TCP."""

End = tuple[bytes, int]
"""An address and a port."""


class Segment(NamedTuple):
    """What a middlebox reads of a packet with TCP.

    :param at: where the TCP header begins in the packet.
    :param data: where the data begins.
    :param after: the sequence number that follows this segment.
    """

    source: End
    target: End
    at: int
    data: int
    flags: int
    after: int


def parse(packet: bytes) -> Segment | None:
    """Read an IP packet; None if it is not a whole TCP segment, or malformed."""
    try:
        if packet[0] >> 4 == 4:
            at, end = (packet[0] & 15) * 4, int.from_bytes(packet[2:4], "big")
            if packet[9] != _TCP or int.from_bytes(packet[6:8], "big") & 0x3FFF:
                return None
            source, target = packet[12:16], packet[16:20]
        else:
            at, end = 40, 40 + int.from_bytes(packet[4:6], "big")
            if packet[6] != _TCP:
                return None
            source, target = packet[8:24], packet[24:40]
        from_port, to_port, number, _, offset, flags = struct.unpack_from("!HHIIBB", packet, at)
    except (IndexError, struct.error):
        return None
    data = at + (offset >> 4) * 4
    if not at + 20 <= data <= end <= len(packet):
        return None
    count = end - data + bool(flags & SYN) + bool(flags & FIN)
    return Segment((source, from_port), (target, to_port), at, data, flags, (number + count) & 0xFFFFFFFF)


@dataclass
class Flow:
    """One connection.

    :ivar seen: when its last packet passed, in seconds.
    :ivar expects: for each end that has sent, the sequence number that the other one expects next from it.
    :ivar ended: the ends that have ended their direction.
    """

    seen: float
    expects: dict[End, int] = field(default_factory=dict)
    ended: set[End] = field(default_factory=set)


class Middlebox:
    """All connections between two hosts, in both directions.

    :param send: sends a packet of its own: the address that it pretends to come from, the one it goes to, the packet.
    """

    def __init__(self, send: Callable[[bytes, bytes, bytes], None]) -> None:
        self._send = send
        self._flows: OrderedDict[frozenset[End], Flow] = OrderedDict()  # the one that was idle longest comes first

    def passes(self, packet: bytes, now: float, forget: float) -> bool:
        """Take note of a packet; return False if it belongs to a connection that was forgotten.

        :param forget: the seconds after which an idle connection is forgotten; 0: never.
        """
        segment = parse(packet)
        if segment is None:
            return True
        key = frozenset((segment.source, segment.target))
        flow = self._flows.get(key)
        opens = segment.flags & (SYN | ACK) == SYN
        if flow is not None and forget and not opens and now - flow.seen > forget:
            return False
        if segment.flags & RST:
            self._flows.pop(key, None)
            return True
        if flow is None or opens:
            flow = self._flows[key] = Flow(now)
        flow.seen = now
        before = flow.expects.get(segment.source, segment.after)
        if (segment.after - before) & 0xFFFFFFFF < 0x80000000:  # else it is an older segment, sent again
            flow.expects[segment.source] = segment.after
        if segment.flags & FIN:
            flow.ended.add(segment.source)
        self._flows.move_to_end(key)
        return True

    def clear(self) -> None:
        """Know nothing of any connection, like one that was just switched on."""
        self._flows.clear()

    def expire(self, now: float, idle: float) -> int:
        """Reset, at both ends, the connections that were idle for `idle` seconds; return how many."""
        count = 0
        while self._flows:
            key, flow = next(iter(self._flows.items()))
            if now - flow.seen < idle:
                break
            del self._flows[key]
            count += self._reset(flow)
        return count

    def due(self, idle: float) -> float | None:
        """Return when the next connection expires; None if there is none."""
        return next(iter(self._flows.values())).seen + idle if self._flows else None

    def _reset(self, flow: Flow) -> bool:
        if len(flow.expects) < 2 or len(flow.ended) == 2:
            return False  # nobody has answered: there is no connection yet; or there is none any more
        (one, from_one), (other, from_other) = flow.expects.items()
        self._send(one[0], other[0], reset(one, other, from_one, from_other))
        self._send(other[0], one[0], reset(other, one, from_other, from_one))
        return True


def reset(source: End, target: End, number: int, acknowledged: int) -> bytes:
    """Return a packet that resets a connection at its end `target`, as if the other end had sent it."""
    header = struct.pack("!HHIIBBHHH", source[1], target[1], number, acknowledged, 5 << 4, RST | ACK, 0, 0, 0)
    if len(source[0]) == 4:
        pseudo = source[0] + target[0] + struct.pack("!BBH", 0, _TCP, len(header))
        ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(header), 0, 0x4000, 64, _TCP, 0, source[0], target[0])
        ip = ip[:10] + _complement(_sum(ip)) + ip[12:]
    else:
        pseudo = source[0] + target[0] + struct.pack("!IHBB", len(header), 0, 0, _TCP)
        ip = struct.pack("!IHBB16s16s", 6 << 28, len(header), _TCP, 64, source[0], target[0])
    return ip + header[:16] + _complement(_sum(pseudo + header)) + header[18:]


def without_multipath(packet: bytes) -> bytes | None:
    """Return a packet without options of Multipath TCP, which become padding; None if it has none."""
    segment = parse(packet)
    if segment is None:
        return None
    changed = bytearray(packet)
    at = segment.at + 20
    found = False
    while at < segment.data and packet[at] != _END:
        if packet[at] == _NOTHING:
            at += 1
            continue
        length = packet[at + 1] if at + 1 < segment.data else 0
        if length < 2 or at + length > segment.data:
            break
        if packet[at] == MULTIPATH:
            found = True
            changed[at : at + length] = bytes([_NOTHING]) * length
        at += length
    if not found:
        return None
    checksum = segment.at + 16
    old = int.from_bytes(packet[checksum : checksum + 2], "big")
    was, now = _sum(packet[segment.at + 20 : segment.data]), _sum(changed[segment.at + 20 : segment.data])
    changed[checksum : checksum + 2] = _complement(_folded((old ^ 0xFFFF) + (was ^ 0xFFFF) + now))
    return bytes(changed)


def _sum(data: bytes | bytearray) -> int:
    """Return the Internet checksum's sum of an even number of bytes."""
    return _folded(sum(struct.unpack(f"!{len(data) // 2}H", data)))


def _folded(total: int) -> int:
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def _complement(total: int) -> bytes:
    return (total ^ 0xFFFF).to_bytes(2, "big")

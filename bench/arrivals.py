"""How much arrives on connections, and when, by the clock of the kernel.

``python bench/arrivals.py RATE DESCRIPTOR ...`` receives on inherited sockets until all of them have ended, and prints
one JSON object. Nothing outside Python's library is imported, so that it starts at once.
"""

from __future__ import annotations

import hashlib
import json
import select
import socket
import struct
import sys
import time
from collections.abc import Mapping, Sequence

BYTES_PER_MBIT = 125_000
AT_ONCE = 0.05
"""Seconds of a rate that may come at once."""
PATIENCE = 30.0
"""Seconds without a byte after which a connection counts as broken."""
_LOOK = 0.001
"""Seconds between two looks for bytes, from which a receiver knows when it had no processor."""
_SO_TIMESTAMPNS = 35

Arrivals = Sequence[tuple[float, int]]
"""Times in seconds, and the bytes that arrived then."""


class Receiver:
    """A receiver of several connections.

    The time of bytes is that at which the kernel had the last one of those that a read returns. It is the time of
    sending on a loopback interface, unless the reader is so late that many bytes are read together.

    :ivar arrivals: what has arrived.
    :ivar late: the longest time between two looks for bytes, by which their times can be wrong, in seconds.
    """

    def __init__(self, sinks: Sequence[socket.socket], *, digests: bool = False) -> None:
        self.arrivals: list[tuple[float, int]] = []
        self.late = 0.0
        self._sinks = {sink.fileno(): sink for sink in sinks}
        self._digests = {fd: hashlib.sha256() for fd in self._sinks} if digests else {}
        self._poll = select.epoll()
        self._buffer = bytearray(1 << 20)
        for fd, sink in self._sinks.items():
            sink.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
            sink.setblocking(False)
            self._poll.register(fd, select.EPOLLIN)

    def run(self, seconds: float | None = None) -> None:
        """Receive until all connections have ended, or for `seconds` from the first byte."""
        end: float | None = None
        heard = looked = time.monotonic()
        while self._sinks and (end is None or looked < end):
            events = self._poll.poll(_LOOK)
            for fd, _ in events:
                self._read(fd)
            now = time.monotonic()
            self.late, looked = max(self.late, now - looked), now
            if events:
                heard = now
                if seconds is not None and end is None:
                    end = now + seconds
            elif now > heard + PATIENCE:
                raise TimeoutError(f"nothing arrived for {PATIENCE:g} s")

    def _read(self, fd: int) -> None:
        count, told, _, _ = self._sinks[fd].recvmsg_into([self._buffer], 128)
        if not count:
            self._poll.unregister(self._sinks.pop(fd))
            return
        self.arrivals.append((_stamp(told), count))
        if self._digests:
            self._digests[fd].update(memoryview(self._buffer)[:count])

    def digests(self) -> list[str]:
        """Return the SHA-256 of the bytes of each connection."""
        return [digest.hexdigest() for digest in self._digests.values()]


def _stamp(told: Sequence[tuple[int, int, bytes]]) -> float:
    for _, kind, data in told:
        if kind == _SO_TIMESTAMPNS:
            seconds, nanoseconds = struct.unpack("@ll", data)
            return float(seconds + nanoseconds / 1e9)
    return time.time()


def rate_of(arrivals: Arrivals, burst: int = 0) -> float:
    """Return the rate from the first arrival to the last one in Mbit/s.

    :param burst: bytes that do not count, since they may come at once.
    """
    times = [when for when, _ in arrivals]
    total = sum(count for _, count in arrivals) - burst
    return total / BYTES_PER_MBIT / max(max(times) - min(times), 1e-9)


def burst_of(arrivals: Arrivals, rate: float) -> float:
    """Return how far any window of time is above a rate in Mbit/s at most, in seconds of that rate."""
    arrivals = sorted(arrivals)
    speed, total, lowest, most = rate * BYTES_PER_MBIT, 0, 0.0, 0.0
    for when, count in arrivals:
        due = speed * (when - arrivals[0][0])
        lowest = min(lowest, total - due)
        total += count
        most = max(most, total - due - lowest)
    return most / speed


def main(arguments: Sequence[str]) -> None:
    """Receive on inherited sockets."""
    rate, *descriptors = arguments
    receiver = Receiver([socket.socket(fileno=int(fd)) for fd in descriptors], digests=True)
    print("ready", flush=True)
    receiver.run()
    found: Mapping[str, object] = {
        "rate": rate_of(receiver.arrivals, int(float(rate) * BYTES_PER_MBIT * AT_ONCE)),
        "burst": burst_of(receiver.arrivals, float(rate)),
        "late": receiver.late,
        "digests": receiver.digests(),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])

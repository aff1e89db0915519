"""The WAN of a testbed: one process that forwards IP packets between tun devices, and disturbs them as configured.

``python wan_router.py --help`` says what it takes; `testbed` starts it. It routes by destination address, has a
`Way` for each direction between two hosts, with settings and counters of its own, and takes commands as lines of JSON
on a unix socket. It knows nothing of SciStream. Settings are in seconds, shares from 0 to 1, and bit/s.

The same seed and the same packets on a way meet the same fate. It leaves the time-to-live of packets alone.
"""

from __future__ import annotations

import argparse
import fcntl
import gc
import heapq
import ipaddress
import itertools
import json
import os
import random
import select
import signal
import socket
import struct
import time
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from middlebox import Middlebox, without_multipath
from netns import inside

INTERFACE = "wan0"

REORDERED_BY = 0.005
"""Seconds that a packet chosen for reordering comes later, so that others overtake it."""

HELD_AT_MOST = 64 * 1024 * 1024
"""Bytes that a way holds; what comes on top is dropped as from a full queue."""

_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_TURN = 64
_HEADERS = 64


@dataclass(frozen=True)
class Settings:
    """How a way treats packets."""

    delay: float = 0.0
    """Seconds that each packet takes; a round trip takes those of both directions."""
    jitter: float = 0.0
    """Up to so many seconds more or less, without changing the order."""
    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    rate: float = 0.0
    """Bit/s; 0 is no limit."""
    queue: float = 0.1
    """With a rate: a packet that finds more seconds' worth waiting is dropped."""
    cut: bool = False
    """Nothing arrives, not even what is on its way."""
    forget_idle: float = 0.0
    """Seconds after which the middlebox forgets an idle connection: its packets are dropped from then on. 0: never."""
    reset_idle: float = 0.0
    """Seconds after which the middlebox resets an idle connection at both ends. 0: never."""
    strip_multipath: bool = False
    """The middlebox removes the option of Multipath TCP."""

    @property
    def knows_connections(self) -> bool:
        """Whether the middlebox has to know connections."""
        return bool(self.forget_idle or self.reset_idle)


@dataclass
class Counters:
    """What a way has seen since it was made."""

    entered_packets: int = 0
    entered_bytes: int = 0
    delivered_packets: int = 0
    delivered_bytes: int = 0
    dropped_loss: int = 0
    dropped_cut: int = 0
    dropped_queue: int = 0
    dropped_host: int = 0
    """Not taken by the receiving host's interface."""
    dropped_forgotten: int = 0
    """Of connections that the middlebox has forgotten."""
    duplicated: int = 0
    reordered: int = 0
    resets: int = 0
    """Sent by the middlebox."""
    stripped: int = 0
    """Packets from which the middlebox has removed an option."""


class Held:
    """The packets in transit, by their arrival time."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Way, bytes]] = []
        self._order = itertools.count()

    def add(self, due: float, way: Way, packet: bytes) -> None:
        """Keep a packet until then."""
        heapq.heappush(self._heap, (due, next(self._order), way, packet))

    def deliver(self, now: float) -> None:
        """Let arrive what is due."""
        heap = self._heap
        while heap and heap[0][0] <= now:
            _due, _order, way, packet = heapq.heappop(heap)
            way.release(packet)

    def wait(self) -> float | None:
        """Seconds until the next one is due."""
        return max(0.0, self._heap[0][0] - time.monotonic()) if self._heap else None


class Way:
    """One direction between two hosts.

    :param out: the descriptor of the tun device of the host that it leads to.
    :param middlebox: the one between the two hosts, which both directions pass.
    """

    def __init__(self, source: str, target: str, out: int, held: Held, middlebox: Middlebox, seed: int) -> None:
        self.name = f"{source}>{target}"
        self.middlebox = middlebox
        self.settings = Settings()
        self.counters = Counters()
        self._out = out
        self._held = held
        self._held_bytes = 0
        self._free_at = 0.0  # when the last bit of what waits for the rate has left
        self._last_due = 0.0
        self.sow(seed)

    def sow(self, seed: int) -> None:
        """Start the row of chances anew."""
        self._random = random.Random(f"{seed}/{self.name}")

    def carry(self, packet: bytes, now: float) -> None:
        """Take a packet: it arrives now, later, twice or never."""
        counters, settings = self.counters, self.settings
        size = len(packet)
        counters.entered_packets += 1
        counters.entered_bytes += size
        if settings.cut:
            counters.dropped_cut += 1
            return
        if settings.strip_multipath:
            packet = self._stripped(packet)
        if settings.knows_connections and not self.middlebox.passes(packet, now, settings.forget_idle):
            counters.dropped_forgotten += 1
            return
        if self._happens(settings.loss):
            counters.dropped_loss += 1
            return
        if self._free_at - now > settings.queue or self._held_bytes > HELD_AT_MOST:
            counters.dropped_queue += 1
            return
        due = self._due(size, now)
        self._pass(due, packet, now)
        if self._happens(settings.duplicate):
            counters.duplicated += 1
            self._pass(due, packet, now)

    def reset(self, packet: bytes, now: float) -> None:
        """Send a packet with which the middlebox resets a connection."""
        self.counters.resets += 1
        self._pass(self._due(len(packet), now), packet, now)

    def _stripped(self, packet: bytes) -> bytes:
        changed = without_multipath(packet)
        if changed is None:
            return packet
        self.counters.stripped += 1
        return changed

    def _happens(self, share: float) -> bool:
        return share > 0 and self._random.random() < share

    def _due(self, size: int, now: float) -> float:
        """When a packet arrives."""
        settings = self.settings
        due = now
        if settings.rate:
            due = self._free_at = max(now, self._free_at) + size * 8 / settings.rate
        due += settings.delay
        if settings.jitter:
            due = max(now, due + self._random.uniform(-settings.jitter, settings.jitter))
        due = max(due, self._last_due)
        if self._happens(settings.reorder):
            self.counters.reordered += 1
            return due + REORDERED_BY
        self._last_due = due
        return due

    def _pass(self, due: float, packet: bytes, now: float) -> None:
        if due <= now:
            self._arrive(packet)
        else:
            self._held_bytes += len(packet)
            self._held.add(due, self, packet)

    def release(self, packet: bytes) -> None:
        """Send a held packet that is due."""
        self._held_bytes -= len(packet)
        if self.settings.cut:
            self.counters.dropped_cut += 1
        else:
            self._arrive(packet)

    def _arrive(self, packet: bytes) -> None:
        try:
            os.write(self._out, packet)
        except OSError:
            self.counters.dropped_host += 1
        else:
            self.counters.delivered_packets += 1
            self.counters.delivered_bytes += len(packet)

    def change(self, settings: dict[str, Any]) -> None:
        """Change some settings; what is on its way arrives when it would have.

        :raises TypeError: there is no such setting.
        """
        self.settings = replace(self.settings, **settings)
        if not self.settings.rate:
            self._free_at = 0.0

    def report(self) -> dict[str, Any]:
        """All there is to say of it."""
        return {"settings": asdict(self.settings), "counters": asdict(self.counters), "held_bytes": self._held_bytes}


@dataclass(frozen=True)
class Host:
    """A host on the WAN: its name, its namespace, and its addresses there."""

    name: str
    namespace: str
    addresses: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Host:
        """Read ``name=namespace=address,address``."""
        name, namespace, addresses = text.split("=")
        return cls(name, namespace, tuple(addresses.split(",")))


class Router:
    """Carries packets between hosts until it is told to stop.

    :param mtu: bytes of the largest packet.
    :param control: the path of the unix socket for commands.
    """

    def __init__(self, hosts: list[Host], mtu: int, control: str, seed: int) -> None:
        self._held = Held()
        self._mtu = mtu
        self._unroutable = 0
        tuns = {host.name: _open_tun(host.namespace) for host in hosts}
        pairs = list(itertools.permutations(hosts, 2))
        boxes = {frozenset((one.name, other.name)): Middlebox(self._reset) for one, other in pairs}
        self.ways = {
            (one.name, other.name): Way(
                one.name, other.name, tuns[other.name], self._held, boxes[frozenset((one.name, other.name))], seed
            )
            for one, other in pairs
        }
        self._host_of = {
            ipaddress.ip_address(address).packed: host.name for host in hosts for address in host.addresses
        }
        self._resetting: list[Way] = []
        self._routes = {
            tuns[one.name]: {
                packed: self.ways[one.name, name] for packed, name in self._host_of.items() if name != one.name
            }
            for one in hosts
        }
        self._control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._control.bind(control)
        self._control.listen()

    def run(self) -> None:
        """Carry packets, for ever."""
        poll = select.epoll()
        for fd in (*self._routes, self._control.fileno()):
            poll.register(fd, select.EPOLLIN)
        while True:
            events = poll.poll(self._wait())
            now = time.monotonic()
            self._held.deliver(now)
            for way in self._resetting:
                way.middlebox.expire(now, way.settings.reset_idle)
            for fd, _ in events:
                if fd in self._routes:
                    self._read(fd, now)
                else:
                    self._serve()

    def _wait(self) -> float | None:
        """Return the seconds until something is due."""
        wait = self._held.wait()
        for way in self._resetting:
            due = way.middlebox.due(way.settings.reset_idle)
            if due is not None:
                left = max(0.0, due - time.monotonic())
                wait = left if wait is None else min(left, wait)
        return wait

    def _reset(self, source: bytes, target: bytes, packet: bytes) -> None:
        self.ways[self._host_of[source], self._host_of[target]].reset(packet, time.monotonic())

    def _read(self, fd: int, now: float) -> None:
        ways, size = self._routes[fd], self._mtu + _HEADERS
        for _ in range(_TURN):
            try:
                packet = os.read(fd, size)
            except BlockingIOError:
                return
            way = ways.get(packet[16:20] if packet[0] >> 4 == 4 else packet[24:40])
            if way is None:
                self._unroutable += 1
            else:
                way.carry(packet, now)

    def _serve(self) -> None:
        connection, _ = self._control.accept()
        with connection:
            connection.settimeout(1.0)
            try:
                with connection.makefile("rw") as lines:
                    lines.write(json.dumps(self._obey(json.loads(lines.readline()))) + "\n")
            except (OSError, ValueError, TypeError, KeyError) as problem:
                print(f"a command failed: {problem!r}", flush=True)

    def _obey(self, command: dict[str, Any]) -> dict[str, Any]:
        """Carry out a command: change `settings` on the named `ways` (or all), start chances anew; then report."""
        chosen = [self.ways[source, target] for source, target in command.get("ways") or self.ways]
        for way in chosen:
            if command.get("clear"):
                way.settings = Settings()
            way.change(command.get("settings", {}))
            if "seed" in command:
                way.sow(command["seed"])
        self._resetting = [way for way in self.ways.values() if way.settings.reset_idle]
        for (source, target), way in self.ways.items():
            if not (way.settings.knows_connections or self.ways[target, source].settings.knows_connections):
                way.middlebox.clear()
        return {
            "mtu": self._mtu,
            "unroutable": self._unroutable,
            "ways": [[*names, way.report()] for names, way in self.ways.items()],
        }


def _open_tun(namespace: str) -> int:
    """Open a tun device in a namespace; it exists as long as its descriptor."""
    with inside(namespace):
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", INTERFACE.encode(), _IFF_TUN | _IFF_NO_PI))
    return fd


def main() -> None:
    """Run a router from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", action="append", required=True, type=Host.parse, metavar="NAME=NAMESPACE=ADDRESS,...")
    parser.add_argument("--control", required=True, help="path of the unix socket for commands")
    parser.add_argument("--mtu", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    router = Router(options.host, options.mtu, options.control, options.seed)
    gc.freeze()
    gc.disable()  # nothing here makes cycles
    router.run()


SETTINGS = frozenset(field.name for field in fields(Settings))

if __name__ == "__main__":
    main()

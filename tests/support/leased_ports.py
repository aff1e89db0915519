"""Ports that this test process alone uses: two test runs on one machine never give out the same ones.

Ports are leased in blocks. The lease of a block is a Unix socket with an abstract name, which belongs to the network
namespace as ports do, works between users, and ends with the process. Blocks lie outside the range from which the
system takes the ports of outgoing connections and those from which demonstrations take theirs, so that no program gets
one of them by chance.
"""

from __future__ import annotations

import errno
import random
import socket
import threading
from itertools import pairwise
from pathlib import Path

from scistream.demo.facilities import PORTS as DEMO_PORTS

HOST = "127.0.0.1"
_BLOCK = 50
_FIRST, _LAST = 10_000, 65_535
_FEWEST_BLOCKS = 100
_MOST_LEASED = 40
"""Blocks of one process, after which it uses ports again that it used long ago."""


class PortLease:
    """The ports that one process may use. Any thread may ask."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._leases: dict[int, socket.socket] = {}
        self._fresh: list[range] = []
        self._used: list[range] = []

    def take(self, count: int = 1, host: str = HOST) -> int:
        """Give the first of `count` ports in a row that no socket is bound to at the numeric address `host`.

        :raises AssertionError: if the machine has none left.
        """
        with self._lock:
            for _ in range(2 * _MOST_LEASED):
                row = self._row(count)
                if all(can_bind(host, port) for port in row):
                    return row.start
        raise AssertionError(f"no {count} free ports in a row: other programs, or other test runs, have them")

    def descriptors(self) -> set[int]:
        """Return the descriptors of the leases."""
        with self._lock:
            return {lease.fileno() for lease in self._leases.values()}

    def close(self) -> None:
        """Let other processes have the blocks."""
        for lease in self._leases.values():
            lease.close()
        self._leases.clear()

    def _row(self, count: int) -> range:
        """Cut `count` ports off what is leased; lease more, or use again the oldest, if that does not suffice."""
        for pool in (self._fresh, self._used if len(self._leases) >= _MOST_LEASED else []):
            for index, rest in enumerate(pool):
                if len(rest) >= count:
                    pool[index : index + 1] = [rest[count:]] if len(rest) > count else []
                    self._used.append(rest[:count])
                    return rest[:count]
        leased = self._lease(-(-count // _BLOCK))
        if len(leased) > count:
            self._fresh.append(leased[count:])
        self._used.append(leased[:count])
        return leased[:count]

    def _lease(self, count: int) -> range:
        """Lease that many blocks in a row."""
        blocks = _blocks()
        starts = list(range(len(blocks) - count + 1))
        random.SystemRandom().shuffle(starts)  # whatever the seed of the tests is
        for start in starts:
            row = blocks[start : start + count]
            if any(after - before != _BLOCK for before, after in pairwise(row)):
                continue
            leases: dict[int, socket.socket] = {}
            for block in row:
                lease = _leased(block)
                if lease is None:
                    break
                leases[block] = lease
            else:
                self._leases.update(leases)
                return range(row[0], row[-1] + _BLOCK)
            for lease in leases.values():
                lease.close()
        raise AssertionError(f"no {count} blocks of {_BLOCK} ports in a row are free: other test runs have them")


def _leased(block: int) -> socket.socket | None:
    """Lease the block that begins at this port; None if another process, or this one, has it."""
    lease = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        lease.bind(f"\0scistream-tests/ports/{block}")
    except OSError as problem:
        lease.close()
        if problem.errno == errno.EADDRINUSE:
            return None
        raise
    return lease


def _blocks() -> list[int]:
    """Return the first ports of all blocks."""
    lowest, highest = _outgoing()
    every = range(_FIRST, _LAST - _BLOCK + 2, _BLOCK)
    outside = [
        block
        for block in every
        if (block + _BLOCK <= lowest or block > highest)
        and (block + _BLOCK <= DEMO_PORTS.start or block >= DEMO_PORTS.stop)
    ]
    return outside if len(outside) >= _FEWEST_BLOCKS else list(every)


def _outgoing() -> tuple[int, int]:
    lowest, highest = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    return int(lowest), int(highest)


def can_bind(host: str, port: int) -> bool:
    """Return whether no socket is bound there, be it one that does not listen, which the kernel's table leaves out."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, port))
        except OSError as problem:
            if problem.errno == errno.EADDRINUSE:
                return False
            raise
    return True


leased = PortLease()
"""Those of this process."""

"""Measure the CPU time and memory of processes and their descendants, and the kernel memory of their connections."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Sequence, Set
from contextlib import suppress
from pathlib import Path

import psutil

from bench import peers

PROC = Path("/proc")
_MEMORY = re.compile(r"\b([rfw])(\d+)")
"""In the output of ss: the bytes that were received, that are reserved for the socket, and that wait to be sent."""


def tree(roots: Iterable[int]) -> list[int]:
    """Return these processes and all their living descendants."""
    found: list[int] = []
    for pid in roots:
        with suppress(psutil.NoSuchProcess):
            root = psutil.Process(pid)
            found += [one.pid for one in (root, *root.children(recursive=True))]
    return found


def cpu_seconds(roots: Sequence[int]) -> float:
    """Return the user and system time of these processes and their descendants, including those that have ended."""
    seconds = 0.0
    for pid in tree(roots):
        with suppress(psutil.NoSuchProcess):
            times = psutil.Process(pid).cpu_times()
            seconds += times.user + times.system + times.children_user + times.children_system
    return seconds


def memory_kib(roots: Sequence[int]) -> float:
    """Return the memory of these processes and their descendants in KiB, counting shared pages once (PSS).

    If the system hides the PSS, the private memory is used: gateways hide theirs from all users but root.
    """
    return sum(_memory_of(pid) for pid in tree(roots)) / 1024


def tcp_kib(ports: Set[int]) -> float:
    """Return the kernel memory, in KiB, of all TCP connections to these ports of this machine, at both ends.

    The total in /proc/net/sockstat would include the connections of all other programs.

    :raises subprocess.CalledProcessError: if ``ss`` fails.
    """
    said = subprocess.run([peers.found("ss"), "-tmnHO"], capture_output=True, text=True, check=True, timeout=60).stdout
    total = 0
    for line in said.splitlines():
        _state, _received, _sent, *ends = line.split()[:5]
        if any(int(end.rpartition(":")[2]) in ports for end in ends):
            total += sum(int(count) for _, count in _MEMORY.findall(line.partition("skmem:(")[2]))
    return total / 1024


def _memory_of(pid: int) -> int:
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        with suppress(psutil.AccessDenied):
            return int(process.memory_full_info().pss)
        memory = process.memory_info()
        return int(memory.rss - memory.shared)
    return 0


def listens(port: int) -> bool:
    """Return True if a socket listens on a port of 127.0.0.1, without making a connection that a server would see."""
    wanted = f"0100007F:{port:04X}"
    for line in (PROC / "net" / "tcp").read_text().splitlines()[1:]:
        _, local, _, state, *_ = line.split()
        if local == wanted and state == "0A":
            return True
    return False

"""Measure the CPU time and memory of processes and their descendants."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

PROC = Path("/proc")


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


def tcp_kib() -> float:
    """Return the kernel memory of all TCP sockets of this machine, in KiB."""
    found = re.search(r"^TCP: .*\bmem (\d+)", (PROC / "net" / "sockstat").read_text(), re.MULTILINE)
    return int(found[1]) * os.sysconf("SC_PAGE_SIZE") / 1024 if found else 0.0


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

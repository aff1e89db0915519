"""What processes and their descendants have used: CPU time and memory, from /proc."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

PROC = Path("/proc")
_TICKS = os.sysconf("SC_CLK_TCK")
_PARENT, _UTIME, _CUTIME_END = 1, 11, 15
"""Places in /proc/PID/stat after the name: the parent; utime, stime, and those of children that have ended."""


def tree(roots: Iterable[int]) -> list[int]:
    """These processes and all their descendants that live."""
    children: dict[int, list[int]] = {}
    for pid in (int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit()):
        fields = _stat(pid)
        if fields is not None:
            children.setdefault(int(fields[_PARENT]), []).append(pid)
    found: list[int] = []
    waiting = list(roots)
    while waiting:
        pid = waiting.pop()
        found.append(pid)
        waiting += children.get(pid, [])
    return found


def cpu_seconds(roots: Sequence[int]) -> float:
    """User and system time of these processes and their descendants, of those that have ended too."""
    ticks = 0
    for pid in tree(roots):
        fields = _stat(pid)
        if fields is not None:
            ticks += sum(int(field) for field in fields[_UTIME:_CUTIME_END])
    return ticks / _TICKS


def memory_kib(roots: Sequence[int]) -> float:
    """Memory of these processes and their descendants in KiB, what they share counted once (PSS).

    Where the system keeps that from us, what each has of its own (RssAnon): gateways hide theirs from all but root.
    """
    return sum(_memory_of(pid) for pid in tree(roots))


def tcp_kib() -> float:
    """The kernel memory of all TCP sockets of this machine, in KiB."""
    found = re.search(r"^TCP: .*\bmem (\d+)", (PROC / "net" / "sockstat").read_text(), re.MULTILINE)
    return int(found[1]) * os.sysconf("SC_PAGE_SIZE") / 1024 if found else 0.0


def _memory_of(pid: int) -> int:
    shared_out = _field(PROC / str(pid) / "smaps_rollup", "Pss")
    return shared_out if shared_out is not None else _field(PROC / str(pid) / "status", "RssAnon") or 0


def _field(path: Path, name: str) -> int | None:
    """A line such as ``Pss:   1234 kB``."""
    with suppress(OSError):
        found = re.search(rf"^{name}:\s+(\d+) kB", path.read_text(), re.MULTILINE)
        return int(found[1]) if found else None
    return None


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the state on; None if there is no such process any more."""
    with suppress(OSError):
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    return None


def listens(port: int) -> bool:
    """Whether somebody listens on that port of 127.0.0.1; found without a connection that a server would see."""
    wanted = f"0100007F:{port:04X}"
    for line in (PROC / "net" / "tcp").read_text().splitlines()[1:]:
        _, local, _, state, *_ = line.split()
        if local == wanted and state == "0A":
            return True
    return False

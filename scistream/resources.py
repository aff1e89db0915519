"""What this process may use of the machine: processors and memory, as its control groups allow.

Both versions of control groups are looked at. Whatever cannot be read counts as no limit.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_GROUPS = Path("sys/fs/cgroup")
_TCP_PART = 16
"""Linux lets TCP have one part in so many of the memory, unless net.ipv4.tcp_mem is set."""


def processors(root: Path = Path("/")) -> int:
    """How many processors this process may keep busy: those that it may run on, or its quota of time if that is less.

    :param root: where /proc and /sys are.
    """
    quotas = [quota for quota in _quotas(root) if quota > 0]
    return max(1, min([len(os.sched_getaffinity(0)), *(math.ceil(quota) for quota in quotas)]))


def memory(root: Path = Path("/")) -> int:
    """How many bytes of memory there are for this process: the machine's, or the limit of its group if that is less."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for folder, name in [
        *((folder, "memory.max") for folder in _folders(root, "")),
        *((folder, "memory.limit_in_bytes") for folder in _folders(root, "memory")),
    ]:
        with suppress(OSError, ValueError):
            limits.append(int((folder / name).read_text()))
    return min(limits)


def tcp_memory(root: Path = Path("/")) -> int:
    """How many bytes the kernel uses for TCP before it becomes sparing with them.

    Where it does not tell, as in a container, they are what it takes by itself.
    """
    page = os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, ValueError, IndexError):
        return int((root / "proc/sys/net/ipv4/tcp_mem").read_text().split()[1]) * page
    return os.sysconf("SC_PHYS_PAGES") // _TCP_PART * page


def _quotas(root: Path) -> Iterator[float]:
    """In processors, of the group that this process is in and of each one around it."""
    for folder in _folders(root, ""):
        with suppress(OSError, ValueError, ZeroDivisionError):
            quota, period = (folder / "cpu.max").read_text().split()
            yield int(quota) / int(period)  # or "max"
    for folder in _folders(root, "cpu"):
        with suppress(OSError, ValueError, ZeroDivisionError):
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
            yield int(quota) / int(period)  # or -1


def _folders(root: Path, controller: str) -> Iterator[Path]:
    """Where the settings of a control group are, and of those around it; an empty `controller` is version 2.

    In a container the path is often that of the machine, and what is there is the container's: so each end counts.
    """
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controller in controllers.split(","):
                for mount in (controllers, controller, "unified") if controller else (".", "unified"):
                    for group in (Path(path), *Path(path).parents):
                        yield root / _GROUPS / mount / str(group).lstrip("/")

"""The processors and memory that this process may use, according to its control groups (version 1 and 2).

A limit that cannot be read counts as no limit.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_GROUPS = Path("sys/fs/cgroup")
_TCP_PART = 16
"""Linux lets TCP use 1/16 of the memory, unless net.ipv4.tcp_mem is set."""


def processors(root: Path = Path("/")) -> int:
    """Return how many processors this process may use: those of its affinity, or its CPU quota if that is less.

    :param root: the folder of /proc and /sys.
    """
    quotas = [quota for quota in _quotas(root) if quota > 0]
    return max(1, min([len(os.sched_getaffinity(0)), *(math.ceil(quota) for quota in quotas)]))


def memory(root: Path = Path("/")) -> int:
    """Return the bytes of memory for this process: the machine's, or the limit of its group if that is less."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for folder, name in [
        *((folder, "memory.max") for folder in _folders(root, "")),
        *((folder, "memory.limit_in_bytes") for folder in _folders(root, "memory")),
    ]:
        with suppress(OSError, ValueError):
            limits.append(int((folder / name).read_text()))
    return min(limits)


def tcp_memory(root: Path = Path("/")) -> int:
    """Return how many bytes of memory the kernel uses for TCP before it comes under pressure.

    Where the kernel does not tell, as in a container, this is its default.
    """
    page = os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, ValueError, IndexError):
        return int((root / "proc/sys/net/ipv4/tcp_mem").read_text().split()[1]) * page
    return os.sysconf("SC_PHYS_PAGES") // _TCP_PART * page


def _quotas(root: Path) -> Iterator[float]:
    """Yield the CPU quotas of this process's control group and of all its ancestors, in processors."""
    for folder in _folders(root, ""):
        with suppress(OSError, ValueError, ZeroDivisionError):
            quota, period = (folder / "cpu.max").read_text().split()
            yield int(quota) / int(period)  # "max" is a ValueError: no quota
    for folder in _folders(root, "cpu"):
        with suppress(OSError, ValueError, ZeroDivisionError):
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
            yield int(quota) / int(period)  # -1: no quota


def _folders(root: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of this process's control group and of its ancestors; an empty `controller` means version 2.

    In a container the path may be that of the host while the mounted tree is the container's, so all ancestors count.
    """
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controller in controllers.split(","):
                for mount in (controllers, controller, "unified") if controller else (".", "unified"):
                    for group in (Path(path), *Path(path).parents):
                        yield root / _GROUPS / mount / str(group).lstrip("/")

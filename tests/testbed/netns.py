"""Network namespaces: make them, step into them, find what runs in them, remove them.

They are those of iproute2 (``ip netns``), so people find them with its commands. All of this needs root.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_FOLDER = Path("/run/netns")
_CLONE_NEWNET = 0x40000000
_GRACE = 5.0

_libc = ctypes.CDLL(None, use_errno=True)


def missing() -> str | None:
    """Return what this machine or user lacks for a testbed, or None."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "network namespaces need root"
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "there is no /dev/net/tun"
    probe = f"stprobe{os.getpid()}"
    try:
        ip(f"netns add {probe}")
        try:
            ip("link set lo up", "link add lan0 type veth peer name lan1", namespace=probe)
        finally:
            ip(f"netns delete {probe}")
    except (OSError, subprocess.CalledProcessError) as problem:
        return f"no network namespaces with veth: {getattr(problem, 'stderr', None) or problem}".strip()
    return None


def ip(*commands: str, namespace: str | None = None) -> None:
    """Run commands of iproute2, such as ``link set lo up``, in order, as one process.

    :raises subprocess.CalledProcessError: if one is refused; its `stderr` says why.
    """
    where = ["-n", namespace] if namespace else []
    subprocess.run(
        ["ip", *where, "-batch", "-"], input="\n".join(commands), text=True, check=True, capture_output=True, timeout=60
    )


def names() -> set[str]:
    """All namespaces there are."""
    return {entry.name for entry in _FOLDER.iterdir()} if _FOLDER.is_dir() else set()


@contextmanager
def inside(name: str) -> Iterator[None]:
    """Move this thread into the namespace meanwhile: a socket or tun device created here belongs to it permanently."""
    with open("/proc/thread-self/ns/net", "rb") as home, open(_FOLDER / name, "rb") as there:
        _enter(there.fileno())
        try:
            yield
        finally:
            _enter(home.fileno())


def _enter(fd: int) -> None:
    if _libc.setns(fd, _CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def processes(namespaces: Iterable[str]) -> set[int]:
    """Return the live processes in any of these namespaces."""
    wanted = {(stat.st_dev, stat.st_ino) for stat in (os.stat(_FOLDER / name) for name in namespaces)}
    found = set()
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with suppress(OSError):  # it has ended meanwhile
                stat = os.stat(f"/proc/{entry.name}/ns/net")
                if (stat.st_dev, stat.st_ino) in wanted:
                    found.add(int(entry.name))
    return found


def remove(namespaces: Iterable[str]) -> None:
    """End all that runs in these namespaces, and delete those that there are."""
    there = sorted(set(namespaces) & names())
    for number, timeout in ((signal.SIGTERM, _GRACE), (signal.SIGKILL, _GRACE)):
        _end(processes(there), number, timeout)
    for name in there:
        ip(f"netns delete {name}")


def _end(pids: set[int], number: signal.Signals, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    running = []
    for pid in pids:
        with suppress(ProcessLookupError):
            running.append(os.pidfd_open(pid))
            signal.pidfd_send_signal(running[-1], number)
    for fd in running:  # readable once the process has ended
        ended = select.poll()  # as select() takes no descriptor above 1,023
        ended.register(fd, select.POLLIN)
        ended.poll(max(0.0, deadline - time.monotonic()) * 1000)
        os.close(fd)

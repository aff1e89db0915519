"""One congestion control for all programs of a run: the default of network namespaces that end with the run.

The machine's own default stays as it is. Linux gives a namespace only a default that every user may choose: for the
moment in which the default is set, the congestion control is added to those (`tcp_allowed_congestion_control`).
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from bench import peers
from bench.errors import SkippedError

NAMES = ("cubic", "bbr")
_SETTINGS = Path("/proc/sys/net/ipv4")
_DEFAULT, _AVAILABLE, _ALLOWED = (
    _SETTINGS / f"tcp_{name}congestion_control" for name in ("", "available_", "allowed_")
)
_CLONE_NEWNET = 0x40000000

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class ForAll:
    """The congestion control of all programs of a run.

    :param machine: the file of the machine's own network namespace, which other processes of root can open, too.
    """

    name: str
    machine: Path

    def set_default(self) -> None:
        """Make it the default of the network namespace of this thread.

        :raises SkippedError: if the kernel does not allow it.
        """
        available = _AVAILABLE.read_text().split()
        if self.name not in available:
            raise SkippedError(f"--congestion {self.name}: this kernel does not have it, but {', '.join(available)}")
        try:
            with self._allowed():
                _DEFAULT.write_text(self.name)
        except OSError as problem:
            why = problem.strerror
            raise SkippedError(f"--congestion {self.name}: this kernel does not allow it ({why})") from None

    @contextmanager
    def _allowed(self) -> Iterator[None]:
        """Let every user choose it meanwhile."""
        with open("/proc/thread-self/ns/net", "rb") as home:
            with self.machine.open("rb") as machine:
                _enter(machine)
            try:
                file = _ALLOWED.open("r+")  # which stays that of the machine
            finally:
                _enter(home)
        with file:
            before = file.read().split()
            if self.name in before:
                yield
                return
            _write(file, [*before, self.name])
            try:
                yield
            finally:
                _write(file, before)


def use_for_all(name: str) -> ForAll:
    """Move this process into a network namespace of its own, where connections use this congestion control.

    Only processes that it starts afterwards, and threads, are there as well.

    :raises SkippedError: if the user is not root, or the kernel does not allow it.
    """
    if os.geteuid() != 0:
        raise SkippedError(f"--congestion {name}: needs root, for a network namespace with this congestion control")
    machine = os.open("/proc/self/ns/net", os.O_RDONLY)  # stays open as long as this process runs
    if _libc.unshare(_CLONE_NEWNET) != 0:
        raise SkippedError(f"--congestion {name}: no network namespace ({os.strerror(ctypes.get_errno())})")
    everywhere = ForAll(name, Path(f"/proc/{os.getpid()}/fd/{machine}"))
    everywhere.set_default()
    subprocess.run([peers.found("ip"), "link", "set", "lo", "up"], check=True, timeout=60)
    return everywhere


def _write(file: IO[str], names: list[str]) -> None:
    file.seek(0)
    file.write(" ".join(names))
    file.flush()


def _enter(namespace: IO[bytes]) -> None:
    if _libc.setns(namespace.fileno(), _CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def system_default() -> str:
    """Return the name of the system's congestion control."""
    return _DEFAULT.read_text().strip()

"""What the commands and the daemons ask of the kernel for their own process.

The library asks for none of it: a process that it runs in belongs to somebody else.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys

_PR_SET_PDEATHSIG = 1
_PR_GET_DUMPABLE = 3
_PR_SET_DUMPABLE = 4


def take_secret_variable(name: str) -> str:
    """Take a variable out of the environment, and out of what the kernel shows of it to others in /proc.

    :returns: its value; an empty string if it is not set.
    """
    if os.environ.get(name):
        libc = ctypes.CDLL(None)
        libc.getenv.restype = ctypes.c_void_p
        place = libc.getenv(os.fsencode(name))
        if place:
            ctypes.memset(place, 0, len(ctypes.string_at(place)))
    return os.environ.pop(name, "")


def keep_secrets(*, no_core: bool = True) -> None:
    """Keys and join strings are in this process's memory, and are to stay there.

    Afterwards it writes no core file, and other processes of its user can neither trace it nor read its memory, or
    the environment that it was started with, in /proc; the administrator (CAP_SYS_PTRACE) still can. Most of its files
    in /proc belong to root from then on. A program that it starts is an ordinary one again.

    :param no_core: set the limit of core files to 0, too; programs that this process starts inherit it.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0 or libc.prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0) != 0:
            code = ctypes.get_errno()
            raise OSError(code, f"the kernel does not keep this process's memory private: {os.strerror(code)}")
    if no_core:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def end_with(parent: int) -> None:
    """Be killed when the process that started this one ends, however that comes about.

    :param parent: its id; it may be gone already.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        raise SystemExit(f"process {parent}, which started this one, is gone")


def raise_descriptor_limit() -> None:
    """Each connection takes descriptors: take as many as this process may have."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

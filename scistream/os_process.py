"""Kernel settings that the commands and daemons make for their own process.

The library changes none of them, since it runs in other people's processes.
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
    """Remove a variable from the environment, and from its copy in /proc that other processes can read.

    :returns: its value; an empty string if it is not set.
    """
    if os.environ.get(name):
        libc = ctypes.CDLL(None)
        libc.getenv.restype = ctypes.c_void_p
        address = libc.getenv(os.fsencode(name))
        if address:
            ctypes.memset(address, 0, len(ctypes.string_at(address)))
    return os.environ.pop(name, "")


def keep_secrets(*, no_core: bool = True) -> None:
    """Protect the keys and join strings in this process's memory.

    The process writes no core file from now on, and other processes of the same user can neither trace it nor read its
    memory or initial environment in /proc; the administrator (CAP_SYS_PTRACE) still can. Most of its files in /proc
    then belong to root. Programs that it starts are not affected.

    :param no_core: also set the limit of core files to 0, which programs that this process starts inherit.
    :raises OSError: if the kernel refuses.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0 or libc.prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0) != 0:
            code = ctypes.get_errno()
            raise OSError(code, f"the kernel refuses to keep this process's memory private: {os.strerror(code)}")
    if no_core:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def end_with(parent: int) -> None:
    """Let the kernel kill this process when its parent ends, however it ends.

    :param parent: the parent's process id.
    :raises SystemExit: if the parent has ended already.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        raise SystemExit(f"the parent process {parent} has ended")


def raise_descriptor_limit() -> None:
    """Raise the limit of open files as far as allowed, since each connection needs several."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

"""Sockets of Multipath TCP (MPTCP): TCP whose connections may use several paths at once.

With a peer that does not know it, or through a middlebox that removes its option, a connection is plain TCP.
"""

from __future__ import annotations

import errno
import os
import socket

PROTOCOL = getattr(socket, "IPPROTO_MPTCP", 262)
_LACKING = frozenset({errno.EPROTONOSUPPORT, errno.ENOPROTOOPT, errno.EINVAL})
_ENABLE = "sysctl -w net.mptcp.enabled=1"


def lack() -> str | None:
    """Return why this process cannot have sockets of MPTCP, with the remedy; None if it can."""
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, PROTOCOL).close()
    except OSError as problem:
        if problem.errno == errno.ENOPROTOOPT:
            return f"Multipath TCP is switched off on this system: switch it on with `{_ENABLE}`"
        if problem.errno in _LACKING:
            return "this kernel has no Multipath TCP: use Linux 5.6 or later with CONFIG_MPTCP"
        return f"this system refuses sockets of Multipath TCP: {os.strerror(problem.errno or errno.EIO)}"
    return None


def tcp_socket(family: int, *, multipath: bool) -> socket.socket:
    """Return a new socket of TCP.

    :param multipath: whether it may use several paths. Without MPTCP in the system it is plain TCP.
    :raises OSError: if the system gives none.
    """
    if multipath:
        try:
            return socket.socket(family, socket.SOCK_STREAM, PROTOCOL)
        except OSError as problem:
            if problem.errno not in _LACKING:
                raise
    return socket.socket(family, socket.SOCK_STREAM)


def is_multipath(sock: socket.socket) -> bool:
    """Return True if this is a socket of MPTCP, which refuses some options of TCP."""
    return sock.proto == PROTOCOL

"""Sockets of Multipath TCP (MPTCP): TCP whose connections may use several paths at once.

With a peer that does not know it, or through a middlebox that removes its option, a connection is plain TCP.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from typing import NamedTuple

PROTOCOL = getattr(socket, "IPPROTO_MPTCP", 262)
_LACKING = frozenset({errno.EPROTONOSUPPORT, errno.ENOPROTOOPT, errno.EINVAL})
_LEVEL = 284
_INFO, _TCP_INFO, _ADDRESSES = 1, 2, 3
_HEADER = struct.Struct("@4I")  # struct mptcp_subflow_data
_NAMES = 256  # the size of struct mptcp_subflow_addrs, in whose halves are the local and the remote address
_MOST_SUBFLOWS = 32
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


class Totals(NamedTuple):
    """The figures of a connection over all its paths, ended ones included.

    :param retransmitted: bytes sent again over another path.
    :param silent: seconds since something was received.
    """

    received: int
    acknowledged: int
    retransmitted: int
    silent: float


def totals(sock: socket.socket) -> Totals | None:
    """Return the figures of a connection over all its paths; None if it is plain TCP or the kernel does not tell them.

    :raises OSError: if the socket is closed.
    """
    try:
        packed = sock.getsockopt(_LEVEL, _INFO, 96)
    except OSError as problem:
        if problem.errno == errno.EBADF:
            raise
        return None
    if len(packed) < 80:  # before Linux 6.5
        return None
    retransmitted, _sent, received, acknowledged = struct.unpack_from("@4Q", packed, 48)
    silent = min(struct.unpack_from("@2I", packed, 88)) / 1000 if len(packed) >= 96 else 0.0
    return Totals(received, acknowledged, retransmitted, silent)


def subflow_infos(sock: socket.socket, size: int) -> list[bytes] | None:
    """Return the first `size` bytes of struct tcp_info for each open path of a connection; None if it is plain TCP."""
    return _of_each_subflow(sock, _TCP_INFO, size)


def subflow_addresses(sock: socket.socket) -> list[tuple[str, str]] | None:
    """Return the local and the remote address of each open path, in the order of `subflow_infos`."""
    found = _of_each_subflow(sock, _ADDRESSES, _NAMES)
    if found is None:
        return None
    return [(_address(each[: _NAMES // 2]), _address(each[_NAMES // 2 :])) for each in found]


def _address(packed: bytes) -> str:
    (family,) = struct.unpack_from("@H", packed)
    if family == socket.AF_INET6:
        return socket.inet_ntop(family, packed[8:24]).removeprefix("::ffff:")
    return socket.inet_ntop(socket.AF_INET, packed[4:8])


def _of_each_subflow(sock: socket.socket, option: int, size: int) -> list[bytes] | None:
    """Call `getsockopt` with an option whose buffer has a header and an array; Python's own passes no header in."""
    buffer = ctypes.create_string_buffer(_HEADER.size + size * _MOST_SUBFLOWS)
    _HEADER.pack_into(buffer, 0, _HEADER.size, 0, 0, size)
    length = ctypes.c_uint32(len(buffer))
    if _libc.getsockopt(sock.fileno(), _LEVEL, option, buffer, ctypes.byref(length)) != 0:
        return None
    _, count, _, each = _HEADER.unpack_from(buffer)
    raw = buffer.raw
    starts = range(_HEADER.size, _HEADER.size + min(count, _MOST_SUBFLOWS) * each, each)
    return [raw[at : at + each].ljust(size, b"\0") for at in starts]


_libc = ctypes.CDLL(None, use_errno=True)

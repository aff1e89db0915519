"""Sockets of Multipath TCP (MPTCP): TCP whose connections may use several paths at once.

With a peer that does not know it, or through a middlebox that removes its option, a connection is plain TCP.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from contextlib import suppress
from typing import NamedTuple

PROTOCOL = getattr(socket, "IPPROTO_MPTCP", 262)
_LACKING = frozenset({errno.EPROTONOSUPPORT, errno.ENOPROTOOPT, errno.EINVAL})
_LEVEL = 284
_INFO, _TCP_INFO, _ADDRESSES, _FULL_INFO = 1, 2, 3, 4
_HEADER = struct.Struct("@4I")  # struct mptcp_subflow_data
_FULL = struct.Struct("@6I2Q")  # struct mptcp_full_info without its struct mptcp_info, for which it has room
_ROOM = 256
_NAMES = 256  # the size of struct mptcp_subflow_addrs, in whose halves are the local and the remote address
_NUMBERED = 8 + _NAMES  # struct mptcp_subflow_info: a number, padding, and the addresses
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


def tcp_socket(family: int, *, multipath: bool, mixed: bool = False) -> socket.socket:
    """Return a new socket of TCP.

    :param multipath: whether it may use several paths. Without MPTCP in the system it is plain TCP.
    :param mixed: whether these may be of both IPv4 and IPv6. A socket for IPv4 is one of IPv6 then, since the kernel
        gives one of IPv4 no path over IPv6: bind and connect it to an `address_for` it.
    :raises OSError: if the system gives none.
    """
    if multipath:
        try:
            if mixed and family == socket.AF_INET:
                with suppress(OSError):  # a system without IPv6
                    return _of_both_families()
            return socket.socket(family, socket.SOCK_STREAM, PROTOCOL)
        except OSError as problem:
            if problem.errno not in _LACKING:
                raise
    return socket.socket(family, socket.SOCK_STREAM)


def _of_both_families() -> socket.socket:
    sock = socket.socket(socket.AF_INET6, socket.SOCK_STREAM, PROTOCOL)
    try:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    except BaseException:
        sock.close()
        raise
    return sock


_MAPPED = "::ffff:"


def address_for(sock: socket.socket, host: str) -> str:
    """Return a numeric address as a socket needs it: one of IPv6 needs addresses of IPv4 in its own form."""
    return f"{_MAPPED}{host}" if sock.family == socket.AF_INET6 and ":" not in host else host


def plain_address(host: str) -> str:
    """Return an address of IPv4 in its usual form, and any other one as it is."""
    return host.removeprefix(_MAPPED)


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


class Subflow(NamedTuple):
    """One path of one connection.

    :param local: its numeric address here; `remote` is the one at the other end. Both are empty if not known.
    :param ports: the ports that belong to them, which tell it from other ones between the same addresses.
    :param info: its struct tcp_info.
    """

    local: str
    remote: str
    ports: tuple[int, int]
    info: bytes


def subflows(sock: socket.socket, size: int) -> list[Subflow] | None:
    """Return the paths of a connection, at most 32; None if it is plain TCP.

    :param size: how many bytes of each struct tcp_info to return.
    """
    found = _all_at_once(sock, size)
    if found is None:  # plain TCP, or a kernel before Linux 6.5
        infos = _of_each_subflow(sock, _TCP_INFO, size)
        if infos is None:
            return None
        names = _of_each_subflow(sock, _ADDRESSES, _NAMES) or []
        if len(names) != len(infos):  # one came or went between the two calls
            names = [bytes(_NAMES)] * len(infos)
        found = list(zip(names, infos, strict=True))
    half = _NAMES // 2
    return [
        Subflow(_address(names[:half]), _address(names[half:]), (_port(names[:half]), _port(names[half:])), info)
        for names, info in found
    ]


def _all_at_once(sock: socket.socket, size: int) -> list[tuple[bytes, bytes]] | None:
    """Return the addresses and the struct tcp_info of each path, all of one moment; None if the kernel does not."""
    _FULL.pack_into(_full, 0, 0, size, 0, _NUMBERED, 0, min(_MOST_SUBFLOWS, len(_infos) // size), *_PLACES)
    length = ctypes.c_uint32(len(_full))
    if _libc.getsockopt(sock.fileno(), _LEVEL, _FULL_INFO, _full, ctypes.byref(length)) != 0:
        return None
    count = min(_FULL.unpack_from(_full)[4], _MOST_SUBFLOWS, len(_infos) // size)
    names = ctypes.string_at(_PLACES[0], count * _NUMBERED)
    infos = ctypes.string_at(_PLACES[1], count * size)
    return [
        (names[at * _NUMBERED + _NUMBERED - _NAMES : (at + 1) * _NUMBERED], infos[at * size : (at + 1) * size])
        for at in range(count)
    ]


def _port(packed: bytes) -> int:
    return int.from_bytes(packed[2:4], "big")


def _address(packed: bytes) -> str:
    (family,) = struct.unpack_from("@H", packed)
    if not family:
        return ""
    if family == socket.AF_INET6:
        return plain_address(socket.inet_ntop(family, packed[8:24]))
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
_full = ctypes.create_string_buffer(_FULL.size + _ROOM)
_names = ctypes.create_string_buffer(_NUMBERED * _MOST_SUBFLOWS)
_infos = ctypes.create_string_buffer(256 * _MOST_SUBFLOWS)
_PLACES = ctypes.addressof(_names), ctypes.addressof(_infos)
"""Buffers that each call uses again, in the one thread that has sockets."""

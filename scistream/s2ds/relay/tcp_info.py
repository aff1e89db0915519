"""The kernel's figures for a TCP connection: round-trip time, retransmits and rates, and the bytes in its buffers."""

from __future__ import annotations

import fcntl
import socket
import struct
import termios
from typing import NamedTuple

from scistream.s2ds.relay import mptcp

_TCP_INFO = struct.Struct("@8B24IQQQQ6IQ")  # struct tcp_info as far as tcpi_delivery_rate
_RETRANSMITS, _PROBES, _LAST_DATA_RECEIVED, _LAST_ACK_RECEIVED, _RTT, _TOTAL_RETRANS = 2, 3, 19, 20, 23, 31
_MIN_RTT, _DELIVERY_RATE = 39, 42
_BYTES_ACKED, _BYTES_RECEIVED = 34, 35
_CLOSED = 7  # TCP_CLOSE
_USABLE = frozenset({1, 4, 5, 8})  # TCP_ESTABLISHED, TCP_FIN_WAIT1, TCP_FIN_WAIT2, TCP_CLOSE_WAIT
_OUTQ_NOT_SENT = 0x894B  # SIOCOUTQNSD
_COUNT = struct.Struct("@i")
_NONE = bytes(_COUNT.size)


class TcpInfo(NamedTuple):
    """The state of a connection, in seconds and bytes.

    :param retransmits: retransmits of the segment that waits for an acknowledgement.
    :param probes: probes of a closed window or an idle peer that are not answered.
    :param silent: time since something was received.
    :param rtt: the smoothed round-trip time.
    :param min_rtt: the least round-trip time of the last minutes: that of the path without queues.
    :param total_retrans: segments retransmitted since the connection was opened.
    :param delivery_rate: the latest rate, per second.
    :param received: bytes received since the connection was opened.
    :param acknowledged: bytes sent and acknowledged since the connection was opened.
    """

    retransmits: int
    probes: int
    silent: float
    rtt: float
    min_rtt: float
    total_retrans: int
    delivery_rate: int
    received: int
    acknowledged: int


def tcp_info(sock: socket.socket) -> TcpInfo:
    """Return the state of a connection.

    :raises OSError: if the socket is closed.
    """
    return connection_info(sock)[0]


class PathInfo(NamedTuple):
    """The state of one path of a connection.

    :param local: its numeric address here; `remote` is the one at the other end. Both are empty if not known.
    :param ports: the ports that belong to them, which tell it from other paths between the same addresses.
    :param is_up: whether it is open and, as far as is known, delivers.
    """

    local: str
    remote: str
    ports: tuple[int, int]
    is_up: bool
    info: TcpInfo


def connection_info(sock: socket.socket) -> tuple[TcpInfo, list[PathInfo]]:
    """Return the state of a connection, and of each path of one that may have several.

    :raises OSError: if the socket is closed.
    """
    if mptcp.is_multipath(sock):
        found = mptcp.subflows(sock, _TCP_INFO.size)
        if found is not None:
            paths = [(each.info[0], _path(each)) for each in found]
            still_open = [path.info for state, path in paths if state != _CLOSED]  # the first one stays listed
            return over_all_paths(still_open, mptcp.totals(sock)), [path for _, path in paths]
    return _parse(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)), []


def paths_of(sock: socket.socket) -> list[PathInfo]:
    """Return the state of each path of a connection; none if it has only one, since it is plain TCP."""
    found = mptcp.subflows(sock, _TCP_INFO.size) if mptcp.is_multipath(sock) else None
    return [_path(each) for each in found or ()]


def _path(subflow: mptcp.Subflow) -> PathInfo:
    info = _parse(subflow.info)
    is_up = subflow.info[0] in _USABLE and info.retransmits < 2 and info.probes < 2  # one answer may be on its way
    return PathInfo(subflow.local, subflow.remote, subflow.ports, is_up, info)


def over_all_paths(paths: list[TcpInfo], totals: mptcp.Totals | None) -> TcpInfo:
    """Return the state of a connection with several paths: it is as well as the best of them."""
    if not paths:  # the kernel waits for another one for a while
        return TcpInfo(1, 2, totals.silent if totals else 0.0, 0.0, 0.0, 0, 0, *(totals[:2] if totals else (0, 0)))
    best = min(paths, key=lambda path: (path.retransmits > 0, path.probes > 1, path.silent))
    return TcpInfo(
        retransmits=best.retransmits,
        probes=best.probes,
        silent=min(path.silent for path in paths),
        rtt=best.rtt,
        min_rtt=min(path.min_rtt for path in paths),
        total_retrans=sum(path.total_retrans for path in paths),
        delivery_rate=sum(path.delivery_rate for path in paths),
        received=totals.received if totals else sum(path.received for path in paths),
        acknowledged=totals.acknowledged if totals else sum(path.acknowledged for path in paths),
    )


def _parse(packed: bytes) -> TcpInfo:
    info = _TCP_INFO.unpack(packed.ljust(_TCP_INFO.size, b"\0"))  # older kernels return a shorter structure
    return TcpInfo(
        retransmits=info[_RETRANSMITS],
        probes=info[_PROBES],
        silent=min(info[_LAST_DATA_RECEIVED], info[_LAST_ACK_RECEIVED]) / 1000,
        rtt=info[_RTT] / 1e6,
        min_rtt=info[_MIN_RTT] / 1e6,
        total_retrans=info[_TOTAL_RETRANS],
        delivery_rate=info[_DELIVERY_RATE],
        received=info[_BYTES_RECEIVED],
        acknowledged=info[_BYTES_ACKED],
    )


def bytes_to_send(sock: socket.socket) -> int:
    """Return how many bytes in the send buffer the peer has not acknowledged.

    :raises OSError: if the socket is closed.
    """
    return int(_COUNT.unpack(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, _NONE))[0])


class WaitingBytes(NamedTuple):
    """The number of bytes in a socket's buffers.

    :param in_all: bytes to be read, and bytes that are not acknowledged.
    :param unsent: bytes to be read, and bytes that are not sent.
    """

    in_all: int
    unsent: int


def bytes_waiting(sock: socket.socket) -> WaitingBytes:
    """Return how many bytes are in a socket's buffers.

    :raises OSError: if the socket is closed.
    """
    fd = sock.fileno()
    to_read, to_send, unsent = (
        int(_COUNT.unpack(fcntl.ioctl(fd, request, _NONE))[0])
        for request in (termios.FIONREAD, termios.TIOCOUTQ, _OUTQ_NOT_SENT)
    )
    return WaitingBytes(to_read + to_send, to_read + unsent)

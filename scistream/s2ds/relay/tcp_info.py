"""The kernel's figures for a TCP connection: round-trip time, retransmits and rates, and the bytes in its buffers."""

from __future__ import annotations

import fcntl
import socket
import struct
import termios
from typing import NamedTuple

_TCP_INFO = struct.Struct("@8B24IQQQQ6IQ")  # struct tcp_info as far as tcpi_delivery_rate
_RETRANSMITS, _PROBES, _LAST_DATA_RECEIVED, _LAST_ACK_RECEIVED, _RTT, _TOTAL_RETRANS = 2, 3, 19, 20, 23, 31
_MIN_RTT, _DELIVERY_RATE = 39, 42
_BYTES_ACKED, _BYTES_RECEIVED = 34, 35
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
    packed = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
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

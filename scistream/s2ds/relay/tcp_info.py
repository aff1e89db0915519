"""What the kernel knows of a TCP connection: the figures of the WAN, and the bytes that wait in a socket."""

from __future__ import annotations

import fcntl
import socket
import struct
import termios
from typing import NamedTuple

_TCP_INFO = struct.Struct("@8B24IQQQQ6IQ")  # struct tcp_info as far as tcpi_delivery_rate
_RETRANSMITS, _PROBES, _LAST_DATA_RECEIVED, _LAST_ACK_RECEIVED, _RTT, _TOTAL_RETRANS = 2, 3, 19, 20, 23, 31
_DELIVERY_RATE = 42
_BYTES_ACKED, _BYTES_RECEIVED = 34, 35
_OUTQ_NOT_SENT = 0x894B  # SIOCOUTQNSD
_COUNT = struct.Struct("@i")
_NONE = bytes(_COUNT.size)


class TcpInfo(NamedTuple):
    """The state of a connection; seconds and bytes.

    :param retransmits: of what waits for an acknowledgement now.
    :param probes: of a closed window, or of silence, that wait for an answer.
    :param silent: since something last came.
    :param rtt: the smoothed round-trip time.
    :param total_retrans: segments that were ever sent again.
    :param delivery_rate: the latest, a second.
    :param received: bytes, since it was opened.
    :param acknowledged: bytes that were sent and have arrived, since then.
    """

    retransmits: int
    probes: int
    silent: float
    rtt: float
    total_retrans: int
    delivery_rate: int
    received: int
    acknowledged: int


def tcp_info(sock: socket.socket) -> TcpInfo:
    """Ask the kernel.

    :raises OSError: it is closed.
    """
    told = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
    info = _TCP_INFO.unpack(told.ljust(_TCP_INFO.size, b"\0"))  # an old kernel tells less
    return TcpInfo(
        retransmits=info[_RETRANSMITS],
        probes=info[_PROBES],
        silent=min(info[_LAST_DATA_RECEIVED], info[_LAST_ACK_RECEIVED]) / 1000,
        rtt=info[_RTT] / 1e6,
        total_retrans=info[_TOTAL_RETRANS],
        delivery_rate=info[_DELIVERY_RATE],
        received=info[_BYTES_RECEIVED],
        acknowledged=info[_BYTES_ACKED],
    )


def bytes_to_send(sock: socket.socket) -> int:
    """How many bytes its far end has not acknowledged.

    :raises OSError: it is closed.
    """
    return int(_COUNT.unpack(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, _NONE))[0])


class WaitingBytes(NamedTuple):
    """Bytes in a socket's buffers.

    :param in_all: those to be read, and those that are not acknowledged.
    :param unsent: the same without those that are on their way.
    """

    in_all: int
    unsent: int


def bytes_waiting(sock: socket.socket) -> WaitingBytes:
    """How many bytes are in its socket's buffers.

    :raises OSError: it is closed.
    """
    fd = sock.fileno()
    to_read, to_send, unsent = (
        int(_COUNT.unpack(fcntl.ioctl(fd, request, _NONE))[0])
        for request in (termios.FIONREAD, termios.TIOCOUTQ, _OUTQ_NOT_SENT)
    )
    return WaitingBytes(to_read + to_send, to_read + unsent)

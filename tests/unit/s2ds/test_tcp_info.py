"""What the kernel tells of the bytes in a socket's buffers."""

from __future__ import annotations

import contextlib
import socket

from scistream.s2ds.relay.tcp_info import bytes_waiting
from support.waiting import until


def test_bytes_that_nobody_reads_are_counted_once_at_either_end_and_none_when_all_is_read() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname(), timeout=10) as sender,
        listener.accept()[0] as receiver,
    ):
        assert bytes_waiting(sender) == bytes_waiting(receiver) == (0, 0)
        sender.setblocking(False)
        sent = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                sent += sender.send(bytes(65536))

        def waiting() -> int:
            return bytes_waiting(sender).in_all + bytes_waiting(receiver).in_all

        until(lambda: waiting() == sent, lambda: f"{waiting()} of {sent} bytes wait at either end")
        there, here = bytes_waiting(receiver), bytes_waiting(sender)
        assert there.in_all == there.unsent > 0
        assert 0 < here.unsent <= here.in_all
        receiver.settimeout(20.0)
        got = 0
        while got < sent:
            got += len(receiver.recv(2**20))
        until(lambda: bytes_waiting(sender) == (0, 0), lambda: "what was read is not acknowledged")
        assert bytes_waiting(receiver) == (0, 0)

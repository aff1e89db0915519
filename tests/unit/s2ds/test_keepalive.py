"""When the connections of a relay are probed while they are idle."""

from __future__ import annotations

import random
import socket

import pytest

from scistream.s2ds.relay.leg import keepalive, prepare


@pytest.mark.parametrize("timeout", [0.5, 1.0, 2.0, 5.0, 30.0, 60.0, 600.0, 86400.0])
@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
def test_probes_last_as_long_as_a_break_may_and_little_longer(timeout: float, place: float) -> None:
    first, between, count = keepalive(timeout, place)
    assert 1 <= count <= 127  # as many as the kernel takes
    assert timeout <= first + between * count <= timeout + between + 1


def test_thousands_of_idle_connections_are_not_probed_in_the_same_moment() -> None:
    firsts = [keepalive(60.0, random.random())[0] for _ in range(1000)]
    assert max(firsts) <= 15
    assert all(firsts.count(second) < 300 for second in set(firsts))


def test_the_kernel_takes_what_is_asked_of_it() -> None:
    with socket.socket() as sock:
        prepare(sock, 600.0)
        options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        idle, between, count = (sock.getsockopt(socket.IPPROTO_TCP, option) for option in options)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert 7 <= idle <= 15
        assert idle + between * count >= 600

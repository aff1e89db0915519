"""Applications that come and go, and facilities that reload their configuration under load."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable

import pytest
from duplex_traffic import Exchange
from harness import World, free_ports, together

from support.applications import MIB, accept, noise, receive, sha256
from support.facilities import HOST
from support.waiting import until

pytestmark = pytest.mark.usefixtures("linux")

PUMPS = 10
ATTEMPTS = 20
NOISE = noise(MIB + 7)


def is_reset(connect: Callable[[], socket.socket]) -> bool:
    """Return True if a connection to an application that is down ends by a reset."""
    try:
        with connect() as sock:
            sock.sendall(NOISE[:100])
            assert receive(sock) == b""
    except ConnectionError:
        return True
    return False


def says_all(sock: socket.socket) -> bytes:
    """Say all, and listen to the end."""
    with sock:
        sock.sendall(NOISE)
        sock.shutdown(socket.SHUT_WR)
        return receive(sock)


def test_a_producer_that_goes_down_and_comes_up_again_is_reached_whenever_it_is_up(world: World) -> None:
    port = free_ports()
    with world.unchanged(), world.stream([f"{HOST}:{port}"]) as stream:
        for _ in range(2):
            assert all(together(*[lambda: is_reset(stream.connect)] * ATTEMPTS))
            with socket.create_server((HOST, port)) as listener:
                listener.settimeout(30)
                for _ in range(3):
                    here, there = together(
                        lambda: says_all(stream.connect()),
                        lambda accepting=listener: says_all(accept(accepting)),
                    )
                    assert sha256(here) == sha256(there) == sha256(NOISE)


def test_a_reload_of_all_daemons_under_load_disturbs_no_byte_and_no_new_connection(
    fresh_world: Callable[..., World],
) -> None:
    wide = {"ports": PUMPS + 2}
    world = fresh_world(lab=wide, centre=wide)
    port = free_ports()
    with (
        Exchange(PUMPS) as exchange,
        world.stream(exchange.listen, PUMPS, "1Gbit") as stream,
        socket.create_server((HOST, port)) as listener,
        world.stream([f"{HOST}:{port}"], rate="1Gbit") as other,
    ):
        listener.settimeout(30)
        exchange.connect(stream.listeners)
        exchange.wait_for_more()
        for number in range(1, 4):
            for daemon in world.daemons:
                os.kill(daemon.pid, signal.SIGHUP)
            here, there = together(lambda: says_all(other.connect()), lambda: says_all(accept(listener)))
            assert sha256(here) == sha256(there) == sha256(NOISE)
            for daemon in world.daemons:
                until(lambda d=daemon, n=number: d.words().count(" reloaded ") >= n, daemon.words)
            exchange.wait_for_more()
        assert exchange.finish() == "whole"
